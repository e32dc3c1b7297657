"""The mass-loss guard: a second look before much is taken from proxies that nobody asked to be taken (law 14).

Pure: time is an argument. It is told of every loss that is doubted (`Missing`): leases that ran out, and whatever a
registry does not hold any more after it was away. A few of those are let go. Where too many come close together,
all of them, also those let go a moment ago, stay offered with their health, marked as held, until they return,
the hold's time is over, or a person releases it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from controlplane.catalog import Catalog, Entry
from controlplane.model import DeleteInstance, Event, Held, InstanceKey, Missing, PutInstance, ServiceName

EVERYTHING = "_everything"
"""The id of the hold over all services. No service can be called so; a service's own hold has the service's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Say what is too much: more than a share of what there was, where there was enough to speak of shares.

    Losses within `window_s` count together. `hold_s` is how long they are held; 0 switches the guard off.
    """

    window_s: float = 10.0
    hold_s: float = 600.0
    service_share: float = 0.5
    service_minimum: int = 4
    """How many instances a service must have had."""
    total_share: float = 0.2
    total_minimum: int = 20
    """How many instances of all services must be lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Show one hold: since when and until when (seconds since the epoch), why, and over which instances."""

    id: str
    since: float
    until: float
    reason: str
    keys: frozenset[InstanceKey]


@dataclass(slots=True, kw_only=True, eq=False)
class _Hold:
    due: float
    since: float
    reason: str
    keys: dict[InstanceKey, str] = field(default_factory=dict)
    """With the reason for which each was lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gone:
    at: float
    entry: Entry
    reason: str


