"""Spoilt requests and plain garbage on a real port, with every service of it, beside a client that behaves."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health as grpc_health

from controlplane.grpc_health import health_handler
from tests.xds.client import XdsClient, XdsStream, versions
from tests.xds.fuzz.corpus import LOADS, STREAMS, Corpus, block, snapshots
from tests.xds.fuzz.mutations import OFTEN, spoilt
from tests.xds.serving import GROUP, serving
from xds.cache import SnapshotCache
from xds.load import LoadReports
from xds.types import CLUSTER

pytestmark = pytest.mark.integration

PATIENCE_S = 20.0
_CHANGE_S = 2.0  # on a machine that is busy with other things; it takes a few milliseconds
_STATES = snapshots()
_HEALTH = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


class Beside:
    """Change what is served again and again, and measure how long a client that behaves waits for it."""

    def __init__(self, cache: SnapshotCache, stream: XdsStream) -> None:
        self._cache = cache
        self._stream = stream
        self._state = 0
        self.waits_s: list[float] = []

    async def change(self) -> None:
        self._state = (self._state + 3) % len(_STATES)
        wanted = {name: each.version for name, each in _STATES[self._state].of_type(CLUSTER).items()}
        start = time.perf_counter()
        self._cache.set(GROUP, _STATES[self._state])
        response = await self._stream.next(PATIENCE_S)
        self.waits_s.append(time.perf_counter() - start)
        await self._stream.ack(response)

        assert versions(response).items() <= wanted.items()


@asynccontextmanager
async def under_fire(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> AsyncIterator[Any]:
    """Serve everything that the control plane's port has, and see afterwards that nothing was left or said."""
    cache, raised = SnapshotCache(), []
    cache.set(GROUP, _STATES[0])
    health, loads = grpc_health.aio.HealthServicer(), LoadReports()

    def on_fault(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # grpc has one poller a process: what it tells to the loop of an earlier test, it tells on ours.
        if str(context.get("exception")) != "Event loop is closed":
            raised.append(context)

    asyncio.get_running_loop().set_exception_handler(on_fault)
    async with serving(cache, handlers=[health_handler(health), loads.handler()]) as (server, port):
        async with XdsClient(port, node_id="well") as client:
            stream = client.ads(delta=True)
            await stream.subscribe(CLUSTER)
            await stream.ack(await stream.expect(CLUSTER))
            beside = Beside(cache, stream)
            yield port, beside
            await beside.change()

            async with asyncio.timeout(PATIENCE_S):
                while [info.node.id for info in server.streams()] != ["well"]:
                    await asyncio.sleep(0.01)
            assert cache.watched() == (GROUP,)
        loads.stop()

    assert raised == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr().err == ""
    assert max(beside.waits_s) < _CHANGE_S


async def send_all(call: Any, requests: list[bytes]) -> None:
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # it may be over before all is said
        for request in requests:
            await call.write(request)
        await call.done_writing()


async def converse(channel: Any, rng: Random, path: str, requests: list[bytes]) -> grpc.StatusCode:
    """Say it all, read to the end or go away in the middle; return the status."""
    call = channel.stream_stream(path)()
    saying = asyncio.ensure_future(send_all(call, requests))
    try:
        async with asyncio.timeout(PATIENCE_S):
            if rng.random() < 0.1:
                await saying
                call.cancel()
            else:
                with suppress(grpc.aio.AioRpcError):
                    while await call.read() is not grpc.aio.EOF:
                        pass
            code, detail = await call.code(), await call.details()
            if detail == "Internal error from Core":  # it was ended while we spoke, and our own library lost the status
                return grpc.StatusCode.CANCELLED
            return code
    finally:
        saying.cancel()
        await asyncio.gather(saying, return_exceptions=True)


async def test_spoilt_requests_on_a_port_end_their_own_stream_with_a_status(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], fuzz_requests: int, fuzz_seed: int
) -> None:
    corpus = Corpus(Random(f"{fuzz_seed}/port"), _STATES)
    codes: Counter[tuple[str, grpc.StatusCode]] = Counter()
    async with under_fire(caplog, capfd) as (port, beside), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        sent = number = 0
        while sent < fuzz_requests // 20:
            number += 1
            rng = Random(f"{fuzz_seed}/port/{number}")
            method = rng.choice(STREAMS)
            requests = spoilt(rng, corpus, method, corpus.conversation(rng, method, 0))
            path = LOADS if rng.random() < 0.1 else method.path
            sent += len(requests)
            codes["stream" if path is method.path else "LRS", await converse(channel, rng, path, requests)] += 1
            for path in _HEALTH if rng.random() < 0.1 else ():
                body = rng.choice(OFTEN)(rng, b"\x0a\x04name")
                codes[path.rpartition("/")[2], await ask(channel, path, body)] += 1
            if number % 20 == 0:
                await beside.change()
    waits = sorted(beside.waits_s)
    with capfd.disabled():
        print(f"\nseed {fuzz_seed}: {sent} requests on {number} streams of a port;", end=" ")
        print(
            ", ".join(f"{count} {what} {code.name}" for (what, code), count in sorted(codes.items(), key=str)), end="; "
        )
        print(f"a change took {waits[len(waits) // 2] * 1000:.1f} ms, at most {waits[-1] * 1000:.1f} ms")

    assert {code for (what, code) in codes if what in ("stream", "LRS")} <= {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.CANCELLED,
    }


