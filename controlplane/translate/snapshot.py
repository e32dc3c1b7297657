"""All resources of a set of planned clusters together: what Envoys are to be told, as one Snapshot.

The publisher and `render` both come through here; the publisher keeps the spellers, whose memory of the last time
is what makes the next one cheap.
"""

from collections.abc import Iterable
from types import MappingProxyType

from controlplane import plan
from controlplane.model import ConsistentHash, HashOn, HealthStatus, Locality, Policy, ServiceName, Strategy
from controlplane.translate import listener
from controlplane.translate.cluster import cluster
from controlplane.translate.endpoint import Assignments
from controlplane.translate.route import GatewayRoutes
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource, ResourceSet, Snapshot


class Spellers:
    """Hold what spells the resources that depend on the services, and remembers their parts."""

    def __init__(self) -> None:
        self.assignments = Assignments()
        self.routes = GatewayRoutes()

    def snapshot(self, planned: Iterable[plan.Cluster], *, gateway: Resource, revision: str = "") -> Snapshot:
        """Spell everything, and forget the services that are not planned any more.

        `gateway` is the listener, spelled once for each address that a group of nodes is given.
        """
        by_name = {each.name: each for each in sorted(planned, key=lambda each: each.name)}
        self.assignments.keep_only(by_name)
        clusters = ResourceSet(cluster(each) for each in by_name.values())
        assignments = ResourceSet(
            self.assignments.assignment(each, clusters[each.name].version) for each in by_name.values()
        )
        by_type = {
            CLUSTER: clusters,
            ENDPOINT: assignments,
            LISTENER: ResourceSet([gateway]),
            ROUTE: ResourceSet([self.routes.resource(by_name.values())]),
        }
        return Snapshot(MappingProxyType(by_type), revision)


def warm_up() -> None:
    """Spell one of everything: the first use of each message class costs milliseconds, 300 of them in all."""
    endpoint = plan.Endpoint(
        id="one", address="127.0.0.1", port=1, weight=1, status=HealthStatus.HEALTHY, metadata={"a": 1, "b": "c"}
    )
    group = plan.LocalityEndpoints(locality=Locality(region="a"), weight=1, endpoints=(endpoint,))
    hashes = (
        ConsistentHash(),
        ConsistentHash(algorithm="maglev"),
        *(ConsistentHash(hash_on=HashOn(source=source, name="a")) for source in ("header", "query", "cookie")),
        ConsistentHash(hash_on=HashOn(source="cookie", name="a", ttl=0.0)),
    )
    policies = (
        *(Policy(strategy=strategy) for strategy in Strategy),
        *(Policy(strategy=Strategy.CONSISTENT_HASH, consistent_hash=each) for each in hashes),
    )
    clusters = (
        plan.Cluster(name=ServiceName(f"s{number}"), policy=policy, localities=(group,), decisions=())
        for number, policy in enumerate(policies)
    )
    Spellers().snapshot(clusters, gateway=listener.gateway("127.0.0.1", 1))
