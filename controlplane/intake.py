"""Where what registries say becomes what the catalog is told.

Every event of every registry passes here, in this order: it is put beside what a former process last knew
(`remembered`), several registries become one (`registry.merged`), the mass-loss guard has its second look (`guard`),
and verdicts that other control planes recorded meet their instances.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from controlplane.guard import Decision, Guard, Hold, Notice
from controlplane.live import CallLater, LiveCatalog
from controlplane.model import (
    DeleteInstance,
    DeletePolicy,
    DeleteResource,
    Event,
    InstanceKey,
    Judged,
    Lost,
    Members,
    Missing,
    PutInstance,
    PutPolicy,
    PutResource,
    Recorded,
    RegistryEvent,
    Release,
    ResourceKey,
    ServiceName,
    Synced,
    target_of,
)
from controlplane.registry.merged import Merged
from controlplane.remembered import Remembered


class Observer(Protocol):
    """Hear what is worth telling people. Every method returns at once."""

    def registry_lost(self, registry: str, reason: str, *, heard: bool) -> None:
        """Hear that a registry cannot be heard, and whether it ever was."""
        ...

    def registry_synced(self, registry: str) -> None:
        """Hear that a registry has said everything there is."""
        ...

    def let_go(self, registry: str, reason: str, keys: Sequence[InstanceKey]) -> None:
        """Hear of instances that are gone though nobody asked for it, too few to be held."""
        ...

    def held(self, notice: Notice) -> None:
        """Hear of a hold that has begun, or grown."""
        ...

    def released(self, notice: Notice) -> None:
        """Hear of a hold that has ended, and over which instances it still was."""
        ...


class Work(Protocol):
    """Be told what concerns those who check instances. Every method returns at once."""

    def members(self, ids: frozenset[str] | None) -> None:
        """Take the control planes that share the registry; None while they cannot be known."""
        ...

    def recorded(self, judged: Judged) -> bool:
        """Take a verdict that the registry keeps; return whether it counts here.

        That of an instance that is checked here does not, once it has a verdict of its own.
        """
        ...

    def gone(self, key: InstanceKey) -> None:
        """Hear that an instance is gone of which the registry keeps a verdict."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """Hold the time: `monotonic` in seconds of any origin, `wall` in seconds since the epoch."""

    monotonic: Callable[[], float]
    wall: Callable[[], float]
    call_later: CallLater


class Intake:
    """Take the events of registries and apply what they mean to the catalog.

    `store` names the registry that keeps the common state: while it is lost, so are the other members.
    """

    def __init__(
        self,
        live: LiveCatalog,
        *,
        remembered: Remembered | None,
        merged: Merged,
        guard: Guard,
        store: str,
        work: Work,
        observer: Observer,
        clocks: Clocks,
    ) -> None:
        self._live = live
        self._remembered = remembered
        self._merged = merged
        self._guard = guard
        self._store = store
        self._work = work
        self._observer = observer
        self._clocks = clocks
        self._recorded: dict[InstanceKey, Recorded] = {}
        self._members: frozenset[str] | None = None
        """As the store told them last, whether it can be heard or not."""
        self._doubted: dict[ServiceName | ResourceKey, DeletePolicy | DeleteResource] = {}
        """Policies and raw resources that a registry lacked when it came back."""
        self._timer_at: float | None = None

    @property
    def stale(self) -> frozenset[str]:
        """Return the registries in whose place a former process's state is offered."""
        return frozenset() if self._remembered is None else self._remembered.offered

    def holds(self) -> tuple[Hold, ...]:
        """Return what the mass-loss guard holds."""
        return self._guard.holds()

    def heard(self, event: RegistryEvent) -> None:
        """Take one event of a registry."""
        for known in [event] if self._remembered is None else self._remembered.take(event):
            self._merge(known)

    async def first_words(
        self, registries: Sequence[str], required: Sequence[str], patience_s: float | None
    ) -> frozenset[str]:
        """Return when every required registry has said what there is, or what was last known is offered in its place.

        That is done after `patience_s`; None where nothing was known. An optional registry is not waited for, but is
        not taken for an empty one either: what was last known of it is there before anything is published (law 1).
        Return the registries in whose place it is offered.
        """
        try:
            async with asyncio.timeout(patience_s):
                await self._until_known(required)
        except TimeoutError:
            pass  # what was last known has to do
        if self._remembered is not None:
            silent = [name for name in registries if name not in self._live.current.synced]
            for event in self._remembered.fall_back(silent):
                self._merge(event)
        stale = self.stale
        await self._until_known(required)
        return stale

    async def _until_known(self, required: Sequence[str]) -> None:
        while not self._live.current.synced.union(self.stale).issuperset(required):
            await self._live.wait()

    def _merge(self, event: RegistryEvent) -> None:
        for each in self._merged.take(event):
            self._take(each)

    def _take(self, event: RegistryEvent) -> None:
        match event:
            case PutInstance(instance=instance):
                self._settle(self._with_record(event), instance.key)
            case DeleteInstance(key=key):
                self._settle(event, key)
            case Missing():
                now, wall = self._clocks.monotonic(), self._clocks.wall()
                decision = self._guard.missing(event, self._live.current, now=now, wall=wall)
                self._decided(decision)
                if gone := [each.key for each in decision.events if isinstance(each, DeleteInstance)]:
                    self._observer.let_go(event.registry, event.reason, gone)
            case Recorded():
                self._record(event)
            case Members(ids=ids):
                self._members = ids
                self._work.members(ids)
            case Release(hold=hold):
                self._decided(self._guard.release(hold, self._live.current))
            case Lost(registry=registry, reason=reason):
                if registry == self._store:
                    self._work.members(None)
                if self._live.apply(event) is not None:
                    self._observer.registry_lost(registry, reason, heard=registry in self._live.current.synced)
            case Synced(registry=registry):
                # A registry that is back tells differences only: members that are still the same ones it does not tell.
                if registry == self._store and self._members is not None:
                    self._work.members(self._members)
                if self._live.apply(event) is not None:
                    self._observer.registry_synced(registry)
                self._believe()
            case DeletePolicy(service=service) if not self._is_heard(event.registry):
                self._doubted[service] = event
            case DeleteResource(key=resource) if not self._is_heard(event.registry):
                self._doubted[resource] = event
            case PutPolicy(service=service):
                self._doubted.pop(service, None)
                self._live.apply(event)
            case PutResource(resource=put):
                self._doubted.pop(put.key, None)
                self._live.apply(event)
            case _:
                self._live.apply(event)

    def _decided(self, decision: Decision) -> None:
        """Apply what the guard decided, and tell people what it holds and what it holds no more."""
        for event in decision.events:
            self._apply(event)
        for notice in decision.held:
            self._observer.held(notice)
        for notice in decision.ended:
            self._observer.released(notice)
        if decision.ended:
            self._believe()
        self._set_timer()

    def _is_heard(self, registry: str) -> bool:
        return registry in self._live.current.synced and registry not in self._live.current.lost

    def _believe(self) -> None:
        """Drop what registries lacked when they came back, unless they lacked so many instances that some are held."""
        if self._guard.holds():
            return
        for name, removal in list(self._doubted.items()):
            if self._is_heard(removal.registry):
                del self._doubted[name]
                self._live.apply(removal)

    def _settle(self, event: PutInstance | DeleteInstance, key: InstanceKey) -> None:
        """Apply what a registry means to become of an instance: the guard need not think of it any more."""
        self._apply(event)
        self._decided(self._guard.settled(key))

    def _apply(self, event: Event) -> None:
        if isinstance(event, DeleteInstance) and event.key in self._recorded:
            self._work.gone(event.key)
        self._live.apply(event)

    def _set_timer(self) -> None:
        due = self._guard.next_due()
        if due is not None and (self._timer_at is None or due < self._timer_at):
            self._timer_at = due
            self._clocks.call_later(max(0.0, due - self._clocks.monotonic()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer_at = None
        self._decided(self._guard.due(self._clocks.monotonic(), self._live.current))

    def _with_record(self, event: PutInstance) -> PutInstance:
        """Give an instance the verdict that the registry keeps of it, where that still speaks of it."""
        record = self._recorded.get(event.instance.key)
        if event.verdict is not None or record is None or record.target != target_of(event.instance):
            return event
        known = self._live.current.entry(event.instance.key)
        if known is not None and known.verdict is not None and target_of(known.instance) == record.target:
            return event  # it has one already, and that one may be newer
        return replace(event, verdict=record.verdict)

    def _record(self, event: Recorded) -> None:
        if event.verdict is None:
            self._recorded.pop(event.key, None)
            return
        self._recorded[event.key] = event
        entry = self._live.current.entry(event.key)
        if entry is None or target_of(entry.instance) != event.target or entry.verdict == event.verdict:
            return
        judged = Judged(key=event.key, verdict=event.verdict)
        if entry.verdict is None or self._work.recorded(judged):
            self._live.apply(judged)
