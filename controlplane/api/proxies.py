"""The connected proxies: what each asks for, was sent, acknowledged and refused, in its own words."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson
from aiohttp import web

from controlplane.api.context import Proxies
from controlplane.api.edge import Edge, Rendered, hashed
from controlplane.api.operations import BASE, Operation, shown
from controlplane.api.parameters import (
    CURSOR,
    DEFAULT_LIMIT,
    IF_NONE_MATCH,
    LIMIT,
    NODE_ID,
    STATE,
    cursor_after,
    read_query,
)
from controlplane.api.problems import INVALID, UNKNOWN_PROXY, unknown_proxy
from controlplane.api.reading import next_link
from controlplane.api.refusals import MAX_REFUSALS, RefusedView, refused_view
from controlplane.api.views import timestamp
from controlplane.api.waits import waits_for
from controlplane.model import Locality
from xds.status import ProxyStatus, Refusal, ResourceStatus, State, TypeStatus
from xds.typenames import message_name

PROXIES = "proxies"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalView:
    """Show the last NACK, be it mended or not: what the proxy said, and about which version and resources."""

    at: str | None
    message: str
    code: int
    version: str
    names: tuple[str, ...]
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyTypeView:
    """Show how one type of resource stands. `held` counts what the proxy acknowledged.

    `state`: NOT_SENT, STALE (sent and not acknowledged), SYNCED, or ERROR (the newest was refused). `subscribed` is
    the number of names asked for, null where it asked for everything. `refused` names what is quarantined after the
    last acknowledgement. `waits_for` says in words what has to happen before a STALE or NOT_SENT type is in step.
    `refusals` are the first twenty resources that the proxy refuses now, each with what is wrong.
    """

    type: str
    state: State
    subscribed: int | None
    held: int
    sent_version: str
    sent_revision: str
    sent_at: str | None
    acked_version: str
    acked_revision: str
    acked_at: str | None
    refused: tuple[str, ...]
    waits_for: tuple[str, ...]
    nacks: int
    last_nack: RefusalView | None
    refusals: tuple[RefusedView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyItem:
    """Sum up a proxy: `state` is its worst type's."""

    node_id: str
    cluster: str
    user_agent: str
    state: State
    synced: bool
    connected_at: str | None
    types: dict[str, State]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyList:
    """Show one page of the connected proxies, by node id; `synced` and `total` count all of them."""

    items: tuple[ProxyItem, ...]
    total: int
    synced: int
    next: str | None
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamView:
    """Show one stream: `protocol` is `delta` or `sotw`, `scope` is `ads` or the one type it is for."""

    peer: str
    protocol: str
    scope: str
    connected_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyView:
    """Show one proxy with its streams and types. `metadata` is the node's own."""

    node_id: str
    cluster: str
    user_agent: str
    locality: Locality
    metadata: Mapping[str, Any]
    state: State
    synced: bool
    connected_at: str | None
    streams: tuple[StreamView, ...]
    types: tuple[ProxyTypeView, ...]
    revision: str


async def list_proxies(edge: Edge, request: web.Request) -> web.Response:
    """Answer with one page of the connected proxies."""
    query = read_query(request, (STATE, LIMIT, CURSOR))
    limit: int = query.get("limit", DEFAULT_LIMIT)
    after: str = query.get("cursor", "")
    connected = edge.context.proxies

    def render() -> Rendered:
        every = () if connected is None else connected.proxies()
        rest = [proxy for proxy in every if proxy.node.id > after and query.get("state", proxy.state) is proxy.state]
        following = cursor_after(rest[limit - 1].node.id) if len(rest) > limit else None
        revision = edge.context.live.revision
        page = ProxyList(
            items=tuple(_item(proxy) for proxy in rest[:limit]),
            total=len(every),
            synced=sum(proxy.synced for proxy in every),
            next=following,
            revision=revision,
        )
        return hashed(orjson.dumps(page), revision, next_link(request, following))

    return edge.answer_now(request, render)


