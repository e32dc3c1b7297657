"""Writes: to the registry, then wait until this process's catalog shows them (law 11, read your writes).

The registry alone decides whether a write stands; the catalog follows by the registry's own event. So a write
answers with the revision it made, or with 202 where the event has not come back in time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from controlplane.api.edge import Edge
from controlplane.api.faults import pointer
from controlplane.api.problems import ADDRESS_TAKEN, CONFLICT, REGISTRY_UNAVAILABLE, Fault, Problem
from controlplane.catalog import Entry
from controlplane.model import (
    DeleteInstance,
    Event,
    Instance,
    InstanceKey,
    PutInstance,
    RawResource,
    ResourceKey,
    ServiceName,
    same_instance,
)
from controlplane.registry import AddressTaken, Conflict, ReadOnly, RegistryError, UnknownInstance

_REGISTRY_TIMEOUT_S = 10.0

T = TypeVar("T")


async def ask(edge: Edge, operation: str, call: Awaitable[T]) -> T:
    """Await a registry's write, bounded and counted.

    Raises Problem for a taken address, and a registry that takes no such writes or is unavailable; Conflict and
    UnknownInstance pass.
    """
    outcome = "failure"
    try:
        async with asyncio.timeout(_REGISTRY_TIMEOUT_S):
            result = await call
        outcome = "success"
    except AddressTaken as error:
        outcome = "refused"
        faults = [Fault(pointer=pointer(name), detail=str(error)) for name in ("host", "port")]
        raise Problem(ADDRESS_TAKEN, str(error), errors=faults, owner=error.owner) from None
    except (Conflict, UnknownInstance):
        outcome = "refused"
        raise
    except ReadOnly as error:
        outcome = "refused"
        raise Problem(CONFLICT, str(error), registry=edge.context.registry.name) from None
    except TimeoutError:
        detail = f"the registry did not answer within {_REGISTRY_TIMEOUT_S:g} s; the write may or may not stand"
        raise Problem(REGISTRY_UNAVAILABLE, detail, headers={"Retry-After": "1"}) from None
    except RegistryError as error:
        raise Problem(REGISTRY_UNAVAILABLE, str(error), headers={"Retry-After": "1"}) from None
    finally:
        if edge.context.metrics is not None:
            edge.context.metrics.registry_operation(edge.context.registry.name, operation, outcome)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Hold a write that the registry took, and the catalog's revision before it was asked."""

    instance: Instance
    new: bool
    before: int


async def store(edge: Edge, instance: Instance, *, expected: Instance | None = None) -> Stored:
    """Put an instance into the registry; with `expected`, only in place of that.

    Raises as `ask` does, and Problem where nobody would ever see it: behind that of a registry whose word comes first.
    """
    catalog = edge.context.live.current
    entry = catalog.entry(instance.key)
    if entry is not None and not entry.held and _comes_first(edge, entry):
        raise not_writable(entry)
    new = await ask(edge, "register", edge.context.registry.put(instance, expected=expected))
    # What is held, or another registry's, may be new to this one, but it was there for everyone who looked.
    return Stored(instance=instance, new=new and entry is None, before=catalog.revision)


def _comes_first(edge: Edge, entry: Entry) -> bool:
    ranking = edge.context.live.current.ranking
    store = edge.context.registry.name
    return entry.registry in ranking[: ranking.index(store)] if store in ranking else False


async def deregister(edge: Edge, key: InstanceKey) -> bool:
    """Remove an instance from the registry; return whether it had one. Raises as `ask` does.

    Of one that only the mass-loss guard still holds, the guard is told to let go.
    """
    there = await ask(edge, "deregister", edge.context.registry.delete(key))
    entry = edge.context.live.current.entry(key)
    if not there and entry is not None and entry.held:
        await ask(edge, "release", edge.context.registry.release(str(key)))
    return there


async def visible(edge: Edge, stored: Stored, within_s: float | None = None) -> Entry | None:
    """Return the entry that the write made, once the catalog has it; None where the time ends first."""
    live = edge.context.live
    key = stored.instance.key

    def made() -> Entry | None:
        entry = live.current.entry(key)
        # One that is still held looks the same, and is not yet what the registry has.
        if entry is not None and not entry.held and same_instance(entry.instance, stored.instance):
            return entry
        revision = _in_history(
            edge,
            stored.before,
            lambda event: isinstance(event, PutInstance) and same_instance(event.instance, stored.instance),
        )
        return None if revision is None else unseen(edge, stored.instance, revision)

    return await _until(edge, key.service, made, within_s)


async def gone(edge: Edge, key: InstanceKey, before: int, within_s: float | None = None) -> int | None:
    """Return the revision at which the catalog lost the instance; None where it still has it after the time."""
    live = edge.context.live

    def lost() -> int | None:
        revision = _in_history(edge, before, lambda event: isinstance(event, DeleteInstance) and event.key == key)
        if revision is None and live.current.entry(key) is None:
            return live.current.revision
        return revision

    return await _until(edge, key.service, lost, within_s)


async def until(edge: Edge, service: ServiceName, true: Callable[[], bool]) -> int | None:
    """Return the service's revision once `true` holds of the catalog; None where it does not in time."""
    live = edge.context.live

    def revision() -> int | None:
        if not true():
            return None
        known = live.current.services.get(service)
        return live.current.revision if known is None else known.revision

    return await _until(edge, service, revision, None)


async def resource_visible(edge: Edge, key: ResourceKey, raw: RawResource | None) -> int | None:
    """Return the revision at which the catalog has `raw` under `key` (None: has nothing); None where not in time."""
    live = edge.context.live

    def revision() -> int | None:
        entry = live.current.raw.get(key)
        if entry is None:
            return live.current.revision if raw is None else None
        return entry.revision if entry.resource == raw else None

    return await _until(edge, None, revision, None)


def unseen(edge: Edge, instance: Instance, revision: int = 0) -> Entry:
    """Return an instance as it was written, where the catalog does not hold it (yet, or any more)."""
    return Entry(
        instance=instance,
        registry=edge.context.registry.name,
        checked=instance.checked and edge.context.live.current.checks_enabled,
        revision=revision,
    )


def not_writable(entry: Entry) -> Problem:
    """Return the problem of an instance that another registry holds than the one that takes writes."""
    detail = (
        f"instance {entry.instance.key} is held by registry {entry.registry!r}, which takes no writes from here; "
        "change it there"
    )
    return Problem(CONFLICT, detail, registry=entry.registry)


def _in_history(edge: Edge, before: int, wanted: Callable[[Event], bool]) -> int | None:
    """Return the newest revision after `before` that such an event made."""
    for change in reversed(edge.context.live.history):
        if change.revision <= before:
            return None
        if wanted(change.event):
            return change.revision
    return None


async def _until(
    edge: Edge, service: ServiceName | None, made: Callable[[], T | None], within_s: float | None
) -> T | None:
    result = made()
    if result is not None:
        return result
    try:
        async with asyncio.timeout(edge.context.visible_within_s if within_s is None else within_s):
            while result is None:
                await edge.context.live.wait(service)
                result = made()
    except TimeoutError:
        return None
    return result
