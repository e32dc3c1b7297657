"""How long a stream lives, what ends it, and what may change while it lives."""

import asyncio
from random import Random

import grpc
import pytest
from envoy_data_plane.envoy.config.core.v3 import Locality
from envoy_data_plane.envoy.config.core.v3 import Node as NodeMessage
from envoy_data_plane.envoy.service.discovery.v3 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)

from tests.xds.client import Response, XdsClient, XdsStream, versions
from tests.xds.serving import BOTH, GROUP, Heard, is_served, serving, snapshot
from xds.cache import SnapshotCache
from xds.protocol import Acked, Closed, Regrouped
from xds.types import CLUSTER, ENDPOINT, LISTENER, Node

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


# The age of a stream


@BOTH
async def test_r_12_a_stream_ends_well_at_its_age_and_the_next_one_is_on_another_connection(delta: bool) -> None:
    async with serving(max_stream_age_s=0.5) as (server, port), XdsClient(port) as client:
        first = client.ads(delta=delta)
        await is_served(first)
        (before,) = server.streams()

        assert (await first.expect_end())[0] is grpc.StatusCode.OK
        await is_served(client.ads(delta=delta))
        (after,) = server.streams()
        assert after.peer != before.peer


async def test_r_12_a_delta_client_that_comes_back_is_sent_nothing_twice() -> None:
    async with serving(max_stream_age_s=0.5) as (_, port), XdsClient(port) as client:
        first = client.ads(delta=True)
        await first.subscribe(CLUSTER)
        response = await first.expect(CLUSTER)
        await first.ack(response)
        await first.expect_end()
        again = client.ads(delta=True)
        await again.subscribe(CLUSTER, initial=versions(response))
        answer = await again.expect(CLUSTER)

        assert versions(answer) == {}


async def test_r_12_streams_of_one_age_do_not_end_together() -> None:
    heard, loop = Heard(), asyncio.get_running_loop()
    async with serving(on_event=heard, max_stream_age_s=1.0, random=Random(7)) as (_, port), XdsClient(port) as client:
        streams = [client.ads() for _ in range(10)]
        for stream in streams:
            await is_served(stream)
        opened = loop.time()

        async def ended(stream: XdsStream) -> float:
            await stream.expect_end()
            return loop.time() - opened

        ends = sorted(await asyncio.gather(*map(ended, streams)))

        assert ends[-1] - ends[0] > 0.08


async def test_r_12_an_answer_that_is_awaited_holds_up_the_end_for_as_long_as_it_may_and_no_longer() -> None:
    heard = Heard()
    async with serving(on_event=heard, max_stream_age_s=0.2, ack_timeout_s=1.0) as (_, port), XdsClient(port) as client:
        slow, quick, never = (client.ads(delta=True) for _ in range(3))
        for stream in (slow, quick, never):
            await stream.subscribe(CLUSTER)
        response = await slow.expect(CLUSTER)
        await quick.ack(await quick.expect(CLUSTER))
        await never.expect(CLUSTER)
        await quick.expect_end()

        assert not slow.call.done()
        await slow.ack(response)
        assert (await slow.expect_end())[0] is grpc.StatusCode.OK
        assert len(heard.of(Acked)) == 2
        assert (await never.expect_end())[0] is grpc.StatusCode.OK


async def test_t_12_a_stream_that_has_had_no_response_does_not_end_of_old_age() -> None:
    cache = SnapshotCache()
    async with serving(cache, max_stream_age_s=0.1) as (_, port), XdsClient(port) as client:
        stream = client.ads()
        await stream.subscribe(CLUSTER)
        await stream.expect_quiet(0.4)
        cache.set(GROUP, snapshot(a="1"))
        await stream.ack(await stream.expect(CLUSTER))

        assert (await stream.expect_end())[0] is grpc.StatusCode.OK


async def test_a_stream_without_an_age_lasts() -> None:
    async with serving(max_stream_age_s=0.0) as (_, port), XdsClient(port) as client:
        stream = client.ads()
        await is_served(stream)
        await stream.expect_quiet(0.5)


async def test_a_client_that_says_nothing_is_let_go_and_one_that_has_spoken_is_not() -> None:
    async with serving(first_request_timeout_s=0.3) as (server, port), XdsClient(port) as client:
        speaks, silent = client.ads(), client.ads()
        await is_served(speaks)
        code, said = await silent.expect_end()

        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "no request came within 0.3 s" in said
        await speaks.subscribe(LISTENER)
        await speaks.expect(LISTENER)
        assert len(server.streams()) == 1


# Dead peers


class Hose:
    """Carry bytes between clients and a server, until `cut`: then nothing goes either way and nobody is told."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._carrying: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        self._server.close()
        for writer in self._writers:
            writer.close()
        await self._server.wait_closed()

    def cut(self) -> None:
        for task in self._carrying:
            task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, here]
        self._carrying += [asyncio.create_task(self._carry(*pair)) for pair in ((reader, here), (there, writer))]

    @staticmethod
    async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)


async def test_t_10_a_client_behind_a_dead_connection_is_noticed_and_forgotten() -> None:
    cache, heard = SnapshotCache(), Heard()
    cache.set(GROUP, snapshot(a="1"))
    options = {"on_event": heard, "keepalive_s": 0.2, "keepalive_timeout_s": 0.2}
    async with serving(cache, **options) as (server, port):
        hose = Hose(port)
        async with hose as through, XdsClient(through) as client:
            stream = client.ads()
            await is_served(stream)
            await stream.expect_quiet(0.6)  # pings go to and fro meanwhile
            assert len(server.streams()) == 1
            hose.cut()
            await heard.until(lambda: bool(heard.of(Closed)))

            assert server.streams() == ()
            assert cache.watched() == ()


# The drain


async def test_r_13_a_thousand_streams_end_one_after_another_when_the_server_stops() -> None:
    cache, heard = SnapshotCache(), Heard()
    cache.set(GROUP, snapshot(a="1"))
    loop = asyncio.get_running_loop()
    async with serving(cache, on_event=heard) as (server, port), XdsClient(port) as client:
        streams = [client.ads(delta=True) for _ in range(1000)]
        await asyncio.gather(*map(is_served, streams))
        start = loop.time()
        stopping = asyncio.ensure_future(server.stop(2.0))

        async def ended(stream: XdsStream) -> tuple[float, grpc.StatusCode]:
            code = await stream.call.code()
            return loop.time() - start, code

        ends = sorted(await asyncio.gather(*map(ended, streams)))
        await stopping
        tenths = [sum(tenth * 0.2 <= at < tenth * 0.2 + 0.2 for at, _ in ends) for tenth in range(10)]

        assert {code for _, code in ends} == {grpc.StatusCode.OK}
        assert max(tenths) < 400, f"ends per 0.2 s: {tenths}"
        assert sum(at > 1.0 for at, _ in ends) > 300, f"ends per 0.2 s: {tenths}"
