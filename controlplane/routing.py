"""Where the gateway sends requests: a planned cluster as an intermediate form that translate spells for Envoy.

Pure. Every service is reached by its own host name, and under a path of its name at any other host
(contract, section 4).
"""

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
    """Hold how one service is reached: `by_host` under its own `domains`, `by_path` under every other host."""

    service: ServiceName
    domains: tuple[str, ...]
    by_host: Route
    by_path: Route


def service_routes(planned: plan.Cluster) -> ServiceRoutes:
    """Decide how a service is reached.

    No prefix of one service begins with another's, as names hold no `/`: their order does not matter.
    """
    name, policy = planned.name, planned.policy
    hash_on = None
    if policy.strategy is Strategy.CONSISTENT_HASH:
        hash_on = (policy.consistent_hash or ConsistentHash()).hash_on
    return ServiceRoutes(
        service=name,
        domains=(name, f"{name}:*"),
        by_host=Route(prefix="/", cluster=name, timeout_s=policy.timeout, hash_on=hash_on),
        by_path=Route(prefix=f"/{name}/", cluster=name, rewrite="/", timeout_s=policy.timeout, hash_on=hash_on),
    )