async def ask(channel: Any, path: str, body: bytes) -> grpc.StatusCode:
    """Ask the health service something, and take one answer."""
    call = channel.unary_stream(path)(body, timeout=PATIENCE_S)
    try:
        await call.read()
    except grpc.aio.AioRpcError as error:
        return error.code()
    call.cancel()
    return grpc.StatusCode.OK


def frame(rng: Random) -> bytes:
    """Make an HTTP/2 frame of any kind but GOAWAY, whose text grpc logs; its length may be a lie."""
    body = rng.randbytes(rng.choice((0, 4, 8, 40)))
    length = len(body) if rng.random() < 0.8 else rng.choice((0, 1, 16_384, 2**24 - 1))
    kind, flags = rng.choice((0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11)), rng.choice((0, 1, 4, 5, 0xFF))
    return length.to_bytes(3, "big") + bytes((kind, flags)) + rng.choice((0, 1, 3, 2**31 - 1)).to_bytes(4, "big") + body


GARBAGE: dict[str, Callable[[Random], bytes]] = {
    "nothing at all": lambda _rng: b"",
    "a preface cut short": lambda rng: _PREFACE[: rng.randrange(len(_PREFACE))],
    "random bytes": lambda rng: rng.randbytes(rng.choice((1, 10, 5000))),
    "random bytes behind a preface": lambda rng: _PREFACE + _SETTINGS + rng.randbytes(rng.choice((9, 500))),
    "frames of all kinds": lambda rng: _PREFACE + _SETTINGS + b"".join(frame(rng) for _ in range(rng.randint(1, 10))),
    "HTTP/1.1": lambda _rng: b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": lambda rng: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500),
    "headers without end": lambda rng: _PREFACE + _SETTINGS + block(0, rng.randbytes(100)) * 20,
}


@pytest.mark.parametrize("make", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_on_the_port_ends_its_own_connection(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], make: Callable[[Random], bytes], fuzz_seed: int
) -> None:
    async with under_fire(caplog, capfd) as (port, beside):
        for number in range(60):
            rng = Random(f"{fuzz_seed}/{number}")
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with suppress(ConnectionError):
                writer.write(make(rng))
                await writer.drain()
                if rng.random() < 0.5:
                    async with asyncio.timeout(PATIENCE_S):
                        writer.write_eof()
                        await reader.read()
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            if number % 10 == 0:
                await beside.change()
