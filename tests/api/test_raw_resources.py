"""Raw xDS resources over REST: judged, stored, shown without what is private, never in place of a service's."""

import base64
import json
from datetime import UTC, datetime
from functools import reduce
from typing import Any

import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from controlplane.model import RawResource
from controlplane.registry.journal import Journal
from controlplane.registry.memory import MemoryRegistry
from tests.api.conftest import NOW
from xds.types import RUNTIME as RUNTIME_TYPE

pytestmark = pytest.mark.unit

BASE = "/api/v1/xds"
ADS = {"ads": {}, "resource_api_version": "V3"}
SELF = {"self": {}, "resource_api_version": "V3"}
_MANAGER = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
RUNTIME = {"name": "rt", "layer": {"feature.on": True}}
CLUSTER = {"name": "legacy", "type": "EDS", "eds_cluster_config": {"eds_config": ADS}, "connect_timeout": "1s"}
KEY = "-----BEGIN PRIVATE KEY-----"
SECRET = {
    "name": "server",
    "tls_certificate": {
        "certificate_chain": {"inline_string": "chain"},
        "private_key": {"inline_string": KEY},
        "password": {"inline_bytes": "cGFzc3dvcmQ="},
    },
}


def at(host: str) -> dict[str, Any]:
    address = {"socket_address": {"address": host, "port_value": 80}}
    return {"locality": {}, "load_balancing_weight": 1, "lb_endpoints": [{"endpoint": {"address": address}}]}


def faults(problem: dict[str, Any]) -> dict[str, str]:
    return {each.get("pointer") or each.get("parameter"): each["detail"] for each in problem["errors"]}


async def test_a_resource_is_stored_shown_listed_and_removed(edge):
    made = await edge.json("PUT", f"{BASE}/runtimes/rt", 201, RUNTIME)

    assert made["type_url"] == "type.googleapis.com/envoy.service.runtime.v3.Runtime"
    assert made["resource"]["layer"] == {"feature.on": True}
    assert made["state"] == "published"
    assert await edge.json("GET", f"{BASE}/runtimes/rt", 200) == made
    assert [item["name"] for item in (await edge.json("GET", BASE, 200))["items"]] == ["rt"]
    assert (await edge.json("GET", f"{BASE}/secrets", 200))["items"] == []

    await edge.json("DELETE", f"{BASE}/runtimes/rt", 204)
    await edge.json("DELETE", f"{BASE}/runtimes/rt", 204)
    gone = await edge.json("GET", f"{BASE}/runtimes/rt", 404)
    assert gone["type"] == "/docs#problem-unknown-resource"


@pytest.mark.parametrize(
    "spelled",
    ["runtimes", "runtime", "RTDS", "rtds", "Runtime", "type.googleapis.com%2Fenvoy.service.runtime.v3.Runtime"],
)
async def test_a_type_is_understood_however_it_is_spelled(edge, spelled):
    await edge.json("PUT", f"{BASE}/{spelled}/rt", 201, RUNTIME)

    assert (await edge.json("GET", f"{BASE}/runtimes/rt", 200))["name"] == "rt"


async def test_an_unknown_type_is_answered_with_those_that_there_are(edge):
    problem = await edge.json("PUT", f"{BASE}/nonsense/rt", 400, RUNTIME)

    assert "secrets" in problem["errors"][0]["choices"]


@pytest.mark.parametrize("path", ["r1/foo.example", "r1%2Ffoo.example"], ids=["as it is", "escaped"])
async def test_a_name_may_hold_a_slash(edge, path):
    host = {"name": "foo.example", "domains": ["foo.example"]}
    await edge.json("PUT", f"{BASE}/virtual-hosts/{path}", 201, host)

    assert (await edge.json("GET", f"{BASE}/VHDS/r1/foo.example", 200))["name"] == "r1/foo.example"


