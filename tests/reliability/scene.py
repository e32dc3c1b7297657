"""A service behind an Envoy, its registry, one control plane or several, and traffic through all of it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from harness import ControlPlane, Envoy, Traffic, Upstream, eventually, free_port, upstream
from reliability.backends import SERVICE, Backend, backend

QUICK_CHECK = {"type": "http", "http_path": "/health", "interval": 1, "timeout": 0.5, "unhealthy_threshold": 2}


@dataclass(kw_only=True)
class Scene:
    """Hold what a test plays with. `instances` are those that are registered, by id."""

    registry: Backend
    control_planes: list[ControlPlane]
    envoy: Envoy
    traffic: Traffic
    client: aiohttp.ClientSession
    stack: AsyncExitStack
    instances: dict[str, Upstream] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @property
    def control_plane(self) -> ControlPlane:
        return self.control_planes[0]

    async def add(self, id: str) -> None:
        """Start an instance, register it, and see Envoy send requests to it."""
        started = await self.stack.enter_async_context(upstream(id))
        self.instances[id] = started
        await self.registry.put(self.control_plane, id, started.port)
        await self.offered(id)

    async def register_again(self) -> None:
        """Register every instance anew, as services do whose registration is gone."""
        for id, instance in self.instances.items():
            await self.registry.put(self.control_plane, id, instance.port)

    async def remove(self, id: str) -> None:
        """Deregister an instance and see Envoy forget it; it goes on answering until the end."""
        await self.registry.delete(self.control_plane, id)
        address = f"127.0.0.1:{self.instances.pop(id).port}"

        async def gone() -> bool:
            return address not in await self.envoy.hosts(SERVICE)

        await eventually(gone, f"Envoy has forgotten {id}", patience_s=60)

    async def offered(self, id: str) -> None:
        before = self.instances[id].requests

        async def asked() -> bool:
            return self.instances[id].requests > before

        await eventually(asked, f"requests reach {id}", patience_s=60)

    async def ready(self, what: str, *, at: ControlPlane | None = None, patience_s: float = 60) -> None:
        """Wait until `/readyz?verbose` has a text in it."""

        async def says() -> bool:
            return what in await self.readiness(at)

        await eventually(says, f"/readyz says {what!r}; it says\n{await self.readiness(at)}", patience_s=patience_s)

    async def readiness(self, at: ControlPlane | None = None) -> str:
        async with self.client.get(f"{(at or self.control_plane).url}/readyz?verbose") as answer:
            return await answer.text()

    async def strategy(self) -> str:
        """Return how proxies are told to balance the service."""
        async with self.client.get(f"{self.control_plane.api}/services/{SERVICE}/policy") as answer:
            return str((await answer.json())["strategy"])

    async def hosts(self) -> set[int]:
        """Return the ports of the hosts that Envoy holds."""
        return {int(address.rpartition(":")[2]) for address in await self.envoy.hosts(SERVICE)}

    async def settled(self) -> None:
        """Show that the registry is followed again: a new instance comes, an old one goes, and nothing else changes."""
        await self.add("newcomer")
        await self.remove(next(iter(self.instances)))
        expected = {instance.port for instance in self.instances.values()}

        async def as_registered() -> bool:
            return await self.hosts() == expected

        await eventually(as_registered, f"Envoy holds {expected}; it holds {await self.hosts()}", patience_s=60)

    def report(self, what: str) -> None:
        """Print one row of the table of runs, and fail where any request did."""
        sent = self.traffic.seen.total() + len(self.traffic.failures)
        took = time.monotonic() - self.began
        print(f"\n| {self.registry.name} | {what} | {took:.0f} s | {sent:,} | {len(self.traffic.failures)} |")
        assert self.traffic.failures == []


@asynccontextmanager
async def scene(
    kind: str, folder: Path, *, replicas: int = 1, count: int = 4, checked: bool = False, **environ: str
) -> AsyncIterator[Scene]:
    """Play a service with `count` instances in a registry of that kind; traffic runs for as long as the block lasts."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=10),
            )
        )
        registry = await stack.enter_async_context(backend(kind, folder))
        gateway_port = free_port()
        control_planes = []
        for number in range(replicas):
            own = folder / f"control-plane-{number}"
            own.mkdir()
            control_plane = ControlPlane(
                folder=own,
                client=client,
                gateway_port=gateway_port,
                environ={"HEALTH_CHECK_INTERVAL": "2", **registry.environ(), **environ},
            )
            await control_plane.start()
            stack.push_async_callback(control_plane.stop)
            control_planes.append(control_plane)
        instances: dict[str, Upstream] = {}
        for number in range(count):
            id = f"web-{number}"
            instances[id] = await stack.enter_async_context(upstream(id))
            fields = {"health_check": QUICK_CHECK} if checked else {}
            await registry.put(control_planes[0], id, instances[id].port, **fields)
        envoy = Envoy(folder=folder, client=client, control_plane=control_planes[0], replicas=control_planes[1:])
        await envoy.start()
        stack.push_async_callback(envoy.stop)
        await envoy.serves(SERVICE, *instances)
        traffic = await stack.enter_async_context(Traffic(envoy, f"/{SERVICE}/", pause_s=0.02))
        yield Scene(
            registry=registry,
            control_planes=control_planes,
            envoy=envoy,
            traffic=traffic,
            client=client,
            stack=stack,
            instances=instances,
        )


async def for_a_while(seconds: float) -> None:
    """Let a fault last: how long it lasts is what is tested."""
    await asyncio.sleep(seconds)
