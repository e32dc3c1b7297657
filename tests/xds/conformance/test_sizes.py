"""Section F of the conformance list: large answers in parts. Slow readers and many streams: `test_server.py`."""

import grpc.aio
import pytest
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import Locality
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment, LocalityLbEndpoints

from tests.xds.client import Response, XdsClient, XdsStream
from tests.xds.conformance.world import BOTH, GROUP, WAYS, World, serving
from xds.encode import Encoder
from xds.messages import Acked, Closed
from xds.types import CLUSTER, ENDPOINT, Resource, ResourceSet, Snapshot

pytestmark = pytest.mark.integration

COUNT = 300
PADDING = "x" * 42_000
LIMIT = 4 * 1024 * 1024
DEFAULT_LIMIT = [("grpc.max_receive_message_length", LIMIT)]
NAMES = [f"c{number:04}" for number in range(COUNT)]


def large(edition: int = 1, *changed: str) -> Snapshot:
    """Build 12 MiB of clusters and as much of assignments; those that are named are of another edition."""
    encoder = Encoder()

    def spell(name: str) -> tuple[Resource, Resource]:
        padding = f"{PADDING}{edition if name in changed else 1}"
        cluster = encoder.encode(Cluster(name=name, alt_stat_name=padding))
        group = LocalityLbEndpoints(locality=Locality(region=padding))
        assignment = encoder.encode(ClusterLoadAssignment(cluster_name=name, endpoints=[group]))
        return Resource.of(name, cluster), Resource.of(name, assignment)

    clusters, assignments = zip(*map(spell, NAMES), strict=True)
    return Snapshot({CLUSTER: ResourceSet(clusters), ENDPOINT: ResourceSet(assignments)})


async def parts_of(stream: XdsStream, type_url: str) -> list[Response]:
    """Read an answer of `COUNT` resources, acknowledging each part."""
    parts: list[Response] = []
    while sum(len(part.resources) for part in parts) < COUNT:
        parts.append(await stream.expect(type_url))
        await stream.ack(parts[-1])
    return parts


@WAYS
@pytest.mark.parametrize(
    ("type_url", "delta"),
    [(ENDPOINT, False), (ENDPOINT, True), (CLUSTER, True)],
    ids=["EDS sotw", "EDS delta", "CDS delta"],
)
async def test_f_01_f_02_d_14_a_large_answer_comes_in_parts_that_every_client_takes(
    type_url: str, delta: bool, own: bool
) -> None:
    async with serving() as world, XdsClient(world.port, options=DEFAULT_LIMIT) as client:
        world.cache.set(GROUP, large())
        stream = client.open(type_url if own else "", delta=delta)
        await stream.subscribe(type_url, NAMES if type_url == ENDPOINT else ["*"])
        parts = await parts_of(stream, type_url)

        assert 3 < len(parts) < 10
        assert sum(len(part.resources) for part in parts) == COUNT
        assert len({part.nonce for part in parts}) == len(parts)
        await stream.expect_quiet()


async def test_f_01_a_full_state_that_cannot_be_split_is_sent_whole() -> None:
    async with serving() as world, XdsClient(world.port, node_id="small", options=DEFAULT_LIMIT) as small:
        world.cache.set(GROUP, large())
        stream = world.open(delta=False)
        await stream.subscribe(CLUSTER)
        response = await stream.expect(CLUSTER)

        assert len(response.resources) == COUNT
        refusing = small.ads()
        await refusing.subscribe(CLUSTER)
        with pytest.raises(grpc.aio.AioRpcError, match="larger than max"):
            await refusing.next()
        await world.heard.until(lambda: bool(world.heard.of(Closed, "small")))
        await stream.ack(response)
        await stream.expect_quiet()


@BOTH
async def test_f_02_a_change_between_two_parts_is_not_lost(world: World, delta: bool) -> None:
    world.cache.set(GROUP, large())
    stream = world.open(delta=delta)
    await stream.subscribe(ENDPOINT, NAMES)
    first = await stream.expect(ENDPOINT)
    newer = large(2, NAMES[0], NAMES[-1])
    world.cache.set(GROUP, newer)
    await stream.ack(first)
    held: dict[str, bytes] = dict(bodies(first))
    parts = 1
    while held.get(NAMES[-1]) is None or held[NAMES[0]] != newer.of_type(ENDPOINT)[NAMES[0]].body:
        response = await stream.expect(ENDPOINT)
        await stream.ack(response)
        held |= dict(bodies(response))
        parts += 1
    await world.heard.until(lambda: len(world.heard.of(Acked)) == parts)
    await stream.expect_quiet()

    assert held == {name: made.body for name, made in newer.of_type(ENDPOINT).items()}
    assert [event.settled for event in world.heard.of(Acked)] == [False] * (parts - 1) + [True]


def bodies(response: Response) -> list[tuple[str, bytes]]:
    """List names and bodies; the name is the first field of an assignment, and five characters long here."""
    found = [getattr(each, "resource", each) for each in response.resources]
    return [(each.value[2:7].decode(), bytes(each.value)) for each in found]
