"""What is refused before it is published, in which words."""

from dataclasses import replace
from typing import Any

import pytest

from controlplane import plan
from controlplane.model import HealthStatus, Locality, ServiceName
from controlplane.policy import ConsistentHash, HashOn, Policy, Strategy
from controlplane.translate.lint import grpc_problems, problems

pytestmark = pytest.mark.unit


def endpoint(id: str = "a", **changes: Any) -> plan.Endpoint:
    values = {"id": id, "address": "10.0.0.1", "port": 80, "weight": 1, "status": HealthStatus.HEALTHY, **changes}
    return plan.Endpoint(**values)


def group(*endpoints: plan.Endpoint, zone: str = "", weight: int | None = None) -> plan.LocalityEndpoints:
    total = sum(each.weight for each in endpoints) if weight is None else weight
    return plan.LocalityEndpoints(locality=Locality(zone=zone), weight=total, endpoints=endpoints)


def service(*groups: plan.LocalityEndpoints, name: str = "web", policy: Policy | None = None) -> plan.Cluster:
    return plan.Cluster(name=ServiceName(name), policy=policy or Policy(), localities=groups, decisions=())


def unchecked(value: Any, **fields: Any) -> Any:
    """Give a value fields that its class would refuse, as a faulty adapter might."""
    broken = replace(value)
    for name, field in fields.items():
        object.__setattr__(broken, name, field)
    return broken


def hashing(options: ConsistentHash) -> plan.Cluster:
    return service(policy=unchecked(Policy(strategy=Strategy.CONSISTENT_HASH), consistent_hash=options))


@pytest.mark.parametrize(
    "planned",
    [
        pytest.param(service(), id="a service without instances"),
        pytest.param(service(group(endpoint()), group(endpoint("b", port=81), zone="z")), id="two localities"),
        pytest.param(
            service(group(endpoint(weight=2**31), endpoint("b", port=81, weight=2**31 - 1))),
            id="weights that sum up to the very limit",
        ),
        pytest.param(hashing(ConsistentHash(algorithm="maglev")), id="maglev with its default table"),
        pytest.param(service(name="w" * 253), id="the longest name"),
    ],
)
def test_nothing_is_wrong_with(planned: plan.Cluster) -> None:
    assert problems(planned) == []


