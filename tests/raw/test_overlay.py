"""Raw resources reach the nodes that may have them, beside what services make and never in its place."""

from typing import Any

import orjson
import pytest
from builders import catalog, put

from controlplane.catalog import Catalog
from controlplane.model import DeleteResource, Event, PutResource, RawResource
from controlplane.raw.overlay import Limit, Overlay
from xds.types import (
    CLUSTER,
    EMPTY,
    ENDPOINT,
    EXTENSION,
    LISTENER,
    ROUTE,
    RUNTIME,
    SCOPED_ROUTE,
    SECRET,
    VIRTUAL_HOST,
    Node,
    Resource,
    ResourceSet,
)

pytestmark = pytest.mark.unit

ADS = {"ads": {}, "resource_api_version": "V3"}
EVERYONE: frozenset[Limit] = frozenset()


def raw(type_url: str, name: str, body: dict[str, Any], **limits: tuple[str, ...]) -> RawResource:
    return RawResource(type_url=type_url, name=name, body=orjson.dumps(body).decode(), **limits)


def stored(*resources: RawResource, also: tuple[Event, ...] = ()) -> Catalog:
    return catalog(*also, *(PutResource(resource=each, registry="memory") for each in resources))


def follow(overlay: Overlay, held: Catalog) -> bool:
    return overlay.update(held.raw, held.has_cluster)


def runtime(name: str = "rt", value: object = 1, **limits: tuple[str, ...]) -> RawResource:
    return raw(RUNTIME, name, {"name": name, "layer": {"a": value}}, **limits)


def cluster(name: str, timeout: str = "1s", service_name: str = "") -> RawResource:
    eds = {"eds_config": ADS, "service_name": service_name}
    body = {"name": name, "type": "EDS", "connect_timeout": timeout, "eds_cluster_config": eds}
    return raw(CLUSTER, name, body)


def refs_of(resource: RawResource) -> frozenset[tuple[str, str]]:
    overlay = Overlay()
    follow(overlay, stored(resource))
    assert not overlay.left_out
    return overlay.over({}, EVERYONE)[resource.type_url].ordered[0].refs


class TestAudience:
    def test_a_limited_resource_exists_for_those_nodes_only(self) -> None:
        overlay = Overlay()
        changed = follow(overlay, stored(runtime(node_clusters=("edge",), node_zones=("eu-1", "eu-2"))))
        inside = overlay.audience(Node(id="a", cluster="edge", zone="eu-2"))
        elsewhere = overlay.audience(Node(id="b", cluster="edge", zone="us-1"))
        another = overlay.audience(Node(id="c", cluster="internal", zone="eu-1"))

        assert changed
        assert "rt" in overlay.over({}, inside)[RUNTIME]
        assert elsewhere == another == EVERYONE
        assert RUNTIME not in overlay.over({}, EVERYONE)

    def test_an_audience_is_worked_out_once_for_all_nodes_of_a_place(self) -> None:
        """When limits change, thousands of streams ask at once."""
        overlay = Overlay()
        follow(overlay, stored(runtime(node_clusters=("edge",))))
        one, two = (overlay.audience(Node(id=name, cluster="edge", zone="eu-1")) for name in "ab")

        assert one is two
        assert one == {Limit(("edge",), ())}
        for number in range(5000):
            assert overlay.audience(Node(id="a", cluster=f"unknown-{number}")) == EVERYONE

    def test_nodes_are_regrouped_only_when_the_limits_change(self) -> None:
        overlay = Overlay()
        held = stored(runtime(node_clusters=("edge",)))
        assert follow(overlay, held)
        held, _ = held.apply(PutResource(resource=runtime(value=2, node_clusters=("edge",)), registry="memory"))
        assert not follow(overlay, held)
        held, _ = held.apply(PutResource(resource=runtime(value=2), registry="memory"))
        assert follow(overlay, held)
        assert overlay.audience(Node(id="a", cluster="edge")) == EVERYONE