async def test_canonical_names_and_the_protos_own_are_the_same_resource(edge):
    snake = {**CLUSTER, "outlier_detection": {"consecutive_5xx": 3}}
    camel = {
        "name": "legacy",
        "type": "EDS",
        "edsClusterConfig": {"edsConfig": {"ads": {}, "resourceApiVersion": "V3"}},
        "connectTimeout": "1s",
        "outlierDetection": {"consecutive5xx": 3},
    }
    first = await edge.json("PUT", f"{BASE}/clusters/legacy", 201, snake)
    second = await edge.json("PUT", f"{BASE}/clusters/legacy", 200, camel)

    assert first["version"] == second["version"] != ""


@pytest.mark.parametrize(
    ("type_", "body", "pointer"),
    [
        pytest.param("clusters", {**CLUSTER, "conect_timeout": "1s"}, "#/conect_timeout", id="an unknown field"),
        pytest.param("clusters", {**CLUSTER, "connect_timeout": "0s"}, "#/connect_timeout", id="no time to connect"),
        pytest.param("clusters", {**CLUSTER, "connect_timeout": "-1s"}, "#/connect_timeout", id="a negative time"),
        pytest.param("clusters", {**CLUSTER, "name": "other"}, "#/name", id="another name than the path's (C-16)"),
        pytest.param("clusters", {**CLUSTER, "@type": "x"}, "#/@type", id="another type than the path's"),
        pytest.param("clusters", {**CLUSTER, "type": "EDSS"}, "#/type", id="no such member of an enumeration"),
        pytest.param(
            "clusters",
            {**CLUSTER, "per_connection_buffer_limit_bytes": 2**32},
            "#/per_connection_buffer_limit_bytes",
            id="a number that does not fit",
        ),
        pytest.param(
            "clusters",
            {**CLUSTER, "eds_cluster_config": {"eds_config": {"ads": {}}}},
            "#/eds_cluster_config/eds_config/resource_api_version",
            id="a source of no version (C-14)",
        ),
        pytest.param(
            "clusters",
            {**CLUSTER, "eds_cluster_config": {"eds_config": SELF}},
            "#/eds_cluster_config/eds_config/self",
            id="endpoints from self, which gRPC knows and Envoy does not",
        ),
        pytest.param(
            "listeners",
            {
                "name": "legacy",
                "api_listener": {
                    "api_listener": {
                        "@type": _MANAGER,
                        "stat_prefix": "x",
                        "rds": {"config_source": SELF, "route_config_name": "r1"},
                    }
                },
            },
            "#/api_listener/api_listener/rds/config_source/self",
            id="routes from self",
        ),
        pytest.param(
            "clusters",
            {**CLUSTER, "transport_socket": {"name": "t", "typed_config": {"@type": "type.googleapis.com/a.B"}}},
            "#/transport_socket/typed_config/@type",
            id="an extension that is not known",
        ),
        pytest.param(
            "clusters",
            {
                **CLUSTER,
                "transport_socket": {
                    "name": "t",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                        "snii": "a",
                    },
                },
            },
            "#/transport_socket/typed_config/snii",
            id="an unknown field inside an extension",
        ),
        pytest.param(
            "endpoints",
            {"cluster_name": "legacy", "endpoints": [{"locality": {}, "load_balancing_weight": 1, "priority": 1}]},
            "#/endpoints",
            id="a gap in the priorities (C-03)",
        ),
        pytest.param(
            "endpoints",
            {"cluster_name": "legacy", "endpoints": [{"locality": {}}]},
            "#/endpoints/0/load_balancing_weight",
            id="a locality without weight (C-02)",
        ),
        pytest.param(
            "routes",
            {
                "name": "legacy",
                "virtual_hosts": [
                    {
                        "name": "v",
                        "domains": ["*"],
                        "routes": [{"match": {"safe_regex": {"regex": "(?=a)"}}, "route": {"cluster": "web"}}],
                    }
                ],
            },
            "#/virtual_hosts/0/routes/0/match/safe_regex/regex",
            id="an expression that RE2 lacks (C-12)",
        ),
        pytest.param(
            "routes",
            {
                "name": "legacy",
                "virtual_hosts": [{"name": "a", "domains": ["x"]}, {"name": "b", "domains": ["X"]}],
            },
            "#/virtual_hosts/1/domains/0",
            id="a domain of two virtual hosts",
        ),
        pytest.param(
            "routes",
            {"name": "legacy", "vhds": {"config_source": {**ADS, "initial_fetch_timeout": "0s"}}},
            "#/vhds/config_source/initial_fetch_timeout",
            id="virtual hosts on demand that a listener would wait for in vain",
        ),
        pytest.param("secrets", {"name": "legacy"}, "#", id="a secret of nothing"),
        pytest.param("runtimes", reduce(lambda inner, _: {"layer": inner}, range(500), {}), "#", id="endless nesting"),
        pytest.param(
            "endpoints",
            {"cluster_name": "legacy", "endpoints": [at("db.internal")]},
            "#/endpoints/0/lb_endpoints/0/endpoint/address/socket_address",
            id="a name that nobody resolves, in an assignment",
        ),
        pytest.param(
            "clusters",
            {
                "name": "legacy",
                "type": "STATIC",
                "load_assignment": {"cluster_name": "legacy", "endpoints": [at("db.internal")]},
            },
            "#/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address",
            id="a name that nobody resolves, in a static cluster",
        ),
        pytest.param(
            "listeners",
            {
                "name": "legacy",
                "address": {"socket_address": {"address": "localhost", "port_value": 1}},
                "filter_chains": [{}],
            },
            "#/address/socket_address",
            id="a listener on a name",
        ),
        pytest.param(
            "secrets",
            {"name": "legacy", "tls_certificate": {"certificate_chain": {}}},
            "#/tls_certificate/certificate_chain",
            id="a certificate of no content",
        ),
        pytest.param("virtual-hosts", {"name": "legacy", "domains": ["a"]}, "#", id="a virtual host of no table"),
        pytest.param(
            "clusters",
            {"name": "legacy", "lb_policy": "CLUSTER_PROVIDED", "cluster_type": {"name": "envoy.clusters.aggregate"}},
            "#/cluster_type/typed_config",
            id="an aggregate of nothing",
        ),
        pytest.param(
            "clusters",
            {"name": "legacy", "lb_policy": "CLUSTER_PROVIDED", "cluster_type": {}},
            "#/cluster_type/name",
            id="a type of no name",
        ),
        pytest.param(
            "clusters",
            {**CLUSTER, "lb_policy": "CLUSTER_PROVIDED"},
            "#/lb_policy",
            id="a balancer that is not provided",
        ),
        pytest.param(
            "clusters", {"name": "legacy", "type": "ORIGINAL_DST"}, "#/lb_policy", id="a balancer besides the provided"
        ),
    ],
)
async def test_what_a_client_would_refuse_is_refused_with_its_place_and_not_stored(edge, type_, body, pointer):
    problem = await edge.json("PUT", f"{BASE}/{type_}/legacy", 400, body)

    assert pointer in faults(problem)
    assert (await edge.json("GET", BASE, 200))["items"] == []


