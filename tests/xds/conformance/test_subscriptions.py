"""Section W of the conformance list: names, wildcards old and new. Delta's own rules are in `test_delta.py`."""

import pytest

from tests.xds.client import DiscoveryResponse
from tests.xds.conformance.fixture import FIXTURE
from tests.xds.conformance.world import BOTH, FULL, NAMED, WAYS, World, names, settle
from xds.types import CLUSTER, ENDPOINT, VIRTUAL_HOST

pytestmark = pytest.mark.integration


@BOTH
@WAYS
@NAMED
async def test_w_01_what_was_asked_for_comes_and_nothing_else(
    world: World, delta: bool, own: bool, type_url: str, name: str, other: str
) -> None:
    world.mutate((type_url, other))
    stream = world.open(type_url, delta=delta, own=own)

    assert names(await settle(stream, type_url, [name])) == [name]
    world.mutate((type_url, other))
    await stream.expect_quiet()


@WAYS
@NAMED
async def test_w_02_a_longer_list_is_answered_although_the_version_is_the_same(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    world.mutate((type_url, other))
    stream = world.open(type_url, delta=False, own=own)
    first = await settle(stream, type_url, [name])
    grown = await settle(stream, type_url, [name, other])

    assert isinstance(first, DiscoveryResponse)
    assert isinstance(grown, DiscoveryResponse)
    assert grown.version_info == first.version_info
    assert other in names(grown)


@WAYS
@NAMED
async def test_w_03_what_was_dropped_from_the_list_is_not_heard_of_again(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    world.mutate((type_url, other))
    stream = world.open(type_url, delta=False, own=own)
    await settle(stream, type_url, [name, other])
    await stream.subscribe(type_url, [other])
    await world.asked(type_url, 1)
    world.mutate((type_url, name))
    await stream.expect_quiet()
    world.mutate((type_url, other))

    assert names(await stream.expect(type_url)) == [other]


@WAYS
@NAMED
async def test_w_04_a_name_that_was_dropped_and_is_asked_for_again_comes_again(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    world.mutate((type_url, other))
    stream = world.open(type_url, delta=False, own=own)
    for _ in range(3):
        assert names(await settle(stream, type_url, [name])) == [name]
        await stream.subscribe(type_url, [])
    await settle(stream, type_url, [other])

    assert name in names(await settle(stream, type_url, [other, name]))


@WAYS
@pytest.mark.parametrize(("type_url", "name", "other"), [*NAMED.args[1], *FULL.args[1]])
async def test_w_05_an_empty_list_after_names_is_no_wildcard(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    stream = world.open(type_url, delta=False, own=own)
    await settle(stream, type_url, [name])
    await stream.subscribe(type_url, [])
    await world.asked(type_url, 0)
    world.mutate((type_url, name), (type_url, other))
    await stream.expect_quiet()


@WAYS
@FULL
async def test_w_06_a_star_means_everything_until_it_is_taken_back(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    world.mutate((type_url, other))
    everything = sorted({*FIXTURE[type_url], other})
    stream = world.open(type_url, delta=False, own=own)

    assert names(await settle(stream, type_url, ["*"])) == everything
    assert names(await settle(stream, type_url, ["*", "nope"])) == everything
    world.mutate((type_url, "nope"))
    everything = sorted([*everything, "nope"])

    assert names(await settle(stream, type_url, ["*", "nope"])) == everything

    assert names(await settle(stream, type_url, [name])) == [name]
    world.mutate((type_url, name), (type_url, other))

    assert names(await stream.expect(type_url)) == [name]
    await stream.subscribe(type_url, [])
    await world.asked(type_url, 0)
    world.mutate((type_url, name))
    await stream.expect_quiet()


@WAYS
@FULL
async def test_w_07_an_empty_list_means_everything_only_before_any_name(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    stream = world.open(type_url, delta=False, own=own)

    assert name in names(await settle(stream, type_url))

    assert names(await settle(stream, type_url, [name])) == [name]
    await stream.subscribe(type_url, [])
    await world.asked(type_url, 0)
    world.mutate((type_url, name), (type_url, other))
    await stream.expect_quiet()


@BOTH
@WAYS
@pytest.mark.parametrize(
    ("type_url", "name"), [*(pytest.param(*each.values[:2], id=each.id) for each in NAMED.args[1])]
)
async def test_w_07_an_empty_list_of_any_other_type_means_nothing(
    world: World, delta: bool, own: bool, type_url: str, name: str
) -> None:
    stream = world.open(type_url, delta=delta, own=own)
    await stream.subscribe(type_url)
    await world.asked(type_url, 0)
    world.mutate((type_url, name))
    await stream.expect_quiet()


@WAYS
async def test_w_07_an_empty_list_of_virtual_hosts_means_none(world: World, own: bool) -> None:
    stream = world.open(VIRTUAL_HOST, delta=True, own=own)
    await stream.subscribe(VIRTUAL_HOST)
    world.mutate((VIRTUAL_HOST, "r1/foo.example"))
    await stream.expect_quiet()


@BOTH
@WAYS
@FULL
@pytest.mark.parametrize("wanted", [[], ["*"]], ids=["empty list", "star"])
async def test_w_08_who_asks_for_everything_hears_of_what_is_new(
    world: World, delta: bool, own: bool, type_url: str, name: str, other: str, wanted: list[str]
) -> None:
    stream = world.open(type_url, delta=delta, own=own)
    await settle(stream, type_url, wanted)
    world.mutate((type_url, "new"))

    assert names(await stream.expect(type_url)) == (["new"] if delta else sorted([*FIXTURE[type_url], "new"]))


@BOTH
@WAYS
@FULL
async def test_w_09_d_13_where_there_is_nothing_everything_is_an_empty_answer(
    world: World, delta: bool, own: bool, type_url: str, name: str, other: str
) -> None:
    world.mutate(removed=[(url, each) for url, each in world.editions])
    stream = world.open(type_url, delta=delta, own=own)
    response = await settle(stream, type_url)

    assert response.resources == []
    assert response.nonce
    assert not isinstance(response, DiscoveryResponse) or response.version_info
    await stream.expect_quiet()


@BOTH
@WAYS
async def test_w_10_a_name_that_is_listed_twice_comes_once_and_one_that_is_empty_does_not_exist(
    world: World, delta: bool, own: bool
) -> None:
    stream = world.open(ENDPOINT, delta=delta, own=own)

    assert names(await settle(stream, ENDPOINT, ["c1", "c1", ""])) == ["c1"]
    await stream.expect_quiet()


@BOTH
@WAYS
async def test_w_11_twenty_thousand_names_are_answered(world: World, delta: bool, own: bool) -> None:
    stream, other = world.open(ENDPOINT, delta=delta, own=own), world.open(CLUSTER, delta=delta, own=own)
    await stream.subscribe(ENDPOINT, [f"unknown-{number}" for number in range(20_000)] + ["c1"])
    await settle(other, CLUSTER)
    told = 0
    while told < 20_001:
        response = await stream.expect(ENDPOINT)
        await stream.ack(response)
        told += len(response.resources) + len(getattr(response, "removed_resources", ()))

    assert told == 20_001


@BOTH
@WAYS
async def test_w_12_a_stream_inherits_nothing_from_another_of_the_same_node(
    world: World, delta: bool, own: bool
) -> None:
    first, second = (world.open(ENDPOINT, delta=delta, own=own) for _ in range(2))
    await settle(first, ENDPOINT, ["c1"])
    await settle(second, ENDPOINT, ["c2"])
    world.mutate((ENDPOINT, "c1"))

    assert names(await first.expect(ENDPOINT)) == ["c1"]
    await second.expect_quiet()
