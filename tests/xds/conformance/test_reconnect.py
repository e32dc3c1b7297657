"""Section R of the conformance list: what a client that comes back is told, here or by another replica."""

import pytest

from tests.xds.client import DeltaDiscoveryResponse, versions
from tests.xds.conformance.fixture import FIXTURE
from tests.xds.conformance.world import BOTH, FULL, NAMED, WAYS, World, contents, names, serving, settle, until_quiet
from xds.types import CLUSTER, ENDPOINT, VIRTUAL_HOST

pytestmark = pytest.mark.integration


@WAYS
@FULL
@pytest.mark.parametrize("wanted", [[], ["*"]], ids=["empty list", "star"])
async def test_r_01_r_03_a_client_that_comes_back_is_told_what_differs(
    world: World, own: bool, type_url: str, name: str, other: str, wanted: list[str]
) -> None:
    world.mutate((type_url, other), (type_url, "new"))
    stream = world.open(type_url, delta=True, own=own)
    known = {each: version for each, version in world.versions(type_url).items() if each != "new"}
    await stream.subscribe(type_url, wanted, initial=known | {other: "of-another-replica", "gone": "old"})
    told = await until_quiet(stream)
    sent = [each for response in told for each in versions(response)]
    removed = [each for response in told for each in getattr(response, "removed_resources", ())]

    assert sorted(sent) == sorted(["new", other])
    assert removed == ["gone"]


@WAYS
@NAMED
async def test_r_02_what_a_client_says_it_holds_subscribes_it_to_nothing(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    world.mutate((type_url, other))
    stream = world.open(type_url, delta=True, own=own)
    current = world.versions(type_url)
    await settle(stream, type_url, [name], initial={name: current[name], other: "old", "gone": "old"})
    world.mutate((type_url, other))
    await stream.expect_quiet()


@WAYS
@FULL
async def test_r_02_what_a_client_says_it_holds_counts_in_its_first_request_only(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    stream = world.open(type_url, delta=True, own=own)
    await settle(stream, type_url)
    await stream.subscribe(type_url, initial={name: "old", "gone": "old"})
    await stream.expect_quiet()


@WAYS
@NAMED
async def test_r_04_a_name_that_is_asked_for_is_sent_although_the_client_says_it_has_it(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    stream = world.open(type_url, delta=True, own=own)
    held = {name: world.version(type_url, name)}

    assert versions(await settle(stream, type_url, [name], initial=held)) == held
    await stream.expect_quiet()


async def test_r_05_every_cluster_that_is_sent_is_followed_by_its_assignment(world: World) -> None:
    clusters, assignments = world.versions(CLUSTER), world.versions(ENDPOINT)
    world.mutate((CLUSTER, "c2"))
    stream = world.open(delta=True)
    await stream.subscribe(CLUSTER, initial=clusters)
    changed = await stream.expect(CLUSTER)
    await stream.subscribe(ENDPOINT, ["c1", "c2"], initial=assignments)
    answer = await stream.expect(ENDPOINT)

    assert names(changed) == ["c2"]
    assert "c2" in names(answer)


async def test_r_05_assignments_that_are_asked_for_again_are_sent_with_everything_unchanged(world: World) -> None:
    stream = world.open(delta=True)
    empty = await settle(stream, CLUSTER, initial=world.versions(CLUSTER))

    assert empty.resources == []
    assert names(await settle(stream, ENDPOINT, ["c1", "c2"], initial=world.versions(ENDPOINT))) == ["c1", "c2"]
    await stream.expect_quiet()


@WAYS
@NAMED
async def test_r_06_r_07_a_name_that_went_meanwhile_is_said_to_be_gone_each_time(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    for _ in range(3):
        stream = world.open(type_url, delta=True, own=own)
        await stream.subscribe(type_url, ["gone"], initial={"gone": "old"})
        answer = await stream.expect(type_url)
        await stream.ack(answer)

        assert isinstance(answer, DeltaDiscoveryResponse)
        assert (answer.resources, answer.removed_resources) == ([], ["gone"])
    await stream.expect_quiet()


@BOTH
@WAYS
async def test_r_08_replicas_of_equal_state_serve_equal_bytes(delta: bool, own: bool) -> None:
    async with serving() as world, serving(identifier="cp-2") as replica:
        for type_url, wanted in FIXTURE.items():
            if type_url == VIRTUAL_HOST and not delta:
                continue
            one, other = (each.open(type_url, delta=delta, own=own) for each in (world, replica))
            here, there = await settle(one, type_url, wanted), await settle(other, type_url, wanted)

            assert here.resources == there.resources
            assert contents(here).keys() == set(wanted)


async def test_r_08_a_client_that_moves_to_another_replica_is_told_nothing_new() -> None:
    async with serving() as world, serving() as replica:
        held = versions(await settle(world.open(delta=True), CLUSTER))
        answer = await settle(replica.open(delta=True), CLUSTER, initial=held)

        assert (answer.resources, getattr(answer, "removed_resources", None)) == ([], [])
