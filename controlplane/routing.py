"""Where the gateway sends requests: a planned cluster as an intermediate form that translate spells for Envoy.

Pure. Every service is reached by its own host name, and under a path of its name at any other host
(contract, section 4).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controlplane import plan
from controlplane.model import ServiceName
from controlplane.policy import ConsistentHash, HashOn, Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Hold one route: requests whose path begins with `prefix` go to `cluster`, with the prefix put as `rewrite`.

    `timeout_s` bounds a whole request, 0 = not at all. `hash_on` is what a consistent hash is computed from.
    """

    prefix: str
    cluster: str
    rewrite: str = ""
    timeout_s: float
    hash_on: HashOn | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRoutes:
    """Hold how one service is reached: `by_host` under its own `domains`, `by_path` under every other host.

    `by_path` has a route for its name and one for each of its aliases.
    """

    service: ServiceName
    domains: tuple[str, ...]
    by_host: Route
    by_path: tuple[Route, ...]


def free_aliases(planned: Iterable[plan.Cluster]) -> Mapping[ServiceName, tuple[ServiceName, ...]]:
    """Decide which of their aliases services are reached by.

    Not by one that is another service's name, or an earlier one's alias: Envoy refuses all routes where two virtual
    hosts have the same domain.
    """
    clusters = sorted(planned, key=lambda cluster: cluster.name)
    taken = {cluster.name for cluster in clusters}
    free: dict[ServiceName, tuple[ServiceName, ...]] = {}
    for cluster in clusters:
        if aliases := tuple(alias for alias in cluster.aliases if alias not in taken):
            free[cluster.name] = aliases
            taken.update(aliases)
    return free


def service_routes(planned: plan.Cluster, aliases: tuple[ServiceName, ...] = ()) -> ServiceRoutes:
    """Decide how a service is reached, by its own name and by these aliases.

    No prefix of one service begins with another's, as names hold no `/`: their order does not matter.
    """
    name, policy = planned.name, planned.policy
    hash_on = None
    if policy.strategy is Strategy.CONSISTENT_HASH:
        hash_on = (policy.consistent_hash or ConsistentHash()).hash_on
    return ServiceRoutes(
        service=name,
        domains=tuple(domain for each in (name, *aliases) for domain in (each, f"{each}:*")),
        by_host=Route(prefix="/", cluster=name, timeout_s=policy.timeout, hash_on=hash_on),
        by_path=tuple(
            Route(prefix=f"/{each}/", cluster=name, rewrite="/", timeout_s=policy.timeout, hash_on=hash_on)
            for each in (name, *aliases)
        ),
    )
