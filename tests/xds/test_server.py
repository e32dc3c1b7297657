"""The xDS server over real gRPC: what the driver adds to the protocol machine."""

import asyncio
import itertools
from typing import Any

import grpc
import pytest
from envoy_data_plane.envoy.config.core.v3 import Node as NodeMessage
from envoy_data_plane.envoy.service.discovery.v3 import DeltaDiscoveryRequest

from tests.xds.client import XdsClient, XdsStream, versions
from tests.xds.serving import BOTH, GROUP, Heard, is_served, serving, snapshot
from xds.cache import SnapshotCache
from xds.protocol import Acked, Closed, Sent, Subscribed
from xds.server import XdsServer
from xds.types import CLUSTER, ENDPOINT, LISTENER, Snapshot

pytestmark = pytest.mark.integration

FOO = "type.googleapis.com/acme.Foo"


@BOTH
async def test_a_changed_cluster_is_followed_by_its_assignment(delta: bool) -> None:
    cache = SnapshotCache()
    cache.set(GROUP, snapshot(a="1", b="1"))
    async with serving(cache) as (_, port), XdsClient(port) as client:
        ads = client.ads(delta=delta)
        await ads.subscribe(CLUSTER)
        await ads.ack(await ads.expect(CLUSTER))
        await ads.subscribe(ENDPOINT, ["a", "b"])
        await ads.ack(await ads.expect(ENDPOINT))

        cache.set(GROUP, snapshot(a="2", b="1"))
        changed = await ads.expect(CLUSTER)
        assignment = await ads.expect(ENDPOINT)

        assert len(changed.resources) == (1 if delta else 2)
        assert len(assignment.resources) == 1
        await ads.ack(assignment)
        await ads.ack(changed)
        await ads.expect_quiet()


@BOTH
async def test_malformed_bytes_end_that_stream_and_no_other(delta: bool) -> None:
    async with serving() as (_, port), XdsClient(port) as client:
        other, stream = client.ads(delta=delta), client.ads(delta=delta)
        await is_served(other)
        await is_served(stream)
        await stream.send_raw(b"\xff\xff\xff")
        code, said = await stream.expect_end()

        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "cannot be read" in said
        await other.subscribe(LISTENER)
        await other.expect(LISTENER)


async def test_an_oversized_request_ends_that_stream_and_no_other() -> None:
    async with serving(max_request_bytes=10_000) as (_, port), XdsClient(port) as client:
        other, stream = client.ads(), client.ads()
        await is_served(other)
        await is_served(stream)
        await stream.subscribe(ENDPOINT, ["x" * 20_000])
        code, said = await stream.expect_end()

        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "at most 10000" in said
        await other.subscribe(LISTENER)
        await other.expect(LISTENER)


async def test_f_03_forty_thousand_names_in_one_request_are_taken() -> None:
    async with serving() as (_, port), XdsClient(port) as client:
        stream = client.ads(delta=True)
        await stream.subscribe(CLUSTER, initial={f"a-cluster-that-went-{n}": "0123456789abcdef" for n in range(40_000)})
        made = await stream.expect(CLUSTER)

        assert len(versions(made)) == 1
        await stream.ack(made)
        gone = await stream.expect(CLUSTER)

        assert len(gone.removed_resources) == 40_000


async def test_f_03_a_request_that_would_block_everybody_is_refused_without_reading_it() -> None:
    async with serving() as (_, port), XdsClient(port) as client:
        stream = client.ads()
        await stream.send_raw(b"\x1a\x01a" * (6 * 1024 * 1024))
        code, said = await stream.expect_end()

        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "at most 16777216" in said


