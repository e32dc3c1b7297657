"""The mass-loss guard: a second look before much is taken from proxies that nobody asked to be taken (law 14).

Pure: time is an argument. It is told of every loss that is doubted (`Missing`): leases that ran out, and whatever a
registry does not hold any more after it was away. A few of those are let go. Where too many come close together,
all of them, also those let go a moment ago, stay offered with their health, marked as held, until they return,
the hold's time is over, or a person releases it.

Losses are counted net: against what was there before and what has come since, so that instances that are replaced
by others, under other ids, are no loss. What a loss costs does not depend on how many came before it.
"""

from collections import Counter, deque
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Tell people of a hold that began or grew, or that ended.

    `keys` are the instances that it has newly taken, or that it was still over when it ended; `instances` says over
    how many it is, or was.
    """

    id: str
    reason: str
    instances: int
    keys: tuple[InstanceKey, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Hold what was decided: what the catalog is to be told, in order, and the holds that began or grew, and ended."""

    events: tuple[Event, ...] = ()
    held: tuple[Notice, ...] = ()
    ended: tuple[Notice, ...] = ()


NOTHING = Decision()


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
        self._gone_count = 0
        self._order: deque[tuple[float, InstanceKey]] = deque()
        """When each was lost; also of some that are back by now."""
        self._holds: dict[str, _Hold] = {}
        self._held: dict[ServiceName, dict[InstanceKey, str]] = {}
        """The hold that each is in."""
        self._held_count = 0

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

    def missing(self, event: Missing, catalog: Catalog, *, now: float, wall: float) -> Decision:
        """Decide about a doubted loss: that instances go, or that they are held."""
        lost = {key: entry for key in event.keys if (entry := catalog.entry(key)) is not None and not entry.held}
        if not self._limits.hold_s:
            return Decision(events=tuple(_deleted(key, entry.registry, event.reason) for key, entry in lost.items()))
        self._forget_before(now - self._limits.window_s)
        for key, entry in lost.items():
            self._note(key, _Gone(at=now, entry=entry, reason=event.reason))
        events: list[Event] = []
        held: list[Notice] = []
        for hold_id, why, services in self._too_much(Counter(key.service for key in lost), event.hold, catalog):
            if hold_id not in self._holds:
                self._holds[hold_id] = _Hold(due=now + self._limits.hold_s, since=wall, reason=why)
            told, notice = self._hold(hold_id, services, catalog)
            events += told
            held.append(notice)
        let_go = [key for key in lost if key in self._gone.get(key.service, {})]
        events += (_deleted(key, lost[key].registry, event.reason) for key in let_go)
        return Decision(events=tuple(events), held=tuple(held))

    def settled(self, key: InstanceKey) -> Decision:
        """Take note that an instance is there again, or has gone by somebody's wish: nothing is to be held of it."""
        self._forget(key)
        held = self._held.get(key.service, {})
        hold_id = held.pop(key, None)
        if hold_id is None:
            return NOTHING
        self._held_count -= 1
        if not held:
            del self._held[key.service]
        hold = self._holds[hold_id]
        del hold.keys[key]
        if hold.keys:
            return NOTHING
        del self._holds[hold_id]
        return Decision(ended=(Notice(id=hold_id, reason=hold.reason, instances=1, keys=(key,)),))

    def release(self, what: str, catalog: Catalog) -> Decision:
        """Let go what a person means: all that is held of a service, one instance (`<service>/<id>`), or everything.

        Not a hold by its id: control planes that heard of the same losses in other portions hold them under other
        ids, and what is let go at one is to be gone at all of them. Nothing happens where nothing is held by now.
        """
        if what == EVERYTHING:
            keys = [key for hold in self._holds.values() for key in hold.keys]
        else:
            held = self._held.get(ServiceName(what.partition("/")[0]), {})
            keys = [key for key in held if what in {key.service, str(key)}]
        return self._let_go(keys, catalog)

    def due(self, now: float, catalog: Catalog) -> Decision:
        """Let go every hold whose time is over."""
        return self._let_go([key for hold in self._holds.values() if hold.due <= now for key in hold.keys], catalog)

    def _let_go(self, keys: Iterable[InstanceKey], catalog: Catalog) -> Decision:
        events: list[Event] = []
        of_hold: dict[str, list[InstanceKey]] = {}
        ended: list[Notice] = []
        for key in sorted(keys):
            hold_id = self._held[key.service][key]
            why = self._holds[hold_id].keys[key]
            of_hold.setdefault(hold_id, []).append(key)
            if (entry := catalog.entry(key)) is not None:
                events.append(_deleted(key, entry.registry, why))
            for notice in self.settled(key).ended:
                gone = tuple(of_hold[hold_id])
                ended.append(Notice(id=notice.id, reason=notice.reason, instances=len(gone), keys=gone))
        return Decision(events=tuple(events), ended=tuple(ended))

    def next_due(self) -> float | None:
        """Return when `due` will have something to do; None while nothing is held."""
        return min((hold.due for hold in self._holds.values()), default=None)

    def _too_much(
        self, lost: Counter[ServiceName], hold: str, catalog: Catalog
    ) -> list[tuple[str, str, list[ServiceName]]]:
        """Return the holds to begin or to grow: id, reason, and the services whose losses go into each.

        With `hold`, a former process held all that is lost, and so does this one.
        """
        if hold:
            return [(hold, "they were held before the restart", list(lost))] if lost else []
        if (why := self._too_many_of_all(lost.total(), catalog)) is not None:
            return [(EVERYTHING, why, list(self._gone))]
        return [
            (service, why, [service])
            for service, count in sorted(lost.items())
            if (why := self._too_many_of(service, count, catalog)) is not None
        ]

    def _too_many_of(self, service: ServiceName, lost: int, catalog: Catalog) -> str | None:
        if service in self._holds:
            return self._holds[service].reason
        gone = len(self._gone[service])
        before = len(catalog.services[service].entries) - len(self._held.get(service, ())) - lost + gone
        if before < self._limits.service_minimum or gone <= self._limits.service_share * before:
            return None
        return f"{gone} of {before} instances of {service} were lost within {self._limits.window_s:g} s"

    def _too_many_of_all(self, lost: int, catalog: Catalog) -> str | None:
        if not lost:
            return None
        if EVERYTHING in self._holds:
            return self._holds[EVERYTHING].reason
        if self._gone_count < self._limits.total_minimum:
            return None
        before = catalog.size - self._held_count - lost + self._gone_count
        if self._gone_count <= self._limits.total_share * before:
            return None
        return f"{self._gone_count} of all {before} instances were lost within {self._limits.window_s:g} s"

    def _hold(self, hold_id: str, services: Iterable[ServiceName], catalog: Catalog) -> tuple[list[Event], Notice]:
        """Put everything that these services lost lately into a hold, and back into the catalog what had gone."""
        hold = self._holds[hold_id]
        events: list[Event] = []
        keys: list[InstanceKey] = []
        for service in services:
            for key, gone in self._gone.pop(service, {}).items():
                self._gone_count -= 1
                hold.keys[key] = gone.reason
                self._held.setdefault(service, {})[key] = hold_id
                self._held_count += 1
                keys.append(key)
                if catalog.entry(key) is None:
                    entry = gone.entry
                    events.append(
                        PutInstance(
                            instance=entry.instance,
                            registry=entry.registry,
                            verdict=entry.verdict,
                            stated=entry.stated,
                        )
                    )
        keys.sort()
        events.append(Held(keys=tuple(keys), hold=hold_id))
        return events, Notice(id=hold_id, reason=hold.reason, instances=len(hold.keys), keys=tuple(keys))

    def _note(self, key: InstanceKey, gone: _Gone) -> None:
        self._forget(key)
        self._gone.setdefault(key.service, {})[key] = gone
        self._gone_count += 1
        self._order.append((gone.at, key))

    def _forget(self, key: InstanceKey) -> None:
        gone = self._gone.get(key.service)
        if gone is None or gone.pop(key, None) is None:
            return
        self._gone_count -= 1
        if not gone:
            del self._gone[key.service]

    def _forget_before(self, time: float) -> None:
        while self._order and self._order[0][0] < time:
            _, key = self._order.popleft()
            gone = self._gone.get(key.service, {}).get(key)
            if gone is not None and gone.at < time:
                self._forget(key)


def _deleted(key: InstanceKey, registry: str, reason: str) -> DeleteInstance:
    return DeleteInstance(key=key, registry=registry, reason=reason)
