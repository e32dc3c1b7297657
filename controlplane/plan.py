"""What proxies should know of a service: which instances, with which weight and status, and why.

Pure: `(Service, catalog) -> Cluster`, the intermediate form that translate spells as Envoy messages. Every
instance leaves a `Decision` with the reason of each step, offered or not, so that it can be explained (law 13).
No Envoy type, no clock, no I/O.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from controlplane.catalog import Catalog, Entry, Service
from controlplane.model import HealthStatus, Locality, MetadataValue, ServiceName
from controlplane.policy import Policy, Strategy

_EQUAL_WEIGHTS = {Strategy.ROUND_ROBIN, Strategy.RANDOM}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Hold one offered instance: `address` is an IP address, `weight` the effective one (≥ 1)."""

    id: str
    address: str
    port: int
    weight: int
    status: HealthStatus
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalityEndpoints:
    """Hold the endpoints of one locality, by id. `weight` is the sum of theirs."""

    locality: Locality
    weight: int
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Say what became of an instance and why: one reason a step, in the order in which they were taken."""

    instance_id: str
    offered: bool
    status: HealthStatus
    weight: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Hold what proxies are to know of a service. Localities are sorted, so equal inputs give equal bytes.

    `aliases` are names by which its routes are reached besides its own.
    """

    name: ServiceName
    policy: Policy
    localities: tuple[LocalityEndpoints, ...]
    decisions: tuple[Decision, ...]
    aliases: tuple[ServiceName, ...] = ()


@dataclass(frozen=True, slots=True)
class _Decided:
    """Hold what became of an entry, and all that it was decided by."""

    entry: Entry
    address: str | None
    endpoint: Endpoint | None
    decision: Decision


class Planner:
    """Plan services again and again, deciding anew only about entries that have changed.

    One change among ten thousand instances then costs a look at each and not a decision. What is remembered
    never shows: a fresh planner says the same.
    """

    def __init__(self) -> None:
        self._decided: dict[ServiceName, tuple[Strategy, dict[str, _Decided]]] = {}

    def plan(self, service: Service, catalog: Catalog) -> Cluster:
        """Decide what proxies are told of `service`."""
        strategy = service.policy.strategy
        old_strategy, known = self._decided.get(service.name, (strategy, {}))
        if old_strategy is not strategy:
            known = {}
        decided: dict[str, _Decided] = {}
        by_locality: dict[Locality, list[Endpoint]] = {}
        owners: dict[tuple[str, int], str] = {}
        for entry in _by_precedence(service, catalog):
            address = catalog.address_of(entry.instance)
            where = (address or "", entry.instance.port)
            one = known.get(entry.instance.id)
            # One that was left out is decided anew: another's going may have freed its address.
            if (
                one is None
                or one.entry is not entry
                or one.address != address
                or one.endpoint is None
                or where in owners
            ):
                one = _Decided(entry, address, *_decide(entry, strategy, address, owners))
            decided[entry.instance.id] = one
            if one.endpoint is not None:
                owners[where] = one.endpoint.id
                by_locality.setdefault(entry.instance.locality, []).append(one.endpoint)
        if len(catalog.ranking) > 1:  # what is shown is in the order of ids, whoever came first
            decided = dict(sorted(decided.items()))
            for endpoints in by_locality.values():
                endpoints.sort(key=lambda endpoint: endpoint.id)
        self._decided[service.name] = strategy, decided
        return Cluster(
            name=service.name,
            policy=service.policy,
            localities=tuple(
                LocalityEndpoints(
                    locality=locality,
                    weight=sum(endpoint.weight for endpoint in endpoints),
                    endpoints=tuple(endpoints),
                )
                for locality, endpoints in sorted(by_locality.items(), key=_place)
            ),
            decisions=tuple(one.decision for one in decided.values()),
            aliases=service.aliases,
        )

    def forget(self, services: Iterable[ServiceName]) -> None:
        """Drop what is remembered of services that have no cluster any more."""
        for service in services:
            self._decided.pop(service, None)


def plan(service: Service, catalog: Catalog) -> Cluster:
    """Decide what proxies are told of `service`, remembering nothing."""
    return Planner().plan(service, catalog)


def _by_precedence(service: Service, catalog: Catalog) -> list[Entry]:
    """Return the entries in the order in which they claim addresses: first registry, lowest id."""
    entries = service.sorted_entries()
    if len(catalog.ranking) > 1:
        rank = {name: at for at, name in enumerate(catalog.ranking)}
        entries.sort(key=lambda entry: rank.get(entry.registry, len(rank)))
    return entries


def _place(group: tuple[Locality, list[Endpoint]]) -> tuple[str, str, str]:
    locality, _ = group
    return locality.region, locality.zone, locality.sub_zone


def _decide(
    entry: Entry, strategy: Strategy, address: str | None, owners: Mapping[tuple[str, int], str]
) -> tuple[Endpoint | None, Decision]:
    instance = entry.instance
    status = entry.status
    why = (_status_reason(entry), *((_held_reason(entry),) if entry.held else ()))

    def left_out(reason: str) -> tuple[None, Decision]:
        return None, Decision(instance_id=instance.id, offered=False, status=status, weight=0, reasons=(*why, reason))

    if entry.checked and (entry.verdict is None or not entry.verdict.passed):
        return left_out("left out: awaiting first check to pass")
    if address is None:
        return left_out(f"left out: {instance.host} has not been resolved")
    if (owner := owners.get((address, instance.port))) is not None:
        return left_out(f"left out: {address}:{instance.port} is already offered as {owner}")
    weight, why_weight = effective_weight(entry, strategy)
    endpoint = Endpoint(
        id=instance.id,
        address=address,
        port=instance.port,
        weight=weight,
        status=status,
        tags=tuple(sorted(instance.tags)),
        metadata=instance.metadata,
    )
    return endpoint, Decision(
        instance_id=instance.id, offered=True, status=status, weight=weight, reasons=(*why, why_weight)
    )


def effective_weight(entry: Entry, strategy: Strategy) -> tuple[int, str]:
    """Return the weight that a strategy gives an instance, and the reason."""
    if strategy in _EQUAL_WEIGHTS:
        return 1, f"weight 1: {strategy} treats all alike"
    if strategy is Strategy.HEALTH_BASED:
        return max(1, entry.score), f"weight {max(1, entry.score)}: the health score"
    return entry.instance.weight, f"weight {entry.instance.weight}: as registered"


def _held_reason(entry: Entry) -> str:
    return (
        f"held: {entry.registry} has lost it, one of too many at once to be believed; it stays until it returns, or "
        f"the mass-loss guard's hold {entry.held} ends"
    )


def _status_reason(entry: Entry) -> str:
    if entry.instance.draining:
        return "draining: asked for"
    if entry.stated is not None and entry.stated.status is not HealthStatus.HEALTHY:
        return f"{entry.stated.status}: {entry.registry} says {entry.stated.reason or entry.stated.status}"
    if not entry.checked:
        return "healthy: no check"
    if entry.verdict is None:
        return "unknown: no verdict yet"
    return f"{entry.verdict.status}: {entry.verdict.reason}"
