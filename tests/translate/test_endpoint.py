"""Load assignments: joined by hand, held byte for byte to envoy-data-plane's own encoding of the same message."""

import time
from dataclasses import replace
from typing import Any

import pytest
from envoy_data_plane.envoy.config.core.v3 import Address, Metadata, SocketAddress
from envoy_data_plane.envoy.config.core.v3 import HealthStatus as EnvoyHealth
from envoy_data_plane.envoy.config.core.v3 import Locality as EnvoyLocality
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.endpoint.v3 import Endpoint as EnvoyEndpoint
from envoy_data_plane.google.protobuf import Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import plan
from controlplane.model import HealthStatus, Locality, ServiceName
from controlplane.policy import Policy
from controlplane.translate.endpoint import Assignments

pytestmark = pytest.mark.unit


def endpoint(number: int = 1, **changes: Any) -> plan.Endpoint:
    values: dict[str, Any] = {
        "id": f"i{number}",
        "address": f"10.0.{number // 256}.{number % 256}",
        "port": 8080,
        "weight": 1,
        "status": HealthStatus.HEALTHY,
        **changes,
    }
    return plan.Endpoint(**values)


def group(*endpoints: plan.Endpoint, locality: Locality | None = None) -> plan.LocalityEndpoints:
    weight = sum(each.weight for each in endpoints)
    return plan.LocalityEndpoints(locality=locality or Locality(), weight=weight, endpoints=endpoints)


def service(*groups: plan.LocalityEndpoints, name: str = "web") -> plan.Cluster:
    return plan.Cluster(name=ServiceName(name), policy=Policy(), localities=groups, decisions=())


def by_the_library(planned: plan.Cluster) -> bytes:
    """Spell the assignment as a message, the slow way."""
    return bytes(
        ClusterLoadAssignment(
            cluster_name=planned.name,
            endpoints=[
                LocalityLbEndpoints(
                    locality=EnvoyLocality(
                        region=each.locality.region, zone=each.locality.zone, sub_zone=each.locality.sub_zone
                    ),
                    lb_endpoints=[_lb_endpoint(one) for one in each.endpoints],
                    load_balancing_weight=each.weight,
                )
                for each in planned.localities
            ],
        )
    )


def _lb_endpoint(one: plan.Endpoint) -> LbEndpoint:
    fields = {**one.metadata, "id": one.id, "tags": list(one.tags)}
    address = SocketAddress(address=one.address, port_value=one.port)
    return LbEndpoint(
        endpoint=EnvoyEndpoint(address=Address(socket_address=address)),
        health_status=EnvoyHealth.from_string(one.status.name),
        metadata=Metadata(filter_metadata={"envoy.lb": Struct.from_dict({key: fields[key] for key in sorted(fields)})}),
        load_balancing_weight=one.weight,
    )


def body(planned: plan.Cluster) -> bytes:
    return Assignments().assignment(planned, "v").body


@pytest.mark.parametrize(
    "planned",
    [
        pytest.param(service(), id="no endpoint at all: only the name"),
        pytest.param(service(group(endpoint())), id="one endpoint without a locality"),
        pytest.param(service(group(endpoint(weight=300, port=1))), id="a weight that takes two bytes"),
        pytest.param(service(group(endpoint(address="2001:db8::1", port=65535))), id="an IPv6 address"),
        pytest.param(service(group(endpoint(tags=("a", "b")))), id="tags"),
        pytest.param(
            service(group(endpoint(metadata={"z": "s", "a": True, "b": False, "n": 7, "f": -1.5, "e": ""}))),
            id="metadata of every kind, in key order",
        ),
        pytest.param(
            service(group(endpoint(metadata={"id": "not mine", "tags": "nor mine"}, tags=("t",)))),
            id="metadata cannot take the place of id and tags",
        ),
        pytest.param(service(group(endpoint(metadata={"k": "v" * 5000}))), id="an endpoint longer than 127 bytes"),
        pytest.param(
            service(
                group(endpoint(1), endpoint(2), locality=Locality(region="eu", zone="eu-1", sub_zone="r1")),
                group(endpoint(3), locality=Locality(region="eu", zone="eu-2")),
                group(endpoint(4), locality=Locality(zone="ünï")),
            ),
            id="several localities, each with the sum of its weights",
        ),
    ],
)
def test_bytes_equal_the_librarys(planned: plan.Cluster) -> None:
    assert body(planned) == by_the_library(planned)


