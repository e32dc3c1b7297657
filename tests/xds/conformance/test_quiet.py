"""Sections P and L of the conformance list: nothing is sent without need, and nothing expires by itself.

P-01, P-02, P-04 and P-05 begin with registrations: `test_registry_to_wire.py`.
"""

import pytest
from envoy_data_plane.envoy.config.core.v3 import Node as NodeMessage
from envoy_data_plane.envoy.service.discovery.v3 import DeltaDiscoveryRequest, DiscoveryRequest

from tests.xds.client import DeltaDiscoveryResponse, Response, XdsStream
from tests.xds.conformance.fixture import FIXTURE
from tests.xds.conformance.world import BOTH, GROUP, NAMED, WAYS, World, contents, names, serving, settle
from xds.messages import Nacked, Sent, Subscribed
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE, VIRTUAL_HOST

pytestmark = pytest.mark.integration


@BOTH
async def test_p_01_an_equal_snapshot_is_news_to_nobody(world: World, delta: bool) -> None:
    stream = world.open(delta=delta)
    for type_url in (CLUSTER, ENDPOINT, LISTENER, ROUTE):
        await settle(stream, type_url, FIXTURE[type_url])
    world.cache.set(GROUP, world.snapshot())
    await stream.expect_quiet()


@BOTH
@WAYS
@NAMED
async def test_p_02_a_change_concerns_its_type_and_its_subscribers_only(
    world: World, delta: bool, own: bool, type_url: str, name: str, other: str
) -> None:
    world.mutate((type_url, other))
    concerned, elsewhere = (world.open(type_url, delta=delta, own=own) for _ in range(2))
    if not own:
        await settle(elsewhere, CLUSTER)
        await settle(elsewhere, LISTENER)
    await settle(elsewhere, type_url, [other])
    await settle(concerned, type_url, [name])
    world.mutate((type_url, name))

    assert names(await concerned.expect(type_url)) == [name]
    await elsewhere.expect_quiet()


async def refuse_for_ever(stream: XdsStream) -> list[Response]:
    """Refuse whatever comes until nothing does."""
    seen: list[Response] = []
    while (response := await stream.maybe()) is not None:
        await stream.nack(response)
        seen.append(response)
    return seen


@BOTH
@WAYS
@pytest.mark.parametrize("type_url", [CLUSTER, ENDPOINT], ids=["CDS", "EDS"])
@pytest.mark.parametrize("changed", [["c1"], ["c1", "c2"]], ids=["one", "two"])
async def test_p_03_a_client_that_refuses_for_ever_is_left_alone(
    world: World, delta: bool, own: bool, type_url: str, changed: list[str]
) -> None:
    stream = world.open(type_url, delta=delta, own=own)
    await settle(stream, type_url, ["c1", "c2"])
    world.mutate(*((type_url, name) for name in changed))
    seen = await refuse_for_ever(stream)

    assert seen
    assert len(seen) <= (1 if len(changed) == 1 else 2 * len(changed))
    assert len(world.heard.of(Nacked)) == len(seen)
    world.mutate((type_url, "c1"))

    assert len(await refuse_for_ever(stream)) >= 1


@BOTH
@WAYS
async def test_p_07_a_new_name_is_answered_while_another_type_has_pushes_waiting(
    world: World, delta: bool, own: bool
) -> None:
    stream, busy = world.open(ENDPOINT, delta=delta, own=own), world.open(delta=delta)
    await settle(busy, CLUSTER)
    if not own:
        await settle(stream, CLUSTER)
    await settle(stream, ENDPOINT, ["c1"])
    for _ in range(20):
        world.mutate((CLUSTER, "c3"))
    if not own:
        await stream.expect(CLUSTER)  # and the next is waiting for its ACK
    await stream.subscribe(ENDPOINT, ["c1", "c2"] if not delta else ["c2"])

    assert "c2" in names(await stream.expect(ENDPOINT))


@BOTH
async def test_p_08_a_client_that_repeats_itself_is_slowed_down_and_answered_no_oftener(delta: bool) -> None:
    async with serving(requests_per_s=20.0) as world:
        flood, well = world.open(delta=delta), world.open(delta=delta, node=NodeMessage(id="well"))
        await settle(flood, CLUSTER)
        same = DeltaDiscoveryRequest(type_url=ENDPOINT) if delta else DiscoveryRequest(type_url=ENDPOINT)
        for _ in range(200):
            await flood.send(same)
        await settle(well, CLUSTER)
        world.mutate((CLUSTER, "c1"))

        assert "c1" in names(await well.expect(CLUSTER))
        assert "c1" in names(await flood.expect(CLUSTER)), "it is slowed down, not cut off"
        assert len([event for event in world.heard.of(Subscribed) if event.type_url == ENDPOINT]) <= 1


@BOTH
@pytest.mark.parametrize("features", [[], ["xds.config.resource-in-sotw", "xds.config.supports-resource-ttl"]])
async def test_l_01_no_resource_is_wrapped_or_expires(world: World, delta: bool, features: list[str]) -> None:
    stream = world.open(delta=delta, node=NodeMessage(id="node-1", client_features=features))
    for type_url, wanted in FIXTURE.items():
        if type_url == VIRTUAL_HOST and not delta:
            continue
        response = await settle(stream, type_url, wanted)

        assert contents(response).keys() == set(wanted)  # which refuses a type other than the response's
        if isinstance(response, DeltaDiscoveryResponse):
            assert [each.ttl for each in response.resources] == [None for _ in wanted]
    sent = len(world.heard.of(Sent))
    await stream.expect_quiet()  # no heartbeat

    assert len(world.heard.of(Sent)) == sent
