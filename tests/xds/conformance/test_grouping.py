"""Section G of the conformance list: what a response holds, what absence says, and names that do not exist."""

import pytest

from tests.xds.client import DeltaDiscoveryResponse
from tests.xds.conformance.fixture import FIXTURE
from tests.xds.conformance.world import BOTH, FULL, NAMED, WAYS, World, contents, names, ports, settle, until_quiet
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE, VIRTUAL_HOST

pytestmark = pytest.mark.integration


@WAYS
@FULL
@pytest.mark.parametrize("everything", [True, False], ids=["wildcard", "by name"])
async def test_g_01_a_sotw_response_is_the_whole_of_what_is_asked_for(
    world: World, own: bool, type_url: str, name: str, other: str, everything: bool
) -> None:
    world.mutate((type_url, other))
    whole = sorted({*FIXTURE[type_url], other}) if everything else [name, other]
    stream = world.open(type_url, delta=False, own=own)
    await settle(stream, type_url, [] if everything else whole)
    world.mutate((type_url, name))

    assert names(await stream.expect(type_url)) == whole


@WAYS
@NAMED
async def test_g_02_of_the_other_types_only_what_changed_is_sent(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    world.mutate((type_url, other))
    stream = world.open(type_url, delta=False, own=own)
    await settle(stream, type_url, [name, other])
    world.mutate((type_url, other))

    assert names(await stream.expect(type_url)) == [other]


@WAYS
@pytest.mark.parametrize(("type_url", "gone"), [(CLUSTER, "c3"), (LISTENER, "l2")], ids=["CDS", "LDS"])
async def test_g_03_what_is_removed_is_absent_and_nothing_at_all_is_an_empty_response(
    world: World, own: bool, type_url: str, gone: str
) -> None:
    stream = world.open(type_url, delta=False, own=own)
    await settle(stream, type_url)
    world.mutate(removed=[(type_url, gone)])
    shorter = await stream.expect(type_url)
    await stream.ack(shorter)

    assert names(shorter) == [name for name in FIXTURE[type_url] if name != gone]
    world.mutate(removed=list(world.editions))

    assert (await stream.expect(type_url)).resources == []


@WAYS
@NAMED
async def test_g_04_no_absence_removes_a_resource_of_the_other_types(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    world.mutate((type_url, other))
    stream = world.open(type_url, delta=False, own=own)
    await settle(stream, type_url, [name, other])
    world.mutate(
        removed=[*((LISTENER, each) for each in FIXTURE[LISTENER]), *((url, name) for url in holders(type_url))]
    )
    told = [contents(response) for response in await until_quiet(stream)]

    if type_url == ENDPOINT:  # hosts are taken away by an assignment without any
        assert [(list(each), ports(each[name])) for each in told] == [([name], [])]
    else:
        assert told == []


def holders(type_url: str) -> list[str]:
    """Name the types that have a resource of the same name which goes with it."""
    return [CLUSTER, ENDPOINT] if type_url == ENDPOINT else [type_url]


@WAYS
@FULL
async def test_g_06_e_03_a_name_that_does_not_exist_is_left_out_and_remembered(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    stream = world.open(type_url, delta=False, own=own)
    response = await settle(stream, type_url, ["nope"])

    assert (response.resources, response.resource_errors) == ([], [])
    await stream.expect_quiet()
    world.mutate((type_url, "nope"))

    assert names(await stream.expect(type_url)) == ["nope"]


@WAYS
@NAMED
async def test_g_06_e_03_a_name_of_another_type_that_does_not_exist_is_remembered(
    world: World, own: bool, type_url: str, name: str, other: str
) -> None:
    stream = world.open(type_url, delta=False, own=own)
    await stream.subscribe(type_url, ["nope"])
    told = await until_quiet(stream)

    assert [response.resource_errors for response in told] == [[] for _ in told]
    assert [ports(each) for response in told for each in contents(response).values()] in ([], [[]])
    assert bool(told) == (type_url == ENDPOINT)
    world.mutate((type_url, "nope"))

    assert names(await stream.expect(type_url)) == ["nope"]


@BOTH
async def test_g_07_the_assignment_of_a_cluster_that_just_went_is_empty_and_holds_nobody_up(
    world: World, delta: bool
) -> None:
    stream = world.open(delta=delta)
    await settle(stream, CLUSTER)
    await settle(stream, ENDPOINT, ["c1"])
    world.mutate(removed=[(CLUSTER, "c2"), (ENDPOINT, "c2")], routed={"r1": ("c1",)})
    await stream.ack(await stream.expect(CLUSTER))
    await stream.subscribe(ENDPOINT, ["c1", "c2"] if not delta else ["c2"])
    answer = await stream.expect(ENDPOINT)

    assert ports(contents(answer)["c2"]) == []
    assert getattr(answer, "removed_resources", []) == []


@BOTH
@WAYS
async def test_g_07_what_is_asked_for_is_answered_beside_what_does_not_exist(
    world: World, delta: bool, own: bool
) -> None:
    stream = world.open(ENDPOINT, delta=delta, own=own)
    answer = await settle(stream, ENDPOINT, ["c1", "nope"])
    found = contents(answer)

    assert ports(found["c1"]) == [8001]
    assert getattr(answer, "removed_resources", ["nope"]) == ["nope"]
    assert "nope" not in found or ports(found["nope"]) == []


@BOTH
@WAYS
async def test_g_08_g_09_a_name_stands_once_in_a_response_and_inside_as_outside(
    world: World, delta: bool, own: bool
) -> None:
    for type_url, wanted in FIXTURE.items():
        if type_url == VIRTUAL_HOST and not delta:
            continue
        stream = world.open(type_url, delta=delta, own=own)
        asked = [*wanted, *wanted, "nope", "nope"] + (["*"] if type_url in {CLUSTER, LISTENER} else [])
        answer = await settle(stream, type_url, asked)
        found = contents(answer)  # which refuses what stands twice, or under another name

        assert found.keys() >= set(wanted)
        if isinstance(answer, DeltaDiscoveryResponse):
            assert found.keys().isdisjoint(answer.removed_resources)
            assert len(answer.removed_resources) == len(set(answer.removed_resources))


@BOTH
async def test_g_08_a_resource_that_moves_while_it_is_asked_for_is_not_there_twice(world: World, delta: bool) -> None:
    stream = world.open(delta=delta)
    await settle(stream, CLUSTER)
    await settle(stream, ROUTE, ["r1"])
    for _ in range(5):
        await stream.subscribe(CLUSTER, ["*", "c1"])
        world.mutate((CLUSTER, "c1"))
        world.mutate((CLUSTER, "c1"), removed=[(CLUSTER, "c3")])
        world.mutate((CLUSTER, "c3"))
        for response in await until_quiet(stream):
            found = contents(response)

            assert found.keys().isdisjoint(getattr(response, "removed_resources", ()))