@pytest.mark.parametrize(
    ("status", "spelled"),
    [
        (HealthStatus.HEALTHY, EnvoyHealth.HEALTHY),
        (HealthStatus.DEGRADED, EnvoyHealth.DEGRADED),
        (HealthStatus.UNHEALTHY, EnvoyHealth.UNHEALTHY),
        (HealthStatus.TIMEOUT, EnvoyHealth.TIMEOUT),
        (HealthStatus.DRAINING, EnvoyHealth.DRAINING),
    ],
)
def test_a_status_is_sent_as_the_contract_says(status: HealthStatus, spelled: EnvoyHealth) -> None:
    message = ClusterLoadAssignment.parse(body(service(group(endpoint(status=status)))))
    assert message.endpoints[0].lb_endpoints[0].health_status == spelled


METADATA = st.dictionaries(
    st.text(min_size=1, max_size=20),
    st.text(max_size=200) | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False),
    max_size=4,
)
ENDPOINTS = st.builds(
    plan.Endpoint,
    id=st.from_regex(r"[A-Za-z0-9._:-]{1,30}", fullmatch=True),
    address=st.ip_addresses().map(str),
    port=st.integers(1, 65535),
    weight=st.integers(1, 100_000),
    status=st.sampled_from([status for status in HealthStatus if status is not HealthStatus.UNKNOWN]),
    tags=st.lists(st.text(min_size=1, max_size=10), max_size=3).map(tuple),
    metadata=METADATA,
)
PLANNED = st.lists(
    st.builds(
        lambda endpoints, zone: group(*endpoints, locality=Locality(zone=zone)),
        st.lists(ENDPOINTS, min_size=1),
        st.text(),
    ),
    max_size=3,
).map(lambda groups: service(*groups))


@settings(deadline=None)  # a message class is slow when first used
@given(planned=PLANNED)
def test_bytes_equal_the_librarys_for_any_endpoints(planned: plan.Cluster) -> None:
    assert body(planned) == by_the_library(planned)


@settings(deadline=None)  # a message class is slow when first used
@given(history=st.lists(st.lists(ENDPOINTS, max_size=4), min_size=1, max_size=4), data=st.data())
def test_what_is_remembered_never_shows(history: list[list[plan.Endpoint]], data: st.DataObject) -> None:
    """Endpoints stay, come back equal, change under their id, move and go; the bytes are those of a fresh start."""
    assignments = Assignments()
    kept: list[plan.Endpoint] = []
    for fresh in history:
        again = data.draw(st.permutations(kept))
        kept = [replace(each) if data.draw(st.booleans()) else each for each in again[: len(again) // 2]] + fresh
        planned = service(group(*kept))
        assert assignments.assignment(planned, "v").body == body(planned)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param((1, True), id="1 becomes true"),
        pytest.param((0, False), id="0 becomes false"),
        pytest.param((0.0, -0.0), id="zero changes its sign"),
    ],
)
def test_values_that_python_takes_for_equal_are_told_apart(values: tuple[Any, Any]) -> None:
    assignments = Assignments()
    before, after = (service(group(endpoint(metadata={"k": value}))) for value in values)
    assert assignments.assignment(before, "v").body != assignments.assignment(after, "v").body
    assert assignments.assignment(after, "v").body == by_the_library(after)


def test_services_do_not_share_what_is_remembered() -> None:
    assignments = Assignments()
    for name, one in (("a", endpoint(weight=1)), ("b", endpoint(weight=2))) * 2:
        planned = service(group(one), name=name)
        assert assignments.assignment(planned, "v").body == by_the_library(planned)


def test_what_is_forgotten_is_spelled_again() -> None:
    assignments = Assignments()
    planned = service(group(endpoint()))
    before = assignments.assignment(planned, "v")
    assignments.forget(["web", "never seen"])
    assert assignments.assignment(planned, "v") == before


def test_memory_does_not_grow_with_the_number_of_changes() -> None:
    assignments = Assignments()
    planned = service()
    for number in range(1000):
        planned = service(group(endpoint(number)))
        assignments.assignment(planned, "v")
    assert len(assignments) == 1


def test_the_version_follows_content_and_cluster() -> None:
    assignments = Assignments()
    one, other = service(group(endpoint(1))), service(group(endpoint(2)))
    versions = [
        assignments.assignment(planned, cluster).version
        for planned, cluster in ((one, "1"), (one, "2"), (other, "1"), (one, "1"))
    ]
    assert len(set(versions)) == 3
    assert versions[0] == versions[3]


def test_one_change_among_ten_thousand_endpoints_is_a_comparison_and_a_join() -> None:
    """The bound is generous, for machines differ: 1.5 ms here, 90 ms for encoding all anew, 2 s for the message."""
    assignments = Assignments()
    endpoints = [endpoint(number, metadata={"version": "1"}) for number in range(10_000)]
    assignments.assignment(service(group(*endpoints)), "v")
    times = []
    for number in range(7):
        endpoints[number] = replace(endpoints[number], weight=2)
        planned = service(group(*endpoints))
        started = time.process_time()
        assignments.assignment(planned, "v")
        times.append(time.process_time() - started)
    assert min(times) < 0.010