@pytest.mark.parametrize("kind", ["STRICT_DNS", "LOGICAL_DNS"])
async def test_a_name_is_taken_where_envoy_resolves_it(edge, kind):
    assignment = {"cluster_name": "legacy", "endpoints": [at("db.internal")]}
    await edge.json(
        "PUT", f"{BASE}/clusters/legacy", 201, {"name": "legacy", "type": kind, "load_assignment": assignment}
    )


@pytest.mark.parametrize("kind", ["STATIC", "STRICT_DNS"])
async def test_an_assignment_inside_a_cluster_may_be_as_envoy_takes_it(edge, kind):
    """gRPC's wishes (C-02) are for assignments that gRPC can get."""
    address = {"socket_address": {"address": "10.0.0.1", "port_value": 80}}
    inside = {"cluster_name": "c3", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}

    await edge.json("PUT", f"{BASE}/clusters/c3", 201, {"name": "c3", "type": kind, "load_assignment": inside})


async def test_every_fault_is_named_at_once(edge):
    body = {"name": "legacy", "conect_timeout": "1s", "typ": "EDS", "lb_policy": 77}

    assert set(faults(await edge.json("PUT", f"{BASE}/clusters/legacy", 400, body))) == {
        "#/conect_timeout",
        "#/typ",
        "#/lb_policy",
    }


