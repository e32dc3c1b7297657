"""gRPC clients without a proxy: grpcio's own `xds:///` resolver against the real control plane (K-01 to K-04)."""

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import PATIENCE_S, ControlPlane, eventually

from controlplane.bootstrap import grpc_bootstrap

pytestmark = pytest.mark.e2e

FILTERS = "type.googleapis.com/envoy.extensions.filters."
CALLER = Path(__file__).with_name("grpc_caller.py")


@asynccontextmanager
async def instance(name: str, health: grpc_health.aio.HealthServicer | None = None) -> AsyncIterator[int]:
    """Run a gRPC server that answers with its name, and to health checks if asked; give its port."""

    async def answer(_request: bytes, _context: Any) -> bytes:
        return name.encode()

    server = grpc.aio.server()
    handlers = {"Are": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Who", handlers),))
    if health is not None:
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0.5)


@asynccontextmanager
async def instances(control_plane: ControlPlane, service: str, **weights: int) -> AsyncIterator[dict[str, int]]:
    """Run instances and register them with their weights; give their ports."""
    async with AsyncExitStack() as stack:
        ports = {name: await stack.enter_async_context(instance(name)) for name in weights}
        for name, weight in weights.items():
            await control_plane.put(service, name, ports[name], weight=weight)
        yield ports


@dataclass(kw_only=True)
class Client:
    """Be a gRPC client in a process of its own, which calls over one channel and says what came back."""

    process: asyncio.subprocess.Process
    seen: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    async def listen(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            said = json.loads(line)
            if "name" in said:
                self.seen[said["name"]] += 1
            else:
                self.failures.append(said["error"])

    async def reaches(self, *names: str) -> None:
        """Wait until calls are answered by these instances and no other, each at least twice."""
        self.seen.clear()

        async def all_seen() -> bool:
            if set(self.seen) - set(names):
                self.seen.clear()
            return all(self.seen[name] >= 2 for name in names)

        await eventually(all_seen, f"calls are answered by {names}; seen {self.seen}, failed {self.failures[-3:]}")

    async def more(self, count: int) -> Counter[str]:
        """Wait for that many further calls; give who answered them."""
        self.seen.clear()
        failed = len(self.failures)

        async def enough() -> bool:
            return self.seen.total() + len(self.failures) - failed >= count

        await eventually(enough, f"{count} more calls")
        return Counter(self.seen)


@asynccontextmanager
async def calling(control_plane: ControlPlane, *targets: str, pause_s: float = 0.005) -> AsyncIterator[Client]:
    """Run a client that calls these targets until the block ends."""
    bootstrap = grpc_bootstrap(node_id="caller", xds=[("127.0.0.1", control_plane.xds_port)])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(CALLER), str(pause_s), *targets),
        env={"PATH": os.environ["PATH"], "GRPC_XDS_BOOTSTRAP_CONFIG": bootstrap},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    client = Client(process=process)
    listening = asyncio.create_task(client.listen())
    try:
        yield client
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), PATIENCE_S)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            await listening
    assert process.returncode == 0


async def nothing_refused(control_plane: ControlPlane) -> bool:
    """Say whether the client has acknowledged all that it was sent, and refused none of it ever."""
    async with control_plane.client.get(f"{control_plane.api}/proxies/caller") as answer:
        assert answer.status == 200, await answer.text()
        shown = await answer.json()
    assert [each["last_nack"] for each in shown["types"] if each["nacks"]] == []
    return bool(shown["synced"]) and len(shown["types"]) == 4


async def test_a_client_reaches_every_instance_and_refuses_nothing(control_plane: ControlPlane) -> None:
    """K-01."""
    async with instances(control_plane, "web", a=1, b=1, c=1), calling(control_plane, "xds:///web") as client:
        await client.reaches("a", "b", "c")
        await eventually(lambda: nothing_refused(control_plane), "the client holds everything")

    assert client.failures == []


async def test_calls_follow_the_weights_and_their_changes(control_plane: ControlPlane) -> None:
    async with (
        instances(control_plane, "web", a=1, b=2, c=7) as ports,
        calling(control_plane, "xds:///web", pause_s=0.001) as client,
    ):
        await client.reaches("a", "b", "c")
        shares = await client.more(1500)
        assert {name: shares[name] / shares.total() for name in "abc"} == pytest.approx(
            {"a": 0.1, "b": 0.2, "c": 0.7}, abs=0.05
        )
        await control_plane.put("web", "c", ports["c"], weight=2)

        async def even() -> bool:
            shares = await client.more(300)
            return abs(shares["b"] - shares["c"]) < 60 and shares["a"] < shares["b"]

        await eventually(even, "two instances of equal weight are called alike")
        await eventually(lambda: nothing_refused(control_plane), "the client holds everything")

    assert client.failures == []


async def test_an_instance_that_deregisters_is_left_without_a_failed_call(control_plane: ControlPlane) -> None:
    async with (
        instances(control_plane, "web", a=1, b=3, c=1),
        calling(control_plane, "xds:///web") as client,
    ):
        await client.reaches("a", "b", "c")
        await control_plane.delete("web", "b")
        await client.reaches("a", "c")

    assert client.failures == []


async def test_an_instance_that_fails_its_health_check_is_left_without_a_failed_call(
    control_plane: ControlPlane,
) -> None:
    """C-05."""
    check = {"type": "grpc", "interval": 0.5, "timeout": 0.4, "unhealthy_threshold": 1}
    health = grpc_health.aio.HealthServicer()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    async with (
        instances(control_plane, "web", a=1, b=1),
        instance("sick", health) as port,
        calling(control_plane, "xds:///web") as client,
    ):
        await control_plane.put("web", "sick", port, health_check=check)
        await client.reaches("a", "b", "sick")
        await health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await client.reaches("a", "b")
        await health.set("", health_pb2.HealthCheckResponse.SERVING)
        await client.reaches("a", "b", "sick")

    assert client.failures == []


