"""Two control planes on one registry tell a proxy the same, byte for byte, whatever has happened to them (law 3)."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import Upstream, eventually, upstream
from reliability.backends import Backend, backend
from reliability.kinds import of

from tests.xds.conformance.plane import TYPES, Plane, running
from xds.types import CLUSTER, ENDPOINT, ROUTE

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

CHECK = {"type": "http", "http_path": "/health", "interval": 0.5, "timeout": 0.4, "unhealthy_threshold": 2}
POLICIES: dict[str, dict[str, Any]] = {
    "web": {"strategy": "health_based", "panic_threshold": 0},
    "plain": {"strategy": "consistent_hash", "consistent_hash": {"hash_on": {"source": "header", "name": "x-user"}}},
}
RAW = {"name": "elsewhere", "type": "STATIC", "connect_timeout": "1s", "load_assignment": {"cluster_name": "elsewhere"}}

Told = dict[tuple[str, str], tuple[str, bytes]]


async def told_by(plane: Plane) -> Told:
    """Return the version and the bytes of each resource that an Envoy is told."""
    stream = plane.client.ads(delta=True)
    told: Told = {}
    for url in TYPES:
        clusters = [name for type_url, name in told if type_url == CLUSTER]
        await stream.subscribe(url, {ENDPOINT: clusters, ROUTE: ["gateway"]}.get(url, []))
        answered = ""
        while answered != url:  # a change may come in between
            answer = await stream.next()
            await stream.ack(answer)
            answered = answer.type_url
            told |= {(answered, each.name): (each.version, bytes(each.resource)) for each in answer.resources}
    await stream.half_close()
    return told


async def ready(plane: Plane) -> None:
    async def asked() -> bool:
        return await plane.send("GET", "/readyz") == 200

    await eventually(asked, "the control plane is ready")


async def statuses(plane: Plane, service: str) -> dict[str, str]:
    async with plane.http.get(f"{plane.url}/api/v1/health/{service}") as answer:
        return {each["id"]: each["status"] for each in (await answer.json()).get("instances", [])}


async def checked_at(plane: Plane) -> set[str]:
    async with plane.http.get(f"{plane.url}/api/v1/health/web") as answer:
        return {each["id"] for each in (await answer.json()).get("instances", []) if each["last_check"]}


async def agree(planes: list[Plane], healthy: dict[str, Upstream], count: int) -> Told:
    """Wait until every control plane knows how every instance is, and all tell the same; return that."""
    expected = {id_: "healthy" if each.healthy else "unhealthy" for id_, each in healthy.items()}

    async def known() -> bool:
        return all([await statuses(plane, "web") == expected for plane in planes])

    await eventually(known, f"all know {expected}")
    differ = ""

    async def same() -> Told | None:
        nonlocal differ
        first, *others = [await told_by(plane) for plane in planes]
        differ = f"{first}\n\n{others}"
        return first if len(first) >= count and all(other == first for other in others) else None

    return await eventually(same, lambda: f"all tell the same; they tell\n{differ}")


async def shared_out(planes: list[Plane], ids: set[str]) -> None:
    """Wait until each instance is checked by one control plane and no instance by two."""
    found: list[set[str]] = []

    async def once_each() -> bool:
        found[:] = [await checked_at(plane) for plane in planes]
        return sum(map(len, found)) == len(ids) and set().union(*found) == ids

    await eventually(once_each, lambda: f"each of {sorted(ids)} is checked once; checked are {found}")


async def register(plane: Plane, registry: Backend, web: dict[str, Upstream]) -> None:
    async def put(path: str, body: dict[str, Any]) -> None:
        async with plane.http.put(f"{plane.url}/api/v1{path}", json=body) as answer:
            assert answer.status in {200, 201}, await answer.text()

    for number, (id_, each) in enumerate(web.items()):
        zone = {"region": "eu", "zone": f"eu-{number % 2}"}
        metadata = {"z": 1, "a": 1.0, "n": True, "at": number}
        body = {"host": "127.0.0.1", "port": each.port, "tags": ["b", "a"], "weight": number + 1, "locality": zone}
        await put(f"/services/web/instances/{id_}", {**body, "metadata": metadata, "health_check": CHECK})
    for number in range(3):
        await put(f"/services/plain/instances/p{number}", {"host": f"10.0.0.{number}", "port": 80, "ttl": 60})
    await put("/services/plain/instances/leaves", {"host": "10.0.0.9", "port": 80, "draining": True})
    await put("/services/named/instances/n", {"host": "localhost", "port": 80})
    for service, policy in POLICIES.items():
        await put(f"/services/{service}/policy", policy)
    await put("/xds/clusters/elsewhere", RAW)


@of("etcd", "consul")
async def test_two_control_planes_on_one_registry_tell_the_same_bytes(kind: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(backend(kind, tmp_path))
        settings = {name.lower(): value for name, value in registry.environ().items()}
        web = {f"web-{number}": await stack.enter_async_context(upstream(f"web-{number}")) for number in range(8)}
        first = await stack.enter_async_context(running(**settings, health_check_interval=1))
        await ready(first)
        await register(first, registry, web)
        web["web-3"].healthy = False
        count = 4 + 3 + 2  # clusters, the endpoints of all but one, the listener and the routes
        await agree([first], web, count)

        second = await stack.enter_async_context(running(**settings, health_check_interval=1))
        await ready(second)
        planes = [first, second]
        await agree(planes, web, count)
        await shared_out(planes, set(web))

        for id_, each in web.items():
            each.healthy = id_ not in {"web-0", "web-5", "web-6"}
        before = await agree(planes, web, count)

        # A registry that was away for a moment has the same members to tell, and the checks stay shared out.
        await registry.kill()
        await registry.start()
        web["web-1"].healthy = False
        after = await agree(planes, web, count)
        assert {name for name, _ in after.items() if after[name] != before.get(name)} == {
            name for name in after if name[1] == "web" and "ClusterLoadAssignment" in name[0]
        }
        await shared_out(planes, set(web))