@pytest.mark.parametrize(
    ("type_", "name", "body"),
    [
        pytest.param("clusters", "web", {**CLUSTER, "name": "web"}, id="a service's cluster"),
        pytest.param("clusters", "web@v2", {**CLUSTER, "name": "web@v2"}, id="the cluster of a service's subset"),
        pytest.param("endpoints", "web", {"cluster_name": "web"}, id="its endpoints"),
        pytest.param("routes", "gateway", {"name": "gateway"}, id="the gateway's routes"),
    ],
)
async def test_a_name_of_ours_is_never_given_away(edge, type_, name, body):
    await edge.register("web")

    problem = await edge.json("PUT", f"{BASE}/{type_}/{name}", 409, body)

    assert problem["type"] == "/docs#problem-name-reserved"
    assert problem["owner"] in {"service 'web'", "the gateway"}


async def test_a_service_that_comes_later_wins_and_the_resource_says_so(edge):
    await edge.json("PUT", f"{BASE}/clusters/web", 201, {**CLUSTER, "name": "web"})
    await edge.register("web")

    shown = await edge.json("GET", f"{BASE}/clusters/web", 200)

    assert shown["state"] == "suppressed"
    assert "service 'web'" in shown["detail"]


async def test_a_virtual_host_whose_domain_another_one_has_says_so_until_it_is_free(edge):
    first = {"name": "a", "domains": ["x.example"]}
    second = {"name": "b", "domains": ["x.example", "y.example"]}
    await edge.json("PUT", f"{BASE}/virtual-hosts/r1/a", 201, first)
    made = await edge.json("PUT", f"{BASE}/virtual-hosts/r1/b", 201, second)
    listed = (await edge.json("GET", BASE, 200))["items"]

    assert made["state"] == "suppressed"
    assert "'r1/x.example' is already published by 'r1/a'" in made["detail"]
    assert await edge.json("GET", f"{BASE}/virtual-hosts/r1/b", 200) == made
    assert {item["name"]: item["state"] for item in listed} == {"r1/a": "published", "r1/b": "suppressed"}

    await edge.json("DELETE", f"{BASE}/virtual-hosts/r1/a", 204)
    assert (await edge.json("GET", f"{BASE}/virtual-hosts/r1/b", 200))["state"] == "published"


async def test_one_that_was_stored_but_is_not_valid_any_more_says_so_in_the_list_too(start, tmp_path):
    async with Journal.open(tmp_path) as journal:
        registry = MemoryRegistry(journal=journal)
        edge = await start(registry=registry)
        stored = RawResource(type_url=RUNTIME_TYPE, name="rt", body='{"name":"rt","gone":1}')
        await registry.put_resource(stored)
        while not edge.live.current.raw:
            await edge.live.wait()

        shown = await edge.json("GET", f"{BASE}/runtimes/rt", 200)
        assert (shown["state"], "gone" in shown["detail"]) == ("invalid", True)
        assert (await edge.json("GET", BASE, 200))["items"][0]["state"] == "invalid"


ROUTE_TO_WEB = {"match": {"prefix": "/"}, "route": {"cluster": "web"}}


