"""Section T of the conformance list: services, streams and types."""

import grpc
import pytest
from envoy_data_plane.envoy.service.discovery.v3 import DeltaDiscoveryRequest, DiscoveryRequest

from tests.xds.client import XdsStream
from tests.xds.conformance.fixture import FIXTURE, MESSAGES
from tests.xds.conformance.world import BOTH, NAMED, WAYS, World, contents, names, serving, settle
from xds.messages import Closed, Nacked, Outdated, Subscribed
from xds.types import CLUSTER, ENDPOINT, LISTENER, RUNTIME, VIRTUAL_HOST

pytestmark = pytest.mark.integration

FOO = "type.googleapis.com/acme.Foo"
V2 = "type.googleapis.com/envoy.api.v2.Cluster"
SERVICES = pytest.mark.parametrize(
    ("type_url", "delta"),
    [
        pytest.param(url, delta, id=f"{url.rpartition('.')[2]} {'delta' if delta else 'sotw'}")
        for url in MESSAGES
        for delta in (False, True)
        if delta or url != VIRTUAL_HOST
    ],
)
LEDS = "/envoy.service.endpoint.v3.LocalityEndpointDiscoveryService/DeltaLocalityEndpoints"
SOTW_VHDS = "/envoy.service.route.v3.VirtualHostDiscoveryService/StreamVirtualHosts"


async def ask_without_a_type(stream: XdsStream, wanted: list[str]) -> None:
    if stream.delta:
        await stream.send(DeltaDiscoveryRequest(resource_names_subscribe=wanted))
    else:
        await stream.send(DiscoveryRequest(resource_names=wanted))


@SERVICES
@WAYS
async def test_t_01_t_14_t_15_every_type_is_served_by_ads_and_by_a_service_of_its_own(
    world: World, type_url: str, delta: bool, own: bool
) -> None:
    stream = world.open(type_url, delta=delta, own=own)
    response = await settle(stream, type_url, FIXTURE[type_url])

    assert names(response) == list(FIXTURE[type_url])
    assert response.type_url == type_url
    assert response.control_plane is not None
    assert response.control_plane.identifier == "cp-1"
    await stream.expect_quiet()


@pytest.mark.parametrize("path", [LEDS, SOTW_VHDS, "/acme.Foo/Bar"], ids=["LEDS", "VHDS in SotW", "anything else"])
async def test_t_01_a_service_that_is_not_offered_is_unimplemented_and_the_connection_stays(
    world: World, path: str
) -> None:
    stream = world.open(delta=True)
    await settle(stream, CLUSTER)
    refused = XdsStream(world.client.call(path), delta=True, node=None)

    assert (await refused.expect_end())[0] is grpc.StatusCode.UNIMPLEMENTED
    world.mutate((CLUSTER, "c1"))
    await stream.expect(CLUSTER)


@SERVICES
async def test_t_02_a_types_own_service_knows_its_type(world: World, type_url: str, delta: bool) -> None:
    stream = world.open(type_url, delta=delta, own=True)
    await ask_without_a_type(stream, list(FIXTURE[type_url]))
    response = await stream.expect(type_url)
    await stream.ack(response)  # which names the type, as later requests may

    assert names(response) == list(FIXTURE[type_url])
    assert names(await settle(stream, type_url, [*FIXTURE[type_url], "another"]))


@BOTH
async def test_t_03_an_aggregated_request_without_a_type_ends_that_stream_and_no_other(
    world: World, delta: bool
) -> None:
    other, stream = world.open(delta=delta), world.open(delta=delta)
    await settle(other, CLUSTER)
    await ask_without_a_type(stream, [])
    code, said = await stream.expect_end()

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "type_url is missing" in said
    await settle(other, LISTENER)


@SERVICES
async def test_t_04_t_13_another_type_than_the_services_ends_that_stream_and_no_other(
    world: World, type_url: str, delta: bool
) -> None:
    other, stream = world.open(delta=delta), world.open(type_url, delta=delta, own=True)
    await settle(other, CLUSTER)
    await stream.subscribe(RUNTIME if type_url != RUNTIME else CLUSTER, ["c1"])
    code, said = await stream.expect_end()

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"this service serves {type_url}" in said
    await settle(other, LISTENER)