async def test_n_03_envoys_delta_streams_repeat_the_node_n_04_but_do_not_change_it() -> None:
    node = NodeMessage(id="edge-1", cluster="edge")
    async with serving() as (_, port), XdsClient(port) as client:
        stream = client.ads(delta=True, node=node)
        await stream.subscribe(CLUSTER)
        response = await stream.expect(CLUSTER)
        ack = DeltaDiscoveryRequest(type_url=CLUSTER, response_nonce=response.nonce, node=node)
        await stream.send_raw(bytes(ack))
        await stream.expect_quiet()
        ack.node = NodeMessage(id="edge-2", cluster="edge")
        await stream.send_raw(bytes(ack))

        assert (await stream.expect_end())[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("how", ["half-close", "cancel", "connection lost"])
async def test_t_11_nothing_is_left_of_a_stream_that_ended(how: str) -> None:
    cache, heard = SnapshotCache(), Heard()
    cache.set(GROUP, snapshot(a="1"))
    async with serving(cache, on_event=heard) as (server, port):
        async with XdsClient(port) as client:
            stream = client.ads()
            await stream.subscribe(CLUSTER)
            await stream.expect(CLUSTER)
            if how == "half-close":
                await stream.half_close()
            elif how == "cancel":
                stream.call.cancel()
        await heard.until(lambda: bool(heard.of(Closed)))

        assert server.streams() == ()
        assert cache.watched() == ()
        assert heard.of(Closed)[0].unanswered == (CLUSTER,)


async def test_a_client_that_asks_once_and_half_closes_is_answered() -> None:
    async with serving() as (_, port), XdsClient(port) as client:
        stream = client.ads()
        await stream.subscribe(CLUSTER)
        await stream.half_close()
        await stream.expect(CLUSTER)

        assert (await stream.expect_end())[0] is grpc.StatusCode.OK


async def test_r_09_t_13_a_server_that_is_not_ready_refuses() -> None:
    ready = False
    async with serving(ready=lambda: ready) as (_, port), XdsClient(port) as client:
        code, said = await client.ads().expect_end()

        assert code is grpc.StatusCode.UNAVAILABLE
        assert "not ready" in said
        ready = True
        await is_served(client.ads())


async def test_a_group_without_a_snapshot_waits_for_its_first() -> None:
    cache = SnapshotCache()
    async with serving(cache) as (_, port), XdsClient(port) as client:
        stream = client.ads()
        await stream.subscribe(CLUSTER)
        await stream.expect_quiet()
        cache.set(GROUP, snapshot(a="1"))
        await stream.expect(CLUSTER)


async def test_groups_see_their_own() -> None:
    cache = SnapshotCache()
    for name in ("edge", "mesh"):
        cache.set(name, snapshot(**{name: "1"}))
    async with serving(cache, group_of=lambda node: node.cluster) as (_, port), XdsClient(port) as client:
        for name in ("edge", "mesh"):
            stream = client.ads(delta=True, node=NodeMessage(id="n", cluster=name))
            await stream.subscribe(CLUSTER)

            assert versions(await stream.expect(CLUSTER)).keys() == {name}


async def test_t_09_keepalive_pings_of_a_client_are_tolerated() -> None:
    settings, ping, go_away, acknowledged = 4, 6, 7, 1

    def frame(kind: int, body: bytes = b"") -> bytes:
        return len(body).to_bytes(3, "big") + bytes((kind, 0)) + bytes(4) + body

    async with serving() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(settings))
        answered = 0
        async with asyncio.timeout(5):
            while answered < 20:
                writer.write(frame(ping, answered.to_bytes(8, "big")))
                kind = flags = 0
                while (kind, flags) != (ping, acknowledged):
                    head = await reader.readexactly(9)
                    kind, flags = head[3], head[4]
                    await reader.readexactly(int.from_bytes(head[:3], "big"))

                    assert kind != go_away, f"sent away after {answered} pings"
                answered += 1
        writer.close()
        await writer.wait_closed()


async def test_o_07_while_a_response_is_unanswered_the_latest_snapshot_wins() -> None:
    cache = SnapshotCache()
    cache.set(GROUP, snapshot(a="1"))
    async with serving(cache) as (_, port), XdsClient(port) as client:
        stream = client.ads(delta=True)
        await stream.subscribe(CLUSTER)
        first = await stream.expect(CLUSTER)
        last = Snapshot()
        for version in range(2, 50):
            last = snapshot(a=str(version))
            cache.set(GROUP, last)
        await stream.expect_quiet()
        await stream.ack(first)

        assert versions(await stream.expect(CLUSTER)) == {"a": last.of_type(CLUSTER)["a"].version}


