"""Writes of instances: register, replace, patch, drain, deregister, heartbeat."""

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
from aiohttp import web

from controlplane.api.bodies import INSTANCE, READ_ONLY, merged, read_object, refuse_script
from controlplane.api.edge import Edge, require
from controlplane.api.faults import found
from controlplane.api.operations import BASE, Answer, Body, Operation
from controlplane.api.parameters import CREATE_ONLY, DRAIN, IF_MATCH, INSTANCE_ID, SERVICE, read_query
from controlplane.api.problems import (
    ADDRESS_TAKEN,
    CONFLICT,
    INVALID,
    MALFORMED,
    PRECONDITION_FAILED,
    REGISTRY_UNAVAILABLE,
    TOO_LARGE,
    UNKNOWN_INSTANCE,
    UNKNOWN_SERVICE,
    UNSUPPORTED_MEDIA_TYPE,
    Fault,
    Problem,
    invalid,
    unknown_instance,
)
from controlplane.api.reading import INSTANCES, SERVICES, key_of, known_entry, show, tag_of
from controlplane.api.views import Heartbeat, InstanceView
from controlplane.api.writing import (
    Stored,
    ask,
    deregister,
    gone,
    not_writable,
    store,
    unseen,
    until,
    visible,
)
from controlplane.catalog import Entry
from controlplane.model import Instance, InstanceKey
from controlplane.registry import Conflict, UnknownInstance

_IDENTITY = ("name", "id")


def location(key: InstanceKey) -> str:
    """Return the path of an instance."""
    return f"{BASE}/services/{key.service}/instances/{key.id}"


async def register(edge: Edge, request: web.Request) -> web.Response:
    """Store the instance in the body, in place of one of the same id."""
    read_query(request, ())
    instance = INSTANCE.build(await read_object(request))
    refuse_script(instance, edge.context.script_problem)
    return await _answer(edge, await store(edge, instance))


async def put_instance(edge: Edge, request: web.Request) -> web.Response:
    """Store the instance in the body under the path's name and id."""
    read_query(request, ())
    key = key_of(request)
    body = await read_object(request)
    instance = _named(key, body)
    refuse_script(instance, edge.context.script_problem)
    entry = edge.context.live.current.entry(key)
    require(request, None if entry is None else tag_of(edge, entry))
    # One that the guard holds is in no registry that could compare it: it is registered anew.
    compared = entry is not None and not entry.held and "If-Match" in request.headers
    expected = entry.instance if entry is not None and compared else None
    try:
        stored = await store(edge, instance, expected=expected)
    except (Conflict, UnknownInstance):
        raise _changed_meanwhile(key) from None
    return await _answer(edge, stored)


def _named(key: InstanceKey, body: dict[str, Any]) -> Instance:
    """Build the instance that the path names; what the body says of name and id must agree."""
    path = {"name": key.service, "id": key.id}
    for name, value in path.items():
        if body.get(name) not in {None, value} if isinstance(body.get(name), str | None) else True:
            detail = f"must match the path: expected {value!r}, found {found(body[name])}"
            raise invalid([Fault(pointer=f"#/{name}", detail=detail)])
    try:
        return INSTANCE.build({**body, **path})
    except Problem as problem:
        raise invalid([_in_path(fault) for fault in problem.errors]) from None


def _in_path(fault: Fault) -> Fault:
    if fault.pointer in {"#/name", "#/id"}:
        return Fault(parameter=fault.pointer[2:], detail=fault.detail)
    return fault


async def patch_instance(edge: Edge, request: web.Request) -> web.Response:
    """Apply a merge patch to the registered instance, again and again until nobody else wrote in between."""
    read_query(request, ())
    key = key_of(request)
    patch = await read_object(request)
    faults = INSTANCE.unknown(patch)
    if faults:
        raise invalid(faults)
    conditional = "If-Match" in request.headers or "If-None-Match" in request.headers
    within_s = edge.context.visible_within_s
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    while loop.time() <= end:
        entry = known_entry(edge, key.service, key.id)
        require(request, tag_of(edge, entry))
        instance = _patched(entry.instance, patch)
        refuse_script(instance, edge.context.script_problem)
        try:
            # One that the guard holds is in no registry: it is registered anew.
            return await _answer(edge, await store(edge, instance, expected=None if entry.held else entry.instance))
        except UnknownInstance:
            raise _missing(edge, entry) from None
        except Conflict:
            if conditional:
                raise _changed_meanwhile(key) from None
        # The registry is ahead of the catalog; its event is on the way.
        await until(edge, key.service, _differs(edge, entry))
    raise Problem(CONFLICT, f"instance {key} kept changing for {within_s:g} s; repeat")


