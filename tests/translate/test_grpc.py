"""What gRPC clients are sent: the messages, field for field, hold only what gRPC reads and accepts."""

from typing import Any

import pytest

from controlplane import plan
from controlplane.model import ServiceName
from controlplane.policy import ConsistentHash, HashOn, Policy, Strategy
from controlplane.translate import grpc
from controlplane.translate.decode import as_json
from xds.encode import Encoder
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE

pytestmark = pytest.mark.unit

ADS = {"ads": {}, "initialFetchTimeout": "0s", "resourceApiVersion": "V3"}
TYPES = "type.googleapis.com/envoy.extensions"


def service(**policy: Any) -> plan.Cluster:
    return plan.Cluster(name=ServiceName("web"), policy=Policy(**policy), localities=(), decisions=())


def hashing(algorithm: Any = "ring_hash", **hash_on: Any) -> plan.Cluster:
    options = ConsistentHash(algorithm=algorithm, hash_on=HashOn(**hash_on), minimum_ring_size=64)
    return service(strategy=Strategy.CONSISTENT_HASH, consistent_hash=options)


def action(planned: plan.Cluster) -> dict[str, Any]:
    (host,) = as_json(ROUTE, grpc.routes(planned).body)["virtualHosts"]
    (route,) = host["routes"]
    return dict(route["route"])


def test_the_listener_is_an_api_listener_whose_routes_come_over_ads() -> None:
    """K-01, C-13, C-14: neither address nor listener filters; the router is the last filter."""
    made = grpc.listener("web")
    shown = as_json(LISTENER, made.body)

    assert shown.keys() == {"name", "apiListener"}
    manager = shown["apiListener"]["apiListener"]
    assert manager["@type"] == f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"
    assert manager["rds"] == {"configSource": ADS, "routeConfigName": "web"}
    assert [each["typedConfig"]["@type"] for each in manager["httpFilters"]] == [
        f"{TYPES}.filters.http.router.v3.Router"
    ]
    assert made.refs == {(ROUTE, "web")}


def test_the_route_takes_any_authority_and_any_method_to_the_cluster() -> None:
    made = grpc.routes(service())
    shown = as_json(ROUTE, made.body)

    assert shown["name"] == "web"
    (host,) = shown["virtualHosts"]
    assert host["domains"] == ["*"]
    assert [route["match"] for route in host["routes"]] == [{"prefix": ""}]
    assert action(service())["cluster"] == "web"
    assert made.refs == {(CLUSTER, "web")}


@pytest.mark.parametrize(("timeout", "longest"), [(15.0, {"maxStreamDuration": "15s"}), (0.0, None)])
def test_the_policys_timeout_bounds_a_call_in_the_one_field_that_grpc_reads(timeout: float, longest: object) -> None:
    made = action(service(timeout=timeout))
    assert made.get("maxStreamDuration") == longest
    assert "timeout" not in made


@pytest.mark.parametrize(
    ("planned", "policies"),
    [
        pytest.param(hashing(source="header", name="x-user"), [{"header": {"headerName": "x-user"}}], id="a header"),
        pytest.param(hashing(), [{"filterState": {"key": "io.grpc.channel_id"}}], id="the client itself"),
        pytest.param(hashing(source="cookie", name="c"), None, id="a cookie, which gRPC knows nothing of"),
        pytest.param(service(), None, id="nothing"),
    ],
)
def test_calls_are_hashed_on(planned: plan.Cluster, policies: object) -> None:
    assert action(planned).get("hashPolicy") == policies


@pytest.mark.parametrize("strategy", [each for each in Strategy if each is not Strategy.CONSISTENT_HASH])
def test_every_strategy_but_hashing_is_round_robin_by_locality(strategy: Strategy) -> None:
    """C-09, C-10, C-11: an EDS cluster over ADS, with a policy that gRPC knows and nothing that it refuses."""
    made = grpc.cluster(service(strategy=strategy))
    shown = as_json(CLUSTER, made.body)

    assert shown.keys() == {"name", "type", "edsClusterConfig", "loadBalancingPolicy"}  # the enum's 0 is round robin
    assert (shown["name"], shown["type"], shown["edsClusterConfig"]) == ("web", "EDS", {"edsConfig": ADS})
    (typed,) = shown["loadBalancingPolicy"]["policies"]
    outer = typed["typedExtensionConfig"]["typedConfig"]
    assert outer["@type"] == f"{TYPES}.load_balancing_policies.wrr_locality.v3.WrrLocality"
    (inner,) = outer["endpointPickingPolicy"]["policies"]
    picking = inner["typedExtensionConfig"]["typedConfig"]
    assert picking["@type"] == f"{TYPES}.load_balancing_policies.round_robin.v3.RoundRobin"
    assert made.refs == {(ENDPOINT, "web")}


@pytest.mark.parametrize("algorithm", ["ring_hash", "maglev"])
def test_consistent_hashing_is_a_ring_whatever_the_algorithm(algorithm: str) -> None:
    """C-10: gRPC has no maglev."""
    shown = as_json(CLUSTER, grpc.cluster(hashing(algorithm)).body)

    assert shown["lbPolicy"] == "RING_HASH"
    assert shown["ringHashLbConfig"] == {"minimumRingSize": 64}
    (typed,) = shown["loadBalancingPolicy"]["policies"]
    ring = typed["typedExtensionConfig"]["typedConfig"]
    assert ring["@type"] == f"{TYPES}.load_balancing_policies.ring_hash.v3.RingHash"
    assert (ring["hashFunction"], ring["minimumRingSize"]) == ("XX_HASH", 64)


@pytest.mark.parametrize("name", ["w", "w" * 200])
def test_bytes_joined_by_hand_equal_those_of_the_messages(name: str) -> None:
    """The hand-written spelling is fast, and no other than envoy-data-plane's."""
    planned = plan.Cluster(
        name=ServiceName(name), policy=hashing(source="header", name="x-user").policy, localities=(), decisions=()
    )
    assert grpc.listener(name).body == bytes(grpc.listener_message(name, Encoder()))
    assert grpc.routes(planned).body == bytes(grpc.routes_message(planned))
    assert grpc.cluster(planned).body == bytes(grpc.message(name, planned.policy, Encoder()))
