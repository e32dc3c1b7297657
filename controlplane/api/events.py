"""The stream of changes as server-sent events: first the state, then `synced`, then every change.

A reader that is slow holds a position, not a queue: when it can take more it gets the newest state of whatever
changed since, each thing once (law 7); when that is longer ago than the history reaches, `reset` and everything.
"""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import assert_never

import orjson
from aiohttp import ClientConnectionResetError, web

from controlplane.api.edge import REQUEST_ID, WAITED_S, Edge, set_common_headers
from controlplane.api.operations import BASE, Answer, Operation
from controlplane.api.parameters import LAST_EVENT_ID, SERVICES, read_query
from controlplane.api.problems import INVALID
from controlplane.api.reading import show
from controlplane.api.views import (
    DeleteInstanceEvent,
    DeletePolicyEvent,
    DeleteResourceEvent,
    PutInstanceEvent,
    PutPolicyEvent,
    PutResourceEvent,
    policy_view,
)
from controlplane.catalog import Catalog, Change, RawEntry
from controlplane.model import (
    DeleteInstance,
    DeletePolicy,
    DeleteResource,
    GraceOver,
    Held,
    InstanceKey,
    Judged,
    Lost,
    PutAliases,
    PutInstance,
    PutPolicy,
    PutResource,
    Resolved,
    ResourceKey,
    ServiceName,
    Synced,
)
from xds.typenames import WORDS

EVENTS = "events"

_HEARTBEAT_S = 15.0
_RETRY_MS = 2_000
_CHUNK_BYTES = 32 * 1024
_STUCK_S = 60.0
"""How long a reader may take no byte at all before its stream is ended."""


@dataclass(slots=True)
class _Touched:
    """Collect what changed, each thing once: instances with the reason where they went last, policies and resources."""

    instances: dict[InstanceKey, str] = field(default_factory=dict)
    policies: dict[ServiceName, None] = field(default_factory=dict)
    resources: dict[ResourceKey, None] = field(default_factory=dict)


async def events(edge: Edge, request: web.Request) -> web.StreamResponse:
    """Stream events until the client goes or the process stops."""
    query = read_query(request, (SERVICES,))
    only: frozenset[ServiceName] = frozenset(ServiceName(name) for name in query.get("service", ()))
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "Revision": edge.context.live.revision,
        }
    )
    set_common_headers(response, request[REQUEST_ID])
    started = edge.context.monotonic()
    await response.prepare(request)
    try:
        await _stream(edge, response, only, request.headers.get("Last-Event-ID"))
    except ClientConnectionResetError:
        pass  # the client is gone: its stream ends
    except TimeoutError:
        # It takes nothing: to end the answer in order would wait for the very same reader.
        if request.transport is not None:
            request.transport.abort()
    finally:
        request[WAITED_S] = edge.context.monotonic() - started
    return response


async def _stream(
    edge: Edge, response: web.StreamResponse, only: frozenset[ServiceName], last_event_id: str | None
) -> None:
    live = edge.context.live
    position = None if last_event_id is None else _position(edge, last_event_id)
    await _write(response, [b"retry: %d\n\n" % _RETRY_MS])
    if position is None:
        if last_event_id is not None:
            await _write(response, [_RESET])
        position = await _everything(edge, response, only)
    else:
        position = await _since(edge, response, only, position)
        await _write(response, [_event("synced", b"{}", live.label(position))])
    service = next(iter(only)) if len(only) == 1 else None
    monotonic = edge.context.monotonic
    heartbeat_at = monotonic() + _HEARTBEAT_S
    while not edge.stopping:
        if live.current.revision == position:
            await edge.changed(service, max(0.0, heartbeat_at - monotonic()))
        if not _reaches(edge, position):
            await _write(response, [_RESET])
            position = await _everything(edge, response, only)
        elif live.current.revision != position:
            position = await _since(edge, response, only, position)
        if monotonic() >= heartbeat_at:
            # The id moves on too: a watcher of quiet services may resume after thousands of other changes.
            await _write(response, [b":\nid: %s\n\n" % live.label(position).encode()])
            heartbeat_at = monotonic() + _HEARTBEAT_S


def _position(edge: Edge, event_id: str) -> int | None:
    """Return the revision after which the stream goes on; None where it must begin anew."""
    epoch, _, text = event_id.strip().rpartition(".")
    if epoch != edge.context.live.epoch or not (text.isascii() and text.isdigit()) or len(text) > 18:
        return None
    position = int(text)
    if position > edge.context.live.current.revision or not _reaches(edge, position):
        return None
    return position


def _reaches(edge: Edge, position: int) -> bool:
    """Tell whether the history holds every change after `position`."""
    history = edge.context.live.history
    oldest = history[0].revision if history else edge.context.live.current.revision + 1
    return position >= oldest - 1


async def _everything(edge: Edge, response: web.StreamResponse, only: frozenset[ServiceName]) -> int:
    """Write the state as it is now, then `synced` with its revision; no event before that carries an id."""
    catalog = edge.context.live.current
    for name in sorted(only or catalog.services):
        await _write(response, _puts(edge, catalog, ServiceName(name)))
    if not only:
        await _write(response, (_event("put", _resource_put(each), None) for _, each in sorted(catalog.raw.items())))
    await _write(response, [_event("synced", b"{}", edge.context.live.label(catalog.revision))])
    return catalog.revision


async def _since(edge: Edge, response: web.StreamResponse, only: frozenset[ServiceName], position: int) -> int:
    """Write the newest state of whatever changed after `position`; the last event carries the revision reached."""
    catalog = edge.context.live.current

    def spell() -> Iterator[bytes]:
        return _news(edge, catalog, only, position)

    await _write(response, edge.news.told(catalog.revision, position, only, spell))
    return catalog.revision