def _differs(edge: Edge, entry: Entry) -> Callable[[], bool]:
    key = entry.instance.key
    return lambda: edge.context.live.current.entry(key) is not entry


def _patched(instance: Instance, patch: dict[str, Any]) -> Instance:
    registered: dict[str, Any] = orjson.loads(orjson.dumps(instance))
    faults = [
        Fault(
            pointer=f"#/{name}",
            detail=f"identifies the instance and cannot change: expected {registered[name]!r}, "
            f"found {found(patch[name])}; deregister it and register another",
        )
        for name in _IDENTITY
        if name in patch and patch[name] != registered[name]
    ]
    if faults:
        raise invalid(faults)
    return INSTANCE.build(merged(registered, {name: value for name, value in patch.items() if name not in READ_ONLY}))


def _missing(edge: Edge, entry: Entry) -> Problem:
    if entry.registry != edge.context.registry.name:
        return not_writable(entry)
    return unknown_instance(entry.instance.name, entry.instance.id)


def _changed_meanwhile(key: InstanceKey) -> Problem:
    return Problem(PRECONDITION_FAILED, f"instance {key} changed while it was written; read it again and repeat")


async def delete_instance(edge: Edge, request: web.Request) -> web.Response:
    """Remove an instance, at once or after a drain; one that is not there is as good as removed."""
    query = read_query(request, (DRAIN,))
    key = key_of(request)
    live = edge.context.live
    entry = live.current.entry(key)
    require(request, None if entry is None else tag_of(edge, entry))
    delay_s: float = query.get("drain", 0.0)
    if delay_s > 0:
        return await _drain(edge, key, delay_s)
    before = live.current.revision
    there = await deregister(edge, key)
    revision = await gone(edge, key, before)
    if revision is not None:
        return web.Response(status=204, headers={"Revision": live.label(revision)})
    left = live.current.entry(key)
    if not there and left is not None and left.registry != edge.context.registry.name:
        raise not_writable(left)
    return web.Response(status=202, headers={"Location": location(key)})


async def _drain(edge: Edge, key: InstanceKey, delay_s: float) -> web.Response:
    live = edge.context.live
    try:
        await ask(edge, "drain", edge.context.registry.drain(key, delay_s))
    except UnknownInstance:
        entry = live.current.entry(key)
        if entry is not None and entry.held:
            await ask(edge, "release", edge.context.registry.release(str(key)))
        elif entry is not None and entry.registry != edge.context.registry.name:
            raise not_writable(entry) from None
        return web.Response(status=204)

    def draining() -> bool:
        entry = live.current.entry(key)
        return entry is None or entry.instance.draining

    await until(edge, key.service, draining)
    entry = live.current.entry(key)
    if entry is None:
        return web.Response(status=204, headers={"Revision": live.revision})
    return _shown(edge, entry, 202, stored=entry.instance.draining)


async def heartbeat(edge: Edge, request: web.Request) -> web.Response:
    """Renew an instance's lease."""
    read_query(request, ())
    key = key_of(request)
    try:
        expires_in = await ask(edge, "heartbeat", edge.context.registry.heartbeat(key))
    except UnknownInstance:
        entry = known_entry(edge, key.service, key.id)
        if not entry.held or entry.registry != edge.context.registry.name:
            raise _missing(edge, entry) from None
        await store(edge, entry.instance)  # its lease ran out while the guard held it: it is back
        expires_in = entry.instance.ttl
    headers = {"Cache-Control": "no-store", "Content-Type": "application/json"}
    return web.Response(body=orjson.dumps(Heartbeat(expires_in=expires_in)), headers=headers)


async def _answer(edge: Edge, stored: Stored) -> web.Response:
    entry = await visible(edge, stored)
    if entry is None:
        return _shown(edge, unseen(edge, stored.instance), 202, stored=False)
    return _shown(edge, entry, 201 if stored.new else 200, stored=True)


def _shown(edge: Edge, entry: Entry, status: int, *, stored: bool) -> web.Response:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    if stored:
        headers["ETag"] = tag_of(edge, entry)
        headers["Revision"] = edge.context.live.label(entry.revision)
    if status != 200:
        headers["Location"] = location(entry.instance.key)
    return web.Response(status=status, body=orjson.dumps(show(edge, entry, stored=stored)), headers=headers)


