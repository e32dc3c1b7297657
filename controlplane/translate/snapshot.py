"""All resources of a set of planned clusters together: what Envoys are to be told, as one Snapshot.

Spelled from nothing, for `render`, tests and comparisons. The publisher keeps an `Assignments` and a
`GatewayRoutes` of its own and changes its sets piece by piece; both arrive at the same bytes.
"""

from collections.abc import Iterable
from types import MappingProxyType

from controlplane import plan
from controlplane.model import HealthStatus, Locality, ServiceName
from controlplane.policy import ConsistentHash, HashOn, Policy, Strategy
from controlplane.translate import grpc, listener
from controlplane.translate.cluster import cluster
from controlplane.translate.endpoint import Assignments
from controlplane.translate.names import ADS, Source
from controlplane.translate.route import GatewayRoutes
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource, ResourceSet, Snapshot


def snapshot(
    planned: Iterable[plan.Cluster], *, gateway: Resource, revision: str = "", source: Source = ADS
) -> Snapshot:
    """Spell everything that Envoys are told; `gateway` is the listener of their group, `source` as it says."""
    by_name = {each.name: each for each in sorted(planned, key=lambda each: each.name)}
    assignments = Assignments()
    clusters = ResourceSet(cluster(each, source) for each in by_name.values())
    by_type = {
        CLUSTER: clusters,
        ENDPOINT: ResourceSet(assignments.assignment(each, clusters[each.name].version) for each in by_name.values()),
        LISTENER: ResourceSet([gateway]),
        ROUTE: ResourceSet([GatewayRoutes().resource(by_name.values())]),
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
    clusters = tuple(
        plan.Cluster(name=ServiceName(f"s{number}"), policy=policy, localities=(group,), decisions=())
        for number, policy in enumerate(policies)
    )
    snapshot(clusters, gateway=listener.gateway("127.0.0.1", 1))
    for each in clusters:
        grpc.listener(each.name), grpc.routes(each), grpc.cluster(each)
