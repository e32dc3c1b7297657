"""Reads of services, instances, policies and health: from the live catalog only, as ready bytes (law 11)."""

from collections.abc import Iterable
from hashlib import blake2b
from urllib.parse import urlencode

import orjson
from aiohttp import web

from controlplane.api.edge import Edge, Rendered, hashed, say_age
from controlplane.api.operations import BASE, CONDITIONAL, Operation, shown
from controlplane.api.parameters import (
    CURSOR,
    DEFAULT_LIMIT,
    HEALTHY_ONLY,
    INSTANCE_ID,
    KEY,
    LIMIT,
    SERVICE,
    STRATEGY,
    TAGS,
    cursor_after,
    read_query,
)
from controlplane.api.problems import (
    INVALID,
    NONE_AVAILABLE,
    UNKNOWN_INSTANCE,
    UNKNOWN_SERVICE,
    Problem,
    unknown_instance,
    unknown_service,
)
from controlplane.api.repeated import READ, Read
from controlplane.api.views import (
    InstanceView,
    Picked,
    ServiceHealth,
    ServiceItem,
    ServiceList,
    ServiceView,
    instance_health,
    instance_view,
    service_item,
    unresolved,
)
from controlplane.catalog import Entry, Service
from controlplane.model import HealthStatus, InstanceId, InstanceKey, ServiceName, is_address

SERVICES = "services"
INSTANCES = "instances"
HEALTH = "health"


def known_service(edge: Edge, name: str) -> Service:
    """Return a service; raises Problem where it is not known."""
    service = edge.context.live.current.services.get(ServiceName(name))
    if service is None:
        raise unknown_service(name)
    return service


def known_entry(edge: Edge, name: str, instance_id: str) -> Entry:
    """Return an instance's entry; raises Problem where the service or the instance is not known."""
    entry = known_service(edge, name).entries.get(InstanceId(instance_id))
    if entry is None:
        raise unknown_instance(name, instance_id)
    return entry


def key_of(request: web.Request) -> InstanceKey:
    """Return the key of the instance that the path names."""
    return InstanceKey(ServiceName(request.match_info["name"]), InstanceId(request.match_info["id"]))


def show(edge: Edge, entry: Entry, *, stored: bool = True) -> InstanceView:
    """Show an instance; `stored` says whether the catalog holds it at that revision."""
    live = edge.context.live
    return instance_view(
        entry,
        address=live.current.address_of(entry.instance),
        revision=live.label(entry.revision) if stored else None,
        defaults=edge.context.health_defaults,
    )


def tag_of(edge: Edge, entry: Entry) -> str:
    """Return an instance's ETag: what is registered, and after the `+` what else is shown.

    That is its revision, and where its host is a name, what that stands for now. A write with `If-Match` asks for the
    first part only (`edge.require`): a verdict that came meanwhile is nobody's write, and every control plane of a
    registry gives the same first part.
    """
    live = edge.context.live
    stored = blake2b(orjson.dumps(entry.instance, option=orjson.OPT_SORT_KEYS), digest_size=12).hexdigest()
    label = live.label(entry.revision)
    if is_address(entry.instance.host):
        return f'"{stored}+{label}"'
    return f'"{stored}+{label}-{live.current.address_of(entry.instance) or "unresolved"}"'


def _selected(entries: Iterable[Entry], tags: frozenset[str], *, healthy_only: bool) -> list[Entry]:
    return [
        entry
        for entry in entries
        if (not healthy_only or entry.status is HealthStatus.HEALTHY) and tags.issubset(entry.instance.tags)
    ]


def next_link(request: web.Request, following: str | None) -> str | None:
    """Return the `Link` header's value that leads to the next page (RFC 8288), None on the last."""
    if following is None:
        return None
    query = [(name, text) for name, text in request.query.items() if name != "cursor"]
    return f'<{request.rel_url.raw_path}?{urlencode([*query, ("cursor", following)])}>; rel="next"'


async def list_services(edge: Edge, request: web.Request) -> web.Response:
    """Answer with one page of services, by name."""
    query = read_query(request, (TAGS, HEALTHY_ONLY, LIMIT, CURSOR))
    tags: frozenset[str] = query.get("tags", frozenset())
    healthy_only: bool = query.get("healthy_only", False)
    limit: int = query.get("limit", DEFAULT_LIMIT)
    after: str = query.get("cursor", "")
    live = edge.context.live

    def render() -> Rendered:
        catalog = live.current
        items: list[ServiceItem] = []
        following = None
        for name in sorted(name for name in catalog.services if name > after):
            service = catalog.services[name]
            if (tags or healthy_only) and not _selected(service.entries.values(), tags, healthy_only=healthy_only):
                continue
            if len(items) == limit:
                following = cursor_after(items[-1].name)
                break
            items.append(service_item(service, live.label(service.revision)))
        page = ServiceList(items=tuple(items), next=following, revision=live.revision)
        return Rendered(orjson.dumps(page), f'"{live.revision}"', live.revision, next_link(request, following))

    return await edge.answer(request, None, render)


async def get_service(edge: Edge, request: web.Request) -> web.Response:
    """Answer with a service and its instances: the hot path of discovery."""
    name = request.match_info["name"]
    raw_query = request.rel_url.raw_query_string

    def render() -> Rendered:
        service = known_service(edge, name)
        ready = edge.ready_bytes.get(service, raw_query)
        if ready is None:
            ready = _render_service(edge, request, service)
            edge.ready_bytes.put(service, raw_query, ready)
        return ready

    request[READ] = Read(service=ServiceName(name), query=raw_query, known=request.headers.get("If-None-Match"))
    return await edge.answer(request, ServiceName(name), render)


