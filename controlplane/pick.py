"""One instance for a caller who has no proxy: the service's strategy, applied here.

Only instances that can serve are chosen from: those with an address, of them the healthy, or where there is none the
degraded. What past picks leave behind (whose turn it is, how much each was handed out) is kept by instance id, so
that it outlives changes of the catalog. It belongs to this process; only `consistent_hash` agrees between replicas.
Not how proxies choose: they get weights and statuses by xDS and do it themselves.
"""

import heapq
import math
import random as random_module
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import assert_never

from controlplane.catalog import Entry, Service
from controlplane.model import HealthStatus, InstanceId, ServiceName
from controlplane.plan import effective_weight
from controlplane.policy import Strategy

HAND_OUT_LIFE_S = 10.0
"""How long a hand-out counts as a connection: at this age it weighs 1/e of a fresh one."""

FORGET_S = 3_600.0
"""How long a service is remembered that nobody asks for."""

_SWEEP_S = 60.0
_LARGEST_EXPONENT = 200.0
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """Hold the chosen instance, the strategy that was used, and why this one, for a person."""

    entry: Entry
    strategy: Strategy
    reason: str


class Picker:
    """Choose instances. `random` is the source of chance, `clock` in seconds of any origin."""

    def __init__(self, *, random: random_module.Random, clock: Callable[[], float]) -> None:
        self._random = random
        self._clock = clock
        self._memories: dict[ServiceName, _Memory] = {}
        self._sweep_at = clock() + _SWEEP_S

    def pick(
        self,
        service: Service,
        *,
        offered: Callable[[Entry], bool],
        strategy: Strategy | None = None,
        key: str | None = None,
        client: str = "",
    ) -> Pick | None:
        """Return one instance of `service` by `strategy` (None = the service's own); None where none can serve.

        `offered` tells who may be chosen at all: whoever has an address. It is asked once for each state of the
        service, which is enough, because a name that comes to stand for something else is a new state of it.
        `key` is what a consistent hash is computed from; where absent, `client` is, the caller's address.
        """
        now = self._clock()
        memory = self._remember(service, offered, now)
        if not memory.candidates:
            return None
        strategy = strategy or service.policy.strategy
        match strategy:
            case Strategy.ROUND_ROBIN:
                index, why = memory.next_id(), "next in the order of ids"
            case Strategy.WEIGHTED_ROUND_ROBIN | Strategy.HEALTH_BASED:
                index, why = memory.next_turn(strategy)
            case Strategy.RANDOM:
                index, why = self._random.randrange(len(memory.candidates)), "by chance, all alike"
            case Strategy.LEAST_CONNECTIONS:
                index, why = memory.least_handed_out(now), _LEAST
            case Strategy.CONSISTENT_HASH:
                index, why = memory.by_hash(key, client)
            case _:
                assert_never(strategy)
        return Pick(entry=memory.candidates[index], strategy=strategy, reason=why + memory.note)

    def _remember(self, service: Service, offered: Callable[[Entry], bool], now: float) -> "_Memory":
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_S
            for name in [name for name, each in self._memories.items() if each.used_at <= now - FORGET_S]:
                del self._memories[name]
        memory = self._memories.get(service.name)
        if memory is None:
            memory = _Memory(service, offered)
            self._memories[service.name] = memory
        elif memory.service is not service:
            memory.renew(service, offered)
        if not service.entries:
            del self._memories[service.name]
        memory.used_at = now
        return memory


_LEAST = (
    f"fewest hand-outs for its weight, each counting for about {HAND_OUT_LIFE_S:g} s; "
    "connections themselves are not known here, because no proxy reports them"
)


class _Memory:
    """Hold who can serve of one service, by id, and what past picks left behind.

    A Service is immutable, so all that is derived from it stands until another object takes its place. A change of
    what a host's name stands for replaces it too.
    """

    def __init__(self, service: Service, offered: Callable[[Entry], bool]) -> None:
        self.used_at = 0.0
        self._last_id = ""
        self._turns: dict[Strategy, _Turns] = {}
        self._hand_outs: _HandOuts | None = None
        self.renew(service, offered)

    def renew(self, service: Service, offered: Callable[[Entry], bool]) -> None:
        """Derive the candidates from a new state of the service."""
        passing = [entry for entry in service.sorted_entries() if _has_passed(entry) and offered(entry)]
        candidates = [entry for entry in passing if entry.status is HealthStatus.HEALTHY]
        self.note = ""
        if not candidates:
            candidates = [entry for entry in passing if entry.status is HealthStatus.DEGRADED]
            self.note = "; no instance is healthy, so a degraded one serves"
        self.service = service
        self.candidates = candidates
        self.ids = [InstanceId(entry.instance.id) for entry in candidates]
        self._seeds: list[int] = []

    def next_id(self) -> int:
        """Return whose turn it is: the first id behind the last one, which need not exist any more."""
        index = bisect_right(self.ids, self._last_id) % len(self.ids)
        self._last_id = self.ids[index]
        return index

    def next_turn(self, strategy: Strategy) -> tuple[int, str]:
        """Return whose turn it is where turns follow weights."""
        turns = self._turns.setdefault(strategy, _Turns())
        if turns.service is not self.service:
            weights = [effective_weight(entry, strategy)[0] for entry in self.candidates]
            turns.fit(self.service, self.ids, weights)
        index = turns.next()
        what = "health score" if strategy is Strategy.HEALTH_BASED else "weight"
        return index, f"its turn: {what} {turns.weights[index]} of {turns.total} in all"

    def least_handed_out(self, now: float) -> int:
        """Return who was handed out least for its weight, lately."""
        if self._hand_outs is None:
            self._hand_outs = _HandOuts(now)
        if self._hand_outs.service is not self.service:
            weights = [entry.instance.weight for entry in self.candidates]
            self._hand_outs.fit(self.service, self.ids, weights)
        return self._hand_outs.next(now)

    def by_hash(self, key: str | None, client: str) -> tuple[int, str]:
        """Return who has a key by weighted rendezvous hashing: each scores it by its own hash, the best one wins.

        Whoever comes takes keys from all in proportion to its weight, whoever goes leaves its own to all: no
        other key moves. Depends on ids, weights and the key only, so replicas agree.
        """
        if key is not None:
            value, why = key, "by the hash of the key"
        elif client:
            value, why = client, "by the hash of the caller's address, for no key was given"
        else:
            value, why = "", "by hash, but neither a key nor the caller's address is known: always the same one"
        if not self._seeds:
            self._seeds = [_digest(each) for each in self.ids]
        hashed = _digest(value)
        best, least = 0, math.inf
        for index, seed in enumerate(self._seeds):
            cost = -math.log(_mix(hashed ^ seed)) / self.candidates[index].instance.weight
            if cost < least:
                best, least = index, cost
        return best, why


