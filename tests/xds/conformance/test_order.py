"""Section O of the conformance list: warming, and make before break."""

from collections.abc import Iterable

import pytest

from tests.xds.client import Response, XdsStream
from tests.xds.conformance.fixture import FIXTURE
from tests.xds.conformance.world import BOTH, WAYS, World, names, serving, settle, until_quiet
from xds.messages import Nacked
from xds.types import CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, SECRET, VIRTUAL_HOST

pytestmark = pytest.mark.integration


async def envoy_like(world: World, *, delta: bool) -> XdsStream:
    """Open an aggregated stream that has everything which an Envoy asks for."""
    stream = world.open(delta=delta)
    await settle(stream, CLUSTER)
    await settle(stream, ENDPOINT, ["c1", "c2"])
    await settle(stream, LISTENER)
    await settle(stream, ROUTE, ["r1"])
    return stream


def removed(response: Response) -> list[str]:
    return list(getattr(response, "removed_resources", ()))


async def follow(stream: XdsStream, types: Iterable[str]) -> list[Response]:
    """Take responses of these types in this order, acknowledging each."""
    taken = []
    for type_url in types:
        response = await stream.expect(type_url)
        await stream.ack(response)
        taken.append(response)
    return taken


@BOTH
async def test_o_01_o_02_a_changed_cluster_brings_its_assignment_once(world: World, delta: bool) -> None:
    stream = await envoy_like(world, delta=delta)
    world.mutate((CLUSTER, "c1"))
    changed = await stream.expect(CLUSTER)
    assignment = await stream.expect(ENDPOINT)  # before any ACK: Envoy holds that back while the cluster warms

    assert "c1" in names(changed)
    assert names(assignment) == ["c1"]
    await stream.ack(changed)
    await stream.ack(assignment)
    if not delta:
        await stream.subscribe(ENDPOINT, ["c1", "c2"])  # as before, word for word
    await stream.expect_quiet()


@BOTH
async def test_o_01_a_cluster_that_is_sent_again_unchanged_brings_its_assignment(world: World, delta: bool) -> None:
    stream = world.open(delta=delta)
    await settle(stream, CLUSTER, ["*"])
    await settle(stream, ENDPOINT, ["c1", "c2"])
    again = await settle(stream, CLUSTER, ["c1"] if delta else ["*", "c1"])
    assignment = await stream.expect(ENDPOINT)
    await stream.ack(assignment)

    assert "c1" in names(again)
    assert names(assignment) == ["c1"]
    await stream.expect_quiet()


@BOTH
async def test_o_02_an_ack_that_is_under_way_does_not_use_up_the_assignment_that_is_owed(
    world: World, delta: bool
) -> None:
    stream = await envoy_like(world, delta=delta)
    world.mutate((ENDPOINT, "c1"))
    earlier = await stream.expect(ENDPOINT)
    world.mutate((CLUSTER, "c1"))
    changed = await stream.expect(CLUSTER)
    await stream.ack(earlier)
    await stream.ack(changed)
    assignment = await stream.expect(ENDPOINT)
    await stream.ack(assignment)

    assert names(assignment) == ["c1"]
    await stream.expect_quiet()


@BOTH
async def test_o_03_clusters_that_warm_together_are_served_together(world: World, delta: bool) -> None:
    stream = await envoy_like(world, delta=delta)
    world.mutate((CLUSTER, "c1"), (CLUSTER, "c2"))
    await stream.expect(CLUSTER)

    assert names(await stream.expect(ENDPOINT)) == ["c1", "c2"]


@BOTH
async def test_o_04_a_new_listener_gets_what_it_waits_for_when_it_asks(world: World, delta: bool) -> None:
    stream = await envoy_like(world, delta=delta)
    world.mutate((LISTENER, "l-r9-f9"), (ROUTE, "r9"), (EXTENSION, "f9"), (CLUSTER, "c9-s9"), (SECRET, "s9"))
    made = await follow(stream, [CLUSTER, LISTENER])

    assert ["c9-s9" in names(made[0]), "l-r9-f9" in names(made[1])] == [True, True]
    for type_url, name, known in ((ROUTE, "r9", ["r1"]), (EXTENSION, "f9", []), (SECRET, "s9", [])):
        assert name in names(await settle(stream, type_url, [name] if delta else [*known, name]))


@BOTH
async def test_o_05_a_rollout_makes_before_it_breaks(world: World, delta: bool) -> None:
    stream = await envoy_like(world, delta=delta)
    world.mutate(
        *((CLUSTER, "c4"), (ENDPOINT, "c4"), (LISTENER, "l2")),
        removed=[(CLUSTER, "c2"), (ENDPOINT, "c2"), (VIRTUAL_HOST, "r1/foo.example")],
        routed={"r1": ("c1", "c4")},
    )
    made = await stream.expect(CLUSTER)

    assert "c4" in names(made)
    assert removed(made) == []
    assert delta or "c2" in names(made), "what is still routed to stays in a full state"
    await stream.subscribe(ENDPOINT, ["c4"] if delta else ["c1", "c2", "c4"])  # Envoy asks while it warms,
    await stream.ack(made)  # and says that it took the cluster when it has what it asked for
    first, _, routes = await follow(stream, [ENDPOINT, LISTENER, ROUTE])

    assert "c4" in names(first)
    assert names(routes) == ["r1"]
    [broken] = await follow(stream, [CLUSTER])

    assert removed(broken) == ["c2"] if delta else "c2" not in names(broken)
    assert {each.type_url for each in await until_quiet(stream)} <= {ENDPOINT}


