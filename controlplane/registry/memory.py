"""The embedded registry: instances in memory, durable by a journal where there is one.

Two states: `_accepted` is what has been agreed to and decides about the next write, `_held` is what is durable
and has been told. A record moves from one to the other when it is on disk; where the disk refuses, `_accepted`
falls back to `_held`, every waiting writer gets RegistryUnavailable, and nothing was stored or told. Without a
journal the two are one. Leases and delayed removals are driven by `run`.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

from controlplane.model import (
    Instance,
    InstanceKey,
    Missing,
    RawResource,
    RegistryEvent,
    Release,
    ResourceKey,
    ServiceName,
    Synced,
    Verdict,
    same_instance,
    same_target,
)
from controlplane.policy import Policy
from controlplane.registry import (
    AddressTaken,
    Conflict,
    Emit,
    RegistryUnavailable,
    UnknownInstance,
)
from controlplane.registry.journal import Journal, Owner, Write
from controlplane.registry.leases import Deadlines
from controlplane.registry.state import (
    EXPIRED,
    REGISTRY,
    Delete,
    Drain,
    DropPolicy,
    DropResource,
    Judge,
    Put,
    Record,
    SetPolicy,
    SetResource,
    State,
)

_SHORTEST_NAP_S = 0.05
"""How finely leases expire: bounds the wake-ups where thousands of them are renewed all the time."""

_RETRY_S = 1.0
"""How soon a removal is tried again that the disk refused."""

_DEREGISTERED = "deregistered"

_SLICE = 200
"""How many events go out, or leases end, before others get a turn of the event loop."""


class Timer(Protocol):
    """Be what `call_later` returns."""

    def cancel(self) -> None:
        """Call it off."""
        ...


CallLater = Callable[[float, Callable[[], object]], Timer]


class MemoryRegistry:
    """Hold instances, policies and raw resources in this process. Implements WritableRegistry.

    `clock` is in seconds, of any origin; `call_later` wakes after that many seconds of it, by default the
    loop's own.
    """

    name = REGISTRY
    remarks: Mapping[str, str] = MappingProxyType({})  # what cannot be used is the journal's to tell

    def __init__(
        self,
        *,
        journal: Journal | None,
        clock: Callable[[], float] = time.monotonic,
        call_later: CallLater | None = None,
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._call_later = call_later
        self._held = State() if journal is None else journal.state
        self._accepted = self._held if journal is None else self._held.copy()
        self._leases: Deadlines[InstanceKey] = Deadlines()
        self._removals: Deadlines[InstanceKey] = Deadlines()
        self._untold: deque[RegistryEvent] = deque()
        self._telling = False
        self._wake = asyncio.Event()
        if journal is not None:
            journal.attach(
                Owner(stored=self._stored, refused=self._refused, snapshot=self._held.copy, size=self._held.size)
            )

    def age_s(self) -> float:
        """Return 0: what is in this process is never old."""
        return 0.0

    async def run(self, emit: Emit) -> None:
        """Emit what is held, then Synced, then every change; expire leases, remove what was drained.

        Every lease and every pending removal begins anew here: while nobody ran, nobody could renew.
        """
        if self._telling:
            raise RuntimeError("the registry runs already")
        listing = list(self._held.events())
        self._telling = True  # from here on changes queue up behind the listing
        timer: Timer | None = None
        try:
            for key, instance in self._held.instances.items():
                self._renew(key, instance)
            for key, delay_s in self._held.removals.items():
                self._removals.set(key, self._clock() + delay_s)
            for count, event in enumerate(listing, start=1):
                emit(event)
                if count % _SLICE == 0:
                    await asyncio.sleep(0)
            emit(Synced(registry=self.name))
            while True:
                self._wake.clear()
                await self._tell(emit)
                await self._remove_due()
                timer = self._nap()
                await self._wake.wait()
                if timer is not None:
                    timer.cancel()
        finally:
            if timer is not None:
                timer.cancel()
            self._telling = False
            self._untold.clear()

    async def put(self, instance: Instance, *, expected: Instance | None = None) -> bool:
        """Store an instance with a fresh lease; see WritableRegistry."""
        key = instance.key
        stored = self._accepted.instances.get(key)
        if expected is not None:
            if stored is None:
                raise _unknown(key)
            if not same_instance(stored, expected):
                raise Conflict(f"instance {key} has changed since it was read; read it again and repeat")
        owner = self._accepted.owner(instance)
        if owner is not None and owner != instance.id:
            raise AddressTaken(instance, owner)
        if stored is not None and same_instance(stored, instance):  # so a pending removal stays as well
            self._renew(key, instance)
            await self._settle()
        else:
            await self._write(Put(instance=instance))
        return stored is None

    async def delete(self, key: InstanceKey) -> bool:
        """Remove an instance; see WritableRegistry."""
        if key not in self._accepted.instances:
            await self._settle()
            return False
        await self._write(Delete(service=key.service, id=key.id, reason=_DEREGISTERED))
        return True

    async def drain(self, key: InstanceKey, delay_s: float) -> None:
        """Mark an instance draining and remove it later; see WritableRegistry."""
        if not (math.isfinite(delay_s) and delay_s >= 0):
            raise ValueError(f"delay_s must be a number of seconds, at least 0, and is {delay_s}")
        if key not in self._accepted.instances:
            raise _unknown(key)
        await self._write(Drain(service=key.service, id=key.id, delay_s=delay_s))

    async def heartbeat(self, key: InstanceKey) -> float | None:
        """Renew a lease, in memory only: a restart renews all of them anyway. See WritableRegistry."""
        instance = self._accepted.instances.get(key)
        if instance is None:
            raise _unknown(key)
        self._renew(key, instance)
        return instance.ttl

    async def record(self, key: InstanceKey, verdict: Verdict, of: Instance) -> None:
        """Keep a verdict, without waiting for the disk; see WritableRegistry.

        One that the disk refuses is held all the same, and goes into the file with the next that it takes.
        """
        instance = self._accepted.instances.get(key)
        if instance is None or not same_target(of, instance):
            return
        if self._accepted.verdicts.get(key) != verdict:
            self._accept(Judge(service=key.service, id=key.id, verdict=verdict), None)

    async def forget(self, key: InstanceKey) -> None:
        """Do nothing: the verdict went with its instance; see WritableRegistry."""

    async def release(self, hold: str) -> None:
        """Tell this control plane, which is the only one; see WritableRegistry."""
        if self._telling:
            self._untold.append(Release(hold=hold, registry=self.name))
            self._wake.set()

    async def put_policy(self, service: ServiceName, policy: Policy) -> bool:
        """Store a service's policy; see WritableRegistry."""
        stored = self._accepted.policies.get(service)
        if stored == policy:
            await self._settle()
        else:
            await self._write(SetPolicy(service=service, policy=policy))
        return stored is None

    async def delete_policy(self, service: ServiceName) -> bool:
        """Remove a service's policy; see WritableRegistry."""
        if service not in self._accepted.policies:
            await self._settle()
            return False
        await self._write(DropPolicy(service=service))
        return True

    async def put_resource(self, resource: RawResource) -> bool:
        """Store a raw resource; see WritableRegistry."""
        stored = self._accepted.resources.get(resource.key)
        if stored == resource:
            await self._settle()
        else:
            await self._write(SetResource(resource=resource))
        return stored is None

    async def delete_resource(self, key: ResourceKey) -> bool:
        """Remove a raw resource; see WritableRegistry."""
        if key not in self._accepted.resources:
            await self._settle()
            return False
        await self._write(DropResource(type_url=key.type_url, name=key.name))
        return True

    async def _settle(self) -> None:
        """Wait until what led to the present state is durable: an answer must not rest on a write that may fail."""
        if self._journal is not None and self._journal.busy:
            await self._write(None)

    async def _write(self, record: Record | None) -> None:
        done: asyncio.Future[None] | None = None
        if self._journal is not None:
            done = asyncio.get_running_loop().create_future()
        self._accept(record, done)
        if done is not None:
            await done

    def _accept(self, record: Record | None, done: asyncio.Future[None] | None) -> None:
        if self._journal is None:
            if record is not None:
                self._hold(record)
            return
        self._journal.append(Write(record, done))
        if record is not None:
            self._accepted.apply(record)
            self._time(record)

    def _hold(self, record: Record) -> None:
        event = self._held.apply(record)
        self._time(record)
        if event is not None and self._telling:
            self._untold.append(event)
        self._wake.set()

    def _stored(self, writes: Sequence[Write]) -> None:
        for write in writes:
            if write.record is not None:
                self._hold(write.record)
            if write.done is not None and not write.done.done():
                write.done.set_result(None)

    def _refused(self, writes: Sequence[Write], error: BaseException) -> None:
        for write in writes:
            if isinstance(write.record, Judge):
                self._held.apply(write.record)
        self._accepted = self._held.copy()
        for write in writes:
            self._rearm(write.record)
            if write.done is not None and not write.done.done():
                write.done.set_exception(
                    RegistryUnavailable(f"the journal cannot be written ({error}); nothing was stored")
                )
        self._wake.set()

    def _time(self, record: Record) -> None:
        """Set the clocks that a record starts: when it is accepted, lest an old one strikes, and when it is held."""
        match record:
            case Put(instance=instance):
                self._renew(instance.key, instance)
                if not instance.draining:
                    self._removals.discard(instance.key)
            case Drain():
                self._removals.set(record.key, self._clock() + record.delay_s)
            case Delete():
                self._leases.discard(record.key)
                self._removals.discard(record.key)

    def _rearm(self, record: Record | None) -> None:
        """Set the clocks again that a refused record had stopped."""
        if not isinstance(record, Put | Delete | Drain):
            return
        key = record.key
        now = self._clock()
        ttl = None if (instance := self._held.instances.get(key)) is None else instance.ttl
        if ttl is not None and self._leases.at(key) is None:
            expired = isinstance(record, Delete) and record.reason == EXPIRED
            self._leases.set(key, now + (_RETRY_S if expired else ttl))
        delay_s = self._held.removals.get(key)
        if delay_s is not None and self._removals.at(key) is None:
            self._removals.set(key, now + (_RETRY_S if isinstance(record, Delete) else delay_s))

    def _renew(self, key: InstanceKey, instance: Instance) -> None:
        if instance.ttl is None:
            self._leases.discard(key)
        else:
            self._leases.set(key, self._clock() + instance.ttl)

    async def _tell(self, emit: Emit) -> None:
        count = 0
        while self._untold:
            emit(self._next_untold())
            count += 1
            if count % _SLICE == 0:
                await asyncio.sleep(0)

    def _next_untold(self) -> RegistryEvent:
        """Take the next event; what expired close together is one loss, so that it is judged together."""
        event = self._untold.popleft()
        if not isinstance(event, Missing):
            return event
        keys = list(event.keys)
        while self._untold and isinstance(after := self._untold[0], Missing) and after.reason == event.reason:
            keys += after.keys
            self._untold.popleft()
        return replace(event, keys=tuple(keys))

    async def _remove_due(self) -> None:
        now = self._clock()
        for count, key in enumerate(self._leases.pop_due(now), start=1):
            instance = self._accepted.instances.get(key)
            if instance is not None and instance.ttl is not None and self._leases.at(key) is None:
                self._remove(key, EXPIRED)
            if count % _SLICE == 0:
                await asyncio.sleep(0)  # others may renew meanwhile, hence the look at the lease
        for count, key in enumerate(self._removals.pop_due(now), start=1):
            if key in self._accepted.removals and self._removals.at(key) is None:
                self._remove(key, _DEREGISTERED)
            if count % _SLICE == 0:
                await asyncio.sleep(0)

    def _remove(self, key: InstanceKey, reason: str) -> None:
        record = Delete(service=key.service, id=key.id, reason=reason)
        try:
            self._accept(record, None)
        except RegistryUnavailable:
            self._rearm(record)

    def _nap(self) -> Timer | None:
        deadlines = [at for at in (self._leases.next(), self._removals.next()) if at is not None]
        if not deadlines:
            return None
        call_later = self._call_later or asyncio.get_running_loop().call_later
        return call_later(max(min(deadlines) - self._clock(), _SHORTEST_NAP_S), self._wake.set)


def _unknown(key: InstanceKey) -> UnknownInstance:
    return UnknownInstance(f"the registry holds no instance {key}")