EXAMPLE = {
    "name": "user-service",
    "host": "10.0.1.100",
    "port": 8080,
    "tags": ["api", "v1"],
    "metadata": {"version": "1.0.0"},
    "health_check": {"type": "http", "http_path": "/health"},
}
_WRITTEN = ("ETag", "Revision")
_CREATED = Answer(
    status=201,
    description="Stored; it is new.",
    models=(InstanceView,),
    headers=("Location", *_WRITTEN),
)
_REPLACED = Answer(
    status=200, description="Stored, in place of what was there.", models=(InstanceView,), headers=_WRITTEN
)
_ACCEPTED = Answer(
    status=202,
    description="Stored, but this process's catalog does not show it yet.",
    models=(InstanceView,),
    headers=("Location",),
)
_BODY_PROBLEMS = (INVALID, MALFORMED, TOO_LARGE, UNSUPPORTED_MEDIA_TYPE)
_WRITE_PROBLEMS = (ADDRESS_TAKEN, CONFLICT, REGISTRY_UNAVAILABLE)

OPERATIONS = (
    Operation(
        method="POST",
        path=f"{BASE}/services",
        id="registerInstance",
        group=SERVICES,
        summary="Register an instance",
        description="An instance of the same service and id is replaced. The service exists from its first instance.",
        handler=register,
        body=Body(model=Instance, example=EXAMPLE, read_only=READ_ONLY),
        answers=(_CREATED, _REPLACED, _ACCEPTED),
        problems=(*_BODY_PROBLEMS, *_WRITE_PROBLEMS),
    ),
    Operation(
        method="PUT",
        path=f"{BASE}/services/{{name}}/instances/{{id}}",
        id="putInstance",
        group=INSTANCES,
        summary="Create or replace an instance",
        description="`name` and `id` come from the path; in the body they may be absent, else they must match.",
        handler=put_instance,
        parameters=(SERVICE, INSTANCE_ID, IF_MATCH, CREATE_ONLY),
        body=Body(
            model=Instance,
            example={"host": "10.0.1.100", "port": 8080, "weight": 5},
            required=("host", "port"),
            read_only=READ_ONLY,
        ),
        answers=(_CREATED, _REPLACED, _ACCEPTED),
        problems=(*_BODY_PROBLEMS, *_WRITE_PROBLEMS, PRECONDITION_FAILED),
    ),
    Operation(
        method="PATCH",
        path=f"{BASE}/services/{{name}}/instances/{{id}}",
        id="patchInstance",
        group=INSTANCES,
        summary="Change some fields of an instance",
        description="A JSON merge patch (RFC 7396): null takes a field back to its default, objects merge, lists are "
        "replaced. `name` and `id` cannot change. Without `If-Match`, concurrent patches are all applied.",
        handler=patch_instance,
        parameters=(SERVICE, INSTANCE_ID, IF_MATCH),
        body=Body(
            model=Instance,
            example={"weight": 10, "draining": None},
            media_type="application/merge-patch+json",
            required=(),
            read_only=READ_ONLY,
            nullable=True,
        ),
        answers=(_REPLACED, _ACCEPTED),
        problems=(
            *_BODY_PROBLEMS,
            *_WRITE_PROBLEMS,
            UNKNOWN_SERVICE,
            UNKNOWN_INSTANCE,
            PRECONDITION_FAILED,
        ),
    ),
    Operation(
        method="DELETE",
        path=f"{BASE}/services/{{name}}/instances/{{id}}",
        id="deleteInstance",
        group=INSTANCES,
        summary="Deregister an instance",
        description="The same answer where it is gone already. With `drain` it is marked draining, answered with 202, "
        "and removed after that time, unless it is registered again as not draining.",
        handler=delete_instance,
        parameters=(SERVICE, INSTANCE_ID, DRAIN, IF_MATCH),
        answers=(
            Answer(status=204, description="Gone.", headers=("Revision",)),
            Answer(
                status=202,
                description="Draining (with the instance), or this process's catalog does not show the write yet.",
                headers=("Location", *_WRITTEN),
                models=(InstanceView,),
            ),
        ),
        problems=(INVALID, CONFLICT, PRECONDITION_FAILED, REGISTRY_UNAVAILABLE),
    ),
    Operation(
        method="PUT",
        path=f"{BASE}/services/{{name}}/instances/{{id}}/heartbeat",
        id="heartbeat",
        group=INSTANCES,
        summary="Renew an instance's lease",
        handler=heartbeat,
        parameters=(SERVICE, INSTANCE_ID),
        answers=(Answer(status=200, description="How long the lease runs now.", models=(Heartbeat,)),),
        problems=(INVALID, UNKNOWN_SERVICE, UNKNOWN_INSTANCE, ADDRESS_TAKEN, CONFLICT, REGISTRY_UNAVAILABLE),
    ),
)
