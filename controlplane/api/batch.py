"""Many registrations and deregistrations in one request, each with a result of its own.

Operations that concern the same instance or address take effect in the order in which they are sent; others run
side by side, so that a registry's latency is paid once, not a thousand times.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import orjson
from aiohttp import web
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from controlplane.api.bodies import INSTANCE, READ_ONLY, read_object, refuse_script
from controlplane.api.edge import REQUEST_ID, Edge
from controlplane.api.faults import found, suggestion, unknown_field
from controlplane.api.operations import BASE, Answer, Body, Operation
from controlplane.api.parameters import read_query
from controlplane.api.problems import (
    INVALID,
    MALFORMED,
    TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    Fault,
    Problem,
    ProblemMembers,
    invalid,
)
from controlplane.api.reading import INSTANCES
from controlplane.api.writing import Stored, deregister, gone, store, visible
from controlplane.model import Instance, InstanceId, InstanceIdField, InstanceKey, ServiceName, ServiceNameField

MAX_OPERATIONS = 1_000
_AT_ONCE = 64
"""How many writes a registry is asked for side by side."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """Store an instance."""

    op: Literal["register"]
    instance: Instance


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class Deregister:
    """Remove an instance."""

    op: Literal["deregister"]
    name: ServiceNameField
    id: InstanceIdField


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Hold what is to be done."""

    operations: tuple[Register | Deregister, ...] = Field(max_length=MAX_OPERATIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Say what became of one operation: the status that the single request would have had.

    `revision` is that which the operation made, null where it was refused or is not visible here yet (202).
    """

    op: str | None
    name: str | None
    id: str | None
    status: int
    revision: str | None = None
    problem: ProblemMembers | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """Hold one result for each operation, in their order. `revision` is the newest when all were done."""

    results: tuple[Result, ...]
    revision: str


@dataclass(frozen=True, slots=True)
class _Gone:
    """Hold a deregistration that the registry took."""

    key: InstanceKey
    before: int


_Task = Register | Deregister
_Done = Stored | _Gone | Problem

_DEREGISTER: TypeAdapter[Deregister] = TypeAdapter(Deregister)
_FIELDS = {"register": frozenset({"op", "instance"}), "deregister": frozenset({"op", "name", "id"})}


async def batch(edge: Edge, request: web.Request) -> web.Response:
    """Do up to a thousand operations, and say of each what became of it."""
    read_query(request, ())
    body = await read_object(request)
    sent = _operations(body)
    tasks = [_read(edge, item, index) for index, item in enumerate(sent)]
    done = await _all(edge, tasks)
    results = await _results(edge, sent, done, request[REQUEST_ID])
    live = edge.context.live
    document = BatchResult(results=tuple(results), revision=live.revision)
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store", "Revision": live.revision}
    return web.Response(body=orjson.dumps(document), headers=headers)


def _operations(body: dict[str, Any]) -> list[Any]:
    faults = [unknown_field((name,), ["operations"]) for name in body if name != "operations"]
    sent = body.get("operations")
    if "operations" not in body:
        faults.append(Fault(pointer="#/operations", detail="required, but missing"))
    elif not isinstance(sent, list):
        faults.append(Fault(pointer="#/operations", detail=f"expected a list, found {found(sent)}"))
    elif len(sent) > MAX_OPERATIONS:
        faults.append(
            Fault(pointer="#/operations", detail=f"expected at most {MAX_OPERATIONS} operations, found {len(sent)}")
        )
    if faults or not isinstance(sent, list):
        raise invalid(faults)
    return sent


def _read(edge: Edge, item: Any, index: int) -> _Task | Problem:
    """Return the operation that an item describes, or the problem with it."""
    at = ("operations", index)
    try:
        return _read_valid(edge, item, at)
    except Problem as problem:
        return problem


def _read_valid(edge: Edge, item: Any, at: tuple[str, int]) -> _Task:
    where = f"#/{at[0]}/{at[1]}"
    if not isinstance(item, dict):
        raise invalid([Fault(pointer=where, detail=f"expected an object, found {found(item)}")])
    op = item.get("op")
    if not isinstance(op, str) or op not in _FIELDS:
        hint = f"; {suggestion(op, _FIELDS)}" if isinstance(op, str) else ""
        detail = f"expected 'register' or 'deregister', found {found(op) if 'op' in item else 'nothing'}{hint}"
        raise invalid([Fault(pointer=f"{where}/op", detail=detail, choices=tuple(_FIELDS))])
    faults = [unknown_field((*at, name), _FIELDS[op]) for name in item if name not in _FIELDS[op]]
    if op == "register":
        return _register(edge, item, at, faults)
    return _deregister(item, where, faults)


def _register(edge: Edge, item: dict[str, Any], at: tuple[str, int], faults: list[Fault]) -> Register:
    body = item.get("instance")
    if not isinstance(body, dict):
        detail = f"expected an object, found {found(body)}" if "instance" in item else "required, but missing"
        faults.append(Fault(pointer=f"#/{at[0]}/{at[1]}/instance", detail=detail))
        raise invalid(faults)
    place = (*at, "instance")
    try:
        instance = INSTANCE.build(body, at=place)
    except Problem as problem:
        raise invalid([*faults, *problem.errors]) from None
    if faults:
        raise invalid(faults)
    refuse_script(instance, edge.context.script_problem, at=place)
    return Register(op="register", instance=instance)


def _deregister(item: dict[str, Any], where: str, faults: list[Fault]) -> Deregister:
    known = {name: value for name, value in item.items() if name in _FIELDS["deregister"]}
    try:
        task = _DEREGISTER.validate_python(known)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            said = str(details.get("ctx", {}).get("error", details["msg"]))
            place = where + "".join(f"/{part}" for part in details["loc"])
            detail = (
                "required, but missing" if details["type"] == "missing" else f"{said}; found {found(details['input'])}"
            )
            faults.append(Fault(pointer=place, detail=detail))
        raise invalid(faults) from None
    if faults:
        raise invalid(faults)
    return task


def _touched(edge: Edge, task: _Task) -> set[tuple[str, str | int, str]]:
    """Return what an operation concerns: the instance, and the addresses that it takes or gives back."""
    match task:
        case Register(instance=instance):
            key = instance.key
            places = [instance]
        case Deregister(name=name, id=instance_id):
            key = InstanceKey(ServiceName(name), InstanceId(instance_id))
            places = []
        case _:
            assert_never(task)
    known = edge.context.live.current.entry(key)
    if known is not None:
        places.append(known.instance)
    return {(key.service, "id", key.id), *((key.service, place.port, place.host) for place in places)}


def _waves(edge: Edge, tasks: Sequence[_Task | Problem]) -> Iterator[list[tuple[int, _Task]]]:
    """Split the operations into runs of which no two concern the same thing, so that order matters in none."""
    wave: list[tuple[int, _Task]] = []
    taken: set[tuple[str, str | int, str]] = set()
    for index, task in enumerate(tasks):
        if isinstance(task, Problem):
            continue
        touched = _touched(edge, task)
        if wave and (len(wave) == _AT_ONCE or taken & touched):
            yield wave
            wave, taken = [], set()
        wave.append((index, task))
        taken |= touched
    if wave:
        yield wave


async def _all(edge: Edge, tasks: Sequence[_Task | Problem]) -> list[_Done]:
    done: dict[int, _Done] = {index: task for index, task in enumerate(tasks) if isinstance(task, Problem)}

    async def do(index: int, task: _Task) -> None:
        try:
            done[index] = await _do(edge, task)
        except Problem as problem:
            done[index] = problem

    for wave in _waves(edge, tasks):
        async with asyncio.TaskGroup() as group:
            for index, task in wave:
                group.create_task(do(index, task))
    return [done[index] for index in range(len(tasks))]


async def _do(edge: Edge, task: _Task) -> Stored | _Gone:
    match task:
        case Register(instance=instance):
            return await store(edge, instance)
        case Deregister(name=name, id=instance_id):
            key = InstanceKey(ServiceName(name), InstanceId(instance_id))
            before = edge.context.live.current.revision
            await deregister(edge, key)
            return _Gone(key, before)
        case _:
            assert_never(task)


async def _results(edge: Edge, sent: list[Any], done: list[_Done], request_id: str) -> list[Result]:
    """Say what became of each operation, once the catalog shows them: all together are waited for as long as one."""
    loop = asyncio.get_running_loop()
    end = loop.time() + edge.context.visible_within_s
    results: list[Result] = []
    for item, outcome in zip(sent, done, strict=True):
        within_s = max(0.0, end - loop.time())
        match outcome:
            case Problem():
                results.append(_refused(item, outcome, request_id))
            case Stored(instance=instance):
                entry = await visible(edge, outcome, within_s)
                results.append(
                    Result(
                        op="register",
                        name=instance.name,
                        id=instance.id,
                        status=202 if entry is None else 201 if outcome.new else 200,
                        revision=None if entry is None else edge.context.live.label(entry.revision),
                    )
                )
            case _Gone(key=key, before=before):
                revision = await gone(edge, key, before, within_s)
                results.append(
                    Result(
                        op="deregister",
                        name=key.service,
                        id=key.id,
                        status=202 if revision is None else 204,
                        revision=None if revision is None else edge.context.live.label(revision),
                    )
                )
            case _:
                assert_never(outcome)
    return results


def _refused(item: Any, problem: Problem, request_id: str) -> Result:
    """Return the result of a refused operation, naming what it was about where that can be told."""
    about = item if isinstance(item, dict) else {}
    op = about.get("op")
    of = about.get("instance") if op == "register" else about
    of = of if isinstance(of, dict) else {}
    return Result(
        op=op if isinstance(op, str) else None,
        name=_text(of.get("name")),
        id=_text(of.get("id")),
        status=problem.status,
        problem=problem.document(request_id),
    )


def _text(value: object) -> str | None:
    return value[:253] if isinstance(value, str) else None


OPERATIONS = (
    Operation(
        method="POST",
        path=f"{BASE}/instances:batch",
        id="batchInstances",
        group=INSTANCES,
        summary="Register and deregister many instances",
        description="Up to 1,000 operations. Each succeeds or fails by itself; those that concern the same instance or "
        "address take effect in order. A body of 1 MiB is the limit here too.",
        handler=batch,
        body=Body(
            model=Batch,
            example={
                "operations": [
                    {"op": "register", "instance": {"name": "user-service", "host": "10.0.1.101", "port": 8080}},
                    {"op": "deregister", "name": "user-service", "id": "user-service-10.0.1.100-8080"},
                ]
            },
            read_only=READ_ONLY,
        ),
        answers=(
            Answer(
                status=200, description="One result for each operation.", models=(BatchResult,), headers=("Revision",)
            ),
        ),
        problems=(INVALID, MALFORMED, TOO_LARGE, UNSUPPORTED_MEDIA_TYPE),
    ),
)
