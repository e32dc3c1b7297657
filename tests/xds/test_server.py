"""The xDS server over real gRPC: what the driver adds to the protocol machine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.xds.client import XdsClient
from xds.cache import SnapshotCache
from xds.server import XdsServer
from xds.types import CLUSTER, ENDPOINT, Resource, ResourceSet, Snapshot

pytestmark = pytest.mark.integration

GROUP = "all"


def snapshot(revision: str = "", **clusters: str) -> Snapshot:
    """Build clusters `name=version` with an assignment each, versions folded in."""
    made = [
        Resource.of(name, f"{name}={version}".encode(), refs=[(ENDPOINT, name)]) for name, version in clusters.items()
    ]
    assignments = [
        Resource.of(one.name, b"\x0a\x01" + one.name[:1].encode(), parent_version=one.version) for one in made
    ]
    return Snapshot({CLUSTER: ResourceSet(made), ENDPOINT: ResourceSet(assignments)}, revision)


@asynccontextmanager
async def serving(cache: SnapshotCache, **options: Any) -> AsyncIterator[int]:
    settings: dict[str, Any] = {"group_of": lambda _: GROUP, "ready": lambda: True, "identifier": "test"}
    server = XdsServer(cache, **(settings | options))
    try:
        yield await server.start("127.0.0.1", 0)
    finally:
        await server.stop(0.0)


@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
async def test_a_changed_cluster_is_followed_by_its_assignment(delta: bool) -> None:
    cache = SnapshotCache()
    cache.set(GROUP, snapshot(a="1", b="1"))
    async with serving(cache) as port, XdsClient(port) as client:
        ads = client.ads(delta=delta)
        await ads.subscribe(CLUSTER)
        clusters = await ads.expect(CLUSTER)
        await ads.ack(clusters)
        await ads.subscribe(ENDPOINT, ["a", "b"])
        await ads.ack(await ads.expect(ENDPOINT))

        cache.set(GROUP, snapshot(a="2", b="1"))
        changed = await ads.expect(CLUSTER)
        assignment = await ads.expect(ENDPOINT)

        assert len(changed.resources) == (1 if delta else 2)
        assert len(assignment.resources) == 1
        await asyncio.gather(ads.ack(assignment), ads.ack(changed))
        await ads.expect_quiet()
