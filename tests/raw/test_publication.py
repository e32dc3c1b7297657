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
from controlplane.raw.reading import Reading, read
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

    def __init__(self, *events: Event, debounce: Debounce) -> None:
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
            debounce=debounce,
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
async def world(*events: Event, quiet_s: float = 0.001) -> AsyncIterator[World]:
    made = World(*events, debounce=Debounce(quiet_s=quiet_s, ceiling_s=5 * quiet_s))
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


WEB = RawResource(
    type_url=CLUSTER,
    name="web",
    body='{"name":"web","type":"STATIC","load_assignment":{"cluster_name":"web"},'
    '"connect_timeout":"7s","alt_stat_name":"raw"}',
)


async def test_a_service_of_the_name_wins_as_soon_as_it_is_registered() -> None:
    async with world(PutResource(resource=WEB, registry="memory")) as it:
        assert b"raw" in it.seen_by(EDGE).of_type(CLUSTER)["web"].body
        await it.apply(put("web"))

        assert b"raw" not in it.seen_by(EDGE).of_type(CLUSTER)["web"].body
        assert WEB.key in it.publisher.left_out


async def test_a_name_changes_hands_when_the_service_is_there_to_have_it() -> None:
    """Make before break: endpoints go out at once, clusters wait, and the name has an owner all the time."""
    async with world(put("api"), PutResource(resource=WEB, registry="memory"), quiet_s=60) as it:
        it.live.apply(put("web"))
        await it.apply(put("api", "api-2", host="10.0.0.2"))

        assert it.reasons[-1] == "endpoints"
        assert b"raw" in it.seen_by(EDGE).of_type(CLUSTER)["web"].body


async def test_a_change_of_endpoints_looks_at_no_raw_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    async with world(put("api"), secret()) as it:
        monkeypatch.setattr("controlplane.raw.overlay.owner", lambda _has_cluster, key: asked.append(key))
        await it.apply(put("api", "api-2", host="10.0.0.2"))
        assert it.reasons[-1] == "endpoints"
        assert asked == []

        await it.apply(secret("new"))
        assert asked != []


async def test_a_snapshot_that_lacks_a_raw_resource_does_not_claim_its_revision() -> None:
    """Law 10: a group that is made while a write waits for its turn is at the revision before."""
    async with world(put("api"), quiet_s=60) as it:
        before = it.live.revision
        it.live.apply(secret())
        seen = it.seen_by(Node(id="edge-2", cluster="edge", metadata={"gateway_port": 12345}))

        assert len(seen.of_type(SECRET)) == 0
        assert seen.revision == before


async def test_a_fault_of_ours_in_one_resource_stops_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 15: it is left out alone and told; what it quotes may be secret and is not."""

    def faulty(type_url: str, document: dict[str, object]) -> Reading:
        if type_url == SECRET:
            raise ZeroDivisionError("hush")
        return read(type_url, document)

    monkeypatch.setattr("controlplane.raw.compile.read", faulty)
    async with world(put("api"), secret(), PutResource(resource=WEB, registry="memory")) as it:
        assert set(it.seen_by(EDGE).of_type(CLUSTER)) == {"api", "web"}
        assert it.publisher.left_out == {secret().resource.key: "internal error: ZeroDivisionError"}