@BOTH
async def test_o_05_nothing_is_broken_while_what_replaces_it_is_unanswered(world: World, delta: bool) -> None:
    stream = await envoy_like(world, delta=delta)
    world.mutate(removed=[(CLUSTER, "c2"), (ENDPOINT, "c2")], routed={"r1": ("c1",)})
    routes = await stream.expect(ROUTE)
    await stream.expect_quiet()
    await stream.nack(routes)
    told = await until_quiet(stream)

    assert told == [], "the client still routes to c2"
    world.mutate((ROUTE, "r1"))
    await follow(stream, [ROUTE])
    [broken] = await follow(stream, [CLUSTER])

    assert removed(broken) == ["c2"] if delta else "c2" not in names(broken)


@BOTH
async def test_o_06_the_next_step_waits_for_an_answer_but_not_for_ever(delta: bool) -> None:
    async with serving(ack_timeout_s=0.3) as world:
        stream = await envoy_like(world, delta=delta)
        world.mutate((CLUSTER, "c1"), (LISTENER, "l1"))
        await stream.expect(CLUSTER)
        await stream.ack(await stream.expect(ENDPOINT))
        await stream.expect_quiet()
        await stream.expect(LISTENER)  # the answer never comes


@BOTH
async def test_o_06_a_step_does_not_wait_for_types_that_the_client_does_not_ask_for(world: World, delta: bool) -> None:
    stream = world.open(delta=delta)
    await settle(stream, LISTENER)
    await settle(stream, ROUTE, ["r1"])
    world.mutate((CLUSTER, "c1"), (LISTENER, "l1"), (ROUTE, "r1"))
    await follow(stream, [LISTENER, ROUTE])


@BOTH
async def test_o_06_a_refused_cluster_removes_nothing_and_does_not_hold_up_the_routes(
    world: World, delta: bool
) -> None:
    stream = await envoy_like(world, delta=delta)
    world.mutate((CLUSTER, "c4"), (ENDPOINT, "c4"), routed={"r1": ("c1", "c4")}, removed=[(CLUSTER, "c2")])
    await stream.nack(await stream.expect(CLUSTER), "Error adding/updating cluster(s) c4: it will not do")
    await world.heard.until(lambda: bool(world.heard.of(Nacked)))
    await follow(stream, [ROUTE])
    told = await until_quiet(stream)

    assert {each.type_url for each in told} <= {CLUSTER, ENDPOINT}
    assert all("c1" in names(each) for each in told if each.type_url == CLUSTER and not delta)
    world.mutate((CLUSTER, "c4"))

    assert "c4" in names(await stream.expect(CLUSTER))


@BOTH
@WAYS
async def test_o_07_p_06_while_a_response_is_unanswered_only_the_newest_state_waits(
    world: World, delta: bool, own: bool
) -> None:
    stream = world.open(CLUSTER, delta=delta, own=own)
    await stream.subscribe(CLUSTER)
    first = await stream.expect(CLUSTER)
    for _ in range(50):
        world.mutate((CLUSTER, "c1"))
    await stream.expect_quiet()
    await stream.ack(first)
    newest = await settle_one(stream)

    assert len(newest) == 1
    wire = newest[0].resources
    current = await settle(world.open(CLUSTER, delta=delta, own=own), CLUSTER)

    assert all(resource in current.resources for resource in wire)
    assert "c1" in names(newest[0])


async def settle_one(stream: XdsStream) -> list[Response]:
    """Take what comes until nothing does, having waited for the first."""
    response = await stream.next()
    await stream.ack(response)
    return [response, *await until_quiet(stream)]


@BOTH
async def test_o_08_types_on_streams_of_their_own_each_get_their_own_changes(world: World, delta: bool) -> None:
    streams = {}
    for type_url in (CLUSTER, ENDPOINT, LISTENER, ROUTE):
        streams[type_url] = world.open(type_url, delta=delta, own=True)
        await settle(streams[type_url], type_url, FIXTURE[type_url])
    world.mutate((CLUSTER, "c1"), (LISTENER, "l1"), (ROUTE, "r1"))
    for type_url, stream in streams.items():
        assert {"c1", "l1", "r1"} & set(names(await stream.expect(type_url)))


@BOTH
async def test_o_08_a_cluster_that_is_still_routed_to_stays_on_a_stream_of_its_own(world: World, delta: bool) -> None:
    stream = world.open(CLUSTER, delta=delta, own=True)
    await settle(stream, CLUSTER)
    world.mutate(removed=[(CLUSTER, "c2"), (ENDPOINT, "c2")])
    for response in await until_quiet(stream):
        assert not delta
        assert "c2" in names(response)
    world.mutate(removed=[(VIRTUAL_HOST, "r1/foo.example")], routed={"r1": ("c1",)})
    gone = await stream.expect(CLUSTER)

    assert removed(gone) == ["c2"] if delta else "c2" not in names(gone)


@BOTH
@WAYS
@pytest.mark.parametrize(
    "wanted", [["c1"], ["c1", "c2", "nope"], ["c1", "c2"]], ids=["fewer", "more", "just as many names as there are"]
)
async def test_o_10_names_need_not_be_those_that_exist(world: World, delta: bool, own: bool, wanted: list[str]) -> None:
    stream = world.open(ENDPOINT, delta=delta, own=own)
    answer = await settle(stream, ENDPOINT, wanted)

    assert {*wanted} & {"c1", "c2"} <= {*names(answer)}
    world.mutate((ENDPOINT, "c1"))

    assert names(await stream.expect(ENDPOINT)) == ["c1"]
