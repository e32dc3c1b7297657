"""One client behaves badly, and another beside it notices nothing: its changes come as soon as ever."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import grpc
import pytest
from envoy_data_plane.envoy.config.core.v3 import Node as NodeMessage
from envoy_data_plane.google.protobuf import Struct, Value

from tests.xds.client import XdsClient, XdsStream, versions
from tests.xds.fuzz.corpus import block
from tests.xds.serving import BOTH, GROUP, Heard, is_served, serving, snapshot
from xds.cache import SnapshotCache
from xds.protocol import Closed, Nacked, Sent, Subscribed
from xds.server import XdsServer
from xds.types import CLUSTER, ENDPOINT, Snapshot

pytestmark = pytest.mark.integration

SOON_S = 4.0  # on a machine that is busy with other things; it takes a millisecond or two, beside 50,000 names 100


class Beside:
    """Be the client that behaves: it asks for all clusters and acknowledges what it gets."""

    def __init__(self, cache: SnapshotCache, stream: XdsStream) -> None:
        self._cache = cache
        self._stream = stream
        self._versions = count(1)

    async def notices_nothing(self, *, size: int = 1) -> Snapshot:
        """Change a cluster and see that it is told soon; return what is served now."""
        served = snapshot(a=f"changed-{next(self._versions)}", size=size)
        start = time.perf_counter()
        self._cache.set(GROUP, served)
        response = await self._stream.expect(CLUSTER)
        took_s = time.perf_counter() - start
        await self._stream.ack(response)

        assert versions(response) == {"a": served.of_type(CLUSTER)["a"].version}
        assert took_s < SOON_S
        return served


@dataclass(frozen=True, slots=True)
class Scene:
    """Hold a connection for the client that will not behave, and all that its test may want to look at."""

    bad: XdsClient
    beside: Beside
    heard: Heard
    server: XdsServer
    cache: SnapshotCache


@asynccontextmanager
async def beside_each_other(**options: Any) -> AsyncIterator[Scene]:
    """Serve a client that behaves, on a connection of its own, and make room for one that does not."""
    cache, heard = SnapshotCache(), Heard()
    cache.set(GROUP, snapshot(a="1"))
    async with (
        serving(cache, on_event=heard, **options) as (server, port),
        XdsClient(port, node_id="bad") as bad,
        XdsClient(port, node_id="well") as well,
    ):
        stream = well.ads(delta=True)
        await is_served(stream)
        yield Scene(bad, Beside(cache, stream), heard, server, cache)


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """List what was logged, but for what grpc, which has one poller a process, has to tell an earlier test's loop."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING
        and not (record.exc_info and str(record.exc_info[1]) == "Event loop is closed")
    ]


# It does not read


async def test_f_04_p_06_a_client_that_pauses_gets_the_latest_state_and_none_of_the_hundred_before() -> None:
    async with beside_each_other(ack_timeout_s=0.01) as scene:
        stream = scene.bad.ads(delta=True)
        await stream.subscribe(CLUSTER)
        await scene.heard.until(lambda: bool(scene.heard.of(Sent, "bad")))
        for _ in range(100):
            served = await scene.beside.notices_nothing(size=100_000)
        wanted, read, held = served.of_type(CLUSTER)["a"].version, 0, ""
        while held != wanted:
            response = await stream.expect(CLUSTER)
            held, read = versions(response)["a"], read + 1
            await stream.ack(response)

        assert read < 20
        await stream.expect_quiet()


