"""A whole control plane in this process: what is registered over REST, read over xDS."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from controlplane.app import control_plane
from controlplane.settings import Settings
from tests.xds.client import Response, XdsClient, XdsStream
from tests.xds.conformance.world import contents, names
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE

TYPES = (CLUSTER, ENDPOINT, LISTENER, ROUTE)


@dataclass(kw_only=True)
class Plane:
    """Speak both sides of a control plane."""

    url: str
    http: aiohttp.ClientSession
    client: XdsClient

    async def send(self, method: str, path: str, body: object = None) -> int:
        """Send a request; return its status."""
        async with self.http.request(method, f"{self.url}{path}", json=body) as answer:
            await answer.read()
            return answer.status

    async def register(self, service: str, id: str = "one", **fields: Any) -> None:
        """Register an instance, on an address of its own where none is given."""
        body = {"host": "10.0.0.1", "port": 8080, **fields}
        status = await self.send("PUT", f"/api/v1/services/{service}/instances/{id}", body)
        assert status in {200, 201}, status

    async def deregister(self, service: str, id: str = "one") -> None:
        """Take an instance out."""
        status = await self.send("DELETE", f"/api/v1/services/{service}/instances/{id}")
        assert status == 204, status

    async def batch(self, *operations: dict[str, Any]) -> None:
        """Make many writes in one request; each must be accepted."""
        async with self.http.post(f"{self.url}/api/v1/instances:batch", json={"operations": operations}) as answer:
            results = (await answer.json())["results"]
        assert all(result["status"] < 300 for result in results), results

    async def policy(self, service: str, **policy: Any) -> None:
        """Set a service's policy."""
        status = await self.send("PUT", f"/api/v1/services/{service}/policy", policy)
        assert status in {200, 201}, status

    async def published(self, *services: str) -> None:
        """Wait until these services' clusters are served."""
        stream = self.client.ads(delta=True)
        missing = {*services}
        await stream.subscribe(CLUSTER)
        while missing:
            response = await stream.expect(CLUSTER)
            await stream.ack(response)
            missing -= {*names(response)}
        await stream.half_close()

    async def envoy_like(self, *, delta: bool) -> tuple[XdsStream, dict[str, Response]]:
        """Open an aggregated stream that asks for everything as Envoy does; return what it was told first."""
        stream = self.client.ads(delta=delta)
        told: dict[str, Response] = {}
        wanted: list[str] = []
        for type_url in TYPES:
            if type_url == ENDPOINT and not wanted:
                continue
            await stream.subscribe(type_url, {ENDPOINT: wanted, ROUTE: ["gateway"]}.get(type_url, []))
            told[type_url] = await stream.expect(type_url)
            await stream.ack(told[type_url])
            wanted = names(told[type_url]) if type_url == CLUSTER else wanted
        return stream, told

    async def everything(self) -> dict[str, dict[str, Any]]:
        """Read all that an Envoy is told, decoded: type -> name -> message."""
        stream, told = await self.envoy_like(delta=True)
        await stream.half_close()
        return {type_url: contents(response) for type_url, response in told.items()}


@asynccontextmanager
async def running(*, data_dir: Path | None = None, **changes: Any) -> AsyncIterator[Plane]:
    """Run a control plane on free ports of loopback for as long as the block lasts."""
    loopback = "127.0.0.1"
    settings = Settings(
        **{
            "environment": "development",
            "service_host": loopback,
            "service_port": 0,
            "xds_host": loopback,
            "xds_port": 0,
            "gateway_host": loopback,
            "data_dir": data_dir,
            **changes,
        }
    )
    async with control_plane(settings) as bound:
        url = f"http://{loopback}:{bound.service_port}"
        async with aiohttp.ClientSession() as http, XdsClient(bound.xds_port) as client:
            yield Plane(url=url, http=http, client=client)
