"""How long a stream lives, what ends it, and what may change while it lives."""

import pytest
from envoy_data_plane.envoy.config.core.v3 import Locality
from envoy_data_plane.envoy.config.core.v3 import Node as NodeMessage
from envoy_data_plane.envoy.service.discovery.v3 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)

from tests.xds.client import Response, XdsClient, XdsStream
from tests.xds.serving import BOTH, Heard, is_served, serving, snapshot
from xds.cache import SnapshotCache
from xds.protocol import Regrouped
from xds.types import CLUSTER, ENDPOINT, Node

pytestmark = pytest.mark.integration


def zones() -> SnapshotCache:
    """Serve zone `a` and zone `b` one cluster of their own each, and one that both have."""
    cache = SnapshotCache()
    for zone in ("a", "b"):
        cache.set(zone, snapshot(both="1", **{f"only-{zone}": "1"}))
    return cache


def zone_of(node: Node) -> str:
    return node.zone


def node_in(zone: str) -> NodeMessage:
    return NodeMessage(id="edge-1", cluster="edge", locality=Locality(zone=zone))


def bodies(response: Response) -> list[bytes]:
    assert isinstance(response, DiscoveryResponse)
    return [resource.value for resource in response.resources]


async def told(stream: XdsStream, names: set[str]) -> None:
    """Read and acknowledge until the client was told of these names, made and removed; it may take two responses."""
    seen: set[str] = set()
    while seen < names:
        response = await stream.expect(CLUSTER)
        assert isinstance(response, DeltaDiscoveryResponse)
        seen |= {f"+{resource.name}" for resource in response.resources}
        seen |= {f"-{name}" for name in response.removed_resources}
        await stream.ack(response)

    assert seen == names


# Moving to another group


async def test_n_04_a_delta_client_that_moves_is_told_the_difference_and_then_follows_its_new_group() -> None:
    cache, heard = zones(), Heard()
    async with serving(cache, group_of=zone_of, on_event=heard) as (server, port), XdsClient(port) as client:
        stream = client.ads(delta=True, node=node_in("a"))
        await is_served(stream)
        await stream.send(DeltaDiscoveryRequest(type_url=CLUSTER, node=node_in("b")))
        await told(stream, {"+only-b", "-only-a"})

        assert [(info.group, info.node.zone) for info in server.streams()] == [("b", "b")]
        assert cache.watched() == ("b",)
        assert len(heard.of(Regrouped)) == 1

        cache.set("a", snapshot(both="2"))
        await stream.expect_quiet()
        cache.set("b", snapshot(both="1"))

        assert (await stream.expect(CLUSTER)).removed_resources == ["only-b"]


async def test_n_04_a_sotw_client_that_moves_gets_the_state_of_its_new_group() -> None:
    async with serving(zones(), group_of=zone_of) as (_, port), XdsClient(port) as client:
        stream = client.ads(node=node_in("a"))
        await stream.subscribe(CLUSTER)
        first = await stream.expect(CLUSTER)
        ack = DiscoveryRequest(type_url=CLUSTER, version_info=first.version_info, response_nonce=first.nonce)
        ack.node = node_in("b")
        await stream.send(ack)
        made = await stream.expect(CLUSTER)
        await stream.ack(made)
        broken = await stream.expect(CLUSTER)

        assert bodies(first) == [b"both=1", b"only-a=1"]
        assert bodies(made) == [b"both=1", b"only-a=1", b"only-b=1"]  # make before break
        assert bodies(broken) == [b"both=1", b"only-b=1"]


@BOTH
async def test_n_04_a_node_that_changes_within_its_group_is_shown_as_it_is_now_and_told_nothing(delta: bool) -> None:
    heard = Heard()
    async with serving(on_event=heard) as (server, port), XdsClient(port) as client:
        stream = client.ads(delta=delta, node=node_in("a"))
        await is_served(stream)
        request = DeltaDiscoveryRequest(type_url=ENDPOINT) if delta else DiscoveryRequest(type_url=ENDPOINT)
        request.node = node_in("b")
        await stream.send(request)
        await heard.until(lambda: bool(heard.of(Regrouped)))

        assert [info.node.zone for info in server.streams()] == ["b"]
        await stream.expect_quiet()


async def test_when_groups_are_drawn_anew_only_those_who_belong_elsewhere_are_told() -> None:
    cache, heard, merged = zones(), Heard(), False

    def group_of(node: Node) -> str:
        return "a" if merged else node.zone

    async with serving(cache, group_of=group_of, on_event=heard) as (server, port), XdsClient(port) as client:
        stays, moves = client.ads(delta=True, node=node_in("a")), client.ads(delta=True, node=node_in("b"))
        await is_served(stays)
        await is_served(moves)
        merged = True
        server.regroup()

        await told(moves, {"+only-a", "-only-b"})
        await stays.expect_quiet()
        assert {info.group for info in server.streams()} == {"a"}
        assert len(heard.of(Regrouped)) == 1
