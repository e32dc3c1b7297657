"""The gateway's listener: where it listens, and what an edge must not leave open."""

from typing import Any

import pytest

from controlplane.translate.decode import as_json
from controlplane.translate.listener import gateway
from xds.types import LISTENER, ROUTE

pytestmark = pytest.mark.unit


def read(host: str = "127.0.0.1", port: int = 10000) -> dict[str, Any]:
    return as_json(LISTENER, gateway(host, port).body)


def manager() -> dict[str, Any]:
    (chain,) = read()["filterChains"]
    (only,) = chain["filters"]
    config: dict[str, Any] = only["typedConfig"]
    return config


@pytest.mark.parametrize(
    ("host", "address"),
    [
        pytest.param("127.0.0.1", {"address": "127.0.0.1", "portValue": 10000}, id="IPv4"),
        pytest.param("::1", {"address": "::1", "portValue": 10000}, id="IPv6"),
        pytest.param("0.0.0.0", {"address": "0.0.0.0", "portValue": 10000}, id="every IPv4 address"),
        pytest.param(
            "::", {"address": "::", "portValue": 10000, "ipv4Compat": True}, id="every address, IPv4 through IPv6"
        ),
    ],
)
def test_it_listens_on(host: str, address: dict[str, Any]) -> None:
    assert read(host)["address"]["socketAddress"] == address


def test_a_name_is_no_address_to_listen_on() -> None:
    with pytest.raises(ValueError, match=r"'gateway\.local' does not appear to be an IPv4 or IPv6 address"):
        gateway("gateway.local", 10000)


def test_its_routes_come_over_ads_by_the_contracts_name() -> None:
    source = {"ads": {}, "resourceApiVersion": "V3", "initialFetchTimeout": "0s"}
    assert manager()["rds"] == {"configSource": source, "routeConfigName": "gateway"}
    assert gateway("::1", 1).refs == {(ROUTE, "gateway")}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("normalizePath", True, id="dots in a path are resolved before it is matched"),
        pytest.param("mergeSlashes", True, id="slashes in a row are one"),
        pytest.param("pathWithEscapedSlashesAction", "UNESCAPE_AND_REDIRECT", id="no slash hides behind %2F"),
        pytest.param("useRemoteAddress", True, id="a client cannot invent its address"),
        pytest.param("serverHeaderTransformation", "PASS_THROUGH", id="the instance's server header is its own"),
        pytest.param("requestHeadersTimeout", "10s", id="slow headers are cut off"),
        pytest.param("streamIdleTimeout", "300s", id="silent streams end"),
        pytest.param("commonHttpProtocolOptions", {"idleTimeout": "900s"}, id="idle connections end"),
        pytest.param("upgradeConfigs", [{"upgradeType": "websocket"}], id="web sockets are let through"),
    ],
)
def test_an_edge_is_safe(field: str, value: Any) -> None:
    assert manager()[field] == value


def test_nothing_is_logged_per_request() -> None:
    assert "accessLog" not in manager()
    assert "accessLog" not in read()