async def test_o_06_a_missing_ack_holds_others_up_only_for_a_while() -> None:
    cache = SnapshotCache()
    cache.set(GROUP, snapshot(a="1"))
    async with serving(cache, ack_timeout_s=0.05) as (_, port), XdsClient(port) as client:
        stream = client.ads()
        await stream.subscribe(CLUSTER)
        await stream.expect(CLUSTER)
        await stream.subscribe(LISTENER)
        await stream.expect(LISTENER)


async def test_f_04_a_client_that_reads_nothing_costs_a_bounded_amount_and_nobody_else() -> None:
    cache, heard = SnapshotCache(), Heard()
    cache.set(GROUP, snapshot(a="1", size=200_000))
    async with (
        serving(cache, on_event=heard, ack_timeout_s=0.01, send_timeout_s=0.5) as (server, port),
        XdsClient(port, node_id="stuck") as stuck,
        XdsClient(port, node_id="well") as well,
    ):
        # It subscribes and never reads; its answers are not awaited for long, so that only flow control is left.
        await stuck.ads(delta=True).subscribe(CLUSTER)
        stream = well.ads(delta=True)
        await stream.subscribe(CLUSTER)
        await stream.ack(await stream.expect(CLUSTER))
        version = 1
        while not heard.of(Closed, "stuck"):
            version += 1
            last = snapshot(a=str(version), size=200_000)
            cache.set(GROUP, last)
            response = await stream.expect(CLUSTER)
            await stream.ack(response)

            assert versions(response) == {"a": last.of_type(CLUSTER)["a"].version}
            assert version < 2000, "the client that reads nothing is never let go"
            await asyncio.sleep(0.005)

        assert len(heard.of(Sent, "stuck")) < version
        assert [info.node.id for info in server.streams()] == ["well"]


async def test_t_12_r_13_draining_ends_streams_that_were_answered_and_refuses_new_ones() -> None:
    cache, heard = SnapshotCache(), Heard()
    cache.set(GROUP, snapshot(a="1"))
    server = XdsServer(cache, group_of=lambda _: GROUP, ready=lambda: True, identifier="cp", on_event=heard)
    port = await server.start("127.0.0.1", 0)
    async with XdsClient(port) as client:
        streams = [client.ads() for _ in range(4)]
        for stream in streams:
            await is_served(stream)
        loop = asyncio.get_running_loop()
        start = loop.time()
        stopping = asyncio.ensure_future(server.stop(0.4))
        await asyncio.sleep(0)
        cache.set(GROUP, Snapshot())  # a source that shuts down must not look like a deletion

        async def ended(stream: XdsStream) -> float:
            with pytest.raises(EOFError, match="OK"):
                await stream.next()
            return loop.time() - start

        ends = sorted(await asyncio.gather(*map(ended, streams)))
        await stopping

        assert ends[-1] - ends[0] > 0.1, "the ends are spread"
        assert len(heard.of(Sent)) == 4, "nobody was told of the empty snapshot"
        assert (await client.ads().expect_end())[0] is grpc.StatusCode.UNAVAILABLE


async def test_t_12_a_stream_that_never_got_an_answer_is_not_closed_as_if_all_were_well() -> None:
    server = XdsServer(SnapshotCache(), group_of=lambda _: GROUP, ready=lambda: True, identifier="cp")
    port = await server.start("127.0.0.1", 0)
    async with XdsClient(port) as client:
        stream = client.ads()
        await stream.subscribe(CLUSTER)
        await stream.expect_quiet()
        await server.stop(0.1)

        assert (await stream.expect_end())[0] is grpc.StatusCode.UNAVAILABLE


async def test_p_08_a_client_that_floods_is_slowed_down_and_nobody_else() -> None:
    heard = Heard()
    async with (
        serving(on_event=heard, requests_per_s=50.0) as (_, port),
        XdsClient(port, node_id="flood") as flood,
        XdsClient(port, node_id="well") as well,
    ):
        stream = flood.ads(delta=True)
        for number in range(200):
            await stream.subscribe(ENDPOINT, [str(number)])
        await is_served(well.ads())

        assert len(heard.of(Subscribed, "flood")) < 150