class TestMerging:
    def test_without_raw_resources_our_sets_are_the_very_same(self) -> None:
        overlay = Overlay()
        follow(overlay, catalog(put()))
        ours = {CLUSTER: ResourceSet([Resource.of("web", b"x")])}

        assert overlay.over(ours, EVERYONE) is ours

    def test_a_change_of_another_type_makes_no_set_again(self) -> None:
        overlay = Overlay()
        follow(overlay, stored(cluster("legacy")))
        clusters = ResourceSet([Resource.of("web", b"x")])
        first = overlay.over({CLUSTER: clusters, ENDPOINT: EMPTY}, EVERYONE)
        second = overlay.over({CLUSTER: clusters, ENDPOINT: ResourceSet([Resource.of("web", b"y")])}, EVERYONE)

        assert first[CLUSTER] is second[CLUSTER]
        assert set(first[CLUSTER]) == {"legacy", "web"}

    def test_our_sets_are_followed_step_by_step(self) -> None:
        """A change of one assignment among thousands must not cost a look at all of them."""
        overlay = Overlay()
        follow(overlay, stored(raw(ENDPOINT, "shared", {"cluster_name": "shared"})))
        ours = ResourceSet(Resource.of(name, b"x") for name in ("api", "gone", "web"))
        first = overlay.over({ENDPOINT: ours}, EVERYONE)[ENDPOINT]
        later = ours.replacing([Resource.of("web", b"y"), Resource.of("shared", b"ours")], ["gone"])
        second = overlay.over({ENDPOINT: later}, EVERYONE)[ENDPOINT]
        third = overlay.over({ENDPOINT: later.replacing(removed=["shared"])}, EVERYONE)[ENDPOINT]

        assert second.differing_from(first) == {"gone", "shared", "web"}
        assert second.differing_from(first) is second.differing_from(first)  # known, not worked out
        assert {name: each.body for name, each in second.items()} == {"api": b"x", "shared": b"ours", "web": b"y"}
        assert third["shared"] == first["shared"]
        assert third.version == ResourceSet(third.ordered).version

    def test_a_service_that_comes_later_wins_and_gives_the_name_back(self) -> None:
        overlay = Overlay()
        mine = cluster("web")
        follow(overlay, stored(mine))
        assert "web" in overlay.over({}, EVERYONE)[CLUSTER]

        follow(overlay, stored(mine, also=(put("web"),)))
        ours = {CLUSTER: ResourceSet([Resource.of("web", b"ours")])}
        assert overlay.over(ours, EVERYONE)[CLUSTER]["web"].body == b"ours"
        assert "service 'web'" in overlay.left_out[mine.key]

        follow(overlay, stored(mine))
        assert not overlay.left_out
        assert "web" in overlay.over({CLUSTER: EMPTY}, EVERYONE)[CLUSTER]

    def test_a_removed_resource_is_gone(self) -> None:
        overlay = Overlay()
        held = stored(runtime())
        follow(overlay, held)
        held, _ = held.apply(DeleteResource(key=runtime().key, registry="memory"))
        follow(overlay, held)

        assert overlay.over({}, EVERYONE) == {}

    def test_one_that_cannot_be_read_any_more_is_left_out_alone(self) -> None:
        overlay = Overlay()
        broken = raw(RUNTIME, "broken", {"name": "broken", "gone": 1})
        follow(overlay, stored(broken, runtime()))

        assert set(overlay.over({}, EVERYONE)[RUNTIME]) == {"rt"}
        assert "gone" in overlay.left_out[broken.key]

    def test_a_changed_cluster_sends_its_assignment_again(self) -> None:
        """O-01: the assignment's version folds the cluster's in."""
        overlay = Overlay()
        assignment = raw(ENDPOINT, "shared", {"cluster_name": "shared"})
        follow(overlay, stored(cluster("legacy", service_name="shared"), assignment))
        before = overlay.over({}, EVERYONE)[ENDPOINT]["shared"]
        follow(overlay, stored(cluster("legacy", "2s", service_name="shared"), assignment))
        after = overlay.over({}, EVERYONE)[ENDPOINT]["shared"]

        assert before.body == after.body
        assert before.version != after.version


