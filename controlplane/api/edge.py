"""What all handlers share: the context, ready bytes, conditional answers, waiting, and the one middleware.

One middleware only, and nothing in it but what every request needs: this is the hot path.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import blake2b

from aiohttp import web
from yarl import URL

from controlplane.api.context import Context, Freshness
from controlplane.api.news import SharedNews
from controlplane.api.parameters import MAX_WAIT_S
from controlplane.api.problems import (
    CROSS_SITE,
    INTERNAL,
    PRECONDITION_FAILED,
    REGISTRY_UNAVAILABLE,
    Fault,
    Problem,
    from_aiohttp,
    invalid,
)
from controlplane.api.resource_json import RenderedResources
from controlplane.catalog import Service
from controlplane.model import ServiceName

REQUEST_ID = web.RequestKey("request_id", str)
WAITED_S = web.RequestKey("waited_s", float)

_CACHE_BYTES = 64 * 1024 * 1024
_CACHE_ENTRIES = 16_384
_CACHED_QUERY_CHARS = 256
_ENTRY_OVERHEAD_BYTES = 1024
"""What an entry takes besides its texts: the objects around them, tag and revision, its place in the order."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_ENTITY_TAG = re.compile(r'\s*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(?:,|$)')
_WAIT = re.compile(r'(?:^|,)\s*wait\s*=\s*"?(\d{1,9})"?\s*(?:[,;]|$)', re.IGNORECASE)
_JITTER = 1 / 16
"""By which share of the time asked for a wait may end early, so that clients do not come back all at once."""

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_UNMATCHED = "unmatched"
_CLIENT_LEFT = 499
"""What a request is counted as whose client went away before the answer; no answer ever carries it."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """Hold a document as ready bytes, with the tag and the revision that go with them."""

    body: bytes
    etag: str
    revision: str
    link: str | None = None

    def response(self, status: int = 200, *, applied: str | None = None) -> web.Response:
        """Return the answer that carries the document; 304 carries its headers only."""
        headers = {"ETag": self.etag, "Revision": self.revision, "Cache-Control": "no-cache"}
        if self.link is not None:
            headers["Link"] = self.link
        if applied is not None:
            headers["Preference-Applied"] = applied
        if status == 304:
            return web.Response(status=304, headers=headers)
        headers["Content-Type"] = "application/json"
        return web.Response(body=self.body, headers=headers)


def hashed(body: bytes, revision: str, link: str | None = None) -> Rendered:
    """Tag a document by its content: for those that change with more than their service's revision."""
    return Rendered(body, f'"{blake2b(body, digest_size=12).hexdigest()}"', revision, link)


def guarded(body: bytes, stored: bytes, revision: str) -> Rendered:
    """Tag a document by its content, and before the `+` by what of it is stored.

    A write with `If-Match` asks whether anybody wrote meanwhile, not whether what is shown beside it has moved on.
    """
    shown, kept = (blake2b(each, digest_size=12).hexdigest() for each in (body, stored))
    return Rendered(body, f'"{kept}+{shown}"', revision)


class ReadyBytes:
    """Cache rendered services, the least recently used leaving first, bounded in bytes and in number.

    An answer is good for as long as its service has the revision it was rendered at, which every change replaces.
    Only the revision is kept, not the service: what nobody asks for again must not keep an old catalog alive.
    """

    def __init__(self, limit_bytes: int = _CACHE_BYTES, limit_entries: int = _CACHE_ENTRIES) -> None:
        self._limit_bytes = limit_bytes
        self._limit_entries = limit_entries
        self._size = 0
        self._known: OrderedDict[tuple[str, str], tuple[int, Rendered]] = OrderedDict()

    @property
    def size(self) -> int:
        """Return about how many bytes of memory the answers take, with their keys."""
        return self._size

    def get(self, service: Service, query: str) -> Rendered | None:
        """Return the ready answer to `query`, None where it must be rendered."""
        key = (service.name, query)
        known = self._known.get(key)
        if known is None or known[0] != service.revision:
            return None
        self._known.move_to_end(key)
        return known[1]

    def put(self, service: Service, query: str, rendered: Rendered) -> None:
        """Keep an answer, in place of what it outdates; not one to a query that is too long to be asked often."""
        if len(query) > _CACHED_QUERY_CHARS:
            return
        key = (service.name, query)
        old = self._known.pop(key, None)
        if old is not None:
            self._size -= _cost(key, old[1])
        self._known[key] = (service.revision, rendered)
        self._size += _cost(key, rendered)
        while self._size > self._limit_bytes or len(self._known) > self._limit_entries:
            dropped_key, (_, dropped) = self._known.popitem(last=False)
            self._size -= _cost(dropped_key, dropped)