async def test_a_service_that_comes_late_heals_the_channel_that_waited_for_it(control_plane: ControlPlane) -> None:
    """K-02."""
    async with calling(control_plane, "xds:///late") as client:

        async def failed() -> bool:
            return bool(client.failures)

        await eventually(failed, "a call fails for want of the service")
        async with instances(control_plane, "late", a=1):
            await client.reaches("a")


async def test_a_service_that_is_not_there_takes_no_other_down(control_plane: ControlPlane) -> None:
    """K-04."""
    async with (
        instances(control_plane, "web", a=1, b=1),
        calling(control_plane, "xds:///nobody", "xds:///web") as client,
    ):
        await client.reaches("a", "b")

    assert [failure for failure in client.failures if "nobody" not in failure] == []


async def raw(control_plane: ControlPlane, path: str, body: dict[str, Any]) -> None:
    async with control_plane.client.put(f"{control_plane.api}/xds/{path}", json=body) as answer:
        assert answer.status in (200, 201), await answer.text()


async def clusters(control_plane: ControlPlane) -> dict[str, Any]:
    """Return how the client's clusters stand."""
    async with control_plane.client.get(f"{control_plane.api}/proxies/caller") as answer:
        shown = await answer.json()
    return next((dict(each) for each in shown.get("types", ()) if each["type"] == "Cluster"), {"state": "NOT_SENT"})


async def test_a_cluster_that_the_client_refuses_takes_no_other_down_and_is_named(control_plane: ControlPlane) -> None:
    """K-04, P-03: Envoy takes a cluster that resolves a name by itself, and gRPC does not."""
    host = {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": ""}, "route": {"cluster": "odd"}}]}
    manager = {
        "@type": FILTERS + "network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "odd",
        "route_config": {"name": "odd", "virtual_hosts": [host]},
        "http_filters": [{"name": "router", "typed_config": {"@type": FILTERS + "http.router.v3.Router"}}],
    }
    await raw(control_plane, "listeners/odd", {"name": "odd", "api_listener": {"api_listener": manager}})
    async with (
        instances(control_plane, "web", a=1, b=1) as ports,
        calling(control_plane, "xds:///odd", "xds:///web") as client,
    ):
        address = {"socket_address": {"address": "127.0.0.1", "port_value": ports["a"]}}
        groups = [{"locality": {}, "load_balancing_weight": 1, "lb_endpoints": [{"endpoint": {"address": address}}]}]
        endpoints = {"cluster_name": "odd", "endpoints": groups}
        refused = {"name": "odd", "type": "STRICT_DNS", "connect_timeout": "1s", "load_assignment": endpoints}
        await client.reaches("a", "b")
        await raw(control_plane, "clusters/odd", refused)

        async def said() -> bool:
            return (await clusters(control_plane))["state"] == "ERROR"

        await eventually(said, "the client refuses the cluster")
        await client.more(200)
        shown = await clusters(control_plane)
        assert [each["name"] for each in shown["refusals"]] == ["odd"]
        assert "odd" in shown["refusals"][0]["message"]
        assert shown["nacks"] == 1  # it was not sent again
        await control_plane.delete("web", "b")
        await client.reaches("a")  # what else changes goes on

        await raw(control_plane, "endpoints/odd", endpoints)
        source = {"eds_config": {"ads": {}, "resource_api_version": "V3"}}
        await raw(control_plane, "clusters/odd", {"name": "odd", "type": "EDS", "eds_cluster_config": source})

        async def healed() -> bool:
            failed = len(client.failures)
            await client.more(100)
            return len(client.failures) == failed

        await eventually(healed, "the client takes the cluster, and no call fails any more")
        assert (await clusters(control_plane))["refusals"] == []
        assert client.failures != []
        assert [failure for failure in client.failures if "xds:///odd" not in failure] == []


@pytest.mark.parametrize("kill", [False, True], ids=["sigterm", "sigkill"])
async def test_a_restart_of_the_control_plane_fails_no_call(control_plane: ControlPlane, kill: bool) -> None:
    """K-03."""
    async with (
        instances(control_plane, "web", a=1, b=2),
        calling(control_plane, "xds:///web") as client,
    ):
        await client.reaches("a", "b")
        await control_plane.stop(kill=kill)
        await client.more(100)
        await control_plane.start()
        async with instance("late") as port:
            # What arrives after the restart shows that the client has found the control plane again.
            await control_plane.put("web", "late", port)
            await client.reaches("a", "b", "late")
            await control_plane.delete("web", "late")
            await client.reaches("a", "b")

    assert client.failures == []


@pytest.mark.parametrize("algorithm", ["ring_hash", "maglev"])
async def test_a_header_decides_who_is_called(control_plane: ControlPlane, algorithm: str) -> None:
    async def hash_on(header: str) -> None:
        options = {"algorithm": algorithm, "hash_on": {"source": "header", "name": header}}
        await control_plane.policy("web", strategy="consistent_hash", consistent_hash=options)

    async with (
        instances(control_plane, "web", a=1, b=1, c=6),
        calling(control_plane, "xds:///web", pause_s=0.001) as client,
    ):
        await hash_on("x-same")

        async def always_the_same() -> bool:
            return len(await client.more(100)) == 1

        await eventually(always_the_same, "equal headers lead to one instance")
        await hash_on("x-user")
        await client.reaches("a", "b", "c")
        shares = await client.more(1500)
        assert shares["c"] / shares.total() == pytest.approx(0.75, abs=0.1)
        await eventually(lambda: nothing_refused(control_plane), "the client holds everything")

    assert client.failures == []