async def test_p_08_a_client_whose_requests_take_long_is_slowed_down_by_the_time_they_take() -> None:
    now = itertools.count(0.0, 0.02)  # each look at the clock finds 20 ms gone: no request takes less
    heard = Heard()
    async with (
        serving(on_event=heard, clock=lambda: next(now), first_request_timeout_s=1e6, send_timeout_s=1e6) as (_, port),
        XdsClient(port, node_id="heavy") as heavy,
        XdsClient(port, node_id="well") as well,
    ):
        stream = heavy.ads(delta=True)
        for number in range(400):
            await stream.subscribe(ENDPOINT, [str(number)])
        await is_served(well.ads())

        assert len(heard.of(Subscribed, "heavy")) < 200


async def test_a_port_in_use_is_an_error_and_not_shared_in_silence() -> None:
    async with serving() as (_, port):
        other = XdsServer(SnapshotCache(), group_of=lambda _: GROUP, ready=lambda: True, identifier="cp")
        with pytest.raises(RuntimeError):
            await other.start("127.0.0.1", port)


async def test_further_services_share_the_port() -> None:
    async def echo(request: bytes, _context: Any) -> bytes:
        return request

    handler = grpc.method_handlers_generic_handler("acme.Echo", {"Say": grpc.unary_unary_rpc_method_handler(echo)})
    async with serving(handlers=[handler]) as (_, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert await channel.unary_unary("/acme.Echo/Say")(b"hello") == b"hello"
        leds = "/envoy.service.endpoint.v3.LocalityEndpointDiscoveryService/DeltaLocalityEndpoints"
        call = channel.stream_stream(leds)()

        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_an_ack_tells_when_its_change_was_offered() -> None:
    now = 100.0
    cache, heard = SnapshotCache(), Heard()
    cache.set(GROUP, snapshot(a="1"))
    async with serving(cache, on_event=heard, clock=lambda: now) as (_, port), XdsClient(port) as client:
        stream = client.ads()
        await is_served(stream)
        now = 107.0
        cache.set(GROUP, snapshot(a="2"))
        await stream.ack(await stream.expect(CLUSTER))
        await heard.until(lambda: len(heard.of(Acked)) == 2)
        answered, changed = heard.of(Acked)

        assert answered.offered_at is None
        assert (changed.offered_at, changed.revision) == (107.0, "2")


async def test_f_05_a_thousand_streams_share_one_connection() -> None:
    async with serving() as (server, port), XdsClient(port) as client:
        streams = [client.ads() for _ in range(1000)]
        await asyncio.gather(*(is_served(stream) for stream in streams))

        assert len(server.streams()) == 1000


@BOTH
@pytest.mark.parametrize("names", [(), ("*",)], ids=["an empty list", "a star"])
async def test_a_client_that_is_told_by_name_only_gets_an_empty_answer_to_a_wildcard(
    delta: bool, names: tuple[str, ...]
) -> None:
    """W-07, W-09: it must not wait, and must not be sent every service there is."""
    cache = SnapshotCache()
    cache.set(GROUP, snapshot(a="1", b="1"))
    async with serving(cache, by_name_only=lambda _: True) as (_, port), XdsClient(port) as client:
        ads = client.ads(delta=delta)
        await ads.subscribe(CLUSTER, names)
        response = await ads.expect(CLUSTER)
        assert response.resources == []
        await ads.ack(response)
        cache.set(GROUP, snapshot(a="1", b="1", c="1"))
        await ads.expect_quiet()


@BOTH
async def test_a_client_that_is_told_by_name_only_gets_what_it_names(delta: bool) -> None:
    async with serving(by_name_only=lambda _: True) as (_, port), XdsClient(port) as client:
        ads = client.ads(delta=delta)
        await ads.subscribe(CLUSTER, ["a"])
        assert len((await ads.expect(CLUSTER)).resources) == 1


async def test_r_11_thousands_that_come_before_anybody_is_served_are_all_served() -> None:
    async with serving() as (server, port), XdsClient(port) as client:
        streams = [client.ads(delta=True) for _ in range(3_500)]
        await asyncio.gather(*(stream.subscribe(CLUSTER) for stream in streams))
        await asyncio.gather(*(stream.next(30.0) for stream in streams))

        assert len(server.streams()) == 3_500
