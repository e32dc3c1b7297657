"""A small HTTP/1.1 load client: ready request bytes over kept-alive connections, one request in flight on each.

It reads as little of the answers as it can (status and length), so that one core of it outruns the server.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast


@dataclass(kw_only=True)
class Result:
    """Hold what a run measured: seconds in all, seconds of each request, answers by status."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile_ms(self, share: float) -> float:
        """Return the latency in milliseconds that this share of the requests did not exceed."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def __str__(self) -> str:
        statuses = ", ".join(f"{count} x {status}" for status, count in sorted(self.statuses.items()))
        return (
            f"{self.per_second:,.0f} requests/s, p50 {self.percentile_ms(0.5):.2f} ms, "
            f"p99 {self.percentile_ms(0.99):.2f} ms ({statuses})"
        )


class _Connection(asyncio.Protocol):
    def __init__(self, requests: Iterator[bytes], result: Result, done: asyncio.Future[None]) -> None:
        self._requests = requests
        self._result = result
        self._done = done
        self._buffer = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from asyncio's
        self._next()

    def _next(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._transport.close()
            if not self._done.done():
                self._done.set_result(None)
            return
        self._sent = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 : head.find(b"\r\n", at) if head.find(b"\r\n", at) > 0 else None]) if at > 0 else 0
        if len(rest) < length:
            return
        self._buffer = b""
        self._result.latencies.append(time.perf_counter() - self._sent)
        self._result.statuses[int(head[9:12])] += 1
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(error or ConnectionError("the server closed the connection"))


async def run(port: int, requests: Iterator[bytes], *, connections: int) -> Result:
    """Send all requests over that many connections to 127.0.0.1:`port`."""
    loop = asyncio.get_running_loop()
    result = Result()
    ends = [loop.create_future() for _ in range(connections)]
    started = time.perf_counter()
    for done in ends:
        await loop.create_connection(lambda done=done: _Connection(requests, result, done), "127.0.0.1", port)
    await asyncio.gather(*ends)
    result.seconds = time.perf_counter() - started
    return result


def get(path: str) -> bytes:
    """Build a GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def post(path: str, body: bytes) -> bytes:
    """Build a POST request with a JSON body."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body