def _news(edge: Edge, catalog: Catalog, only: frozenset[ServiceName], position: int) -> Iterator[bytes]:
    touched = _Touched()
    for change in _after(edge, position):
        _touch(touched, change, catalog, only)
    written = [_instance_event(edge, catalog, key, reason) for key, reason in touched.instances.items()]
    written += [_policy_event(catalog, name) for name in touched.policies]
    written += [_resource_event(catalog, key) for key in touched.resources]
    last = len(written) - 1
    return (
        _event(kind, data, edge.context.live.label(catalog.revision) if number == last else None)
        for number, (kind, data) in enumerate(written)
    )


def _after(edge: Edge, position: int) -> list[Change]:
    changes: list[Change] = []
    for change in reversed(edge.context.live.history):
        if change.revision <= position:
            break
        changes.append(change)
    return changes[::-1]


def _touch(touched: _Touched, change: Change, catalog: Catalog, only: frozenset[ServiceName]) -> None:
    event = change.event
    if not only and isinstance(event, PutResource | DeleteResource):
        touched.resources[event.resource.key if isinstance(event, PutResource) else event.key] = None
    services = [name for name in change.services if not only or name in only]
    if not services:
        return
    match event:
        case PutInstance():
            touched.instances[event.instance.key] = ""
        case DeleteInstance():
            touched.instances[event.key] = event.reason
        case Judged():
            touched.instances[event.key] = ""
        case PutPolicy() | DeletePolicy():
            touched.policies[event.service] = None
        case Resolved():
            for name in services:
                service = catalog.services.get(name)
                for entry in () if service is None else service.sorted_entries():
                    if entry.instance.host == event.host:
                        touched.instances.setdefault(entry.instance.key, "")
        case Held(keys=keys):
            touched.instances.update((key, "") for key in keys if key.service in services)
        case PutAliases() | PutResource() | DeleteResource() | GraceOver() | Synced() | Lost():
            pass
        case _:
            assert_never(event)


def _puts(edge: Edge, catalog: Catalog, name: ServiceName) -> Iterator[bytes]:
    service = catalog.services.get(name)
    if service is None:
        return
    for entry in service.sorted_entries():
        yield _event("put", orjson.dumps(PutInstanceEvent(instance=show(edge, entry))), None)
    if service.own_policy is not None:
        yield _event("put", orjson.dumps(PutPolicyEvent(policy=policy_view(service))), None)


def _instance_event(edge: Edge, catalog: Catalog, key: InstanceKey, reason: str) -> tuple[str, bytes]:
    entry = catalog.entry(key)
    if entry is None:
        return "delete", orjson.dumps(DeleteInstanceEvent(service=key.service, id=key.id, reason=reason))
    return "put", orjson.dumps(PutInstanceEvent(instance=show(edge, entry)))


def _policy_event(catalog: Catalog, name: ServiceName) -> tuple[str, bytes]:
    service = catalog.services.get(name)
    if service is None or service.own_policy is None:
        return "delete", orjson.dumps(DeletePolicyEvent(service=name))
    return "put", orjson.dumps(PutPolicyEvent(policy=policy_view(service)))


def _resource_event(catalog: Catalog, key: ResourceKey) -> tuple[str, bytes]:
    entry = catalog.raw.get(key)
    if entry is None:
        return "delete", orjson.dumps(DeleteResourceEvent(type=WORDS[key.type_url], name=key.name))
    return "put", _resource_put(entry)


def _resource_put(entry: RawEntry) -> bytes:
    raw = entry.resource
    event = PutResourceEvent(
        type=WORDS[raw.type_url], name=raw.name, node_clusters=raw.node_clusters, node_zones=raw.node_zones
    )
    return orjson.dumps(event)


def _event(kind: str, data: bytes, event_id: str | None) -> bytes:
    name = b"" if event_id is None else b"id: %s\n" % event_id.encode()
    return b"event: %s\n%sdata: %s\n\n" % (kind.encode(), name, data)


_RESET = _event("reset", b"{}", None)


async def _write(response: web.StreamResponse, parts: Iterable[bytes]) -> None:
    """Write the parts, many to a write, and wait whenever the client has enough to read."""
    chunk: list[bytes] = []
    size = 0
    for part in parts:
        chunk.append(part)
        size += len(part)
        if size >= _CHUNK_BYTES:
            await _send(response, b"".join(chunk))
            chunk, size = [], 0
    if chunk:
        await _send(response, b"".join(chunk))


async def _send(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(_STUCK_S):
        await response.write(data)


OPERATIONS = (
    Operation(
        method="GET",
        path=f"{BASE}/events",
        id="watchEvents",
        group=EVENTS,
        summary="Watch changes as server-sent events",
        description="The present state as `put` events, then `synced`, then a `put` or `delete` for every change. With "
        "`Last-Event-ID` the stream goes on after that event; where that is unknown or too long ago it begins with "
        "`reset`: forget everything, the full state follows. A slow reader is moved to the newest state: it may see "
        "several changes of one thing as one. A comment line comes every 15 s. Data is JSON: an object whose `kind` is "
        "`instance`, `policy` or `resource`; of a raw resource only the name is told. With `service` there are none of "
        "those.",
        handler=events,
        allow_head=False,
        parameters=(SERVICES, LAST_EVENT_ID),
        answers=(
            Answer(
                status=200,
                description="The stream.",
                media_type="text/event-stream",
                models=(
                    PutInstanceEvent
                    | DeleteInstanceEvent
                    | PutPolicyEvent
                    | DeletePolicyEvent
                    | PutResourceEvent
                    | DeleteResourceEvent,
                ),
                headers=("Revision",),
            ),
        ),
        problems=(INVALID,),
    ),
)