def _cost(key: tuple[str, str], rendered: Rendered) -> int:
    return len(rendered.body) + len(key[0]) + len(key[1]) + _ENTRY_OVERHEAD_BYTES


class Edge:
    """Serve handlers: the context they read, and what they share while the application lives."""

    def __init__(self, context: Context, openapi: bytes) -> None:
        self.context = context
        self.openapi = openapi
        self.ready_bytes = ReadyBytes()
        self.rendered_resources = RenderedResources()
        self.news = SharedNews()
        self.policy_writes = asyncio.Lock()
        self.resource_writes = asyncio.Lock()
        self._parked: set[asyncio.Timeout] = set()
        self._stopping = False

    @property
    def stopping(self) -> bool:
        """Tell whether the application is shutting down: nothing waits or streams any more."""
        return self._stopping

    async def stop(self, _: web.Application | None = None) -> None:
        """End every wait and stream now, so that shutdown does not wait for clients that wait for us."""
        self._stopping = True
        now = asyncio.get_running_loop().time()
        for bound in self._parked:
            bound.reschedule(now)

    async def changed(self, service: ServiceName | None, within_s: float) -> bool:
        """Wait for a change of `service` (of anything where None); False where the time or the process ended."""
        if self._stopping:
            return False
        try:
            async with asyncio.timeout(within_s) as bound:
                self._parked.add(bound)
                try:
                    await self.context.live.wait(service)
                finally:
                    self._parked.discard(bound)
        except TimeoutError:
            return False
        return True

    def answer_now(self, request: web.Request, render: Callable[[], Rendered]) -> web.Response:
        """Answer a conditional read of something whose changes cannot be waited for: 200 or 304."""
        rendered = render()
        known = request.headers.get("If-None-Match")
        return rendered.response(304 if known is not None and matches(known, rendered.etag) else 200)

    async def fresh(self, request: web.Request) -> Freshness:
        """Return how current the catalog is, once there is one: a registry that is silent is not an empty one (law 1).

        Raises Problem where no registry speaks within `visible_within_s`.
        """
        freshness = self.context.freshness()
        if self.context.metrics is not None:
            self.context.metrics.cache_read(freshness.known)
        if freshness.known:
            return freshness
        end = self.context.monotonic() + self.context.visible_within_s
        while not freshness.known:
            left_s = end - self.context.monotonic()
            if left_s <= 0 or not await self.changed(None, left_s):
                detail = "no registry has said yet what there is; /readyz?verbose says what is waited for"
                raise Problem(REGISTRY_UNAVAILABLE, detail, headers={"Retry-After": "1"})
            freshness = self.context.freshness()
        return freshness

    async def answer(
        self, request: web.Request, service: ServiceName | None, render: Callable[[], Rendered]
    ) -> web.Response:
        """Answer a conditional read: 200, or 304, at once or (`Prefer: wait`) when `service` changes.

        `render` is asked again after every change, and may raise Problem where the resource has gone. The answer
        says how old it is (RFC 9111) and whether every registry can be heard.
        """
        freshness = await self.fresh(request)
        response = await self._answer(request, service, render)
        say_age(response, freshness)
        return response

    async def _answer(
        self, request: web.Request, service: ServiceName | None, render: Callable[[], Rendered]
    ) -> web.Response:
        rendered = render()
        known = request.headers.get("If-None-Match")
        if known is None:
            return rendered.response()
        if not matches(known, rendered.etag):
            return rendered.response()
        preference = _WAIT.search(request.headers.get("Prefer", ""))
        if preference is None:
            return rendered.response(304)
        wait_s = min(float(preference[1]), MAX_WAIT_S)
        applied = f"wait={wait_s:.0f}"
        started = self.context.monotonic()
        try:
            rendered = await self._after_change(known, rendered, service, render, wait_s)
        finally:
            request[WAITED_S] = self.context.monotonic() - started
        return rendered.response(304 if matches(known, rendered.etag) else 200, applied=applied)

    async def _after_change(
        self, known: str, rendered: Rendered, service: ServiceName | None, render: Callable[[], Rendered], wait_s: float
    ) -> Rendered:
        if self._stopping:
            return rendered
        try:
            async with asyncio.timeout(wait_s * (1 - _JITTER * self.context.random())) as bound:
                self._parked.add(bound)
                try:
                    while matches(known, rendered.etag):
                        await self.context.live.wait(service)
                        rendered = render()
                finally:
                    self._parked.discard(bound)
        except TimeoutError:
            return render()
        return rendered

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Give the request an id, turn every failure into a problem document, and count."""
        context = self.context
        started = context.monotonic()
        given = request.headers.get("X-Request-Id")
        request_id = given if given is not None and _REQUEST_ID.fullmatch(given) else context.request_id()
        request[REQUEST_ID] = request_id
        try:
            _refuse_cross_site(request)
            response = await handler(request)
        except Problem as problem:
            response = problem.response(request_id)
        except web.HTTPException as error:
            meant = await _without_slash(request) if error.status == 404 else None
            response = from_aiohttp(error, request, meant=meant).response(request_id)
        except asyncio.CancelledError:
            self._count(request, _CLIENT_LEFT, started)
            raise
        except Exception as error:
            context.report_error(error, request_id)
            response = Problem(INTERNAL, "a fault of the server; the log has it under this id").response(request_id)
        if not response.prepared:
            set_common_headers(response, request_id)
        self._count(request, response.status, started)
        return response

    def _count(self, request: web.Request, status: int, started: float) -> None:
        context = self.context
        if context.metrics is not None:
            resource = request.match_info.route.resource
            route = _UNMATCHED if resource is None else resource.canonical
            duration_s = context.monotonic() - started - request.get(WAITED_S, 0.0)
            context.metrics.http_request(request.method, route, status, duration_s)


def _refuse_cross_site(request: web.Request) -> None:
    """Raise Problem for a write that a browser sends for another site's page.

    Bodies are taken whatever their content type, so no preflight would keep any page on the web from registering
    instances with a control plane on its reader's own machine.
    """
    if request.method not in _SAFE_METHODS and request.headers.get("Sec-Fetch-Site") == "cross-site":
        raise Problem(CROSS_SITE, f"a page of another site asked for this {request.method}")


async def _without_slash(request: web.Request) -> str | None:
    """Return the path without the slash at its end, where there is one and a resource has that path."""
    path = request.rel_url.raw_path
    shorter = path.rstrip("/")
    if shorter in {"", path}:
        return None
    found = await request.app.router.resolve(request.clone(rel_url=URL(shorter, encoded=True)))
    return None if isinstance(found.http_exception, web.HTTPNotFound) else shorter


def say_age(response: web.StreamResponse, freshness: Freshness) -> None:
    """Say how old an answer from the catalog may be, in seconds, and whether the registries can be heard."""
    response.headers["Age"] = str(int(freshness.age_s))
    response.headers["Registry-Connected"] = "true" if freshness.connected else "false"


def set_common_headers(response: web.StreamResponse, request_id: str | None) -> None:
    """Set what every answer carries; the id only where there is one."""
    headers = response.headers
    if request_id is not None:
        headers["X-Request-Id"] = request_id
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Server"] = "controlplane"


def matches(condition: str, etag: str) -> bool:
    """Tell whether an `If-None-Match` header names this strong tag (RFC 9110, 13.1.2: weak comparison)."""
    if condition == etag or condition.strip() == "*":
        return True
    return any(f'"{tag}"' == etag for _, tag in _ENTITY_TAG.findall(condition))


def _stored(etag: str) -> str:
    """Return the part of an ETag that stands for what is stored; where it has no parts, all of it."""
    return etag.strip('"').partition("+")[0]


def require(request: web.Request, etag: str | None) -> bool:
    """Check the preconditions of a write; `etag` is the resource's, None where it does not exist.

    Returns whether there was a condition. Raises Problem: 412 where it does not hold, 400 where it cannot be read.
    """
    if_match = request.headers.get("If-Match")
    if_none_match = request.headers.get("If-None-Match")
    for name, header in (("If-Match", if_match), ("If-None-Match", if_none_match)):
        if header is not None and header.strip() != "*" and not _ENTITY_TAG.match(header):
            detail = f"expected an ETag in double quotes or *, found {header[:64]!r}"
            raise invalid([Fault(header=name, detail=detail)])
    if if_match is not None:
        strong = {f'"{tag}"' for weak, tag in _ENTITY_TAG.findall(if_match) if not weak}
        if etag is None or (if_match.strip() != "*" and _stored(etag) not in map(_stored, strong)):
            now = "it does not exist" if etag is None else f"its ETag is {etag}"
            raise Problem(PRECONDITION_FAILED, f"If-Match asks for {if_match}, but {now}", current=etag)
    if if_none_match is not None and etag is not None and matches(if_none_match, etag):
        raise Problem(PRECONDITION_FAILED, f"If-None-Match excludes the present state, {etag}", current=etag)
    return if_match is not None or if_none_match is not None
