"""What gRPC clients are told of a service: who serves, and in which localities."""

from typing import Any

import pytest

from controlplane import plan
from controlplane.model import HealthStatus, Locality, ServiceName
from controlplane.policy import ConsistentHash, HashOn, Policy, Strategy
from controlplane.proxyless import hash_on, proxyless
from controlplane.translate.lint import grpc_problems

pytestmark = pytest.mark.unit

HEALTHY, DEGRADED, UNHEALTHY = HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.UNHEALTHY
TIMEOUT, DRAINING = HealthStatus.TIMEOUT, HealthStatus.DRAINING


def endpoint(number: int, *, weight: int = 1, status: HealthStatus = HEALTHY) -> plan.Endpoint:
    return plan.Endpoint(id=f"i{number}", address="10.0.0.1", port=1000 + number, weight=weight, status=status)


def group(*endpoints: plan.Endpoint, **place: str) -> plan.LocalityEndpoints:
    return plan.LocalityEndpoints(
        locality=Locality(**place), weight=sum(each.weight for each in endpoints), endpoints=endpoints
    )


def service(*groups: plan.LocalityEndpoints, **policy: Any) -> plan.Cluster:
    decisions = tuple(
        plan.Decision(instance_id=each.id, offered=True, status=each.status, weight=each.weight, reasons=("known",))
        for one in groups
        for each in one.endpoints
    )
    return plan.Cluster(name=ServiceName("web"), policy=Policy(**policy), localities=groups, decisions=decisions)


def told(planned: plan.Cluster) -> dict[tuple[str, str, str], tuple[int, list[str]]]:
    """List the localities that gRPC clients are told, with their weights and instances; gRPC accepts them."""
    assert grpc_problems(planned) == []
    return {
        (one.locality.region, one.locality.zone, one.locality.sub_zone): (
            one.weight,
            [each.id for each in one.endpoints],
        )
        for one in planned.localities
    }


def test_each_weight_has_a_locality_that_weighs_the_sum_of_its_instances() -> None:
    planned = proxyless(service(group(endpoint(1, weight=3), endpoint(2), endpoint(3, weight=3))))
    assert told(planned) == {("", "", "#1"): (1, ["i2"]), ("", "", "#3"): (6, ["i1", "i3"])}


def test_places_with_equal_weights_stay_apart() -> None:
    planned = proxyless(
        service(group(endpoint(1), zone="a"), group(endpoint(2), zone="a", sub_zone="x"), group(endpoint(3), zone="b"))
    )
    assert told(planned) == {
        ("", "a", "#1"): (1, ["i1"]),
        ("", "a", "x#1"): (1, ["i2"]),
        ("", "b", "#1"): (1, ["i3"]),
    }


def test_a_sub_zone_that_is_called_like_another_with_its_weight_stays_apart() -> None:
    planned = proxyless(service(group(endpoint(1), sub_zone="x"), group(endpoint(2), sub_zone="x#1")))
    assert set(told(planned)) == {("", "", "x#1"), ("", "", "x#1#1")}


def test_the_longest_sub_zones_stay_apart() -> None:
    planned = proxyless(
        service(group(endpoint(1, weight=1000), sub_zone="x" * 253), group(endpoint(2), sub_zone="y" * 253))
    )
    assert len(told(planned)) == 2


def test_a_ring_has_one_locality_in_which_the_instances_weigh() -> None:
    """gRPC multiplies an endpoint's weight with its locality's: two localities would weigh twice."""
    planned = proxyless(
        service(
            group(endpoint(1, weight=3), zone="a"),
            group(endpoint(2, weight=5), zone="b"),
            strategy=Strategy.CONSISTENT_HASH,
        )
    )
    assert told(planned) == {("", "", ""): (8, ["i1", "i2"])}
    assert [each.weight for each in planned.localities[0].endpoints] == [3, 5]


@pytest.mark.parametrize(
    ("statuses", "threshold", "serving"),
    [
        pytest.param([HEALTHY, UNHEALTHY], 50.0, [0], id="the unhealthy are left out"),
        pytest.param([HEALTHY, TIMEOUT, DRAINING], 0.0, [0], id="so are those that time out or drain"),
        pytest.param([HEALTHY, UNHEALTHY, UNHEALTHY], 50.0, [0, 1, 2], id="below the panic threshold all serve"),
        pytest.param([UNHEALTHY], 50.0, [0], id="in a panic the only one serves, whatever it is"),
        pytest.param([UNHEALTHY], 0.0, [], id="without a panic threshold nobody serves"),
        pytest.param([HEALTHY, HEALTHY, HEALTHY, DEGRADED], 50.0, [0, 1, 2], id="enough healthy spare the degraded"),
        pytest.param([HEALTHY, HEALTHY, DEGRADED], 50.0, [0, 1, 2], id="too few healthy are helped by the degraded"),
        pytest.param([DEGRADED, UNHEALTHY], 0.0, [0], id="where none is healthy the degraded serve"),
        pytest.param([], 50.0, [], id="nobody"),
    ],
)
def test_who_serves_is_decided_as_envoy_would(
    statuses: list[HealthStatus], threshold: float, serving: list[int]
) -> None:
    """C-05, N-05: gRPC uses only what is called healthy, and knows neither panic nor overprovisioning."""
    endpoints = [endpoint(number, status=status) for number, status in enumerate(statuses)]
    planned = proxyless(service(*([group(*endpoints)] if endpoints else []), panic_threshold=threshold))

    offered = [each for one in planned.localities for each in one.endpoints]
    assert [each.id for each in offered] == [f"i{number}" for number in serving]
    assert {each.status for each in offered} <= {HEALTHY}
    assert sum(one.weight for one in planned.localities) == len(serving)
    assert grpc_problems(planned) == []


def test_who_is_left_out_is_told_why() -> None:
    planned = proxyless(service(group(endpoint(1), endpoint(2, status=UNHEALTHY))))
    first, second = planned.decisions
    assert first.offered
    assert not second.offered
    assert second.reasons == ("known", "left out: gRPC clients use no unhealthy instances")


@pytest.mark.parametrize(
    ("source", "name", "hashed"),
    [
        ("header", "x-user", True),
        ("header", "x-user-bin", False),
        ("source_address", "", True),
        ("cookie", "c", False),
        ("query", "q", False),
    ],
)
def test_a_ring_is_entered_by_what_grpc_can_read(source: Any, name: str, hashed: bool) -> None:
    wanted = HashOn(source=source, name=name)
    planned = service(strategy=Strategy.CONSISTENT_HASH, consistent_hash=ConsistentHash(hash_on=wanted))
    assert hash_on(planned) == (wanted if hashed else None)


def test_other_strategies_hash_on_nothing() -> None:
    assert hash_on(service()) is None