class TestVirtualHosts:
    def test_each_domain_is_found_under_its_own_name(self) -> None:
        """V-01: Envoy asks by domain and keeps and removes virtual hosts by the name inside."""
        overlay = Overlay()
        follow(overlay, stored(raw(VIRTUAL_HOST, "r1/shop", {"name": "shop", "domains": ["a.example", "b.example"]})))
        hosts = overlay.over({}, EVERYONE)[VIRTUAL_HOST]

        assert {name: host.aliases for name, host in hosts.items()} == {
            "r1/a.example": ("r1/a.example",),
            "r1/b.example": ("r1/b.example",),
        }
        assert b"r1/a.example" in hosts["r1/a.example"].body

    def test_a_domain_of_two_is_the_first_ones_and_the_other_says_so(self) -> None:
        overlay = Overlay()
        second = raw(VIRTUAL_HOST, "r1/b", {"name": "b", "domains": ["x.example"]})
        follow(overlay, stored(raw(VIRTUAL_HOST, "r1/a", {"name": "a", "domains": ["x.example"]}), second))

        assert set(overlay.over({}, EVERYONE)[VIRTUAL_HOST]) == {"r1/x.example"}
        assert "r1/x.example" in overlay.left_out[second.key]


_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
_HTTP = "type.googleapis.com/envoy.extensions.filters."


class TestReferences:
    def test_a_cluster_refers_to_its_assignment_by_the_service_name_where_it_has_one(self) -> None:
        assert refs_of(cluster("a")) == {(ENDPOINT, "a")}
        assert refs_of(cluster("a", service_name="b")) == {(ENDPOINT, "b")}

    def test_a_listener_refers_to_routes_secrets_and_extensions_that_are_nested_in_it(self) -> None:
        manager = {
            "@type": _HTTP + "network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "x",
            "rds": {"config_source": ADS, "route_config_name": "r1"},
            "http_filters": [
                {
                    "name": "f1",
                    "config_discovery": {"config_source": ADS, "type_urls": [_HTTP + "http.router.v3.Router"]},
                }
            ],
        }
        secret = {"name": "s1", "sds_config": ADS}
        tls = {
            "@type": _TLS + "DownstreamTlsContext",
            "common_tls_context": {"tls_certificate_sds_secret_configs": [secret]},
        }
        chain = {
            "filters": [{"name": "hcm", "typed_config": manager}],
            "transport_socket": {"name": "tls", "typed_config": tls},
        }
        address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
        listener = raw(LISTENER, "l1", {"name": "l1", "address": address, "filter_chains": [chain]})

        assert refs_of(listener) == {(ROUTE, "r1"), (SECRET, "s1"), (EXTENSION, "f1")}

    def test_routes_refer_to_weighted_and_mirrored_clusters_too(self) -> None:
        weighted = {"clusters": [{"name": "b", "weight": 1}, {"name": "c", "weight": 1}]}
        action = {"weighted_clusters": weighted, "request_mirror_policies": [{"cluster": "d"}]}
        routes = [
            {"match": {"prefix": "/a"}, "route": {"cluster": "a"}},
            {"match": {"prefix": "/"}, "route": action},
        ]
        host = {"name": "v", "domains": ["*"], "routes": routes}

        assert refs_of(raw(ROUTE, "r1", {"name": "r1", "virtual_hosts": [host]})) == {
            (CLUSTER, name) for name in "abcd"
        }

    def test_a_scope_refers_to_its_routes(self) -> None:
        key = {"fragments": [{"string_key": "x"}]}
        scope = raw(SCOPED_ROUTE, "s", {"name": "s", "route_configuration_name": "r1", "key": key})

        assert refs_of(scope) == {(ROUTE, "r1")}