@BOTH
@pytest.mark.parametrize("unknown", [FOO, V2], ids=["T-05 a foreign type", "T-06 an API version that is gone"])
async def test_t_05_t_06_an_unknown_type_is_answered_as_having_nothing_and_the_stream_goes_on(
    world: World, delta: bool, unknown: str
) -> None:
    stream = world.open(delta=delta)
    await settle(stream, CLUSTER)
    await stream.subscribe(unknown, ["c1"])
    if delta:
        answer = await stream.expect(unknown)

        assert answer.resources == []
        assert answer.removed_resources == ["c1"]
    world.mutate((CLUSTER, "c1"))

    assert "c1" in names(await stream.expect(CLUSTER))
    assert [event.type_url for event in world.heard.of(Subscribed) if not event.known] == [unknown]


@BOTH
async def test_t_07_the_types_of_an_aggregated_stream_do_not_disturb_each_other(world: World, delta: bool) -> None:
    stream = world.open(delta=delta)
    clusters = await settle(stream, CLUSTER)
    await settle(stream, ENDPOINT, ["c1"])
    await stream.subscribe(LISTENER)
    await stream.nack(await stream.expect(LISTENER))
    if delta:
        await stream.expect(LISTENER)  # the half of the refused pair
    await world.heard.until(lambda: bool(world.heard.of(Nacked)))
    world.mutate((CLUSTER, "c1"))
    await stream.ack(await stream.expect(CLUSTER))
    await stream.ack(await stream.expect(ENDPOINT))
    foreign = (
        DeltaDiscoveryRequest(type_url=ENDPOINT, response_nonce=clusters.nonce)
        if delta
        else DiscoveryRequest(type_url=ENDPOINT, resource_names=["c1"], response_nonce=clusters.nonce)
    )
    await stream.send(foreign)
    await world.heard.until(lambda: bool(world.heard.of(Outdated)))
    await stream.expect_quiet()

    assert [event.type_url for event in world.heard.of(Outdated)] == [ENDPOINT]
    world.mutate((ENDPOINT, "c1"))

    assert names(await stream.expect(ENDPOINT)) == ["c1"]


@BOTH
@NAMED
async def test_t_08_streams_of_one_node_are_served_and_end_apart(
    world: World, delta: bool, type_url: str, name: str, other: str
) -> None:
    streams = [world.open(delta=delta), world.open(delta=delta), world.open(type_url, delta=delta, own=True)]
    for stream in streams:
        await settle(stream, type_url, [name])
    await streams[0].half_close()

    assert (await streams[0].expect_end())[0] is grpc.StatusCode.OK
    world.mutate((type_url, name))
    for stream in streams[1:]:
        assert names(await stream.expect(type_url)) == [name]


@BOTH
@WAYS
@pytest.mark.parametrize("how", ["half-close", "cancel"])
async def test_t_11_a_stream_that_the_client_ends_leaves_nothing_behind(
    world: World, delta: bool, own: bool, how: str
) -> None:
    stream = world.open(ENDPOINT, delta=delta, own=own)
    await stream.subscribe(ENDPOINT, ["c1"])
    await stream.expect(ENDPOINT)
    if how == "half-close":
        await stream.half_close()

        assert (await stream.expect_end())[0] is grpc.StatusCode.OK
    else:
        stream.call.cancel()
    await world.heard.until(lambda: bool(world.heard.of(Closed)))

    assert world.server.streams() == ()
    assert world.cache.watched() == ()


@BOTH
@WAYS
async def test_t_12_a_stream_that_drain_meets_early_has_an_answer_or_is_refused(delta: bool, own: bool) -> None:
    async with serving() as world:
        answered, silent = world.open(ENDPOINT, delta=delta, own=own), world.open(RUNTIME, delta=delta, own=own)
        await settle(answered, ENDPOINT, ["c1"])
        await silent.subscribe(RUNTIME, [])
        await world.heard.until(lambda: len(world.heard.of(Subscribed)) == 2)
        await world.server.stop(0.0)

        assert (await answered.expect_end())[0] is grpc.StatusCode.OK
        assert (await silent.expect_end())[0] is grpc.StatusCode.UNAVAILABLE


@BOTH
@WAYS
async def test_t_13_r_09_a_server_that_is_not_ready_refuses_every_stream(delta: bool, own: bool) -> None:
    async with serving(ready=lambda: False) as world:
        code, said = await world.open(CLUSTER, delta=delta, own=own).expect_end()

        assert code is grpc.StatusCode.UNAVAILABLE
        assert "not ready" in said


async def test_t_15_the_content_of_every_resource_reads_as_its_type_says(world: World) -> None:
    stream = world.open(delta=True)
    for url, wanted in FIXTURE.items():
        found = contents(await settle(stream, url, wanted))

        assert {name: type(message) for name, message in found.items()} == dict.fromkeys(wanted, MESSAGES[url])