async def test_f_04_a_client_that_never_reads_its_first_response_is_let_go_with_a_status(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with beside_each_other(send_timeout_s=0.3) as scene:
        scene.cache.set(GROUP, snapshot(a="2", size=3_000_000))
        stream = scene.bad.ads(delta=True)
        await stream.subscribe(CLUSTER)
        await scene.heard.until(lambda: bool(scene.heard.of(Closed, "bad")))
        await stream.next(20.0)
        with pytest.raises((EOFError, grpc.aio.AioRpcError)):
            await stream.next(20.0)
        code, said = await stream.expect_end()

        assert code is grpc.StatusCode.UNAVAILABLE
        assert "nothing was read" in said
        assert complaints(caplog) == []


@BOTH
async def test_a_refusal_while_the_first_response_is_on_its_way_comes_behind_it(
    delta: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with beside_each_other() as scene:
        scene.cache.set(GROUP, snapshot(a="2", size=1_000_000))
        stream = scene.bad.ads(delta=delta)
        await stream.subscribe(CLUSTER)
        await scene.heard.until(lambda: bool(scene.heard.of(Sent, "bad")))
        await stream.send_raw(b"\xff\xff\xff")
        await stream.next(20.0)
        with pytest.raises((EOFError, grpc.aio.AioRpcError)):
            await stream.next(20.0)

        assert (await stream.expect_end())[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert complaints(caplog) == []


async def test_t_11_a_client_that_goes_in_the_middle_of_a_response_leaves_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with beside_each_other() as scene:
        scene.cache.set(GROUP, snapshot(a="2", size=1_000_000))
        for number in range(1, 6):
            stream = scene.bad.ads(delta=True)
            await stream.subscribe(CLUSTER)
            await scene.heard.until(lambda n=number: len(scene.heard.of(Sent, "bad")) == n)
            stream.call.cancel()
        await scene.heard.until(lambda: len(scene.heard.of(Closed, "bad")) == 5)

        assert [info.node.id for info in scene.server.streams()] == ["well"]
        assert complaints(caplog) == []


# It asks too much


@BOTH
async def test_w_11_fifty_thousand_names_are_answered_in_parts_and_hold_up_nobody(delta: bool) -> None:
    async with beside_each_other() as scene:
        stream = scene.bad.ads(delta=delta)
        await stream.subscribe(ENDPOINT, [f"name-{number}" for number in range(50_000)])
        await scene.beside.notices_nothing()
        told: set[str] = set()
        for part in range(1, 4):
            response = await stream.expect(ENDPOINT)
            told |= set(re.findall(r"name-\d+", str(response)))
            await stream.ack(response)

            assert len(told) > part * 1_000
        await scene.beside.notices_nothing()


async def test_ten_thousand_types_are_not_remembered() -> None:
    async with beside_each_other(requests_per_s=1e6) as scene:
        stream = scene.bad.ads(delta=True)
        await stream.subscribe(ENDPOINT, ["a"])
        await stream.expect(ENDPOINT)
        for number in range(10_000):
            await stream.send_raw(block(0x12, f"type.googleapis.com/acme.Type{number}".encode()) + block(0x1A, b"x"))
            if number % 1000 == 0:
                await scene.beside.notices_nothing()
        await stream.subscribe(CLUSTER)
        while (await stream.next()).type_url != CLUSTER:
            pass

        assert len(scene.heard.of(Subscribed, "bad")) < 100


async def test_a_megabyte_of_metadata_is_taken() -> None:
    fields = {f"key-{number}": Value(string_value="x" * 1000) for number in range(1000)}
    node = NodeMessage(id="bad", metadata=Struct(fields=fields))
    async with beside_each_other() as scene:
        stream = scene.bad.ads(delta=True, node=node)
        await is_served(stream)
        await scene.beside.notices_nothing()

        assert {len(info.node.metadata) for info in scene.server.streams()} == {0, 1000}


# It talks too much


@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
async def test_p_03_a_client_that_refuses_for_ever_is_told_little_and_then_nothing(delta: bool) -> None:
    names = {f"c{number}": "1" for number in range(16)}
    async with beside_each_other() as scene:
        scene.cache.set(GROUP, snapshot(**names))
        stream = scene.bad.ads(delta=delta)
        await stream.subscribe(CLUSTER)
        refused = 0
        with suppress(TimeoutError):  # nothing more comes
            while refused <= 2 * len(names):
                await stream.nack(await stream.next(0.5), "it is not to my taste")
                refused += 1

        assert 1 <= refused <= 2 * len(names)
        await scene.heard.until(lambda: len(scene.heard.of(Nacked, "bad")) == refused)
        await stream.expect_quiet()


async def test_p_08_the_same_request_a_thousand_times_a_second_is_answered_once() -> None:
    async with beside_each_other() as scene:
        stream = scene.bad.ads()
        await is_served(stream)
        for number in range(3000):
            await stream.subscribe(CLUSTER)
            if number % 300 == 0:
                await scene.beside.notices_nothing()
                await stream.ack(await stream.expect(CLUSTER))
        await scene.beside.notices_nothing()
        await stream.ack(await stream.expect(CLUSTER))

        await stream.expect_quiet()
        assert len(scene.heard.of(Sent, "bad")) == 12


# It is many


async def test_a_thousand_streams_that_say_nothing_are_let_go() -> None:
    async with beside_each_other(first_request_timeout_s=1.0) as scene:
        silent = [scene.bad.ads() for _ in range(1000)]
        await scene.beside.notices_nothing()
        ends = await asyncio.gather(*(stream.call.code() for stream in silent))

        assert set(ends) == {grpc.StatusCode.DEADLINE_EXCEEDED}
        await scene.beside.notices_nothing()
        assert len(scene.server.streams()) == 1


@BOTH
async def test_r_11_three_hundred_clients_that_come_at_once_are_all_served_and_starve_nobody(delta: bool) -> None:
    async with beside_each_other() as scene:
        streams = [scene.bad.ads(delta=delta) for _ in range(300)]
        arriving = asyncio.gather(*map(is_served, streams))
        while not arriving.done():
            await scene.beside.notices_nothing()
        await arriving

        assert len(scene.server.streams()) == 301