async def test_a_reference_to_nothing_is_accepted_with_a_warning_that_goes_when_it_exists(edge):
    route = {"name": "r1", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [ROUTE_TO_WEB]}]}
    made = await edge.json("PUT", f"{BASE}/routes/r1", 201, route)
    assert any("'web'" in warning for warning in made["warnings"])

    await edge.register("web")
    assert (await edge.json("GET", f"{BASE}/routes/r1", 200))["warnings"] == []


async def test_a_private_key_is_never_shown_nor_told_but_its_change_is(edge):
    async with edge.client.put(f"{BASE}/secrets/server", json=SECRET) as answer:
        text = await answer.text()
    before = json.loads(text)
    assert KEY not in text
    assert "cGFzc3dvcmQ=" not in text
    assert before["resource"]["tls_certificate"]["certificate_chain"] == {"inline_string": "chain"}
    assert before["resource"]["tls_certificate"]["private_key"] == {"inline_string": "[redacted]"}
    assert KEY not in repr(edge.live.current.raw)
    assert KEY not in repr(edge.live.history)

    rotated = {**SECRET, "tls_certificate": {**SECRET["tls_certificate"], "private_key": {"inline_string": "other"}}}
    after = await edge.json("PUT", f"{BASE}/secrets/server", 200, rotated)
    assert after["version"] != before["version"]


@pytest.mark.parametrize("spelling", ["cluster_name", "clusterName"])
async def test_a_wrong_name_is_told_along_with_what_cannot_be_read(edge, spelling):
    body = {spelling: "other", "endpoints": [{"localty": {}}]}

    problem = await edge.json("PUT", f"{BASE}/endpoints/mine", 400, body)

    assert faults(problem).keys() == {f"#/{spelling}", "#/endpoints/0/localty"}


async def test_a_name_that_is_no_text_is_one_fault(edge):
    problem = await edge.json("PUT", f"{BASE}/runtimes/rt", 400, {"name": 5, "layer": {}})

    assert faults(problem).keys() == {"#/name"}


@pytest.mark.parametrize("name", ["envoy.clusters.redis", "envoy.clusters.acme"])
async def test_a_type_that_may_do_without_a_configuration_is_taken_without(edge, name):
    await edge.json("PUT", f"{BASE}/clusters/legacy", 201, {"name": "legacy", "cluster_type": {"name": name}})


