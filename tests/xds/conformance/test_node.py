"""Section N of the conformance list: who is at the other end."""

import grpc
import pytest
from envoy_data_plane.envoy.config.core.v3 import Node as NodeMessage
from envoy_data_plane.envoy.service.discovery.v3 import DeltaDiscoveryRequest, DiscoveryRequest
from envoy_data_plane.google.protobuf import Struct, Value

from tests.xds.conformance.world import BOTH, WAYS, World, names, serving, settle
from xds.messages import Subscribed
from xds.types import CLUSTER, ENDPOINT, LISTENER

pytestmark = pytest.mark.integration

NODE = NodeMessage(id="edge-1", cluster="edge")


def first_request(node: NodeMessage | None, *, delta: bool) -> DiscoveryRequest | DeltaDiscoveryRequest:
    return (DeltaDiscoveryRequest if delta else DiscoveryRequest)(type_url=CLUSTER, node=node)


@BOTH
async def test_n_01_the_node_of_the_first_request_counts_for_the_whole_stream(delta: bool) -> None:
    async with serving(group_of=lambda node: node.id) as world:
        world.cache.set("edge-1", world.snapshot())  # any other node waits: it has no snapshot
        stream = world.open(delta=delta, node=NodeMessage(id="edge-1", cluster="edge"))
        for type_url, wanted in ((CLUSTER, ()), (ENDPOINT, ("c1",)), (LISTENER, ())):
            await settle(stream, type_url, wanted)
        await stream.subscribe(ENDPOINT, ["c2"] if delta else ["c1", "c2"])

        assert "c2" in names(await stream.expect(ENDPOINT))
        assert [info.node.id for info in world.server.streams()] == ["edge-1"]


@BOTH
@WAYS
@pytest.mark.parametrize("node", [None, NodeMessage(cluster="edge")], ids=["no node", "a node without an id"])
async def test_n_02_a_stream_that_does_not_say_who_it_is_is_refused(
    world: World, delta: bool, own: bool, node: NodeMessage | None
) -> None:
    stream = world.open(CLUSTER, delta=delta, own=own)
    await stream.send_raw(bytes(first_request(node, delta=delta)))
    code, said = await stream.expect_end()

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "node" in said


@BOTH
@WAYS
async def test_n_03_a_repeated_node_resets_and_resends_nothing(world: World, delta: bool, own: bool) -> None:
    stream = world.open(CLUSTER, delta=delta, own=own)
    await stream.send_raw(bytes(first_request(NODE, delta=delta)))
    response = await stream.expect(CLUSTER)
    ack = first_request(NODE, delta=delta)
    ack.response_nonce = response.nonce
    if isinstance(ack, DiscoveryRequest):
        ack.version_info = getattr(response, "version_info", "")
    for _ in range(3):
        await stream.send_raw(bytes(ack))
    await stream.expect_quiet()

    assert len(world.heard.of(Subscribed)) == 1
    world.mutate((CLUSTER, "c1"))
    await stream.expect(CLUSTER)


@BOTH
async def test_n_04_a_stream_does_not_become_another_nodes(world: World, delta: bool) -> None:
    stream = world.open(delta=delta)
    await stream.send_raw(bytes(first_request(NODE, delta=delta)))
    await stream.expect(CLUSTER)
    await stream.send_raw(bytes(first_request(NodeMessage(id="edge-2", cluster="edge"), delta=delta)))

    assert (await stream.expect_end())[0] is grpc.StatusCode.INVALID_ARGUMENT


@BOTH
async def test_n_05_features_and_metadata_that_nobody_knows_are_taken_note_of_and_change_nothing(
    world: World, delta: bool
) -> None:
    plain = await settle(world.open(delta=delta), ENDPOINT, ["c1", "c2"])
    capable = world.open(
        delta=delta,
        node=NodeMessage(
            id="edge-2",
            user_agent_name="acme",
            client_features=["envoy.lb.does_not_support_overprovisioning", "acme.unheard-of"],
            metadata=Struct(fields={"acme": Value(bool_value=True)}),
        ),
    )
    response = await settle(capable, ENDPOINT, ["c1", "c2"])

    assert response.resources == plain.resources
    node = next(info.node for info in world.server.streams() if info.node.id == "edge-2")
    assert "envoy.lb.does_not_support_overprovisioning" in node.client_features
    assert (node.user_agent_name, node.metadata) == ("acme", {"acme": True})
