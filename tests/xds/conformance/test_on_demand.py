"""Sections V, X and E of the conformance list: types on demand, names of other authorities, errors as data."""

import pytest
from envoy_data_plane.envoy.service.discovery.v3 import (
    DeltaDiscoveryRequest,
    DiscoveryRequest,
    ResourceLocator,
)

from tests.xds.client import DeltaDiscoveryResponse, versions
from tests.xds.conformance.fixture import MESSAGES
from tests.xds.conformance.world import BOTH, WAYS, World, contents, names, settle, until_quiet
from xds.types import CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, RUNTIME, SCOPED_ROUTE, SECRET, VIRTUAL_HOST

pytestmark = pytest.mark.integration

HOST = "r1/foo.example"
OTHERS = [
    "xdstp://acme/envoy.config.endpoint.v3.ClusterLoadAssignment/c1",
    "xdstp://acme/envoy.config.endpoint.v3.ClusterLoadAssignment/c1?b=2&a=1",
    "xdstp:///envoy.config.endpoint.v3.ClusterLoadAssignment/c1#alt=x",
]


@WAYS
async def test_v_01_a_known_virtual_host_comes_by_its_name_and_alias(world: World, own: bool) -> None:
    stream = world.open(VIRTUAL_HOST, delta=True, own=own)
    answer = await settle(stream, VIRTUAL_HOST, [HOST])

    assert isinstance(answer, DeltaDiscoveryResponse)
    assert [(each.name, each.aliases) for each in answer.resources] == [(HOST, [HOST])]
    assert contents(answer)[HOST].domains == ["edition-1.example"]


@WAYS
@pytest.mark.parametrize("host", ["r1/nobody.example", "r1/with/a/slash", "no-route/foo.example"])
async def test_v_01_an_unknown_virtual_host_is_promptly_said_to_be_none_and_comes_when_it_exists(
    world: World, own: bool, host: str
) -> None:
    stream = world.open(VIRTUAL_HOST, delta=True, own=own)
    answer = await settle(stream, VIRTUAL_HOST, [host])

    assert isinstance(answer, DeltaDiscoveryResponse)
    assert [(each.name, each.aliases, each.resource) for each in answer.resources] == [(host, [host], None)]
    assert answer.removed_resources == []
    world.mutate((VIRTUAL_HOST, host))

    assert contents(await stream.expect(VIRTUAL_HOST))[host] is not None


async def test_v_02_a_changed_route_brings_its_virtual_hosts_again(world: World) -> None:
    stream = world.open(delta=True)
    await settle(stream, ROUTE, ["r1"])
    before = versions(await settle(stream, VIRTUAL_HOST, [HOST]))
    world.mutate((ROUTE, "r1"))
    await stream.ack(await stream.expect(ROUTE))
    again = await stream.expect(VIRTUAL_HOST)
    await stream.ack(again)

    assert versions(again) == before
    await stream.expect_quiet()


@WAYS
async def test_v_03_a_cluster_on_demand_comes_or_is_denied_at_once(world: World, own: bool) -> None:
    stream = world.open(CLUSTER, delta=True, own=own)
    if not own:
        await settle(stream, CLUSTER)

    assert names(await settle(stream, CLUSTER, ["c1"])) == ["c1"]
    unknown = await settle(stream, CLUSTER, ["new"])

    assert isinstance(unknown, DeltaDiscoveryResponse)
    assert (unknown.resources, unknown.removed_resources) == ([], ["new"])
    world.mutate((CLUSTER, "new"), (ENDPOINT, "new"))
    made = await stream.expect(CLUSTER)
    await stream.ack(made)

    assert names(made) == ["new"]
    if not own:
        assert names(await settle(stream, ENDPOINT, ["new"])) == ["new"]
    world.mutate((CLUSTER, "c3"), removed=[(CLUSTER, "new"), (ENDPOINT, "new")])
    told = await until_quiet(stream)
    gone = [name for each in told if each.type_url == CLUSTER for name in getattr(each, "removed_resources", ())]
    sent = [name for each in told if each.type_url == CLUSTER for name in names(each)]

    assert gone == ["new"]
    assert sent == ([] if own else ["c3"]), "the wildcard part goes on"


@BOTH
@WAYS
async def test_v_04_a_rotated_secret_is_one_push_of_its_own(world: World, delta: bool, own: bool) -> None:
    world.mutate((CLUSTER, "c9-s1"), (ENDPOINT, "c9-s1"))
    stream = world.open(SECRET, delta=delta, own=own)
    if not own:
        for type_url, wanted in ((CLUSTER, ()), (ENDPOINT, ("c9-s1",)), (LISTENER, ())):
            await settle(stream, type_url, wanted)
    await settle(stream, SECRET, ["s1"])
    world.mutate((SECRET, "s1"))
    rotated = await stream.expect(SECRET)
    await stream.ack(rotated)

    assert contents(rotated)["s1"].generic_secret.secret.inline_string == "edition 2"
    await stream.expect_quiet()