def _render_service(edge: Edge, request: web.Request, service: Service) -> Rendered:
    query = read_query(request, (TAGS, HEALTHY_ONLY))
    entries = _selected(
        service.sorted_entries(), query.get("tags", frozenset()), healthy_only=query.get("healthy_only", False)
    )
    revision = edge.context.live.label(service.revision)
    view = ServiceView(name=service.name, instances=tuple(show(edge, entry) for entry in entries), revision=revision)
    return Rendered(orjson.dumps(view), f'"{revision}"', revision)


async def get_instance(edge: Edge, request: web.Request) -> web.Response:
    """Answer with one instance."""
    read_query(request, ())
    key = key_of(request)

    def render() -> Rendered:
        entry = known_entry(edge, key.service, key.id)
        return Rendered(orjson.dumps(show(edge, entry)), tag_of(edge, entry), edge.context.live.label(entry.revision))

    return await edge.answer(request, key.service, render)


async def pick_instance(edge: Edge, request: web.Request) -> web.Response:
    """Answer with one instance, chosen by a strategy."""
    query = read_query(request, (STRATEGY, KEY))
    freshness = await edge.fresh(request)
    service = known_service(edge, request.match_info["name"])
    catalog = edge.context.live.current

    def offered(entry: Entry) -> bool:
        return catalog.address_of(entry.instance) is not None

    pick = edge.context.picker.pick(
        service, offered=offered, strategy=query.get("strategy"), key=query.get("key"), client=request.remote or ""
    )
    if pick is None:
        statuses = service_item(service, "").statuses
        what = ", ".join(f"{count} {status}" for status, count in statuses.items()) or "it has none"
        if left_out := sum(not offered(entry) for entry in service.entries.values()):
            what += f"; {left_out} of them left out, because the host has not been resolved"
        raise Problem(NONE_AVAILABLE, f"no instance of {service.name!r} can serve: {what}")
    view = show(edge, pick.entry)
    document = {
        **{name: getattr(view, name) for name in view.__slots__},
        "strategy": pick.strategy,
        "reason": pick.reason,
    }
    revision = edge.context.live.label(service.revision)
    # Every call chooses anew: the tag tells equal answers, it does not make the choice last.
    response = hashed(orjson.dumps(document), revision).response()
    say_age(response, freshness)
    return response


async def get_health(edge: Edge, request: web.Request) -> web.Response:
    """Answer with the health of a service's instances."""
    read_query(request, ())
    name = request.match_info["name"]

    def render() -> Rendered:
        service = known_service(edge, name)
        reports = edge.context.reports
        catalog = edge.context.live.current
        revision = edge.context.live.label(service.revision)
        view = ServiceHealth(
            name=service.name,
            instances=tuple(
                instance_health(entry, reports.report(entry.instance.key), unresolved(catalog, entry.instance))
                for entry in service.sorted_entries()
            ),
            revision=revision,
        )
        return hashed(orjson.dumps(view), revision)

    return await edge.answer(request, ServiceName(name), render)


OPERATIONS = (
    Operation(
        method="GET",
        path=f"{BASE}/services",
        id="listServices",
        group=SERVICES,
        summary="List services",
        description="By name. A service is listed where at least one instance has all the tags (and, with "
        "`healthy_only`, is healthy); its counts are of all its instances.",
        handler=list_services,
        parameters=(TAGS, HEALTHY_ONLY, LIMIT, CURSOR, *CONDITIONAL),
        answers=shown(ServiceList, "One page of services.", headers=("Link",)),
        problems=(INVALID,),
    ),
    Operation(
        method="GET",
        path=f"{BASE}/services/{{name}}",
        id="getService",
        group=SERVICES,
        summary="Get a service and its instances",
        description="The list is empty for a service whose last instance has gone, while it is still known.",
        handler=get_service,
        parameters=(SERVICE, TAGS, HEALTHY_ONLY, *CONDITIONAL),
        answers=shown(ServiceView, "The service."),
        problems=(INVALID, UNKNOWN_SERVICE),
    ),
    Operation(
        method="GET",
        path=f"{BASE}/services/{{name}}/instance",
        id="pickInstance",
        group=SERVICES,
        summary="Pick one instance",
        description="For clients without a proxy: one instance that can serve, chosen by the strategy. Never one whose "
        "host has not been resolved.",
        handler=pick_instance,
        parameters=(SERVICE, STRATEGY, KEY),
        answers=(shown(InstanceView, "The instance, the strategy used, and why this one.", Picked)[0],),
        problems=(INVALID, UNKNOWN_SERVICE, NONE_AVAILABLE),
    ),
    Operation(
        method="GET",
        path=f"{BASE}/services/{{name}}/instances/{{id}}",
        id="getInstance",
        group=INSTANCES,
        summary="Get an instance",
        handler=get_instance,
        parameters=(SERVICE, INSTANCE_ID, *CONDITIONAL),
        answers=shown(InstanceView, "The instance."),
        problems=(INVALID, UNKNOWN_SERVICE, UNKNOWN_INSTANCE),
    ),
    Operation(
        method="GET",
        path=f"{BASE}/health/{{name}}",
        id="getServiceHealth",
        group=HEALTH,
        summary="Get the health of a service's instances",
        description="The verdict on each instance and its newest check. The ETag changes with every check; "
        "`Prefer: wait` waits for a verdict.",
        handler=get_health,
        parameters=(SERVICE, *CONDITIONAL),
        answers=shown(ServiceHealth, "The health of every instance."),
        problems=(INVALID, UNKNOWN_SERVICE),
    ),
)
