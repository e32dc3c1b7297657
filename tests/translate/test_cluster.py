"""Clusters: what each strategy tells Envoy, and that the bytes are those of the message."""

from typing import Any

import pytest
from envoy_data_plane.envoy.config.cluster.v3 import Cluster

from controlplane import plan
from controlplane.model import ServiceName
from controlplane.policy import ConsistentHash, LeastConnections, Policy, Strategy
from controlplane.translate.cluster import cluster, message
from xds.encode import Encoder

pytestmark = pytest.mark.unit


def service(name: str = "web", **policy: Any) -> plan.Cluster:
    return plan.Cluster(name=ServiceName(name), policy=Policy(**policy), localities=(), decisions=())


def read(**policy: Any) -> Cluster:
    return Cluster.parse(cluster(service(**policy)).body)


STRATEGIES: list[Any] = [
    pytest.param({"strategy": Strategy.ROUND_ROBIN}, "ROUND_ROBIN", "round_robin", {}, id="round robin"),
    pytest.param({}, "ROUND_ROBIN", "round_robin", {}, id="weighted round robin, the default"),
    pytest.param(
        {"strategy": Strategy.LEAST_CONNECTIONS},
        "LEAST_REQUEST",
        "least_request",
        {"choiceCount": 2},
        id="least connections of two",
    ),
    pytest.param(
        {"strategy": Strategy.LEAST_CONNECTIONS, "least_connections": LeastConnections(choice_count=7)},
        "LEAST_REQUEST",
        "least_request",
        {"choiceCount": 7},
        id="least connections of seven",
    ),
    pytest.param({"strategy": Strategy.RANDOM}, "RANDOM", "random", {}, id="random"),
    pytest.param(
        {"strategy": Strategy.HEALTH_BASED},
        "LEAST_REQUEST",
        "least_request",
        {"choiceCount": 2},
        id="health based: least request over computed weights",
    ),
    pytest.param(
        {"strategy": Strategy.CONSISTENT_HASH, "consistent_hash": ConsistentHash(minimum_ring_size=2048)},
        "RING_HASH",
        "ring_hash",
        {"hashFunction": "XX_HASH", "minimumRingSize": 2048},
        id="a ring",
    ),
    pytest.param(
        {
            "strategy": Strategy.CONSISTENT_HASH,
            "consistent_hash": ConsistentHash(algorithm="maglev", table_size=10_007),
        },
        "MAGLEV",
        "maglev",
        {"tableSize": 10_007},
        id="maglev",
    ),
]


@pytest.mark.parametrize(("policy", "old", "typed", "options"), STRATEGIES)
def test_a_strategy_is_told_both_ways(policy: dict[str, Any], old: str, typed: str, options: dict[str, Any]) -> None:
    told = read(**policy).to_dict()
    (extension,) = told["loadBalancingPolicy"]["policies"]
    config = extension["typedExtensionConfig"]["typedConfig"]
    assert told.get("lbPolicy", "ROUND_ROBIN") == old
    assert extension["typedExtensionConfig"]["name"] == f"envoy.load_balancing_policies.{typed}"
    assert config.pop("@type").rpartition(".v3.")[0].endswith(f"load_balancing_policies.{typed}")
    assert config == options


@pytest.mark.parametrize(
    ("policy", "field", "options"),
    [
        pytest.param(STRATEGIES[3].values[0], "leastRequestLbConfig", {"choiceCount": 7}, id="least connections"),
        pytest.param(STRATEGIES[6].values[0], "ringHashLbConfig", {"minimumRingSize": 2048}, id="a ring"),
        pytest.param(STRATEGIES[7].values[0], "maglevLbConfig", {"tableSize": 10_007}, id="maglev"),
    ],
)
def test_the_old_form_has_the_same_options(policy: dict[str, Any], field: str, options: dict[str, Any]) -> None:
    assert read(**policy).to_dict()[field] == options


@pytest.mark.parametrize(
    ("policy", "path", "value"),
    [
        pytest.param({"connect_timeout": 0.25}, ("connectTimeout",), "0.250s", id="the connect timeout"),
        pytest.param(
            {"panic_threshold": 12.5},
            ("commonLbConfig", "healthyPanicThreshold", "value"),
            12.5,
            id="the panic threshold",
        ),
        pytest.param(
            {"panic_threshold": 0},
            ("commonLbConfig", "healthyPanicThreshold"),
            {},
            id="a panic threshold of 0 is there, and not left to Envoy's 50",
        ),
        pytest.param({}, ("commonLbConfig", "updateMergeWindow"), "0s", id="health takes effect at once"),
        pytest.param(
            {},
            ("edsClusterConfig", "edsConfig"),
            {"ads": {}, "resourceApiVersion": "V3", "initialFetchTimeout": "0s"},
            id="endpoints come over ADS, however long it takes",
        ),
    ],
)
def test_a_cluster_says(policy: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    told: Any = read(**policy).to_dict()
    for key in path:
        told = told[key]
    assert told == value


@pytest.mark.parametrize("policy", [each.values[0] for each in STRATEGIES])
def test_bytes_equal_the_librarys(policy: dict[str, Any]) -> None:
    for name in ("a", "web.example", "w" * 253):
        planned = service(name, **policy)
        assert cluster(planned).body == bytes(message(name, planned.policy, Encoder()))


def test_equal_policies_give_equal_versions_and_different_names_different_ones() -> None:
    assert cluster(service("a")) == cluster(service("a"))
    assert cluster(service("a")).version != cluster(service("b")).version
    assert cluster(service("a")).version != cluster(service("a", connect_timeout=1.0)).version
