"""What a set of planned clusters becomes: names, references, versions."""

import pytest

from controlplane import plan
from controlplane.model import HealthStatus, Locality, ServiceName
from controlplane.policy import Policy
from controlplane.translate import listener
from controlplane.translate.snapshot import snapshot as spell
from controlplane.translate.snapshot import warm_up
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE, Snapshot

pytestmark = pytest.mark.unit


def endpoint(number: int = 1, *, weight: int = 1) -> plan.Endpoint:
    return plan.Endpoint(
        id=f"i{number}", address=f"10.0.0.{number}", port=80, weight=weight, status=HealthStatus.HEALTHY
    )


def service(name: str, *endpoints: plan.Endpoint, policy: Policy | None = None) -> plan.Cluster:
    group = plan.LocalityEndpoints(locality=Locality(), weight=sum(e.weight for e in endpoints), endpoints=endpoints)
    return plan.Cluster(
        name=ServiceName(name),
        policy=policy or Policy(),
        localities=(group,) if endpoints else (),
        decisions=(),
    )


def snapshot(*clusters: plan.Cluster) -> Snapshot:
    return spell(clusters, gateway=listener.gateway("127.0.0.1", 10000), revision="e.1")


def test_every_resource_has_its_contract_name() -> None:
    made = snapshot(service("web", endpoint()), service("api"))
    assert {url: sorted(made.of_type(url)) for url in (CLUSTER, ENDPOINT, LISTENER, ROUTE)} == {
        CLUSTER: ["api", "web"],
        ENDPOINT: ["api", "web"],
        LISTENER: ["gateway"],
        ROUTE: ["gateway"],
    }
    assert made.revision == "e.1"


def test_each_resource_names_what_it_refers_to() -> None:
    made = snapshot(service("web", endpoint()), service("api"))
    assert made.of_type(CLUSTER)["web"].refs == {(ENDPOINT, "web")}
    assert made.of_type(LISTENER)["gateway"].refs == {(ROUTE, "gateway")}
    assert made.of_type(ROUTE)["gateway"].refs == {(CLUSTER, "web"), (CLUSTER, "api")}


def test_a_changed_policy_re_sends_the_assignment_of_its_cluster_only() -> None:
    before = snapshot(service("web", endpoint()), service("api", endpoint()))
    after = snapshot(service("web", endpoint(), policy=Policy(connect_timeout=1.0)), service("api", endpoint()))
    assert after.of_type(ENDPOINT)["web"].body == before.of_type(ENDPOINT)["web"].body
    assert after.of_type(ENDPOINT)["web"].version != before.of_type(ENDPOINT)["web"].version
    assert after.of_type(ENDPOINT)["api"] == before.of_type(ENDPOINT)["api"]


def test_a_changed_instance_changes_its_assignment_and_nothing_else() -> None:
    before = snapshot(service("web", endpoint()), service("api", endpoint()))
    after = snapshot(service("web", endpoint(weight=2)), service("api", endpoint()))
    changed = {
        (url, name)
        for url in (CLUSTER, ENDPOINT, LISTENER, ROUTE)
        for name, resource in after.of_type(url).items()
        if resource.version != before.of_type(url)[name].version
    }
    assert changed == {(ENDPOINT, "web")}


def test_the_order_of_services_changes_no_byte() -> None:
    services = service("web", endpoint()), service("api", endpoint(2)), service("zoo")
    assert snapshot(*services).by_type == snapshot(*reversed(services)).by_type


def test_warming_up_needs_nothing() -> None:
    warm_up()
