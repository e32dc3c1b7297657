"""What one proxy holds, resource by resource, as it was sent and as people read it."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from controlplane.api.context import Proxies
from controlplane.api.edge import Edge, hashed
from controlplane.api.operations import BASE, Operation, shown
from controlplane.api.parameters import (
    CONTENTS,
    CURSOR,
    DEFAULT_LIMIT,
    IF_NONE_MATCH,
    LIMIT,
    NODE_ID,
    ONLY_NAME,
    ONLY_TYPE,
    STATE,
    cursor_after,
    read_query,
)
from controlplane.api.problems import INVALID, UNKNOWN_PROXY, unknown_proxy
from controlplane.api.reading import next_link
from controlplane.api.views import timestamp
from controlplane.translate.decode import Content, readable
from xds.status import ProxyStatus, ResourceStatus, State
from xds.typenames import message_name

PROXIES = "proxies"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldResource:
    """Show one resource on one proxy.

    `version` and `content` are what the proxy acknowledged last, and goes on with; null where it has nothing.
    `sent_version` is what it was told last, which for ERROR it refused. `updated_at` is when it acknowledged the
    version, exact for what changed lately. Without keys and passwords; what cannot be read as JSON is `base64`,
    with a `note` that says why.
    """

    type: str
    name: str
    state: State
    version: str | None
    sent_version: str
    updated_at: str | None
    content: dict[str, Any] | None
    base64: str | None
    note: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """Show one page of what a proxy holds, by type and name."""

    node_id: str
    items: tuple[HeldResource, ...]
    next: str | None
    revision: str


async def get_proxy_config(edge: Edge, request: web.Request) -> web.Response:
    """Answer with one page of what a proxy holds."""
    query = read_query(request, (ONLY_TYPE, ONLY_NAME, STATE, CONTENTS, LIMIT, CURSOR))
    node_id = request.match_info["node_id"]
    limit: int = query.get("limit", DEFAULT_LIMIT)
    connected = edge.context.proxies
    proxy = None if connected is None else connected.proxy(node_id)
    if connected is None or proxy is None:
        raise unknown_proxy(node_id)
    found: list[ResourceStatus] = []
    for resource in _after(connected, proxy, query.get("cursor", "")):
        if not _asked(resource, query):
            continue
        found.append(resource)
        if len(found) > limit:
            break
    following = cursor_after(_place(found[limit - 1])) if len(found) > limit else None
    revision = edge.context.live.revision
    contents: bool = query.get("contents", True)

    def page() -> bytes:
        items = tuple(_held(resource, contents=contents) for resource in found[:limit])
        return orjson.dumps(ProxyConfig(node_id=node_id, items=items, next=following, revision=revision), default=str)

    # Reading messages back takes about a millisecond each: streams must not wait for it.
    body = await asyncio.to_thread(page)
    return edge.answer_now(request, lambda: hashed(body, revision, next_link(request, following)))


def _place(resource: ResourceStatus) -> str:
    return f"{resource.type_url}\n{resource.standing.name}"


def _after(connected: Proxies, proxy: ProxyStatus, cursor: str) -> Iterator[ResourceStatus]:
    """List what comes after the place that a cursor names."""
    after_type, _, after_name = cursor.partition("\n")
    for type_url in sorted(proxy.types):
        if type_url >= after_type:
            after = after_name if type_url == after_type else ""
            yield from connected.resources(proxy.node.id, type_url, after=after)


def _asked(resource: ResourceStatus, query: dict[str, Any]) -> bool:
    return (
        query.get("type", resource.type_url) == resource.type_url
        and query.get("name", resource.standing.name) == resource.standing.name
        and query.get("state", resource.standing.state) is resource.standing.state
    )


def _held(resource: ResourceStatus, *, contents: bool) -> HeldResource:
    standing = resource.standing
    held = standing.held
    content = readable(resource.type_url, held.body) if contents and held is not None else Content()
    return HeldResource(
        type=message_name(resource.type_url),
        name=standing.name,
        state=standing.state,
        version=None if held is None else held.version,
        sent_version=standing.version,
        updated_at=None if resource.updated_at is None else timestamp(resource.updated_at),
        content=content.json,
        base64=content.base64,
        note=content.note,
    )


OPERATIONS = (
    Operation(
        method="GET",
        path=f"{BASE}/proxies/{{node_id}}/config",
        id="getProxyConfig",
        group=PROXIES,
        summary="Get what a proxy holds",
        description="Every resource that the proxy asks for by name, was told of or refused, by type and name, with "
        "the content that it acknowledged. It cannot be waited for.",
        handler=get_proxy_config,
        parameters=(NODE_ID, ONLY_TYPE, ONLY_NAME, STATE, CONTENTS, LIMIT, CURSOR, IF_NONE_MATCH),
        answers=shown(ProxyConfig, "One page of what the proxy holds.", headers=("Link",)),
        problems=(INVALID, UNKNOWN_PROXY),
    ),
)