@BOTH
@WAYS
async def test_v_05_a_runtime_layer_comes_changes_and_goes(world: World, delta: bool, own: bool) -> None:
    stream = world.open(RUNTIME, delta=delta, own=own)
    for edition in (1, 2):
        response = await settle(stream, RUNTIME, ["rt"]) if edition == 1 else await stream.expect(RUNTIME)
        if edition == 2:
            await stream.ack(response)

        assert contents(response)["rt"].layer.fields["edition"].number_value == edition
        world.mutate((RUNTIME, "rt")) if edition == 1 else world.mutate(removed=[(RUNTIME, "rt")])
    told = await until_quiet(stream)

    assert [getattr(each, "removed_resources", None) for each in told] == ([["rt"]] if delta else [])


@BOTH
@WAYS
async def test_v_06_an_extensions_configuration_changes_without_its_listener(
    world: World, delta: bool, own: bool
) -> None:
    world.mutate((LISTENER, "l--f1"))
    stream = world.open(EXTENSION, delta=delta, own=own)
    if not own:
        await settle(stream, LISTENER)
    await settle(stream, EXTENSION, ["f1"])
    world.mutate((EXTENSION, "f1"))
    changed = await stream.expect(EXTENSION)
    await stream.ack(changed)

    assert names(changed) == ["f1"]
    world.mutate(removed=[(EXTENSION, "f1")])
    await stream.expect_quiet()  # its listener still refers to it


@BOTH
@WAYS
async def test_v_07_an_empty_list_of_scopes_means_all_of_them(world: World, delta: bool, own: bool) -> None:
    stream = world.open(SCOPED_ROUTE, delta=delta, own=own)

    assert names(await settle(stream, SCOPED_ROUTE)) == ["sc"]
    if not own:
        assert names(await settle(stream, ROUTE, ["r1"])) == ["r1"]


@pytest.mark.parametrize("own", [False, True], ids=["ads", "own service"])
@pytest.mark.parametrize("name", OTHERS)
async def test_x_01_x_02_x_04_a_name_of_another_authority_is_as_good_as_none(
    world: World, own: bool, name: str
) -> None:
    stream = world.open(ENDPOINT, delta=True, own=own)
    answer = await settle(stream, ENDPOINT, [name, "c1"])

    assert isinstance(answer, DeltaDiscoveryResponse)
    assert names(answer) == ["c1"]
    assert answer.removed_resources == [name]


@WAYS
@pytest.mark.parametrize("name", OTHERS)
async def test_x_04_in_sotw_a_name_of_another_authority_has_no_endpoints_and_never_ours(
    world: World, own: bool, name: str
) -> None:
    stream = world.open(ENDPOINT, delta=False, own=own)
    found = contents(await settle(stream, ENDPOINT, [name]))

    assert [(each, message.endpoints) for each, message in found.items()] == [(name, [])]


@WAYS
async def test_x_03_a_collection_is_as_good_as_none(world: World, own: bool) -> None:
    everything = "xdstp://acme/envoy.config.cluster.v3.Cluster/group/*"
    stream = world.open(CLUSTER, delta=True, own=own)
    answer = await settle(stream, CLUSTER, [everything])

    assert isinstance(answer, DeltaDiscoveryResponse)
    assert (answer.resources, answer.removed_resources) == ([], [everything])
    await stream.subscribe(CLUSTER, unsubscribe=[everything])
    world.mutate((CLUSTER, "new"))
    await stream.expect_quiet()


@BOTH
@WAYS
async def test_x_06_resource_locators_are_passed_over(world: World, delta: bool, own: bool) -> None:
    stream = world.open(ENDPOINT, delta=delta, own=own)
    locators = [ResourceLocator(name="c1")]
    if delta:
        await stream.send(DeltaDiscoveryRequest(type_url=ENDPOINT, resource_locators_subscribe=locators))
    else:
        await stream.send(DiscoveryRequest(type_url=ENDPOINT, resource_locators=locators))
    await stream.expect_quiet()

    assert names(await settle(stream, ENDPOINT, ["c1"])) == ["c1"]


@BOTH
async def test_e_03_no_response_carries_errors_as_data(world: World, delta: bool) -> None:
    for type_url in MESSAGES:
        if type_url == VIRTUAL_HOST and not delta:
            continue
        stream = world.open(delta=delta)
        await stream.subscribe(type_url, ["nope"])
        for response in await until_quiet(stream):
            assert response.resource_errors == []
