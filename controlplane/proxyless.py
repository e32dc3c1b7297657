"""What gRPC clients without a proxy should know of a service: the plan in the only form that they follow.

Pure, and between plan and translate, as `routing` is. A gRPC client uses healthy endpoints alone, knows no panic
threshold and no overprovisioning (which it says of itself: `envoy.lb.does_not_support_overprovisioning`, N-05), and
its round robin ignores the weights of endpoints. So it is decided here which instances serve, by the rules that
Envoy would apply, and weights are expressed by localities (gRFC A27, A42; contract, section 3).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import blake2b

from controlplane.model import HealthStatus, Locality
from controlplane.plan import Cluster, Decision, Endpoint, LocalityEndpoints
from controlplane.policy import ConsistentHash, HashOn, Strategy

_OVERPROVISIONING = 1.4
"""Envoy takes degraded hosts in where fewer than 1/1.4 of all are healthy (its default overprovisioning factor)."""

_SOURCES_OF_HASHES = ("header", "source_address")


def proxyless(planned: Cluster) -> Cluster:
    """Decide what gRPC clients are told of a service: who serves, in localities of one weight each."""
    statuses = Counter(endpoint.status for group in planned.localities for endpoint in group.endpoints)
    serving, why = _serving(statuses, planned.policy.panic_threshold)
    if planned.policy.strategy is Strategy.CONSISTENT_HASH:
        localities = _as_one(planned.localities, serving)
    else:
        localities = _by_weight(planned.localities, serving)
    decisions = planned.decisions
    if not statuses.keys() <= serving:
        decisions = tuple(each if each.status in serving else _left_out(each, why) for each in decisions)
    return replace(planned, localities=localities, decisions=decisions)


def hash_on(planned: Cluster) -> HashOn | None:
    """Say what a client hashes on; None where its ring is entered at random.

    The source address of a client is the client, which gRPC spells as its channel. It reads no cookies and no query
    parameters, and no headers whose names end in `-bin` (gRFC A42): such a policy would be ignored.
    """
    if planned.policy.strategy is not Strategy.CONSISTENT_HASH:
        return None
    wanted = (planned.policy.consistent_hash or ConsistentHash()).hash_on
    return wanted if wanted.source in _SOURCES_OF_HASHES and not wanted.name.endswith("-bin") else None


def _serving(statuses: Mapping[HealthStatus, int], panic_threshold: float) -> tuple[frozenset[HealthStatus], str]:
    """Return the statuses that take part, and why the others do not; as Envoy decides it at every request."""
    every = sum(statuses.values())
    healthy, degraded = statuses.get(HealthStatus.HEALTHY, 0), statuses.get(HealthStatus.DEGRADED, 0)
    if 100 * (healthy + degraded) < panic_threshold * every:
        return frozenset(HealthStatus), ""
    if healthy * _OVERPROVISIONING >= every:
        return frozenset((HealthStatus.HEALTHY,)), "gRPC clients use healthy instances only, and there are enough"
    return frozenset((HealthStatus.HEALTHY, HealthStatus.DEGRADED)), "gRPC clients use no unhealthy instances"


def _left_out(decision: Decision, why: str) -> Decision:
    if not decision.offered:
        return decision
    reasons = (*decision.reasons, f"left out: {why}")
    return replace(decision, offered=False, weight=0, reasons=reasons)


def _as_one(groups: Iterable[LocalityEndpoints], serving: frozenset[HealthStatus]) -> tuple[LocalityEndpoints, ...]:
    """Put all into one locality: gRPC's ring multiplies the weights of an endpoint and its locality (gRFC A42)."""
    return _localities({Locality(): [each for group in groups for each in _offered(group, serving)]})


def _by_weight(groups: Iterable[LocalityEndpoints], serving: frozenset[HealthStatus]) -> tuple[LocalityEndpoints, ...]:
    """Split each locality by its instances' weights; real places with equal weights stay apart (C-04).

    The weight is always in the name, so that an instance of another weight renames nobody's locality: clients keep
    a balancer for each name.
    """
    by_place: dict[Locality, list[Endpoint]] = {}
    for group in groups:
        by_weight: dict[int, list[Endpoint]] = defaultdict(list)
        for endpoint in _offered(group, serving):
            by_weight[endpoint.weight].append(endpoint)
        for weight, endpoints in by_weight.items():
            by_place[replace(group.locality, sub_zone=_with_weight(group.locality.sub_zone, weight))] = endpoints
    return _localities(by_place)


def _offered(group: LocalityEndpoints, serving: frozenset[HealthStatus]) -> list[Endpoint]:
    """List what serves, as healthy: gRPC would drop it otherwise (C-05)."""
    return [
        each if each.status is HealthStatus.HEALTHY else replace(each, status=HealthStatus.HEALTHY)
        for each in group.endpoints
        if each.status in serving
    ]


def _with_weight(sub_zone: str, weight: int) -> str:
    # Names are at most 253 characters long: of one that leaves no room, its hash.
    short = sub_zone if len(sub_zone) <= 240 else blake2b(sub_zone.encode(), digest_size=16).hexdigest()
    return f"{short}#{weight}"


def _localities(by_place: dict[Locality, list[Endpoint]]) -> tuple[LocalityEndpoints, ...]:
    """Make localities of what is in them, sorted; none for no endpoints, which gRPC would have to skip."""
    return tuple(
        LocalityEndpoints(
            locality=place, weight=sum(endpoint.weight for endpoint in endpoints), endpoints=tuple(endpoints)
        )
        for place, endpoints in sorted(by_place.items(), key=lambda item: _key(item[0]))
        if endpoints
    )


def _key(place: Locality) -> tuple[str, str, str]:
    return place.region, place.zone, place.sub_zone
