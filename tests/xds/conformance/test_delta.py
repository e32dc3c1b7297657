"""Section D of the conformance list: the incremental protocol."""

import pytest
from envoy_data_plane.envoy.service.discovery.v3 import DeltaDiscoveryRequest

from tests.xds.client import DeltaDiscoveryResponse, XdsStream, versions
from tests.xds.conformance.fixture import FIXTURE
from tests.xds.conformance.world import EITHER, FULL, NAMED, WAYS, World, contents, names, ports, settle, until_quiet
from xds.messages import Acked, Nacked
from xds.types import CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, RUNTIME, SECRET, VIRTUAL_HOST

pytestmark = [pytest.mark.integration, WAYS]

ANY = pytest.mark.parametrize(("type_url", "name", "other"), [*FULL.args[1], *NAMED.args[1]])


def open_delta(world: World, type_url: str, own: bool) -> XdsStream:
    return world.open(type_url, delta=True, own=own)


async def expect_delta(stream: XdsStream, type_url: str) -> DeltaDiscoveryResponse:
    response = await stream.expect(type_url)

    assert isinstance(response, DeltaDiscoveryResponse)
    return response


@FULL
async def test_d_01_d_02_everything_comes_one_by_one_each_with_a_version_of_its_content(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    world.mutate((type_url, other))
    stream = open_delta(world, type_url, own)
    before = versions(await settle(stream, type_url))

    assert before.keys() == {*FIXTURE[type_url], other}
    assert all(before.values())
    world.mutate((type_url, name))
    again = versions(await settle(open_delta(world, type_url, own), type_url))

    assert {each for each in before if before[each] != again[each]} == {name}


@ANY
async def test_d_03_only_what_changed_is_sent(world: World, own: bool, type_url: str, name: str, other: str) -> None:
    world.mutate((type_url, other))
    stream = open_delta(world, type_url, own)
    await settle(stream, type_url, [name, other])
    world.mutate((type_url, other))
    changed = await expect_delta(stream, type_url)

    assert versions(changed) == {other: world.version(type_url, other)}
    assert changed.removed_resources == []


@FULL
async def test_d_04_a_removal_is_told_once_and_what_comes_back_is_sent_again(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    world.mutate((type_url, "new"))
    stream = open_delta(world, type_url, own)
    await settle(stream, type_url)
    world.mutate(removed=[(type_url, "new")])
    gone = await expect_delta(stream, type_url)
    await stream.ack(gone)

    assert (gone.resources, gone.removed_resources) == ([], ["new"])
    await stream.expect_quiet()
    world.mutate((type_url, "new"))

    assert names(await stream.expect(type_url)) == ["new"]


@FULL
async def test_d_05_d_09_names_and_the_wildcard_come_and_go_apart(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    world.mutate((type_url, other))
    stream = open_delta(world, type_url, own)
    await settle(stream, type_url)

    assert names(await settle(stream, type_url, [name])) == [name]  # which it has, but it asks
    world.mutate((type_url, other))
    await stream.ack(await expect_delta(stream, type_url))
    await stream.subscribe(type_url, unsubscribe=[name])
    still = await expect_delta(stream, type_url)  # the client cannot know what the wildcard says of it
    await stream.ack(still)

    assert names(still) == [name]
    await settle(stream, type_url, [name])
    await stream.subscribe(type_url, unsubscribe=["*"])
    await stream.expect_quiet()
    world.mutate((type_url, other), (type_url, name))
    only = await expect_delta(stream, type_url)
    await stream.ack(only)

    assert names(only) == [name]
    await stream.subscribe(type_url, unsubscribe=[name])
    await world.asked(type_url, 0)
    world.mutate((type_url, name), (type_url, other))
    await stream.expect_quiet()


@ANY
async def test_d_06_a_name_that_is_asked_for_again_is_sent_again(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    stream = open_delta(world, type_url, own)
    first = await settle(stream, type_url, [name])
    again = await settle(stream, type_url, [name])

    assert versions(again) == versions(first)
    assert names(again) == [name]
    await stream.expect_quiet()


@ANY
async def test_d_07_e_03_a_name_that_does_not_exist_is_said_to_be_removed_and_comes_when_it_exists(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    stream = open_delta(world, type_url, own)
    await stream.subscribe(type_url, ["nope"])
    answer = await expect_delta(stream, type_url)
    await stream.ack(answer)

    assert (answer.resources, answer.removed_resources, answer.resource_errors) == ([], ["nope"], [])
    await stream.expect_quiet()
    world.mutate((type_url, "nope"))

    assert names(await stream.expect(type_url)) == ["nope"]


@ANY
async def test_d_08_what_was_unsubscribed_is_not_heard_of_again_and_a_phantom_is_ignored(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    world.mutate((type_url, other))
    stream = open_delta(world, type_url, own)
    await settle(stream, type_url, [name, other])
    await stream.subscribe(type_url, unsubscribe=[name, "phantom"])
    await world.asked(type_url, 1)
    world.mutate((type_url, name))
    await stream.expect_quiet()
    world.mutate((type_url, other))

    assert names(await stream.expect(type_url)) == [other]


@FULL
async def test_d_09_a_name_that_the_wildcard_does_not_have_is_said_to_be_removed_when_it_is_dropped(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    stream = open_delta(world, type_url, own)
    await settle(stream, type_url, ["*", "nope"])
    await stream.subscribe(type_url, unsubscribe=["nope"])
    answer = await expect_delta(stream, type_url)

    assert (answer.resources, answer.removed_resources) == ([], ["nope"])


@NAMED
async def test_d_10_a_name_that_is_subscribed_and_unsubscribed_at_once_is_subscribed_and_sent(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    world.mutate((type_url, other))
    stream = open_delta(world, type_url, own)
    await settle(stream, type_url, [name])

    assert names(await settle(stream, type_url, [other], unsubscribe=[name, other])) == [other]
    world.mutate((type_url, name), (type_url, other))

    assert names(await stream.expect(type_url)) == [other]


@NAMED
@pytest.mark.parametrize("nonce", ["", "999", "stale"], ids=["no nonce", "an unknown nonce", "a stale nonce"])
async def test_d_11_edits_count_whatever_the_nonce_is(
    world: World, own: bool, type_url: str, name: str, other: str, nonce: str
) -> None:
    world.mutate((type_url, other))
    stream = open_delta(world, type_url, own)
    first = await settle(stream, type_url, [name])
    await settle(stream, type_url, [name])
    await stream.send(
        DeltaDiscoveryRequest(
            type_url=type_url,
            resource_names_subscribe=[other],
            resource_names_unsubscribe=[name],
            response_nonce=first.nonce if nonce == "stale" else nonce,
        )
    )
    answer = await stream.expect(type_url)
    await stream.ack(answer)

    assert names(answer) == [other]
    world.mutate((type_url, name))
    await stream.expect_quiet()


@ANY
async def test_d_12_what_was_refused_is_not_repeated_and_the_next_change_is_sent(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    stream = open_delta(world, type_url, own)
    await settle(stream, type_url, [name])
    world.mutate((type_url, name))
    refused = await stream.expect(type_url)
    await stream.nack(refused, "it will not do", 3)
    await world.heard.until(lambda: bool(world.heard.of(Nacked)))
    await stream.expect_quiet()

    assert [(event.names, event.message) for event in world.heard.of(Nacked)] == [((name,), "it will not do")]
    assert len(world.heard.of(Acked)) == 1
    world.mutate((type_url, name))

    assert versions(await stream.expect(type_url)) == {name: world.version(type_url, name)}


@EITHER
async def test_d_12_of_a_good_and_a_bad_one_the_good_one_arrives(
    world: World, own: bool, type_url: str, wanted: tuple[str, ...]
) -> None:
    stream = open_delta(world, type_url, own)
    await settle(stream, type_url, ["c1", "c2"])
    world.mutate((type_url, "c1"), (type_url, "c2"))
    held: dict[str, str] = {}
    seen = 0
    while (response := await stream.maybe()) is not None:
        seen += 1
        if "c2" in versions(response):
            await stream.nack(response, "c2 will not do")
        else:
            held |= versions(response)
            await stream.ack(response)

    assert held == {"c1": world.version(type_url, "c1")}
    assert seen <= 4, "at most twice as many responses as there are resources"
    world.mutate((type_url, "c2"))

    assert versions(await stream.expect(type_url)) == {"c2": world.version(type_url, "c2")}


@FULL
async def test_d_13_a_client_that_has_everything_gets_one_empty_answer(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    stream = open_delta(world, type_url, own)
    await stream.subscribe(type_url, initial=world.versions(type_url))
    answer = await expect_delta(stream, type_url)
    await stream.ack(answer)

    assert (answer.resources, answer.removed_resources) == ([], [])
    assert answer.nonce
    await stream.expect_quiet()


@pytest.mark.parametrize("type_url", [CLUSTER, LISTENER], ids=["CDS", "LDS"])
async def test_d_15_clusters_and_listeners_are_removed(world: World, own: bool, type_url: str) -> None:
    name = {CLUSTER: "c3", LISTENER: "l2"}[type_url]
    stream = open_delta(world, type_url, own)
    await settle(stream, type_url)
    world.mutate(removed=[(type_url, name)])

    assert (await expect_delta(stream, type_url)).removed_resources == [name]


async def test_d_15_an_assignment_goes_no_sooner_than_its_cluster(world: World, own: bool) -> None:
    world.mutate((CLUSTER, "c9"), (ENDPOINT, "c9"))
    stream = open_delta(world, ENDPOINT, own)
    if not own:
        await settle(stream, CLUSTER)
    await settle(stream, ENDPOINT, ["c9"])
    world.mutate(removed=[(CLUSTER, "c9"), (ENDPOINT, "c9")])
    if not own:
        gone = await expect_delta(stream, CLUSTER)

        assert gone.removed_resources == ["c9"]
        await stream.expect_quiet()
        await stream.ack(gone)
    last = await expect_delta(stream, ENDPOINT)

    assert last.removed_resources == ["c9"] or ports(contents(last)["c9"]) == []


@pytest.mark.parametrize(
    ("type_url", "holder"),
    [
        pytest.param(ROUTE, (LISTENER, "l-r9"), id="RDS"),
        pytest.param(SECRET, (CLUSTER, "c9-r9"), id="SDS"),
        pytest.param(EXTENSION, (LISTENER, "l--r9"), id="ECDS"),
    ],
)
async def test_d_15_nothing_goes_that_a_client_may_be_referring_to(
    world: World, own: bool, type_url: str, holder: tuple[str, str]
) -> None:
    world.mutate((type_url, "r9"), holder)
    stream = open_delta(world, type_url, own)
    if not own:
        await settle(stream, holder[0])
    await settle(stream, type_url, ["r9"])
    world.mutate(removed=[(type_url, "r9")])
    await stream.expect_quiet()
    world.mutate(removed=[holder])
    if not own:
        released = await expect_delta(stream, holder[0])

        assert released.removed_resources == [holder[1]]
        await stream.expect_quiet()
        await stream.ack(released)

    assert (await expect_delta(stream, type_url)).removed_resources == ["r9"]


@pytest.mark.parametrize(
    ("type_url", "name"), [(RUNTIME, "rt"), (VIRTUAL_HOST, "r1/foo.example")], ids=["RTDS", "VHDS"]
)
async def test_d_15_layers_and_virtual_hosts_are_removed(world: World, own: bool, type_url: str, name: str) -> None:
    stream = open_delta(world, type_url, own)
    await settle(stream, type_url, [name])
    world.mutate(removed=[(type_url, name)])
    told = await until_quiet(stream)

    assert len(told) == 1
    gone = told[0]
    assert isinstance(gone, DeltaDiscoveryResponse)
    assert gone.removed_resources == [name]
