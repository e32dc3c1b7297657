"""From a change of the catalog to a snapshot: what is published, when, and what is left alone."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from builders import key, put, verdict

from controlplane import publish
from controlplane.debounce import Debounce
from controlplane.live import LiveCatalog
from controlplane.model import (
    DeleteInstance,
    Event,
    GraceOver,
    HealthStatus,
    Judged,
    PutAliases,
    PutPolicy,
    ServiceName,
    Synced,
)
from controlplane.policy import Policy, Strategy
from controlplane.publish import Publisher
from controlplane.translate.decode import as_json
from controlplane.views import NodeGroup
from xds.cache import SnapshotCache
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE, Node, Snapshot

pytestmark = pytest.mark.unit

CHECK = {"type": "http"}
GROUP = NodeGroup(gateway_port=10000)


@dataclass
class Heard:
    """Remember what the publisher reported, and let a test wait for it."""

    publications: list[str] = field(default_factory=list)
    refusals: dict[str, list[str]] = field(default_factory=dict)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def published(self, reason: str, revision: str, duration_s: float) -> None:
        self.publications.append(reason)
        self._more.set()

    def refused(self, service: str, problems: list[str]) -> None:
        self.refusals[service] = problems

    async def next(self) -> None:
        """Wait for a publication after the last one waited for."""
        await asyncio.wait_for(self._more.wait(), 5)
        self._more.clear()


@dataclass
class Published:
    """Hold a publisher that runs, and what surrounds it."""

    live: LiveCatalog
    cache: SnapshotCache
    publisher: Publisher
    heard: Heard

    def snapshot(self, group: NodeGroup = GROUP) -> Snapshot:
        snapshot = self.cache.get(group)
        assert snapshot is not None
        return snapshot

    async def apply(self, *events: Event) -> Snapshot:
        """Apply events and wait for the publication that they lead to."""
        for event in events:
            self.live.apply(event)
        await self.heard.next()
        return self.snapshot()


class Ticking:
    """Be a clock that advances by a step whenever somebody looks at it."""

    def __init__(self, step_s: float) -> None:
        self._now = time.monotonic()
        self._step_s = step_s

    def __call__(self) -> float:
        self._now += self._step_s
        return self._now


@asynccontextmanager
async def publishing(
    *events: Event,
    quiet_s: float = 0.001,
    ceiling_s: float = 0.005,
    during_start: Callable[[LiveCatalog], object] = lambda _live: None,
) -> AsyncIterator[Published]:
    """Run a publisher over a catalog that holds what these events lead to, its first snapshot published."""
    live = LiveCatalog(epoch="e", call_later=lambda _delay, _callback: None)
    for event in (Synced(registry="memory"), *events):
        live.apply(event)
    cache, heard = SnapshotCache(), Heard()
    publisher = Publisher(
        live=live,
        cache=cache,
        gateway_host="127.0.0.1",
        gateway_port=10000,
        observer=heard,
        clock=time.monotonic,
        debounce=Debounce(quiet_s=quiet_s, ceiling_s=ceiling_s),
    )
    ready = asyncio.Event()

    async def at_once() -> None:
        return

    async def on_ready() -> None:
        ready.set()

    task = asyncio.create_task(publisher.run(at_once, on_ready))
    await asyncio.sleep(0)  # the first slice is planned, nothing is published
    during_start(live)
    await asyncio.wait_for(ready.wait(), 5)
    heard._more.clear()
    try:
        yield Published(live, cache, publisher, heard)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_nothing_is_published_before_the_first_state_is_known() -> None:
    live, cache, heard = LiveCatalog(epoch="e"), SnapshotCache(), Heard()
    publisher = Publisher(
        live=live,
        cache=cache,
        gateway_host="127.0.0.1",
        gateway_port=10000,
        observer=heard,
        clock=time.monotonic,
        debounce=Debounce(),
    )
    gate, ready = asyncio.Event(), asyncio.Event()

    async def first_state() -> None:
        await gate.wait()

    async def on_ready() -> None:
        ready.set()

    task = asyncio.create_task(publisher.run(first_state, on_ready))
    await asyncio.sleep(0)
    live.apply(put("web", "a"))
    await asyncio.sleep(0)
    assert not publisher.ready
    assert cache.get(GROUP) is None

    gate.set()
    await asyncio.wait_for(ready.wait(), 5)
    assert list(cache.get(GROUP).of_type(CLUSTER)) == ["web"]  # type: ignore[union-attr]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_first_instance_makes_cluster_assignment_and_route() -> None:
    async with publishing() as world:
        snapshot = await world.apply(put("web", "a"))

    assert list(snapshot.of_type(CLUSTER)) == ["web"]
    assert list(snapshot.of_type(ENDPOINT)) == ["web"]
    assert snapshot.of_type(ROUTE)["gateway"].refs == {(CLUSTER, "web")}
    assert list(snapshot.of_type(LISTENER)) == ["gateway"]
    assert snapshot.revision == world.live.revision


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(put("web", "b", port=2), id="a further instance"),
        pytest.param(put("web", "a", weight=7), id="a new weight"),
        pytest.param(Judged(key=key("web", "a"), verdict=verdict(HealthStatus.UNHEALTHY)), id="a verdict"),
        pytest.param(DeleteInstance(key=key("web", "a"), registry="memory"), id="the last instance goes"),
    ],
)
async def test_endpoints_change_their_own_assignment_only_and_at_once(event: Event) -> None:
    first = (put("web", "a", health_check=CHECK), Judged(key=key("web", "a"), verdict=verdict()), put("api", "a"))
    async with publishing(*first) as world:
        before = world.snapshot()
        world.live.apply(event)
        await asyncio.sleep(0)  # one turn of the loop, no timer
        after = world.snapshot()

    assert world.heard.publications == ["start", "endpoints"]
    for type_url in (CLUSTER, ROUTE, LISTENER):
        assert after.of_type(type_url) is before.of_type(type_url) or after.of_type(type_url) == before.of_type(
            type_url
        )
    assert after.of_type(ENDPOINT)["api"] is before.of_type(ENDPOINT)["api"]
    assert after.of_type(ENDPOINT)["web"].version != before.of_type(ENDPOINT)["web"].version


async def test_changes_of_one_turn_are_one_publication() -> None:
    async with publishing(put("web", "a")) as world:
        for number in range(50):
            world.live.apply(put("web", f"b-{number}", port=1000 + number))
        await asyncio.sleep(0)

    assert world.heard.publications == ["start", "endpoints"]


async def test_a_storm_of_new_services_is_few_publications() -> None:
    async with publishing() as world:
        for number in range(200):
            world.live.apply(put(f"web-{number}", "a"))
            if number % 20 == 0:
                await asyncio.sleep(0)
        while len(world.snapshot().of_type(CLUSTER)) < 200:
            await world.heard.next()

    assert len(world.heard.publications) < 20


async def test_a_burst_is_published_in_slices_that_let_others_run() -> None:
    async with publishing() as world:
        world.publisher._clock = Ticking(0.001)  # a thousandth of a second passes whenever somebody looks
        for number in range(100):
            world.live.apply(put(f"web-{number}", "a"))
        turns = 0
        while len(world.snapshot().of_type(CLUSTER)) < 100:
            await asyncio.sleep(0)
            turns += 1
            assert turns < 10_000

    assert 5 < len(world.heard.publications) < 40


async def test_clusters_wait_for_calm_and_endpoints_do_not() -> None:
    async with publishing(put("web", "a"), quiet_s=60, ceiling_s=60) as world:
        world.live.apply(put("second", "a"))  # soon after the first snapshot
        world.live.apply(put("web", "b", port=2))
        await asyncio.sleep(0)
        snapshot = world.snapshot()

    assert world.heard.publications == ["start", "endpoints"]
    assert sorted(snapshot.of_type(CLUSTER)) == ["web"]
    assert b"second" not in snapshot.of_type(ROUTE)["gateway"].body


async def test_a_snapshot_claims_no_revision_of_which_it_lacks_a_part() -> None:
    async with publishing(put("web", "a"), quiet_s=60, ceiling_s=60) as world:
        waiting = world.live.apply(put("second", "a"))
        assert waiting is not None
        snapshot = await world.apply(put("web", "b", port=2))

    assert snapshot.revision == world.live.label(waiting.revision - 1)


async def test_an_endpoint_change_does_not_take_the_place_of_a_waiting_cluster_change() -> None:
    async with publishing(put("web", "a"), quiet_s=0.01, ceiling_s=0.02) as world:
        await world.apply(put("first", "a"))
        world.live.apply(
            PutPolicy(service=ServiceName("web"), policy=Policy(strategy=Strategy.RANDOM), registry="memory")
        )
        world.live.apply(put("web", "b", port=2))
        before = world.snapshot().of_type(CLUSTER)["web"]
        while world.snapshot().of_type(CLUSTER)["web"] == before:
            await world.heard.next()


async def test_what_changes_while_the_first_snapshot_is_made_is_not_lost() -> None:
    services = [put(f"web-{number}", "a") for number in range(50)]

    async with publishing(*services, during_start=lambda live: live.apply(put("web-0", "late", port=9))) as world:
        assert b"late" in world.snapshot().of_type(ENDPOINT)["web-0"].body


async def test_a_watched_group_outlives_publications() -> None:
    async with publishing(put("web", "a")) as world:
        group = world.publisher.group_of(Node(id="n", metadata={"gateway_port": 10001}))
        stop = world.cache.watch(group, lambda _snapshot, _changes: None)
        await world.apply(put("web", "b", port=2))
        assert world.snapshot(group).of_type(ENDPOINT) == world.snapshot().of_type(ENDPOINT)
        stop()


async def test_a_report_that_fails_loses_no_change() -> None:
    async with publishing(put("web", "a"), put("api", "a"), put("api", "b", port=2)) as world:
        real = publish.lint.problems
        before = world.snapshot().of_type(ENDPOINT)["api"].body

        def broken(service: str, problems: list[str]) -> None:
            raise BrokenPipeError

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(publish.lint, "problems", lambda planned: ["no"] if planned.name == "web" else real(planned))
            patch.setattr(world.heard, "refused", broken)
            errors: list[object] = []
            asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
            world.live.apply(put("web", "b", port=2))
            world.live.apply(DeleteInstance(key=key("api", "b"), registry="memory"))
            await asyncio.sleep(0)
            assert errors
        asyncio.get_running_loop().set_exception_handler(None)
        snapshot = await world.apply(put("web", "c", port=3))

    left = world.publisher._planned[ServiceName("api")].localities[0].endpoints
    assert [endpoint.id for endpoint in left] == ["a"]
    assert len(snapshot.of_type(ENDPOINT)["api"].body) < len(before)


async def test_a_policy_changes_the_cluster_and_so_its_assignment() -> None:
    async with publishing(put("web", "a"), put("api", "a")) as world:
        before = world.snapshot()
        after = await world.apply(
            PutPolicy(service=ServiceName("web"), policy=Policy(strategy=Strategy.RANDOM), registry="memory")
        )

    assert after.of_type(CLUSTER)["web"].version != before.of_type(CLUSTER)["web"].version
    assert after.of_type(ENDPOINT)["web"].version != before.of_type(ENDPOINT)["web"].version
    assert after.of_type(CLUSTER)["api"] == before.of_type(CLUSTER)["api"]
    assert after.of_type(ENDPOINT)["api"] == before.of_type(ENDPOINT)["api"]


async def test_an_alias_changes_the_routes_alone() -> None:
    async with publishing(put("web", "a")) as world:
        before = world.snapshot()
        named = PutAliases(service=ServiceName("web"), aliases=(ServiceName("web.shop"),), registry="kubernetes")
        aliased = await world.apply(named)
        types = (CLUSTER, ENDPOINT, LISTENER, ROUTE)
        assert [url for url in types if aliased.of_type(url) != before.of_type(url)] == [ROUTE]
        assert "web.shop:*" in as_json(ROUTE, aliased.of_type(ROUTE)["gateway"].body)["virtualHosts"][0]["domains"]

        again = await world.apply(replace(named, aliases=()))
        assert again.of_type(ROUTE) == before.of_type(ROUTE)


async def test_a_service_goes_when_its_grace_is_over() -> None:
    async with publishing(put("web", "a"), put("api", "a")) as world:
        change = world.live.apply(DeleteInstance(key=key("web", "a"), registry="memory"))
        assert change is not None
        await world.heard.next()
        assert "web" in world.snapshot().of_type(CLUSTER)

        snapshot = await world.apply(GraceOver(service=ServiceName("web"), emptied_at=change.revision))

    assert list(snapshot.of_type(CLUSTER)) == ["api"]
    assert list(snapshot.of_type(ENDPOINT)) == ["api"]
    assert snapshot.of_type(ROUTE)["gateway"].refs == {(CLUSTER, "api")}


async def test_a_faulty_service_keeps_its_last_good_version_and_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with publishing(put("web", "a"), put("api", "a")) as world:
        before = world.snapshot()
        real = publish.lint.problems
        monkeypatch.setattr(
            publish.lint, "problems", lambda planned: ["no"] if planned.name == "web" else real(planned)
        )
        world.live.apply(put("web", "b", port=2))
        after = await world.apply(put("api", "b", port=2))
        assert after.of_type(ENDPOINT)["web"] == before.of_type(ENDPOINT)["web"]
        assert after.of_type(ENDPOINT)["api"] != before.of_type(ENDPOINT)["api"]
        assert world.publisher.refused == world.heard.refusals == {"web": ["no"]}

        monkeypatch.undo()
        mended = await world.apply(put("web", "c", port=3))

    assert mended.of_type(ENDPOINT)["web"] != before.of_type(ENDPOINT)["web"]
    assert world.publisher.refused == {}


async def test_a_service_that_was_faulty_from_the_start_gets_its_route_when_mended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publish.lint, "problems", lambda _planned: ["no"])
    async with publishing(put("web", "a")) as world:
        assert list(world.snapshot().of_type(CLUSTER)) == []
        monkeypatch.undo()
        mended = await world.apply(put("web", "b", port=2))

    assert list(mended.of_type(CLUSTER)) == ["web"]
    assert mended.of_type(ROUTE)["gateway"].refs == {(CLUSTER, "web")}


async def test_another_process_with_the_same_facts_publishes_the_same_bytes() -> None:
    events: list[Event] = [
        put(service, id, port=port, tags=tags, weight=port)
        for service in ("web", "api", "db")
        for id, port, tags in (("a", 1, ["x", "y"]), ("b", 2, []))
    ]
    shuffled = random.Random(4).sample(events, len(events))

    async with publishing(*events) as one, publishing() as other:
        snapshot = await other.apply(*shuffled)
        while other.live.current.services.keys() != snapshot.of_type(CLUSTER).keys():
            await other.heard.next()
            snapshot = other.snapshot()
        for type_url in (CLUSTER, ENDPOINT, LISTENER, ROUTE):
            mine, theirs = one.snapshot().of_type(type_url), snapshot.of_type(type_url)
            assert {name: r.body for name, r in mine.items()} == {name: r.body for name, r in theirs.items()}
            assert mine.version == theirs.version


async def test_a_node_may_ask_for_a_gateway_port_of_its_own() -> None:
    async with publishing(put("web", "a")) as world:
        group = world.publisher.group_of(Node(id="n", metadata={"gateway_port": 10001.0}))
        stop = world.cache.watch(group, lambda _snapshot, _changes: None)
        own, default = world.snapshot(group), world.snapshot()
        assert own.of_type(LISTENER)["gateway"].version != default.of_type(LISTENER)["gateway"].version
        assert own.of_type(CLUSTER) is default.of_type(CLUSTER)

        stop()
        await world.apply(put("web", "b", port=2))
        assert world.cache.groups() == (GROUP,)


@pytest.mark.parametrize("port", ["10001", True, 0, 70000, -1, None, [1]])
async def test_a_gateway_port_that_is_none_is_ignored(port: object) -> None:
    async with publishing() as world:
        assert world.publisher.group_of(Node(id="n", metadata={"gateway_port": port})) == GROUP


GRPC_NODE = Node(id="caller", user_agent_name="gRPC C-core", client_features=frozenset({"xds.v3"}))


@asynccontextmanager
async def watching(world: Published, node: Node) -> AsyncIterator[list[Snapshot]]:
    """Watch as a stream of this node does; give the snapshots that it is offered."""
    seen: list[Snapshot] = []
    stop = world.cache.watch(world.publisher.group_of(node), lambda snapshot, _changes: seen.append(snapshot))
    try:
        yield seen
    finally:
        stop()


async def until(seen: list[Snapshot]) -> Snapshot:
    """Let the loop turn until there is a snapshot."""
    async with asyncio.timeout(5):
        while not seen:
            await asyncio.sleep(0)
    return seen[-1]


async def test_a_grpc_client_is_told_of_services_in_its_own_words_and_envoys_as_before() -> None:
    async with publishing(put("web", "a"), put("api", "a")) as world:
        before = world.snapshot()
        async with watching(world, GRPC_NODE) as seen:
            snapshot = await until(seen)
            for type_url in (CLUSTER, ENDPOINT, LISTENER, ROUTE):
                assert set(snapshot.of_type(type_url)) == {"web", "api"}
            assert snapshot.of_type(CLUSTER)["web"] != before.of_type(CLUSTER)["web"]
            assert world.snapshot() == before


async def test_a_grpc_client_waits_until_its_view_holds_every_service() -> None:
    services = [put(f"web-{number}", "a") for number in range(200)]
    async with publishing(*services) as world:
        world.publisher._clock = Ticking(0.003)  # a slice is over after three services
        async with watching(world, GRPC_NODE) as seen:
            for _ in range(20):
                await asyncio.sleep(0)
            assert seen == []
            world.live.apply(put("web-3", "late", port=9))
            world.live.apply(put("web-199", "late", port=9))
            snapshot = await until(seen)
            assert len(snapshot.of_type(LISTENER)) == 200
            for name in ("web-3", "web-199"):
                assert b"late" in snapshot.of_type(ENDPOINT)[name].body


async def test_a_grpc_client_hears_of_changes_and_of_what_goes() -> None:
    async with publishing(put("web", "a")) as world, watching(world, GRPC_NODE) as seen:
        first = await until(seen)
        await world.apply(put("web", "b", port=2))
        second = seen[-1]
        assert second.of_type(ENDPOINT)["web"] != first.of_type(ENDPOINT)["web"]
        for type_url in (CLUSTER, LISTENER, ROUTE):
            assert second.of_type(type_url) is first.of_type(type_url)

        await world.apply(PutPolicy(service=ServiceName("web"), policy=Policy(timeout=1), registry="memory"))
        assert seen[-1].of_type(ROUTE)["web"] != first.of_type(ROUTE)["web"]
        assert seen[-1].of_type(LISTENER) is first.of_type(LISTENER)

        await world.apply(put("api", "a"))
        assert set(seen[-1].of_type(LISTENER)) == {"web", "api"}


async def test_the_view_for_grpc_clients_goes_with_the_last_of_them() -> None:
    async with publishing(put("web", "a")) as world:
        async with watching(world, GRPC_NODE) as seen:
            await until(seen)
        await world.apply(put("web", "b", port=2))
        assert world.cache.groups() == (GROUP,)

        async with watching(world, GRPC_NODE) as again:
            assert (await until(again)).of_type(ENDPOINT)["web"] != seen[-1].of_type(ENDPOINT)["web"]


async def test_what_grpc_clients_would_refuse_is_kept_from_them_alone() -> None:
    async with publishing(put("web", "a")) as world, watching(world, GRPC_NODE) as seen:
        first = await until(seen)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(publish.lint, "grpc_problems", lambda _planned: ["too much"])
            snapshot = await world.apply(put("web", "b", port=2))
        assert b"\x18\x02" in snapshot.of_type(ENDPOINT)["web"].body
        assert seen[-1].of_type(ENDPOINT) == first.of_type(ENDPOINT)
        assert world.publisher.refused == {"web": ["grpc clients are not told: too much"]}

        await world.apply(put("web", "c", port=3))
        assert world.publisher.refused == {}
        assert seen[-1].of_type(ENDPOINT) != first.of_type(ENDPOINT)


async def test_what_is_kept_from_grpc_clients_is_no_refusal_once_the_last_of_them_has_gone() -> None:
    async with publishing(put("web", "a")) as world:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(publish.lint, "grpc_problems", lambda _planned: ["too much"])
            async with watching(world, GRPC_NODE):
                await world.apply(put("web", "b", port=2))
                assert list(world.publisher.refused) == ["web"]
            assert world.publisher.refused == {}  # at once: nobody need publish anything first

            await world.apply(put("api", "a"))
            async with watching(world, GRPC_NODE) as again:
                await until(again)
                assert sorted(world.publisher.refused) == ["api", "web"]
        async with watching(world, GRPC_NODE) as mended:
            await world.apply(put("web", "c", port=3), put("api", "b", port=2))
            assert world.publisher.refused == {}
            assert set(mended[-1].of_type(CLUSTER)) == {"api", "web"}


async def test_overprovisioning_changes_nothing_where_there_is_one_priority() -> None:
    """N-05: all priorities are 0, so a client that cannot overprovision is told what every other is."""
    feature = frozenset({"envoy.lb.does_not_support_overprovisioning"})
    async with publishing(put("web", "a")) as world:
        plain = world.publisher.group_of(Node(id="n"))
        assert world.publisher.group_of(Node(id="n", client_features=feature)) == plain


@pytest.mark.parametrize(
    ("said", "means"),
    [
        pytest.param("grpc", "DELTA_GRPC", id="a stream for each type"),
        pytest.param("rest", "REST", id="polling"),
    ],
)
async def test_a_node_that_says_its_transport_is_told_to_fetch_the_rest_by_it(said: str, means: str) -> None:
    async with publishing(put("web", "a")) as it:
        group = it.publisher.group_of(Node(id="edge-1", metadata={"xds_transport": said}))
        stop = it.cache.watch(group, lambda _snapshot, _changes: None)
        try:
            snapshot = await it.apply(put("web", "b", port=2))
            theirs = it.snapshot(group)
        finally:
            stop()
    (cluster,) = theirs.of_type(CLUSTER).ordered
    listener = str(as_json(LISTENER, theirs.of_type(LISTENER)["gateway"].body))
    source = as_json(CLUSTER, cluster.body)["edsClusterConfig"]["edsConfig"]
    assert source["apiConfigSource"]["apiType"] == means
    assert f"'apiType': '{means}'" in listener
    assert "'ads'" not in listener
    assert theirs.of_type(ROUTE).version == snapshot.of_type(ROUTE).version


@pytest.mark.parametrize("said", [pytest.param(each, id=repr(each)) for each in (None, "ads", "files", "REST", 1, [])])
async def test_any_other_transport_is_ads(said: object) -> None:
    async with publishing() as it:
        assert it.publisher.group_of(Node(id="edge-1", metadata={"xds_transport": said})) == it.publisher.group_of(
            Node(id="edge-2")
        )
