"""Recognise a read whose very bytes have been read before, and answer it without reading them again.

Clients that poll ask the same over and over, and a read spends most of its time in being parsed, routed and
spelled: this way it costs a quarter. What was asked is all that is remembered; the answer is made of the catalog as
it is now, of the same ready bytes as every other. `server` sees to it that the bytes are one whole request.

Only requests with harmless headers are remembered: whatever else may say who asks, or ask for more than the
document, has to be read each time. What is to depend on the connection (a client certificate) must not come here.
"""

from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

from aiohttp import HttpVersion11, web

from controlplane.api.edge import Edge, matches
from controlplane.api.operations import BASE
from controlplane.model import ServiceName

_ROUTE = f"{BASE}/services/{{name}}"
_HARMLESS = frozenset(
    {"host", "user-agent", "accept", "accept-encoding", "accept-language", "cache-control", "pragma", "if-none-match"}
)
_MAX_REQUESTS = 4_096
_MAX_REQUEST_BYTES = 1_024
"""Together they bound what is remembered to some 5 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Say what a read of a service asks for; `known` is its `If-None-Match`."""

    service: ServiceName
    query: str
    known: str | None


READ = web.RequestKey("read", Read)
"""Where a handler leaves what a request asked, for `RepeatedReads` to remember."""


class RepeatedReads:
    """Remember reads by their bytes, the oldest leaving first."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._known: dict[bytes, Read] = {}
        self._date = (-1, "")

    def learn(self, request: web.BaseRequest, asked: bytes, status: int) -> None:
        """Remember what the bytes of a request asked, where a handler has said it and it can be asked again."""
        read = request.get(READ)
        if (
            read is not None
            and status in {HTTPStatus.OK, HTTPStatus.NOT_MODIFIED}
            and request.method == "GET"
            and request.version == HttpVersion11
            and len(asked) <= _MAX_REQUEST_BYTES
            and _harmless(request)
        ):
            if asked not in self._known and len(self._known) >= _MAX_REQUESTS:
                del self._known[next(iter(self._known))]
            self._known[asked] = read

    def answer(self, asked: bytes) -> bytes | None:
        """Return the whole answer to a request of these bytes; None where it must be read."""
        read = self._known.get(asked)
        if read is None:
            return None
        edge, context = self._edge, self._edge.context
        started = context.monotonic()
        service = context.live.current.services.get(read.service)
        rendered = None if service is None else edge.ready_bytes.get(service, read.query)
        freshness = context.freshness()
        if rendered is None or not freshness.known:
            return None
        if read.known is not None and matches(read.known, rendered.etag):
            status, content, body = "304 Not Modified", "", b""
        else:
            body = rendered.body
            status, content = "200 OK", f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        head = (
            f"HTTP/1.1 {status}\r\nETag: {rendered.etag}\r\nRevision: {rendered.revision}\r\n"
            f"Cache-Control: no-cache\r\n{content}Age: {int(freshness.age_s)}\r\n"
            f"Registry-Connected: {'true' if freshness.connected else 'false'}\r\n"
            f"X-Request-Id: {context.request_id()}\r\nX-Content-Type-Options: nosniff\r\nServer: controlplane\r\n"
            f"Date: {self._now()}\r\n\r\n"
        ).encode("ascii")
        if context.metrics is not None:
            context.metrics.cache_read(True)
            context.metrics.http_request("GET", _ROUTE, int(status[:3]), context.monotonic() - started)
        return head + body

    def _now(self) -> str:
        second = int(self._edge.context.wall_clock())
        if second != self._date[0]:
            self._date = (second, formatdate(second, usegmt=True))
        return self._date[1]


def _harmless(request: web.BaseRequest) -> bool:
    return all(
        name.lower() in _HARMLESS or (name.lower() == "connection" and value.lower() == "keep-alive")
        for name, value in request.headers.items()
    )


REPEATED = web.AppKey("repeated", RepeatedReads)
"""Where the application keeps them, for the connections that its `Runner` makes."""