class Guard:
    """Decide about doubted losses. Times are monotonic seconds but for `wall`, which is only shown."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._gone: dict[ServiceName, dict[InstanceKey, _Gone]] = {}
        self._holds: dict[str, _Hold] = {}

    def holds(self) -> tuple[Hold, ...]:
        """Return what is held now, by id."""
        return tuple(
            Hold(
                id=hold_id,
                since=hold.since,
                until=hold.since + self._limits.hold_s,
                reason=hold.reason,
                keys=frozenset(hold.keys),
            )
            for hold_id, hold in sorted(self._holds.items())
        )

    def missing(self, event: Missing, catalog: Catalog, *, now: float, wall: float) -> list[Event]:
        """Return what the catalog is to be told of a doubted loss: that instances go, or that they are held."""
        lost = {key: entry for key in event.keys if (entry := catalog.entry(key)) is not None and not entry.held}
        if not self._limits.hold_s:
            return [_deleted(key, entry.registry, event.reason) for key, entry in lost.items()]
        self._forget_before(now - self._limits.window_s)
        for key, entry in lost.items():
            self._gone.setdefault(key.service, {})[key] = _Gone(at=now, entry=entry, reason=event.reason)
        told: list[Event] = []
        if EVERYTHING in self._holds or (why := self._too_many_of_all(catalog, lost)) is not None:
            if EVERYTHING not in self._holds:
                self._begin(EVERYTHING, why or "", now, wall)
            told += self._hold(EVERYTHING, list(self._gone), catalog)
        for service in {key.service for key in lost}:
            if service not in self._gone:
                continue
            if service in self._holds or (why := self._too_many_of(service, catalog, lost)) is not None:
                if service not in self._holds:
                    self._begin(service, why or "", now, wall)
                told += self._hold(service, [service], catalog)
        let_go = [key for key in lost if key in self._gone.get(key.service, {})]
        return told + [_deleted(key, lost[key].registry, event.reason) for key in let_go]

    def concerns(self, key: InstanceKey) -> bool:
        """Tell whether an instance is held, or was let go a moment ago."""
        return any(key in hold.keys for hold in self._holds.values()) or key in self._gone.get(key.service, {})

    def settled(self, key: InstanceKey) -> None:
        """Take note that an instance is there again, or has gone by somebody's wish: nothing is to be held of it."""
        gone = self._gone.get(key.service)
        if gone is not None and gone.pop(key, None) is not None and not gone:
            del self._gone[key.service]
        for hold_id, hold in list(self._holds.items()):
            if hold.keys.pop(key, None) is not None and not hold.keys:
                del self._holds[hold_id]

    def release(self, hold_id: str, catalog: Catalog) -> list[Event]:
        """Let a hold go, or one instance by its key; return what the catalog is to be told.

        That is nothing where it has ended by now.
        """
        if "/" in hold_id:
            return self._release_one(hold_id, catalog)
        hold = self._holds.pop(hold_id, None)
        if hold is None:
            return []
        entries = {key: catalog.entry(key) for key in hold.keys}
        return [
            _deleted(key, entry.registry, hold.keys[key])
            for key, entry in sorted(entries.items())
            if entry is not None and entry.held == hold_id
        ]

    def _release_one(self, key: str, catalog: Catalog) -> list[Event]:
        for hold_id, hold in self._holds.items():
            for held, reason in hold.keys.items():
                if str(held) == key:
                    entry = catalog.entry(held)
                    self.settled(held)
                    let_go = entry is not None and entry.held == hold_id
                    return [_deleted(held, entry.registry, reason)] if entry is not None and let_go else []
        return []

    def due(self, now: float, catalog: Catalog) -> list[Event]:
        """Let go every hold whose time is over; return what the catalog is to be told."""
        over = [hold_id for hold_id, hold in self._holds.items() if hold.due <= now]
        return [event for hold_id in over for event in self.release(hold_id, catalog)]

    def next_due(self) -> float | None:
        """Return when `due` will have something to do; None while nothing is held."""
        return min((hold.due for hold in self._holds.values()), default=None)

    def _begin(self, hold_id: str, reason: str, now: float, wall: float) -> None:
        self._holds[hold_id] = _Hold(due=now + self._limits.hold_s, since=wall, reason=reason)

    def _hold(self, hold_id: str, services: Iterable[ServiceName], catalog: Catalog) -> list[Event]:
        hold = self._holds[hold_id]
        back: list[Event] = []
        keys: list[InstanceKey] = []
        for service in services:
            for key, gone in self._gone.pop(service, {}).items():
                hold.keys[key] = gone.reason
                keys.append(key)
                if catalog.entry(key) is None:
                    entry = gone.entry
                    back.append(
                        PutInstance(
                            instance=entry.instance,
                            registry=entry.registry,
                            verdict=entry.verdict,
                            stated=entry.stated,
                        )
                    )
        return [*back, Held(keys=tuple(sorted(keys)), hold=hold_id)] if keys else []

    def _too_many_of(self, service: ServiceName, catalog: Catalog, lost: Iterable[InstanceKey]) -> str | None:
        gone = self._gone[service]
        known = catalog.services.get(service)
        going = set(lost)
        left = 0
        if known is not None:
            left = sum(not entry.held and entry.instance.key not in going for entry in known.entries.values())
        before = left + len(gone)
        if before < self._limits.service_minimum or len(gone) <= self._limits.service_share * before:
            return None
        return f"{len(gone)} of {before} instances of {service} were lost within {self._limits.window_s:g} s"

    def _too_many_of_all(self, catalog: Catalog, lost: Iterable[InstanceKey]) -> str | None:
        gone = sum(len(each) for each in self._gone.values())
        if gone < self._limits.total_minimum:
            return None
        there = sum(len(service.entries) for service in catalog.services.values())
        held = sum(len(hold.keys) for hold in self._holds.values())
        before = there - held - len(set(lost)) + gone
        if gone <= self._limits.total_share * before:
            return None
        return f"{gone} of all {before} instances were lost within {self._limits.window_s:g} s"

    def _forget_before(self, time: float) -> None:
        for service, gone in list(self._gone.items()):
            for key in [key for key, each in gone.items() if each.at < time]:
                del gone[key]
            if not gone:
                del self._gone[service]


def _deleted(key: InstanceKey, registry: str, reason: str) -> DeleteInstance:
    return DeleteInstance(key=key, registry=registry, reason=reason)
