"""The bootstraps: what an Envoy is told before it knows anything, and whether Envoy takes it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from accepted import complaints
from envoys import EVERY_ENVOY

from controlplane.bootstrap import bootstrap
from controlplane.translate.names import XDS_CLUSTER, Source, Transport
from xds.types import ROUTE

ENVOY = Path(__file__).parents[1] / "envoy"

DEFAULTS: dict[str, Any] = {
    "node_id": None,
    "cluster": None,
    "xds": [("127.0.0.1", 18000)],
    "protocol": "delta",
    "admin_host": "127.0.0.1",
    "admin_port": 9901,
    "gateway_port": None,
}

TRICKY = ["n", "no", "1e3", '"x', "a: b # c", "{}", "ünï", "- x", "a\\b", "tab\tnew\nline", "'", "null", "~", " ", ""]


def made(**changes: Any) -> Any:
    return yaml.safe_load(bootstrap(**{**DEFAULTS, **changes}))


@pytest.mark.unit
@pytest.mark.parametrize("text", TRICKY)
def test_ids_arrive_as_they_were_given(text: str) -> None:
    assert made(node_id=text, cluster=text)["node"] == {"id": text, "cluster": text}


@pytest.mark.unit
def test_without_ids_the_command_line_decides() -> None:
    assert "node" not in made()


@pytest.mark.unit
def test_a_gateway_port_travels_in_the_metadata() -> None:
    assert made(gateway_port=10001)["node"] == {"metadata": {"gateway_port": 10001}}


@pytest.mark.unit
@pytest.mark.parametrize(("protocol", "source"), [("delta", "ads"), ("sotw", "ads"), ("rest", "api_config_source")])
def test_a_runtime_layer_comes_as_all_else_does_and_the_admin_page_overrules_it(protocol: str, source: str) -> None:
    assert "layered_runtime" not in made(protocol=protocol)
    config = made(protocol=protocol, runtime_layer="flags")
    layer, admin = config["layered_runtime"]["layers"]

    assert layer["rtds_layer"]["name"] == "flags"
    assert layer["rtds_layer"]["rtds_config"][source] == config["dynamic_resources"]["cds_config"][source]
    assert admin == {"name": "admin", "admin_layer": {}}


@pytest.mark.unit
@pytest.mark.parametrize(("protocol", "api_type"), [("delta", "DELTA_GRPC"), ("sotw", "GRPC")])
def test_the_protocol_is_that_of_the_stream(protocol: str, api_type: str) -> None:
    assert made(protocol=protocol)["dynamic_resources"]["ads_config"]["api_type"] == api_type


@pytest.mark.unit
@pytest.mark.parametrize(
    ("host", "kind"),
    [
        pytest.param("10.0.0.7", "STATIC", id="an IPv4 address needs no look-up"),
        pytest.param("fd00::7", "STATIC", id="an IPv6 address needs no look-up"),
        pytest.param("controlplane.internal", "STRICT_DNS", id="a name is looked up again and again"),
    ],
)
def test_the_control_plane_is_found_by(host: str, kind: str) -> None:
    (cluster,) = made(xds=[(host, 7)])["static_resources"]["clusters"]
    (group,) = cluster["load_assignment"]["endpoints"]
    assert cluster["type"] == kind
    assert group["lb_endpoints"] == [{"endpoint": {"address": {"socket_address": {"address": host, "port_value": 7}}}}]


@pytest.mark.unit
def test_envoy_reports_load_to_the_control_plane() -> None:
    (service,) = made()["cluster_manager"]["load_stats_config"]["grpc_services"]
    assert service == {"envoy_grpc": {"cluster_name": "xds_cluster"}}


@pytest.mark.unit
def test_an_envoy_that_polls_does_so_for_everything_in_the_same_way() -> None:
    """What clusters and listeners say is spelled by `names`; the bootstrap must not differ."""
    config = made(protocol="rest", xds=[("127.0.0.1", 8090)])
    spelled = Source(transport=Transport.REST).of(ROUTE, "gateway").to_dict()["apiConfigSource"]
    assert config["node"]["metadata"] == {"xds_transport": "rest"}
    for each in ("cds_config", "lds_config"):
        assert config["dynamic_resources"][each]["api_config_source"] == {
            "api_type": spelled["apiType"],
            "transport_api_version": spelled["transportApiVersion"],
            "cluster_names": spelled["clusterNames"],
            "refresh_delay": spelled["refreshDelay"],
            "request_timeout": spelled["requestTimeout"],
        }
    assert [each["name"] for each in config["static_resources"]["clusters"]] == [XDS_CLUSTER]


@pytest.mark.unit
def test_envoy_is_not_ready_before_it_has_been_configured() -> None:
    sources = made()["dynamic_resources"]
    assert {sources[each]["initial_fetch_timeout"] for each in ("cds_config", "lds_config")} == {"0s"}


@pytest.mark.unit
def test_localhost_is_put_as_an_address_for_the_admin_page() -> None:
    assert made(admin_host="localhost")["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"


@pytest.mark.unit
def test_an_admin_host_that_envoy_could_not_bind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs an IP address to listen on, not 'envoy\.local'"):
        bootstrap(**{**DEFAULTS, "admin_host": "envoy.local"})


@pytest.mark.unit
@pytest.mark.parametrize("protocol", ["delta", "sotw"])
def test_the_files_are_what_the_generator_writes(protocol: str) -> None:
    written = bootstrap(**{**DEFAULTS, "protocol": protocol})
    assert (ENVOY / f"bootstrap-{protocol}.yaml").read_text() == written


@pytest.mark.e2e
@EVERY_ENVOY
@pytest.mark.parametrize("protocol", ["delta", "sotw"])
def test_envoy_accepts_the_files(protocol: str, envoy_path: Path) -> None:
    file = ENVOY / f"bootstrap-{protocol}.yaml"
    node = ("--service-node", "gateway-1", "--service-cluster", "gateway")
    assert complaints(file, *node, binary=envoy_path) == ""


@pytest.mark.e2e
@EVERY_ENVOY
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"node_id": "n", "cluster": "1e3"}, id="ids that plain YAML would misread"),
        pytest.param({"node_id": '"x: {', "cluster": "ünï"}, id="ids with quotes and letters beyond ASCII"),
        pytest.param({"xds": [("::1", 18000)], "admin_host": "::1"}, id="IPv6 on both sides"),
        pytest.param(
            {"xds": [("controlplane.internal", 18000), ("10.0.0.7", 18001)], "gateway_port": 10001},
            id="a name, and a port of its own",
        ),
        pytest.param({"protocol": "rest", "gateway_port": 10001}, id="polling, and a port of its own"),
        pytest.param({"protocol": "rest", "runtime_layer": "flags"}, id="polling, runtime values too"),
    ],
)
def test_envoy_accepts(changes: dict[str, Any], envoy_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "bootstrap.yaml"
    file.write_text(bootstrap(**{**DEFAULTS, "node_id": "a", "cluster": "b", **changes}))
    assert complaints(file, binary=envoy_path) == ""
