"""A raw resource becomes part of the snapshots of the nodes that may have it, without a service being planned again."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from builders import put

from controlplane.debounce import Debounce
from controlplane.live import LiveCatalog
from controlplane.model import DeleteResource, Event, PutResource, RawResource, Synced
from controlplane.publish import Publisher
from xds.cache import SnapshotCache
from xds.types import CLUSTER, SECRET, Node, Snapshot

pytestmark = pytest.mark.unit

EDGE = Node(id="edge-1", cluster="edge")
OTHER = Node(id="other-1", cluster="other")


def secret(text: str = "old", *clusters: str) -> PutResource:
    body = f'{{"name":"s","generic_secret":{{"secret":{{"inline_string":"{text}"}}}}}}'
    resource = RawResource(type_url=SECRET, name="s", body=body, node_clusters=clusters)
    return PutResource(resource=resource, registry="memory")


class World:
    """Run a publisher, keep each node in its group as the server does, and see what it is told."""

    def __init__(self, *events: Event) -> None:
        self.live = LiveCatalog(epoch="e", call_later=lambda _delay, _callback: None)
        for event in (Synced(registry="memory"), *events):
            self.live.apply(event)
        self._cache = SnapshotCache()
        self._told = asyncio.Event()
        self.reasons: list[str] = []
        self.regrouped = 0
        self.publisher = Publisher(
            live=self.live,
            cache=self._cache,
            gateway_host="127.0.0.1",
            gateway_port=10000,
            observer=self,
            clock=time.monotonic,
            debounce=Debounce(quiet_s=0.001, ceiling_s=0.005),
            regroup=self._regroup,
        )

    def published(self, reason: str, revision: str, duration_s: float) -> None:
        self.reasons.append(reason)
        self.revision = revision
        self._told.set()

    def refused(self, service: str, problems: list[str]) -> None:
        raise AssertionError((service, problems))

    def _regroup(self) -> None:
        self.regrouped += 1

    def seen_by(self, node: Node) -> Snapshot:
        snapshot = self._cache.get(self.publisher.group_of(node))
        assert snapshot is not None
        return snapshot

    async def apply(self, event: Event) -> None:
        self._told.clear()
        self.live.apply(event)
        await asyncio.wait_for(self._told.wait(), 5)


@asynccontextmanager
async def world(*events: Event) -> AsyncIterator[World]:
    made = World(*events)
    ready = asyncio.Event()

    async def at_once() -> None:
        return

    async def on_ready() -> None:
        ready.set()

    task = asyncio.create_task(made.publisher.run(at_once, on_ready))
    try:
        await asyncio.wait_for(ready.wait(), 5)
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_raw_resource_is_published_beside_the_services_with_the_revision_of_its_write() -> None:
    async with world(put("web")) as it:
        before = it.seen_by(EDGE)
        await it.apply(secret())
        after = it.seen_by(EDGE)

        assert "s" in after.of_type(SECRET)
        assert after.of_type(CLUSTER) is before.of_type(CLUSTER)
        assert it.reasons[-1] == "resources"
        assert it.revision == it.live.revision

        await it.apply(DeleteResource(key=secret().resource.key, registry="memory"))
        assert "s" not in it.seen_by(EDGE).of_type(SECRET)


async def test_a_limited_secret_reaches_the_nodes_that_may_have_it_and_no_others() -> None:
    """V-04: to the others it does not exist."""
    async with world() as it:
        await it.apply(secret("old", "edge"))

        assert it.regrouped == 1
        assert b"old" in it.seen_by(EDGE).of_type(SECRET)["s"].body
        assert len(it.seen_by(OTHER).of_type(SECRET)) == 0


async def test_a_rotated_secret_changes_nothing_else_and_regroups_nobody() -> None:
    """V-04: one push of the secret, none of clusters or listeners."""
    async with world(put("web"), secret("old", "edge")) as it:
        group, before = it.publisher.group_of(EDGE), it.seen_by(EDGE)
        regrouped = it.regrouped
        await it.apply(secret("new", "edge"))
        after = it.seen_by(EDGE)

        assert it.publisher.group_of(EDGE) == group
        assert it.regrouped == regrouped
        assert {url for url in after.by_type if after.of_type(url).version != before.of_type(url).version} == {SECRET}


async def test_a_limit_that_is_put_on_later_takes_the_secret_from_the_others() -> None:
    async with world(secret()) as it:
        assert "s" in it.seen_by(OTHER).of_type(SECRET)
        await it.apply(secret("old", "edge"))

        assert "s" not in it.seen_by(OTHER).of_type(SECRET)
        assert "s" in it.seen_by(EDGE).of_type(SECRET)


async def test_a_service_of_the_name_wins_as_soon_as_it_is_registered() -> None:
    body = (
        '{"name":"web","type":"STATIC","load_assignment":{"cluster_name":"web"},'
        '"connect_timeout":"7s","alt_stat_name":"raw"}'
    )
    mine = RawResource(type_url=CLUSTER, name="web", body=body)
    async with world(PutResource(resource=mine, registry="memory")) as it:
        assert b"raw" in it.seen_by(EDGE).of_type(CLUSTER)["web"].body
        await it.apply(put("web"))

        assert b"raw" not in it.seen_by(EDGE).of_type(CLUSTER)["web"].body
        assert mine.key in it.publisher.left_out
