"""What is known of Consul, what has been told of it, and what is due: the state that all parts of the registry share.

No I/O. A change arrives as a difference of the mirror, whether a listing brought it or a write of our own, and leaves
as events, provided that somebody listens.
"""

import asyncio
from collections.abc import Callable, Iterable

from controlplane.model import HealthStatus, InstanceKey, RegistryEvent, Verdict
from controlplane.registry import Emit
from controlplane.registry.consul.mirror import Difference, Mirror
from controlplane.registry.consul.rows import Row
from controlplane.registry.leases import Deadlines
from controlplane.registry.reconcile import EXPIRED, MISSING, Delivered

REAP_S = 600.0
"""How long an instance whose ttl ran out stays to be seen in Consul, or for its ttl where that is longer."""

_SLICE = 200
"""How many events go out before others get a turn of the event loop."""


class Teller:
    """Hold the mirror, tell of its changes, and keep the deadlines that they set."""

    def __init__(self, registry: str, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        self.mirror = Mirror()
        self.leases: Deadlines[InstanceKey] = Deadlines()
        self.removals: Deadlines[InstanceKey] = Deadlines()
        self.reaps: Deadlines[InstanceKey] = Deadlines()
        self.due_moved = asyncio.Event()
        self._registry = registry
        self._clock = clock
        self._wall_clock = wall_clock
        self._delivered = Delivered(registry)
        self._verdicts: dict[InstanceKey, Verdict] = {}
        self._asked: set[InstanceKey] = set()
        self._emit: Emit | None = None

    def listen(self, emit: Emit | None) -> None:
        """Tell changes to `emit` from now on; None: nobody listens."""
        self._emit = emit

    def tell(self, events: Iterable[RegistryEvent]) -> None:
        """Emit events where somebody listens."""
        if self._emit is not None:
            for event in events:
                self._emit(event)

    async def relist(self) -> None:
        """Tell what differs between what was told and what is held; what is not there any more is doubted."""
        for count, key in enumerate([row.key for row in self.mirror.rows()], start=1):
            row = self.mirror.get(key)
            if row is not None:
                self._set_deadlines(row)
                if not row.expired:
                    self.tell(self._delivered.put(row.instance, self._verdict(row)))
            if count % _SLICE == 0:
                await asyncio.sleep(0)
        for key in self._asked:
            if self.mirror.get(key) is None:
                self.tell(self._delivered.delete(key))
        self._asked.clear()
        held = {row.key for row in self.mirror.rows() if not row.expired}
        self._lose(sorted(set(self._delivered.keys()) - held), MISSING)

    def listed(self, difference: Difference, *, doubted: bool = False) -> None:
        """Take what a listing changed while Consul was followed: what is gone was deregistered, unless `doubted`."""
        expired = []
        for row in difference.put:
            self._set_deadlines(row)
            if row.expired:
                expired.append(row.key)
            elif self._emit is not None:
                self.tell(self._delivered.put(row.instance, self._verdict(row)))
        self._lose(expired, EXPIRED)
        if doubted:
            self._lose([row.key for row in difference.gone], MISSING)
        for row in difference.gone:
            self._forget(row.key)
            if not doubted and self._emit is not None:
                self.tell(self._delivered.delete(row.key))

    def wrote(self, rows: Iterable[Row], index: int) -> None:
        """Take what was written here, all at one index."""
        written = list(rows)
        for row in written:
            self.mirror.wrote(row, index)
        self.listed(Difference(put=tuple(written)))

    def removed(self, row: Row, index: int) -> None:
        """Take that an instance was removed here."""
        self.mirror.removed(row.key, index)
        if self._emit is None:
            self._asked.add(row.key)  # to be told as what it is, when somebody listens again
        self.listed(Difference(gone=(row,)))

    def renew(self, key: InstanceKey) -> float | None:
        """Renew a lease; return the ttl, None where there is none or the instance is no more."""
        row = self.mirror.get(key)
        if row is None or row.expired or not row.own or row.instance.ttl is None:
            return None
        self.leases.set(key, self._clock() + row.instance.ttl)
        return row.instance.ttl

    def _set_deadlines(self, row: Row) -> None:
        now = self._clock()
        ttl = row.instance.ttl
        if row.own and row.expired:
            self.leases.discard(row.key)
            if self.reaps.at(row.key) is None:
                self.reaps.set(row.key, now + max(REAP_S, ttl or 0))
        else:
            self.reaps.discard(row.key)
            if row.own and ttl is not None:
                self.leases.set(row.key, now + ttl)
            else:
                self.leases.discard(row.key)
        if row.own and row.remove_at is not None:
            self.removals.set(row.key, now + max(row.remove_at - self._wall_clock(), 0))
        else:
            self.removals.discard(row.key)
        self.due_moved.set()

    def _forget(self, key: InstanceKey) -> None:
        for deadlines in (self.leases, self.removals, self.reaps):
            deadlines.discard(key)
        self._verdicts.pop(key, None)

    def _verdict(self, row: Row) -> Verdict | None:
        """Return what Consul's checks say, since when is known here only: since it was seen first."""
        if row.stated is None:
            self._verdicts.pop(row.key, None)
            return None
        status, reason = row.stated
        old = self._verdicts.get(row.key)
        if old is not None and (old.status, old.reason) == (status, reason):
            return old
        since = old.since if old is not None and old.status is status else self._wall_clock()
        verdict = Verdict(status=status, passed=True, since=since, score=_SCORES[status], reason=reason)
        self._verdicts[row.key] = verdict
        return verdict

    def _lose(self, keys: list[InstanceKey], reason: str) -> None:
        """Tell of losses that nobody asked for, all of one occasion."""
        if self._emit is not None:
            self.tell(self._delivered.lose(keys, reason))
            for key in keys:
                self._verdicts.pop(key, None)


_SCORES = {HealthStatus.HEALTHY: 100, HealthStatus.DEGRADED: 50, HealthStatus.UNHEALTHY: 0}
