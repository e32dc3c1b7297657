"""Raw xDS resources: what services do not make, fed by the operator and served as ours are.

Answers never carry what is private in a resource: it leaves the control plane by xDS only.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from aiohttp import web

from controlplane.api.bodies import read_object
from controlplane.api.cautions import cautions
from controlplane.api.edge import Edge, Rendered, guarded, hashed, require
from controlplane.api.faults import pointer
from controlplane.api.operations import BASE, CONDITIONAL, Answer, Body, Operation, shown
from controlplane.api.parameters import (
    CREATE_ONLY,
    CURSOR,
    DEFAULT_LIMIT,
    IF_MATCH,
    LIMIT,
    NODE_CLUSTERS,
    NODE_ZONES,
    RESOURCE_NAME,
    RESOURCE_TYPE,
    cursor_after,
    read_query,
)
from controlplane.api.problems import (
    INVALID,
    MALFORMED,
    NAME_RESERVED,
    PRECONDITION_FAILED,
    REGISTRY_UNAVAILABLE,
    TOO_LARGE,
    UNKNOWN_RESOURCE,
    UNSUPPORTED_MEDIA_TYPE,
    Fault,
    Problem,
    invalid,
)
from controlplane.api.reading import next_link
from controlplane.api.writing import ask, resource_visible
from controlplane.catalog import RawEntry
from controlplane.model import RawResource, ResourceKey
from controlplane.raw.compile import Compiled
from controlplane.raw.overlay import holders, lost, owner
from controlplane.raw.reading import MAX_DEPTH, Unreadable
from controlplane.raw.references import Reference
from controlplane.translate.redaction import REDACTED, hidden_places, redacted
from xds.typenames import WORDS, type_url_of
from xds.types import VIRTUAL_HOST

RESOURCES = "resources"

_MAX_NAME_CHARS = 1024
_MAX_NODES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RawResourceView:
    """Show a raw resource; keys, passwords and tokens in it are hidden.

    `version` is what proxies are told, a hash of the content. `state` is `suppressed` while a service has the name, or
    another virtual host a domain of this one, which `detail` then says; its other domains are served. `warnings` name
    what the resource refers to and does not exist now, and inline certificates that ought to be renewed.
    """

    type: str
    type_url: str
    name: str
    version: str
    node_clusters: tuple[str, ...]
    node_zones: tuple[str, ...]
    state: Literal["published", "suppressed", "invalid"]
    detail: str
    warnings: tuple[str, ...]
    resource: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawResourceItem:
    """Sum up a raw resource."""

    type: str
    type_url: str
    name: str
    node_clusters: tuple[str, ...]
    node_zones: tuple[str, ...]
    state: Literal["published", "suppressed", "invalid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawResourceList:
    """Show one page of raw resources, by type URL and name."""

    items: tuple[RawResourceItem, ...]
    next: str | None
    revision: str


State = Literal["published", "suppressed", "invalid"]


def _type_url(request: web.Request) -> str:
    spelled = request.match_info["type"]
    type_url = type_url_of(spelled)
    if type_url is None:
        choices = tuple(WORDS.values())
        detail = f"unknown type {spelled!r}; known are: {', '.join(choices)}"
        raise invalid([Fault(parameter="type", detail=detail, choices=choices)])
    return type_url


def _key(request: web.Request) -> ResourceKey:
    type_url, name = _type_url(request), request.match_info["name"]
    if len(name) > _MAX_NAME_CHARS or not name.isprintable():
        detail = f"expected at most {_MAX_NAME_CHARS} printable characters"
        raise invalid([Fault(parameter="name", detail=detail)])
    return ResourceKey(type_url, name)


def _path(key: ResourceKey) -> str:
    return f"{BASE}/xds/{WORDS[key.type_url]}/{key.name}"


def _compiled(edge: Edge, raw: RawResource) -> Compiled | str:
    """Return what a resource becomes, or why nothing: it was stored by a version that judged otherwise."""
    try:
        return edge.context.compiler.compile(raw)
    except Unreadable as error:
        return str(error)


def _hosts(edge: Edge) -> Mapping[Reference, ResourceKey]:
    """Return which virtual host has each domain: of all resources, they alone can take something from each other."""
    every = edge.context.live.current.raw.items()
    hosts = {key: _compiled(edge, entry.resource) for key, entry in every if key.type_url == VIRTUAL_HOST}
    return holders({key: each for key, each in hosts.items() if not isinstance(each, str)})


def _state(
    edge: Edge, raw: RawResource, compiled: Compiled | str, hosts: Mapping[Reference, ResourceKey]
) -> tuple[State, str]:
    if isinstance(compiled, str):
        return "invalid", compiled
    if (by := owner(edge.context.live.current.has_cluster, raw.key)) is not None:
        return "suppressed", f"{by} has this name and wins; delete this resource or rename it"
    if why := lost(raw.key, compiled, hosts):
        return "suppressed", f"{why}; leave the domain out of one of them"
    return "published", ""


def _view(edge: Edge, raw: RawResource) -> RawResourceView:
    compiled = _compiled(edge, raw)
    state, detail = _state(edge, raw, compiled, _hosts(edge) if raw.type_url == VIRTUAL_HOST else {})
    version = ""
    warnings: tuple[str, ...] = ()
    if not isinstance(compiled, str):
        version = compiled.version
        warnings = cautions(compiled, edge.context.live.current, edge.context.wall_clock())
    return RawResourceView(
        type=WORDS[raw.type_url],
        type_url=raw.type_url,
        name=raw.name,
        version=version,
        node_clusters=raw.node_clusters,
        node_zones=raw.node_zones,
        state=state,
        detail=detail,
        warnings=warnings,
        resource={"@type": raw.type_url, **redacted(orjson.loads(raw.body))},
    )


def _render(edge: Edge, raw: RawResource, revision: int) -> Rendered:
    stored = orjson.dumps((raw.body, raw.node_clusters, raw.node_zones))
    return guarded(orjson.dumps(_view(edge, raw)), stored, edge.context.live.label(revision))


def _known(edge: Edge, key: ResourceKey) -> RawEntry:
    entry = edge.context.live.current.raw.get(key)
    if entry is None:
        detail = f"no raw resource of type {WORDS[key.type_url]} is named {key.name!r}; GET {BASE}/xds lists them"
        raise Problem(UNKNOWN_RESOURCE, detail)
    return entry


def _own_tag(edge: Edge, key: ResourceKey) -> str | None:
    entry = edge.context.live.current.raw.get(key)
    return None if entry is None else _render(edge, entry.resource, entry.revision).etag


async def get_resource(edge: Edge, request: web.Request) -> web.Response:
    """Answer with a raw resource, what is private in it hidden."""
    read_query(request, ())
    key = _key(request)

    def render() -> Rendered:
        entry = _known(edge, key)
        return _render(edge, entry.resource, entry.revision)

    return await edge.answer(request, None, render)


def _listed(edge: Edge, request: web.Request, query: Mapping[str, Any], type_url: str | None) -> Rendered:
    catalog = edge.context.live.current
    limit: int = query.get("limit", DEFAULT_LIMIT)
    after_type, _, after_name = str(query.get("cursor", "")).partition(" ")
    after = ResourceKey(after_type, after_name)
    keys = sorted(key for key in catalog.raw if key > after and (type_url is None or key.type_url == type_url))
    page = keys[:limit]
    hosts = _hosts(edge) if any(key.type_url == VIRTUAL_HOST for key in page) else {}
    items = tuple(_item(edge, catalog.raw[key].resource, hosts) for key in page)
    following = cursor_after(f"{page[-1].type_url} {page[-1].name}") if len(keys) > limit else None
    label = edge.context.live.label(max((entry.revision for entry in catalog.raw.values()), default=0))
    document = RawResourceList(items=items, next=following, revision=label)
    return hashed(orjson.dumps(document), label, next_link(request, following))


def _item(edge: Edge, raw: RawResource, hosts: Mapping[Reference, ResourceKey]) -> RawResourceItem:
    return RawResourceItem(
        type=WORDS[raw.type_url],
        type_url=raw.type_url,
        name=raw.name,
        node_clusters=raw.node_clusters,
        node_zones=raw.node_zones,
        state=_state(edge, raw, _compiled(edge, raw), hosts)[0],
    )


async def list_resources(edge: Edge, request: web.Request) -> web.Response:
    """Answer with one page of raw resources."""
    query = read_query(request, (LIMIT, CURSOR))
    return await edge.answer(request, None, lambda: _listed(edge, request, query, None))


async def list_resources_of_type(edge: Edge, request: web.Request) -> web.Response:
    """Answer with one page of the raw resources of a type."""
    query = read_query(request, (LIMIT, CURSOR))
    type_url = _type_url(request)
    return await edge.answer(request, None, lambda: _listed(edge, request, query, type_url))


async def put_resource(edge: Edge, request: web.Request) -> web.Response:
    """Store the resource in the body, once it has been found good."""
    query = read_query(request, (NODE_CLUSTERS, NODE_ZONES))
    key = _key(request)
    raw = _raw(key, await read_object(request), query)
    try:
        await asyncio.to_thread(edge.context.compiler.compile, raw)
    except Unreadable as error:
        raise invalid([Fault(pointer=pointer(*each.path), detail=each.detail) for each in error.faults]) from None
    live = edge.context.live
    async with edge.resource_writes:  # nobody writes between the check of If-Match and the write that relies on it
        require(request, _own_tag(edge, key))
        if (by := owner(live.current.has_cluster, key)) is not None:
            raise Problem(NAME_RESERVED, f"{by} has the name {key.name!r}; choose another", owner=by)
        new = await ask(edge, "put_resource", edge.context.registry.put_resource(raw))
        revision = await resource_visible(edge, key, raw)
    rendered = _render(edge, raw, revision or 0)
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    if revision is not None:
        headers |= {"ETag": rendered.etag, "Revision": live.label(revision)}
    status = 202 if revision is None else 201 if new else 200
    if status != 200:
        headers["Location"] = _path(key)
    return web.Response(status=status, body=rendered.body, headers=headers)


def _raw(key: ResourceKey, body: dict[str, Any], query: Mapping[str, frozenset[str]]) -> RawResource:
    """Make the value of a body, in the one form in which equal resources are equal."""
    named = body.pop("@type", key.type_url)
    faults = []
    if named != key.type_url:
        detail = f"the path says {key.type_url}, found {named!r}; leave it out or make them agree"
        faults.append(Fault(pointer="#/@type", detail=detail))
    limits = {name: tuple(sorted(query.get(name, ()))) for name in (NODE_CLUSTERS.name, NODE_ZONES.name)}
    for name, nodes in limits.items():
        if len(nodes) > _MAX_NODES or any(len(node) > 253 for node in nodes):
            faults.append(Fault(parameter=name, detail=f"expected at most {_MAX_NODES} names of 253 characters"))
    try:
        text = orjson.dumps(body, option=orjson.OPT_SORT_KEYS).decode()
    except orjson.JSONEncodeError:  # it writes fewer levels than it reads
        raise invalid([Fault(pointer="#", detail=f"nested more than {MAX_DEPTH} deep")]) from None
    if f'"{REDACTED}"' in text:
        detail = f"{REDACTED!r} stands where an answer hid something; send the real one"
        faults.extend(Fault(pointer=pointer(*place), detail=detail) for place in hidden_places(body))
    if faults:
        raise invalid(faults)
    return RawResource(type_url=key.type_url, name=key.name, body=text, **limits)


async def delete_resource(edge: Edge, request: web.Request) -> web.Response:
    """Remove a raw resource; the same answer where there is none."""
    read_query(request, ())
    key = _key(request)
    async with edge.resource_writes:
        require(request, _own_tag(edge, key))
        await ask(edge, "delete_resource", edge.context.registry.delete_resource(key))
        revision = await resource_visible(edge, key, None)
    if revision is None:
        return web.Response(status=202, headers={"Location": _path(key)})
    return web.Response(status=204, headers={"Revision": edge.context.live.label(revision)})


_PATH = f"{BASE}/xds/{{type}}/{{name}}"
_WRITTEN = ("ETag", "Revision")

OPERATIONS = (
    Operation(
        method="GET",
        path=f"{BASE}/xds",
        id="listResources",
        group=RESOURCES,
        summary="List the raw xDS resources",
        handler=list_resources,
        parameters=(LIMIT, CURSOR, *CONDITIONAL),
        answers=shown(RawResourceList, "One page of the resources, by type URL and name.", headers=("Link",)),
        problems=(INVALID,),
    ),
    Operation(
        method="GET",
        path=f"{BASE}/xds/{{type}}",
        id="listResourcesOfType",
        group=RESOURCES,
        summary="List the raw xDS resources of a type",
        handler=list_resources_of_type,
        parameters=(RESOURCE_TYPE, LIMIT, CURSOR, *CONDITIONAL),
        answers=shown(RawResourceList, "One page of the resources, by name.", headers=("Link",)),
        problems=(INVALID,),
    ),
    Operation(
        method="GET",
        path=_PATH,
        id="getResource",
        group=RESOURCES,
        summary="Get a raw xDS resource",
        description="Private keys, passwords and tokens are hidden; `version` tells whether they have changed.",
        handler=get_resource,
        parameters=(RESOURCE_TYPE, RESOURCE_NAME, *CONDITIONAL),
        tail="name",
        answers=shown(RawResourceView, "The resource."),
        problems=(INVALID, UNKNOWN_RESOURCE),
    ),
    Operation(
        method="PUT",
        path=_PATH,
        id="putResource",
        group=RESOURCES,
        summary="Set a raw xDS resource",
        description="One resource in proto3 JSON, canonical or with the proto's own field names; `@type` may be left "
        "out. What a client would refuse is refused here, by pointer, and nothing is stored; docs/content-rules.md "
        "explains ids such as C-02. A reference to what does not exist is accepted with a warning. The name inside is "
        "the path's. A virtual host is named `<route configuration>/<name>` and found on demand by its domains.",
        handler=put_resource,
        parameters=(RESOURCE_TYPE, RESOURCE_NAME, NODE_CLUSTERS, NODE_ZONES, IF_MATCH, CREATE_ONLY),
        tail="name",
        body=Body(model=dict[str, Any], example={"name": "rtds_layer", "layer": {"my.feature.enabled": False}}),
        answers=(
            Answer(
                status=201,
                description="Stored; there was none of this name.",
                models=(RawResourceView,),
                headers=("Location", *_WRITTEN),
            ),
            Answer(
                status=200,
                description="Stored, in place of the one before.",
                models=(RawResourceView,),
                headers=_WRITTEN,
            ),
            Answer(
                status=202,
                description="Stored, but this process's catalog does not show it yet.",
                models=(RawResourceView,),
                headers=("Location",),
            ),
        ),
        problems=(
            INVALID,
            MALFORMED,
            TOO_LARGE,
            UNSUPPORTED_MEDIA_TYPE,
            NAME_RESERVED,
            PRECONDITION_FAILED,
            REGISTRY_UNAVAILABLE,
        ),
    ),
    Operation(
        method="DELETE",
        path=_PATH,
        id="deleteResource",
        group=RESOURCES,
        summary="Remove a raw xDS resource",
        handler=delete_resource,
        parameters=(RESOURCE_TYPE, RESOURCE_NAME, IF_MATCH),
        tail="name",
        answers=(
            Answer(status=204, description="There is no raw resource of this name.", headers=("Revision",)),
            Answer(
                status=202,
                description="Removed, but this process's catalog does not show it yet.",
                headers=("Location",),
            ),
        ),
        problems=(INVALID, PRECONDITION_FAILED, REGISTRY_UNAVAILABLE),
    ),
)
