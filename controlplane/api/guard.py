"""The mass-loss guard at the edge: what it holds, and letting go by hand (law 14)."""

import asyncio
from dataclasses import dataclass, replace

import orjson
from aiohttp import web

from controlplane.api.edge import Edge, Rendered, hashed
from controlplane.api.operations import BASE, CONDITIONAL, Answer, Operation, shown
from controlplane.api.parameters import HOLD, read_query
from controlplane.api.problems import INVALID, REGISTRY_UNAVAILABLE, UNKNOWN_HOLD, Problem
from controlplane.api.views import timestamp
from controlplane.api.writing import ask
from controlplane.guard import Hold

GUARD = "guard"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldInstance:
    """Name an instance that is held."""

    name: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldView:
    """Show a hold: since when and until when, why, and over which instances.

    `id` is the service's name, or `_everything` where too much of all services was lost.
    """

    id: str
    since: str | None
    until: str | None
    reason: str
    instances: tuple[HeldInstance, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldList:
    """Show everything that is held, by id."""

    items: tuple[HoldView, ...]
    revision: str


def _view(hold: Hold) -> HoldView:
    return HoldView(
        id=hold.id,
        since=timestamp(hold.since),
        until=timestamp(hold.until),
        reason=hold.reason,
        instances=tuple(HeldInstance(name=key.service, id=key.id) for key in sorted(hold.keys)),
    )


async def list_holds(edge: Edge, request: web.Request) -> web.Response:
    """Answer with what the guard holds."""
    read_query(request, ())
    live = edge.context.live

    def render() -> Rendered:
        holds = tuple(_view(hold) for hold in edge.context.guard.holds())
        return hashed(orjson.dumps(HoldList(items=holds, revision=live.revision)), live.revision)

    return await edge.answer(request, None, render)


async def release_hold(edge: Edge, request: web.Request) -> web.Response:
    """Let a hold go, at every control plane that shares the registry."""
    read_query(request, ())
    id_ = request.match_info["id"]
    live = edge.context.live
    hold = _find(edge, id_)
    if hold is None:
        raise Problem(
            UNKNOWN_HOLD, f"the mass-loss guard holds nothing as {id_!r}; GET {BASE}/guard lists what it does"
        )
    await ask(edge, "release", edge.context.registry.release(id_))
    status = 202
    try:
        async with asyncio.timeout(edge.context.visible_within_s):
            while (now := _find(edge, id_)) is not None and now.since == hold.since:
                await live.wait()
        status = 200
    except TimeoutError:
        pass
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    if status == 200:
        headers["Revision"] = live.revision
    return web.Response(status=status, body=orjson.dumps(_view(hold)), headers=headers)


def _find(edge: Edge, id_: str) -> Hold | None:
    """Return a hold, or what another is over of the service of that name: so may a second control plane call it."""
    holds = edge.context.guard.holds()
    for hold in holds:
        if hold.id == id_:
            return hold
    for hold in holds:
        if keys := frozenset(key for key in hold.keys if key.service == id_):
            return replace(hold, keys=keys)
    return None


OPERATIONS = (
    Operation(
        method="GET",
        path=f"{BASE}/guard",
        id="listHolds",
        group=GUARD,
        summary="List what the mass-loss guard holds",
        description="Instances that a registry lost without anybody asking for it, too many at once to be believed. "
        "They stay offered to proxies until they return, the hold's time is over, or it is released.",
        handler=list_holds,
        parameters=CONDITIONAL,
        answers=shown(HoldList, "The holds."),
        problems=(INVALID, REGISTRY_UNAVAILABLE),
    ),
    Operation(
        method="POST",
        path=f"{BASE}/guard/{{id}}/release",
        id="releaseHold",
        group=GUARD,
        summary="Let a hold go",
        description="The instances are believed to be gone and are taken from proxies, at every control plane that "
        "shares the registry, whatever it calls its hold: all that is held of a service, or with `_everything` all "
        "that is held. To let go a single one, deregister it.",
        handler=release_hold,
        parameters=(HOLD,),
        answers=(
            Answer(status=200, description="Let go; what was held.", models=(HoldView,), headers=("Revision",)),
            Answer(status=202, description="Told the registry; this process still holds it.", models=(HoldView,)),
        ),
        problems=(INVALID, UNKNOWN_HOLD, REGISTRY_UNAVAILABLE),
    ),
)
