"""Watch one service over many connections, and measure how soon a change has reached each of them.

A watcher is one request in flight: a long poll that is asked again after every answer, or a stream that goes on. The
same client for every server, on uvloop; it looks for the change's mark in what arrives and reads nothing else of it.
"""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import cast

import uvloop
from benchmark.wrk import LoadFailed, Request

_PATIENCE_S = 30.0
_SETTLED_S = 0.5
"""How long after a change the next may come: by then every watcher waits again."""
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:\s*chunked", re.IGNORECASE)

Again = Callable[[bytes], bytes]
"""Make the next request of a long poll from the head of the last answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Say how a service is watched: the first request, and the next ones, None for a stream."""

    first: bytes
    again: Again | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Hold the milliseconds from the start of a change's request to the watchers, medians over all changes."""

    half_ms: float
    last_ms: float


class _Watcher(asyncio.Protocol):
    def __init__(self, watch: Watch, wanted: "_Wanted") -> None:
        self._watch = watch
        self._wanted = wanted
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from asyncio's
        self._transport.write(self._watch.first)

    def close(self) -> None:
        self._wanted = _Wanted(0)
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._watch.again is None:
            if self._wanted.mark in self._buffer:
                self._wanted.seen()
                self._buffer = b""
            elif len(self._buffer) > 65_536:
                self._buffer = self._buffer[-1_024:]
            return
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or not _whole(head, body):
            return
        self._buffer = b""
        if self._wanted.mark in body:
            self._wanted.seen()
        self._transport.write(self._watch.again(head))

    def connection_lost(self, error: Exception | None) -> None:
        self._wanted.broken(error)


def _whole(head: bytes, body: bytes) -> bool:
    if _CHUNKED.search(head):
        return body.endswith(b"0\r\n\r\n")
    length = _LENGTH.search(head)
    return length is None or len(body) >= int(length[1])


class _Wanted:
    """Count the watchers that have seen the mark of the change that is under way."""

    def __init__(self, watchers: int) -> None:
        self._watchers = watchers
        self.mark = b"\0"
        self.at: list[float] = []
        self.all = asyncio.Event()
        self._broken: list[Exception | None] = []

    def begin(self, mark: bytes) -> None:
        self.mark, self.at = mark, []
        self.all.clear()

    def seen(self) -> None:
        self.at.append(time.perf_counter())
        if len(self.at) == self._watchers:
            self.mark = b"\0"  # a second sight of the same change does not count
            self.all.set()

    def broken(self, error: Exception | None) -> None:
        self._broken.append(error)
        self.all.set()

    def check(self) -> None:
        if self._broken and self._watchers:
            raise LoadFailed(f"{len(self._broken)} watchers lost their connection: {self._broken[0]}")


def spread(port: int, watch: Watch, change: Request, *, watchers: int, changes: int) -> Spread:
    """Change endpoint 0 of service 0 again and again, `{v}` a port number that the watchers look for.

    Raises LoadFailed.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_spread(port, watch, change, watchers, changes))


async def _spread(port: int, watch: Watch, change: Request, watchers: int, changes: int) -> Spread:
    loop = asyncio.get_running_loop()
    wanted = _Wanted(watchers)
    made: list[_Watcher] = []
    halves, lasts = [], []
    try:
        for _ in range(watchers):
            _, watcher = await loop.create_connection(lambda: _Watcher(watch, wanted), "127.0.0.1", port)
            made.append(watcher)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for version in range(20_000, 20_000 + changes + 1):
                await asyncio.sleep(_SETTLED_S)
                wanted.begin(str(version).encode())
                started = time.perf_counter()
                writer.write(_spelled(change.filled(0, 0, version)))
                async with asyncio.timeout(_PATIENCE_S):
                    await _answered(reader)
                    await wanted.all.wait()
                wanted.check()
                if version > 20_000:  # the first one warms up
                    halves.append(1000 * (median(wanted.at) - started))
                    lasts.append(1000 * (max(wanted.at) - started))
        finally:
            writer.close()
    except (TimeoutError, OSError) as error:
        raise LoadFailed(f"{len(wanted.at)} of {watchers} watchers saw the change: {error!r}") from error
    finally:
        for watcher in made:
            watcher.close()
    return Spread(half_ms=median(halves), last_ms=median(lasts))


def _spelled(request: Request) -> bytes:
    body = request.body.encode()
    head = f"{request.method} {request.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _answered(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    if head[9:10] != b"2":
        raise LoadFailed(f"the change was refused: {head[:300]!r}")
    length = _LENGTH.search(head)
    await reader.readexactly(int(length[1]) if length else 0)
