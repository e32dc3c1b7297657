"""What is read of Services, EndpointSlices and Nodes, and which instances follow: rule by rule, without a server."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import pytest
from registry.cluster import a_service, a_slice, an_endpoint

from controlplane.model import (
    DeleteInstance,
    DeletePolicy,
    HealthCheck,
    HealthStatus,
    Instance,
    InstanceId,
    InstanceKey,
    Locality,
    Missing,
    PutAliases,
    PutInstance,
    PutPolicy,
    RegistryEvent,
    ServiceName,
)
from controlplane.policy import Policy, Strategy
from controlplane.registry import REMARKS_MAX
from controlplane.registry.kubernetes.index import Index, Policies
from controlplane.registry.kubernetes.remarks import Remarks

pytestmark = pytest.mark.unit

OWN = "control"
WEB = ServiceName("web.shop")


class Reader:
    """Hold an index that has listed nothing yet, and what it has to say."""

    def __init__(self) -> None:
        self.remarks = Remarks()
        self.policies = Policies("kubernetes")
        self.time = 5.0
        self.index = Index(
            registry="kubernetes",
            own_namespace=OWN,
            policies=self.policies,
            remarks=self.remarks,
            now=lambda: self.time,
        )

    def relist(
        self, services: Iterable[dict[str, Any]] = (), slices: Iterable[dict[str, Any]] = ()
    ) -> list[RegistryEvent]:
        self.index.list_services("", services)
        self.index.list_slices("", slices)
        return list(chain(self.policies.events(), self.index.everything()))

    def told(self) -> list[RegistryEvent]:
        return list(chain(self.policies.events(), self.index.changes()))


def instances(events: Iterable[RegistryEvent]) -> dict[str, Instance]:
    return {str(event.instance.key): event.instance for event in events if isinstance(event, PutInstance)}


def read(*slices: dict[str, Any], service: dict[str, Any] | None = None) -> dict[str, Instance]:
    return instances(Reader().relist([service or a_service("web")], slices))


def key(name: str) -> InstanceKey:
    return InstanceKey(WEB, InstanceId(name))


class TestNames:
    @pytest.mark.parametrize(
        ("namespace", "annotations", "names"),
        [
            pytest.param("shop", {}, {"web.shop", "admin.web.shop"}, id="the first port bears the service's name"),
            pytest.param(
                "shop",
                {"service-discovery/port": "admin"},
                {"web.shop", "http.web.shop"},
                id="an annotation names the port that does",
            ),
            pytest.param(OWN, {}, {"web", "admin.web.control"}, id="in our own namespace the name is short"),
        ],
    )
    def test_each_port_is_a_service(self, namespace: str, annotations: dict[str, str], names: set[str]) -> None:
        ports = [{"name": "http", "port": 80}, {"name": "admin", "port": 81}]
        service = a_service("web", namespace=namespace, ports=ports, annotations=annotations)
        offered = [{"name": "http", "port": 8080}, {"name": "admin", "port": 8081}]
        found = read(a_slice("web", an_endpoint("10.0.0.1"), namespace=namespace, ports=offered), service=service)

        assert {instance.name for instance in found.values()} == names

    def test_in_our_own_namespace_the_long_name_is_an_alias_as_long_as_there_is_the_service(self) -> None:
        reader = Reader()
        service = a_service("web", namespace=OWN)
        assert reader.relist([service]) == [
            PutAliases(service=ServiceName("web"), aliases=(ServiceName("web.control"),), registry="kubernetes")
        ]
        reader.index.service(service, gone=True)
        assert reader.told() == [PutAliases(service=ServiceName("web"), aliases=(), registry="kubernetes")]

    def test_ports_other_than_tcp_are_no_services(self) -> None:
        ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "http", "port": 80}]
        found = read(
            a_slice("web", an_endpoint("10.0.0.1"), ports=[*ports[:1], {"name": "http", "port": 8080}]),
            service=a_service("web", ports=ports),
        )
        assert [(each.name, each.port) for each in found.values()] == [("web.shop", 8080)]

    def test_a_headless_service_with_an_unnamed_port_is_as_good_as_any(self) -> None:
        service = a_service("web", clusterIP="None", ports=[{"port": 80}])
        found = read(a_slice("web", an_endpoint("10.0.0.1", "web-0"), ports=[{"port": 9000}]), service=service)
        assert found["web.shop/web-0"].port == 9000


class TestEndpoints:
    def test_the_id_is_the_pods_name_else_address_and_port(self) -> None:
        assert set(read(a_slice("web", an_endpoint("10.0.0.1", "web-a"), an_endpoint("10.0.0.2")))) == {
            "web.shop/web-a",
            "web.shop/10.0.0.2-8080",
        }

    @pytest.mark.parametrize(
        ("conditions", "draining", "status"),
        [
            pytest.param({"ready": True}, False, HealthStatus.HEALTHY, id="ready"),
            pytest.param({}, False, HealthStatus.HEALTHY, id="no word means ready"),
            pytest.param({"ready": None, "serving": None}, False, HealthStatus.HEALTHY, id="null means ready"),
            pytest.param({"ready": False}, False, HealthStatus.UNHEALTHY, id="not ready"),
            pytest.param({"ready": False, "serving": False}, False, HealthStatus.UNHEALTHY, id="not serving either"),
            pytest.param(
                {"ready": False, "serving": True, "terminating": True},
                True,
                HealthStatus.HEALTHY,
                id="terminating and serving drains",
            ),
            pytest.param(
                {"ready": False, "serving": False, "terminating": True},
                True,
                HealthStatus.UNHEALTHY,
                id="terminating and not serving is on its way out as well",
            ),
        ],
    )
    def test_conditions_are_health(self, conditions: dict[str, Any], draining: bool, status: HealthStatus) -> None:
        slices = [a_slice("web", an_endpoint("10.0.0.1", "web-a", conditions=conditions))]
        (event,) = Reader().relist([a_service("web")], slices)
        assert isinstance(event, PutInstance)
        assert event.stated is not None
        assert (event.instance.draining, event.stated.status) == (draining, status)

    def test_a_state_of_health_has_begun_when_it_was_first_seen(self) -> None:
        reader = Reader()
        unready = an_endpoint("10.0.0.1", "web-a", conditions={"ready": False})
        reader.relist([a_service("web")], [a_slice("web", unready)])
        reader.time = 9.0
        reader.index.endpoint_slice(a_slice("web", {**unready, "zone": "eu-2"}, version=2), gone=False)
        (moved,) = reader.told()
        reader.index.endpoint_slice(a_slice("web", an_endpoint("10.0.0.1", "web-a"), version=3), gone=False)
        (ready,) = reader.told()

        assert isinstance(moved, PutInstance)
        assert isinstance(ready, PutInstance)
        assert moved.stated is not None
        assert ready.stated is not None
        assert (moved.stated.since, ready.stated.since) == (5.0, 9.0)

    def test_only_the_family_that_the_service_prefers_is_offered(self) -> None:
        service = a_service("web", ipFamilies=["IPv6", "IPv4"])
        four = a_slice("web", an_endpoint("10.0.0.1", "web-a"), name="web-4")
        six = a_slice("web", an_endpoint("fd00::1", "web-a"), name="web-6", addressType="IPv6")
        assert {each.host for each in read(four, six, service=service).values()} == {"fd00::1"}
        assert {each.host for each in read(four, service=service).values()} == {"10.0.0.1"}
        assert {each.host for each in read(four, six).values()} == {"10.0.0.1"}

    def test_slices_of_names_and_services_of_names_are_left_out(self) -> None:
        assert read(a_slice("web", an_endpoint("web.example"), addressType="FQDN")) == {}
        reader = Reader()
        reader.relist([a_service("web", type="ExternalName", externalName="web.example")])
        assert "ExternalName" in reader.remarks.said["service shop/web"]

    def test_of_an_endpoint_in_two_slices_the_newer_one_is_right_whatever_comes_first(self) -> None:
        old = a_slice("web", an_endpoint("10.0.0.1", "web-a"), name="z-old", version=9)
        new = a_slice("web", an_endpoint("10.0.0.1", "web-a", zone="eu-2"), name="a-new", version=10)
        for slices in ([old, new], [new, old]):
            assert read(*slices)["web.shop/web-a"].locality.zone == "eu-2"

    def test_an_endpoint_that_moves_to_another_slice_does_not_leave_in_between(self) -> None:
        reader = Reader()
        endpoint = an_endpoint("10.0.0.1", "web-a")
        reader.relist([a_service("web")], [a_slice("web", endpoint, name="old")])
        reader.index.endpoint_slice(a_slice("web", endpoint, name="new", version=2), gone=False)
        assert reader.told() == []
        reader.index.endpoint_slice(a_slice("web", name="old", version=3), gone=False)
        assert reader.told() == []


class TestPlaces:
    NODE = "node-1"
    IN_EU_1: dict[str, str] = {"topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": "eu-1"}  # noqa: RUF012

    def node(self, labels: dict[str, str]) -> dict[str, Any]:
        return {"metadata": {"name": self.NODE, "labels": labels}}

    @pytest.mark.parametrize(
        ("zone", "place"),
        [
            pytest.param(None, Locality(region="eu", zone="eu-1"), id="the node's, where the slice says nothing"),
            pytest.param(
                "eu-1", Locality(region="eu", zone="eu-1"), id="the slice names the zone, the node the region"
            ),
            pytest.param("eu-2", Locality(region="eu", zone="eu-2"), id="where they differ the slice is right"),
        ],
    )
    def test_region_and_zone(self, zone: str | None, place: Locality) -> None:
        reader = Reader()
        reader.index.list_nodes([self.node(self.IN_EU_1)])
        endpoint = an_endpoint("10.0.0.1", "web-a", nodeName=self.NODE, zone=zone)
        assert (
            instances(reader.relist([a_service("web")], [a_slice("web", endpoint)]))["web.shop/web-a"].locality == place
        )

    def test_a_node_that_comes_later_moves_its_instances_and_no_others(self) -> None:
        reader = Reader()
        here, there = an_endpoint("10.0.0.1", "web-a", nodeName=self.NODE), an_endpoint("10.0.0.2", "web-b")
        reader.relist([a_service("web")], [a_slice("web", here, there)])
        reader.index.node(self.node(self.IN_EU_1), gone=False)
        assert set(instances(reader.told())) == {"web.shop/web-a"}
        reader.index.node(self.node({**self.IN_EU_1, "heartbeat": "2"}), gone=False)
        assert reader.told() == []


class TestAnnotations:
    def service(self, **annotations: str) -> dict[str, Any]:
        named = {f"service-discovery/{name.replace('_', '-')}": value for name, value in annotations.items()}
        return a_service("web", annotations=named)

    def test_weight_and_health_path_go_to_every_instance(self) -> None:
        found = read(
            a_slice("web", an_endpoint("10.0.0.1"), an_endpoint("10.0.0.2")),
            service=self.service(weight="7", health_path="/ok"),
        )
        assert [(each.weight, each.health_check) for each in found.values()] == [(7, HealthCheck(http_path="/ok"))] * 2

    def test_a_strategy_is_the_services_policy_unless_one_is_stored(self) -> None:
        reader = Reader()
        policy = Policy(strategy=Strategy.RANDOM)
        asked = PutPolicy(service=WEB, policy=policy, registry="kubernetes")
        assert reader.relist([self.service(strategy="random")]) == [asked]
        stored = Policy(timeout=3.0)
        reader.policies.store(WEB, stored)
        assert reader.told() == [PutPolicy(service=WEB, policy=stored, registry="kubernetes")]
        reader.policies.store(WEB, None)
        assert reader.told() == [asked]
        reader.index.service(a_service("web", version=2), gone=False)
        assert reader.told() == [DeletePolicy(service=WEB, registry="kubernetes")]

    @pytest.mark.parametrize(
        ("annotation", "good", "bad"),
        [
            pytest.param("weight", "7", "0", id="a weight below 1"),
            pytest.param("weight", "7", "1001", id="a weight above 1000"),
            pytest.param("weight", "7", "70000000", id="a weight far above"),
            pytest.param("weight", "7", "²", id="a weight that is no number"),
            pytest.param("health_path", "/ok", "ok", id="a path without a slash"),
            pytest.param("strategy", "random", "fastest", id="an unknown strategy"),
            pytest.param("port", "http", "grpc", id="a port that it does not have"),
        ],
    )
    def test_one_that_cannot_be_used_counts_as_before_with_a_remark(self, annotation: str, good: str, bad: str) -> None:
        reader = Reader()
        slices = [a_slice("web", an_endpoint("10.0.0.1"))]
        reader.relist([self.service(**{annotation: good})], slices)
        reader.index.service(self.service(**{annotation: bad}), gone=False)
        assert reader.told() == []
        assert f"service-discovery/{annotation.replace('_', '-')}" in reader.remarks.said["service shop/web"]
        reader.index.service(self.service(**{annotation: good}), gone=False)
        assert reader.told() == []
        assert reader.remarks.said == {}

        assert len(read(*slices, service=self.service(**{annotation: bad}))) == 1, "without a before it does not count"


class TestUnreadable:
    @pytest.mark.parametrize(
        "spoilt",
        [
            pytest.param(an_endpoint("nonsense", "web-a"), id="no address"),
            pytest.param(an_endpoint("fd00::1", "web-a"), id="an address of another family"),
            pytest.param({"targetRef": {"kind": "Pod", "name": "web-a"}}, id="no address at all"),
        ],
    )
    def test_an_endpoint_keeps_its_last_good_form_and_the_others_go_on(self, spoilt: dict[str, Any]) -> None:
        reader = Reader()
        reader.relist([a_service("web")], [a_slice("web", an_endpoint("10.0.0.1", "web-a"))])
        reader.index.endpoint_slice(a_slice("web", spoilt, an_endpoint("10.0.0.2", "web-b"), version=2), gone=False)
        assert set(instances(reader.told())) == {"web.shop/web-b"}
        assert "address" in reader.remarks.said["endpointslice shop/web-1"]

    @pytest.mark.parametrize(
        "fields",
        [
            pytest.param({"endpoints": ["text"]}, id="endpoints that are none"),
            pytest.param({"ports": [{"name": "http", "port": 70000}]}, id="a port that there is not"),
            pytest.param({"ports": "8080"}, id="ports that are none"),
            pytest.param({"addressType": "IPv5"}, id="a family that there is not"),
        ],
    )
    def test_a_slice_keeps_its_last_good_form(self, fields: dict[str, Any]) -> None:
        reader = Reader()
        reader.relist([a_service("web")], [a_slice("web", an_endpoint("10.0.0.1", "web-a"))])
        spoilt = {**a_slice("web", an_endpoint("10.0.0.1", "web-a"), version=2), **fields}
        reader.index.endpoint_slice(spoilt, gone=False)
        assert reader.told() == []
        assert "endpointslice shop/web-1" in reader.remarks.said
        reader.index.endpoint_slice(spoilt, gone=True)
        assert reader.told() == [DeleteInstance(key=key("web-a"), registry="kubernetes")]
        assert reader.remarks.said == {}

    def test_remarks_are_bounded(self) -> None:
        reader = Reader()
        reader.relist(a_service(f"s{n}", type="ExternalName") for n in range(2 * REMARKS_MAX))
        assert len(reader.remarks.said) == REMARKS_MAX


class TestLosses:
    def test_what_a_relist_misses_comes_in_one_event_and_what_was_leaving_is_deleted(self) -> None:
        reader = Reader()
        leaving = {"ready": False, "serving": True, "terminating": True}
        endpoints = [an_endpoint(f"10.0.0.{n}", f"web-{n}") for n in range(3)]
        endpoints.append(an_endpoint("10.0.0.9", "web-9", conditions=leaving))
        reader.relist([a_service("web")], [a_slice("web", *endpoints)])

        assert reader.relist([a_service("web")]) == [
            DeleteInstance(key=key("web-9"), registry="kubernetes"),
            Missing(
                keys=(key("web-0"), key("web-1"), key("web-2")),
                registry="kubernetes",
                reason="missing after a reconnect",
            ),
        ]

    def test_a_relist_of_the_same_tells_nothing(self) -> None:
        reader = Reader()
        everything = [a_service("web")], [a_slice("web", an_endpoint("10.0.0.1", "web-a"))]
        assert len(reader.relist(*everything)) == 1
        assert reader.relist(*everything) == []

    def test_a_listing_that_is_broken_off_is_taken_up_by_the_next(self) -> None:
        reader = Reader()
        service = [a_service("web")]
        slices = [a_slice("web", *(an_endpoint(f"10.0.0.{n}", f"web-{n}") for n in range(5)))]
        reader.index.list_services("", service)
        reader.index.list_slices("", slices)
        begun = reader.index.everything()
        first = [next(begun), next(begun)]
        begun.close()
        assert set(instances([*first, *reader.relist(service, slices)])) == {f"web.shop/web-{n}" for n in range(5)}

    @pytest.mark.parametrize("what", ["the slice", "the service"])
    def test_a_deletion_that_is_seen_live_is_meant(self, what: str) -> None:
        reader = Reader()
        service, its_slice = a_service("web"), a_slice("web", an_endpoint("10.0.0.1", "web-a"))
        reader.relist([service], [its_slice])
        if what == "the slice":
            reader.index.endpoint_slice(its_slice, gone=True)
        else:
            reader.index.service(service, gone=True)
        assert reader.told() == [DeleteInstance(key=key("web-a"), registry="kubernetes")]

    def test_a_listing_of_one_namespace_says_nothing_of_another(self) -> None:
        reader = Reader()
        reader.relist([a_service("web")], [a_slice("web", an_endpoint("10.0.0.1", "web-a"))])
        reader.index.list_services("other", [])
        reader.index.list_slices("other", [])
        assert list(reader.index.everything()) == []

    def test_endpoints_wait_for_their_service(self) -> None:
        reader = Reader()
        reader.index.endpoint_slice(a_slice("web", an_endpoint("10.0.0.1", "web-a")), gone=False)
        assert reader.told() == []
        reader.index.service(a_service("web"), gone=False)
        assert set(instances(reader.told())) == {"web.shop/web-a"}