def certificate(from_s: float, to_s: float, name: str = "edge.example") -> str:
    """Return a certificate in PEM that is good between two moments, given in seconds from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start, end = (datetime.fromtimestamp(NOW + each, UTC) for each in (from_s, to_s))
    made = x509.CertificateBuilder(subject, subject, key.public_key(), 7, start, end).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("from_day", "to_day", "words"),
    [
        pytest.param(-10, 80, None, id="in the first third of its life"),
        pytest.param(-61, 29, "expires at 2027-02-13T08:00:00.000Z", id="in the last third"),
        pytest.param(-0.5, 0.6, None, id="short-lived, and not due"),
        pytest.param(-90, -1, "expired at 2027-01-14T08:00:00.000Z", id="over"),
        pytest.param(1, 90, "not valid before 2027-01-16T08:00:00.000Z", id="of the future"),
    ],
)
@pytest.mark.parametrize("field", ["inline_string", "inline_bytes"])
async def test_a_certificate_that_is_due_is_stored_with_a_warning(edge, from_day, to_day, words, field):
    pem = certificate(from_day * 86_400, to_day * 86_400)
    content = pem if field == "inline_string" else base64.b64encode(pem.encode()).decode()
    body = {**SECRET, "tls_certificate": {**SECRET["tls_certificate"], "certificate_chain": {field: content}}}

    warnings = (await edge.json("PUT", f"{BASE}/secrets/server", 201, body))["warnings"]

    assert [words in warning and "'CN=edge.example'" in warning for warning in warnings] == ([True] if words else [])


async def test_of_a_chain_each_certificate_is_looked_at_and_of_a_file_none(edge):
    chain = certificate(-1e6, 1e7, "leaf") + certificate(-1e7, -1e6, "authority")
    body = {**SECRET, "tls_certificate": {**SECRET["tls_certificate"], "certificate_chain": {"inline_string": chain}}}
    (warning,) = (await edge.json("PUT", f"{BASE}/secrets/server", 201, body))["warnings"]
    assert "'CN=authority' expired" in warning

    body["tls_certificate"] = {**body["tls_certificate"], "certificate_chain": {"filename": "/etc/cert.pem"}}
    assert (await edge.json("PUT", f"{BASE}/secrets/server", 200, body))["warnings"] == []


@pytest.mark.parametrize("chain", ["chain", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
async def test_what_is_no_certificate_is_stored_with_a_warning(edge, chain):
    body = {**SECRET, "tls_certificate": {**SECRET["tls_certificate"], "certificate_chain": {"inline_string": chain}}}
    (warning,) = (await edge.json("PUT", f"{BASE}/secrets/server", 201, body))["warnings"]

    assert "cannot be read" in warning


async def test_what_an_answer_hid_is_not_taken_for_the_real_thing(edge):
    shown = await edge.json("PUT", f"{BASE}/secrets/server", 201, SECRET)

    problem = await edge.json("PUT", f"{BASE}/secrets/server", 400, shown["resource"])

    assert "[redacted]" in faults(problem)["#/tls_certificate/private_key/inline_string"]


async def test_a_write_that_relies_on_an_older_state_is_refused(edge):
    async with edge.client.put(f"{BASE}/runtimes/rt", json=RUNTIME) as answer:
        tag = answer.headers["ETag"]
        assert answer.headers["Location"] == f"{BASE}/runtimes/rt"
        revision = answer.headers["Revision"]
    changed = {"name": "rt", "layer": {"feature.on": False}}
    await edge.json("PUT", f"{BASE}/runtimes/rt", 200, changed, headers={"If-Match": tag})
    await edge.json("PUT", f"{BASE}/runtimes/rt", 412, RUNTIME, headers={"If-Match": tag})
    await edge.json("PUT", f"{BASE}/runtimes/rt", 412, RUNTIME, headers={"If-None-Match": "*"})
    async with edge.client.get(f"{BASE}/runtimes/rt") as answer:
        assert answer.headers["Revision"] != revision


async def test_a_write_relies_on_what_is_stored_and_not_on_what_is_shown_beside_it(edge):
    route = {"name": "r1", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [ROUTE_TO_WEB]}]}
    async with edge.client.put(f"{BASE}/routes/r1", json=route) as answer:
        tag = answer.headers["ETag"]
    await edge.register("web")  # its warning goes, and with it the answer is another one
    async with edge.client.get(f"{BASE}/routes/r1", headers={"If-None-Match": tag}) as answer:
        assert answer.status == 200
        assert answer.headers["ETag"] != tag

    changed = {**route, "virtual_hosts": []}
    await edge.json("PUT", f"{BASE}/routes/r1", 200, changed, headers={"If-Match": tag})
    await edge.json("PUT", f"{BASE}/routes/r1", 412, route, headers={"If-Match": tag})
    await edge.json("DELETE", f"{BASE}/routes/r1", 412, headers={"If-Match": tag})


async def test_other_limits_are_another_thing_that_is_stored(edge):
    async with edge.client.put(f"{BASE}/runtimes/rt", json=RUNTIME) as answer:
        tag = answer.headers["ETag"]
    await edge.json("PUT", f"{BASE}/runtimes/rt?node_zones=eu-1", 200, RUNTIME)

    await edge.json("PUT", f"{BASE}/runtimes/rt", 412, RUNTIME, headers={"If-Match": tag})


async def test_resources_are_listed_page_by_page(edge):
    for number in range(3):
        await edge.json("PUT", f"{BASE}/runtimes/rt-{number}", 201, {"name": f"rt-{number}", "layer": {}})
    await edge.json("PUT", f"{BASE}/secrets/server", 201, SECRET)

    for path, expected in ((BASE, ["server", "rt-0", "rt-1", "rt-2"]), (f"{BASE}/RTDS", ["rt-0", "rt-1", "rt-2"])):
        seen, link = [], f"{path}?limit=2"
        while link is not None:
            async with edge.client.get(link) as answer:
                page = await answer.json()
                header = answer.headers.get("Link")
            assert len(page["items"]) <= 2
            assert (header is None) == (page["next"] is None)
            seen += [item["name"] for item in page["items"]]
            link = page["next"] and f"{path}?limit=2&cursor={page['next']}"
        assert seen == expected
    whole = await edge.json("GET", BASE, 200)
    assert (len(whole["items"]), whole["next"]) == (4, None)
    assert (await edge.json("GET", f"{BASE}?limit=0", 400))["errors"][0]["parameter"] == "limit"


async def test_the_same_resource_again_makes_no_revision(edge):
    await edge.json("PUT", f"{BASE}/runtimes/rt", 201, RUNTIME)
    before = edge.live.revision
    await edge.json("PUT", f"{BASE}/runtimes/rt", 200, dict(reversed(RUNTIME.items())))

    assert edge.live.revision == before


async def test_who_may_have_a_resource_is_kept_with_it(edge):
    await edge.json("PUT", f"{BASE}/secrets/server?node_clusters=edge,b&node_zones=eu-1", 201, SECRET)

    shown = await edge.json("GET", f"{BASE}/secrets/server", 200)

    assert (shown["node_clusters"], shown["node_zones"]) == (["b", "edge"], ["eu-1"])


async def test_a_stored_but_unseen_resource_is_answered_with_202(start):
    edge = await start(silent=True, visible_within_s=0.01)

    async with edge.client.put(f"{BASE}/runtimes/rt", json=RUNTIME) as answer:
        assert answer.status == 202
        assert "Revision" not in answer.headers
        assert answer.headers["Location"] == f"{BASE}/runtimes/rt"


async def test_events_tell_which_resource_changed_and_nothing_of_what_it_holds(edge):
    await edge.json("PUT", f"{BASE}/secrets/server", 201, SECRET)
    async with edge.client.get("/api/v1/events") as stream:
        seen = b""
        while b"event: synced" not in seen:
            seen += await stream.content.readany()
        await edge.json("DELETE", f"{BASE}/secrets/server", 204)
        while b"event: delete" not in seen or not seen.endswith(b"\n\n"):
            seen += await stream.content.readany()

    told = [orjson.loads(line[6:]) for line in seen.splitlines() if line.startswith(b"data: ")]
    assert told == [
        {"type": "secrets", "name": "server", "node_clusters": [], "node_zones": [], "kind": "resource"},
        {},
        {"type": "secrets", "name": "server", "kind": "resource"},
    ]


async def test_a_restart_keeps_raw_resources(start, tmp_path):
    async with Journal.open(tmp_path) as journal:
        edge = await start(registry=MemoryRegistry(journal=journal))
        made = await edge.json("PUT", f"{BASE}/secrets/server?node_clusters=edge", 201, SECRET)
        await edge.json("PUT", f"{BASE}/runtimes/rt", 201, RUNTIME)
        await edge.json("DELETE", f"{BASE}/runtimes/rt", 204)
    async with Journal.open(tmp_path) as journal:
        edge = await start(registry=MemoryRegistry(journal=journal))
        while not edge.live.current.synced:
            await edge.live.wait()

        assert await edge.json("GET", f"{BASE}/secrets/server", 200) == made
        await edge.json("GET", f"{BASE}/runtimes/rt", 404)