class _Turns:
    """Give turns in proportion to weights, spread evenly: who has weight w is due every 1/w of virtual time.

    In each unit of virtual time everyone has exactly as many turns as its weight says, and nobody has them in
    one go. O(log n) a turn. Newcomers begin where the others are, so they are not flooded.
    """

    def __init__(self) -> None:
        self.service: Service | None = None
        self.weights: list[int] = []
        self.total = 0
        self._now = 0.0
        self._due: dict[InstanceId, tuple[float, int]] = {}
        self._ids: list[InstanceId] = []
        self._heap: list[tuple[float, int]] = []

    def fit(self, service: Service, ids: list[InstanceId], weights: list[int]) -> None:
        """Fit the turns to a new state of the service; what is left of a wait shrinks or grows with the weight."""
        for each in self._due.keys() - service.entries.keys():
            del self._due[each]
        for each, weight in zip(ids, weights, strict=True):
            due, old_weight = self._due.get(each, (self._now + 0.5 / weight, weight))
            self._due[each] = (self._now + max(0.0, due - self._now) * old_weight / weight, weight)
        self.service = service
        self.weights = weights
        self.total = sum(weights)
        self._ids = ids
        self._heap = [(self._due[each][0], index) for index, each in enumerate(ids)]
        heapq.heapify(self._heap)

    def next(self) -> int:
        """Return the index of who is due first."""
        self._now, index = self._heap[0]
        due, weight = self._now + 1 / self.weights[index], self.weights[index]
        heapq.heapreplace(self._heap, (due, index))
        self._due[self._ids[index]] = (due, weight)
        return index


class _HandOuts:
    """Count hand-outs that fade, and find who has the fewest for its weight. O(log n) a hand-out.

    All counts fade alike, so instead of shrinking the old ones each new one counts for more; now and then all are
    brought back to scale. Who comes, or comes back, begins with as many as the least loaded, so it is not flooded.
    """

    def __init__(self, now: float) -> None:
        self.service: Service | None = None
        self._scale_at = now
        self._counts: dict[InstanceId, float] = {}
        self._ids: list[InstanceId] = []
        self._weights: list[int] = []
        self._heap: list[tuple[float, int, int]] = []

    def fit(self, service: Service, ids: list[InstanceId], weights: list[int]) -> None:
        """Fit the counts to a new state of the service."""
        for each in self._counts.keys() - service.entries.keys():
            del self._counts[each]
        stayed = set(self._ids) & self._counts.keys()
        loads = [self._counts[each] / weight for each, weight in zip(ids, weights, strict=True) if each in stayed]
        least = min(loads, default=0.0)
        for each, weight in zip(ids, weights, strict=True):
            self._counts[each] = max(self._counts.get(each, 0.0), 0.0 if each in stayed else least * weight)
        self.service = service
        self._ids = ids
        self._weights = weights
        self._order()

    def next(self, now: float) -> int:
        """Return the index of who has the fewest for its weight, the heavier one of equals; count the hand-out."""
        exponent = (now - self._scale_at) / HAND_OUT_LIFE_S
        if exponent > _LARGEST_EXPONENT:
            faded = math.exp(-exponent)
            self._counts = {each: count * faded for each, count in self._counts.items()}
            self._scale_at, exponent = now, 0.0
            self._order()
        index = self._heap[0][2]
        each, weight = self._ids[index], self._weights[index]
        self._counts[each] += math.exp(exponent)
        heapq.heapreplace(self._heap, (self._counts[each] / weight, -weight, index))
        return index

    def _order(self) -> None:
        self._heap = [
            (self._counts[each] / weight, -weight, index)
            for index, (each, weight) in enumerate(zip(self._ids, self._weights, strict=True))
        ]
        heapq.heapify(self._heap)


def _has_passed(entry: Entry) -> bool:
    return not entry.checked or (entry.verdict is not None and entry.verdict.passed)


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _mix(value: int) -> float:
    """Turn 64 bits into an evenly spread number in (0, 1): the finaliser of SplitMix64."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return (((value ^ (value >> 31)) >> 11) + 0.5) / (1 << 53)