async def get_proxy(edge: Edge, request: web.Request) -> web.Response:
    """Answer with one proxy."""
    read_query(request, ())
    node_id = request.match_info["node_id"]
    connected = edge.context.proxies
    proxy = None if connected is None else connected.proxy(node_id)
    if connected is None or proxy is None:
        raise unknown_proxy(node_id)
    refused = {
        type_url: _refused(connected, node_id, type_url) if status.nacks else []
        for type_url, status in proxy.types.items()
    }
    waits = {
        type_url: waits_for(type_url, connected.waiting(node_id, type_url))
        for type_url, status in proxy.types.items()
        if status.state in (State.STALE, State.NOT_SENT)
    }
    catalog, revision = edge.context.live.current, edge.context.live.revision

    def rendered() -> bytes:
        views = {
            type_url: tuple(refused_view(resource, refusal, catalog) for resource, refusal in resources)
            for type_url, resources in refused.items()
        }
        return orjson.dumps(_view(proxy, views, waits, revision), default=str)

    # Reading messages back takes about a millisecond each: streams must not wait for it.
    body = await asyncio.to_thread(rendered)
    return edge.answer_now(request, lambda: hashed(body, revision))


def _refused(connected: Proxies, node_id: str, type_url: str) -> list[tuple[ResourceStatus, Refusal]]:
    every = connected.resources(node_id, type_url)
    return list(islice(((each, each.refusal) for each in every if each.refusal is not None), MAX_REFUSALS))


def _user_agent(proxy: ProxyStatus) -> str:
    node = proxy.node
    return f"{node.user_agent_name} {node.user_agent_version}".strip()


def _item(proxy: ProxyStatus) -> ProxyItem:
    return ProxyItem(
        node_id=proxy.node.id,
        cluster=proxy.node.cluster,
        user_agent=_user_agent(proxy),
        state=proxy.state,
        synced=proxy.synced,
        connected_at=timestamp(proxy.connected_at),
        types={message_name(url): status.state for url, status in sorted(proxy.types.items())},
    )


def _view(
    proxy: ProxyStatus,
    refusals: Mapping[str, tuple[RefusedView, ...]],
    waits: Mapping[str, tuple[str, ...]],
    revision: str,
) -> ProxyView:
    node = proxy.node
    return ProxyView(
        node_id=node.id,
        cluster=node.cluster,
        user_agent=_user_agent(proxy),
        locality=Locality(region=node.region[:253], zone=node.zone[:253], sub_zone=node.sub_zone[:253]),
        metadata=dict(node.metadata),
        state=proxy.state,
        synced=proxy.synced,
        connected_at=timestamp(proxy.connected_at),
        streams=tuple(
            StreamView(
                peer=stream.info.peer,
                protocol="delta" if stream.info.delta else "sotw",
                scope=message_name(stream.info.type_url) if stream.info.type_url else "ads",
                connected_at=timestamp(stream.connected_at),
            )
            for stream in proxy.streams
        ),
        types=tuple(
            _type(proxy, status, refusals[url], waits.get(url, ())) for url, status in sorted(proxy.types.items())
        ),
        revision=revision,
    )


def _type(
    proxy: ProxyStatus, status: TypeStatus, refusals: tuple[RefusedView, ...], waits: tuple[str, ...]
) -> ProxyTypeView:
    nack = status.last_nack
    return ProxyTypeView(
        type=message_name(status.type_url),
        state=status.state,
        subscribed=None if status.wildcard else status.names,
        held=len(proxy.held(status.type_url)),
        sent_version=status.sent_version,
        sent_revision=status.sent_revision,
        sent_at=None if status.sent_at is None else timestamp(status.sent_at),
        acked_version=status.acked_version,
        acked_revision=status.acked_revision,
        acked_at=None if status.acked_at is None else timestamp(status.acked_at),
        refused=status.refused,
        waits_for=waits,
        nacks=status.nacks,
        last_nack=None
        if nack is None
        else RefusalView(
            at=timestamp(nack.at),
            message=nack.message,
            code=nack.code,
            version=nack.version,
            names=nack.names,
            revision=nack.revision,
        ),
        refusals=refusals,
    )


OPERATIONS = (
    Operation(
        method="GET",
        path=f"{BASE}/proxies",
        id="listProxies",
        group=PROXIES,
        summary="List the connected proxies",
        description="By node id. This resource changes with every acknowledgement; it cannot be waited for.",
        handler=list_proxies,
        parameters=(STATE, LIMIT, CURSOR, IF_NONE_MATCH),
        answers=shown(ProxyList, "One page of proxies.", headers=("Link",)),
        problems=(INVALID,),
    ),
    Operation(
        method="GET",
        path=f"{BASE}/proxies/{{node_id}}",
        id="getProxy",
        group=PROXIES,
        summary="Get a connected proxy",
        description="What it asks for, was sent, acknowledged and refused. It cannot be waited for.",
        handler=get_proxy,
        parameters=(NODE_ID, IF_NONE_MATCH),
        answers=shown(ProxyView, "The proxy."),
        problems=(INVALID, UNKNOWN_PROXY),
    ),
)