@pytest.mark.parametrize(
    ("planned", "words"),
    [
        pytest.param(service(name=""), "name ''", id="no name"),
        pytest.param(service(name="xds_cluster"), "bootstrap's own clusters", id="a bootstrap cluster's name"),
        pytest.param(service(name="w" * 254), "must be a lower-case DNS name", id="a name too long"),
        pytest.param(service(policy=unchecked(Policy(), connect_timeout=0.0)), "must be more than 0 s", id="no time"),
        pytest.param(service(policy=unchecked(Policy(), timeout=-1.0)), "must not be negative", id="less than no time"),
        pytest.param(service(policy=unchecked(Policy(), panic_threshold=101.0)), "a percentage", id="101 percent"),
        pytest.param(
            hashing(unchecked(ConsistentHash(), minimum_ring_size=8_388_609)), "must be 1 to 8388608", id="a huge ring"
        ),
        pytest.param(
            hashing(unchecked(ConsistentHash(algorithm="maglev"), table_size=65_536)),
            "must be a prime number",
            id="a table size that is no prime",
        ),
        pytest.param(
            hashing(unchecked(ConsistentHash(algorithm="maglev"), table_size=5_000_077)),
            "at most 5000011",
            id="a huge table",
        ),
        pytest.param(
            hashing(unchecked(ConsistentHash(), hash_on=unchecked(HashOn(), source="cookie"))),
            "needs its name",
            id="no cookie name",
        ),
        pytest.param(
            hashing(unchecked(ConsistentHash(), hash_on=unchecked(HashOn(), source="header", name="a b"))),
            "'a b' is not the name of a header",
            id="a header name with a space",
        ),
        pytest.param(
            hashing(unchecked(ConsistentHash(), hash_on=unchecked(HashOn(), source="cookie", name="a\r\nX: y"))),
            "is not the name of a cookie",
            id="a cookie name that would write headers",
        ),
        pytest.param(
            hashing(unchecked(ConsistentHash(), hash_on=unchecked(HashOn(source="cookie", name="s"), ttl=-1.0))),
            "it must not be negative",
            id="a cookie from the past",
        ),
        pytest.param(service(group(weight=1)), "locality -/-/- is empty", id="a locality without endpoints"),
        pytest.param(
            service(group(endpoint(), zone="z"), group(endpoint("b", port=81), zone="z")),
            "locality -/z/- appears 2 times (C-04)",
            id="a locality twice",
        ),
        pytest.param(
            service(group(endpoint(weight=2**31), endpoint("b", port=81, weight=2**31), weight=1)),
            "sum up to 4294967296",
            id="weights whose sum Envoy cannot hold",
        ),
        pytest.param(
            service(group(endpoint(weight=2**31), zone="a"), group(endpoint("b", port=81, weight=2**31), zone="b")),
            "the localities' weights sum up to 4294967296",
            id="localities whose sum Envoy cannot hold",
        ),
        pytest.param(service(group(endpoint(), weight=0)), "weight 0, must be 1", id="a locality of no weight"),
        pytest.param(
            service(group(endpoint("a"), zone="a"), group(endpoint("b"), zone="b")),
            "instance b: 10.0.0.1:80 is instance a's (C-04)",
            id="an address twice, in two localities",
        ),
        pytest.param(service(group(endpoint(address="web.local"))), "is not an IP address", id="a DNS name"),
        pytest.param(service(group(endpoint(address="fe80::1%eth0"))), "is not an IP address", id="an IPv6 zone"),
        pytest.param(service(group(endpoint(port=0))), "port 0, must be 1 to 65535", id="no port"),
        pytest.param(service(group(endpoint(weight=0), weight=1)), "weight 0", id="an endpoint of no weight"),
        pytest.param(
            service(group(endpoint(status=HealthStatus.UNKNOWN))), "status unknown", id="an endpoint of unknown health"
        ),
    ],
)
def test_is_refused(planned: plan.Cluster, words: str) -> None:
    (problem,) = problems(planned)
    assert words in problem


def test_all_problems_are_told_at_once() -> None:
    faulty = service(group(endpoint(port=0), endpoint("b", address="x")), name="Web")
    assert len(problems(faulty)) == 3


@pytest.mark.parametrize(
    ("planned", "words"),
    [
        pytest.param(
            service(group(endpoint(), endpoint("b", port=81, weight=2))),
            "locality -/-/- mixes weights, and gRPC would ignore them; one locality for each (C-02)",
            id="a locality with two weights",
        ),
        pytest.param(
            service(group(endpoint(weight=3), weight=1)),
            "locality -/-/-: weight 1; it must be 3, its instances' (C-02)",
            id="a locality that weighs something else",
        ),
        pytest.param(
            service(group(endpoint(status=HealthStatus.DEGRADED))),
            "instance a: status degraded, which gRPC ignores; leave it out (C-05)",
            id="an instance that is not healthy",
        ),
        pytest.param(
            service(group(endpoint()), group(endpoint("b", port=81))),
            "locality -/-/- appears 2 times (C-04)",
            id="what Envoys may not be told either",
        ),
    ],
)
def test_grpc_clients_may_not_be_told(planned: plan.Cluster, words: str) -> None:
    assert grpc_problems(planned) == [words]


def test_grpc_clients_may_be_told_of_one_locality_with_many_weights_where_they_hash() -> None:
    ring = service(
        group(endpoint(), endpoint("b", port=81, weight=2)), policy=Policy(strategy=Strategy.CONSISTENT_HASH)
    )
    assert grpc_problems(ring) == []
