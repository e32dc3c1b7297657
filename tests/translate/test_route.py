"""The gateway's routes: joined by hand, held byte for byte to envoy-data-plane's own encoding."""

import datetime  # the module: the library looks names up where a message class is first used
import time

import pytest
from envoy_data_plane.envoy.config.route.v3 import (
    Route,
    RouteAction,
    RouteActionHashPolicy,
    RouteActionHashPolicyConnectionProperties,
    RouteActionHashPolicyCookie,
    RouteActionHashPolicyHeader,
    RouteActionHashPolicyQueryParameter,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)

from controlplane import plan
from controlplane.model import ServiceName
from controlplane.policy import ConsistentHash, HashOn, Policy, Strategy
from controlplane.translate.route import GatewayRoutes
from xds.types import CLUSTER

pytestmark = pytest.mark.unit


def service(name: str, policy: Policy | None = None, aliases: tuple[str, ...] = ()) -> plan.Cluster:
    return plan.Cluster(
        name=ServiceName(name),
        policy=policy or Policy(),
        localities=(),
        decisions=(),
        aliases=tuple(map(ServiceName, aliases)),
    )


def hashing(**hash_on: object) -> Policy:
    options = ConsistentHash(hash_on=HashOn(**hash_on))  # type: ignore[arg-type]
    return Policy(strategy=Strategy.CONSISTENT_HASH, consistent_hash=options)


def seconds(number: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=number)


def read(*services: plan.Cluster) -> RouteConfiguration:
    return RouteConfiguration.parse(GatewayRoutes().resource(services).body)


def cookie(path: str, ttl: float | None) -> RouteActionHashPolicy:
    made = RouteActionHashPolicyCookie(name="sid", ttl=None if ttl is None else seconds(ttl), path=path)
    return RouteActionHashPolicy(cookie=made)


@pytest.mark.parametrize(
    ("policy", "action", "by_path"),
    [
        pytest.param(Policy(), {"timeout": seconds(15)}, {}, id="the default policy"),
        pytest.param(Policy(timeout=0), {"timeout": seconds(0)}, {}, id="no timeout is written out as 0"),
        pytest.param(
            Policy(timeout=300.5),
            {"timeout": seconds(300.5), "idle_timeout": seconds(300.5)},
            {},
            id="a request that may take long may be silent as long",
        ),
        pytest.param(
            Policy(strategy=Strategy.CONSISTENT_HASH),
            {
                "timeout": seconds(15),
                "hash_policy": [
                    RouteActionHashPolicy(
                        connection_properties=RouteActionHashPolicyConnectionProperties(source_ip=True)
                    )
                ],
            },
            {},
            id="a hash on the source address, which is the default",
        ),
        pytest.param(
            hashing(source="header", name="x-user"),
            {
                "timeout": seconds(15),
                "hash_policy": [RouteActionHashPolicy(header=RouteActionHashPolicyHeader(header_name="x-user"))],
            },
            {},
            id="a hash on a header",
        ),
        pytest.param(
            hashing(source="query", name="user"),
            {
                "timeout": seconds(15),
                "hash_policy": [
                    RouteActionHashPolicy(query_parameter=RouteActionHashPolicyQueryParameter(name="user"))
                ],
            },
            {},
            id="a hash on a query parameter",
        ),
        pytest.param(
            hashing(source="cookie", name="sid"),
            {"timeout": seconds(15), "hash_policy": [cookie("", None)]},
            {},
            id="a hash on a cookie that clients bring",
        ),
        pytest.param(
            hashing(source="cookie", name="sid", ttl=0),
            {"timeout": seconds(15), "hash_policy": [cookie("/", 0)]},
            {"hash_policy": [cookie("/web/", 0)]},
            id="a hash on a cookie that Envoy makes for each route's path",
        ),
    ],
)
def test_bytes_equal_the_librarys(policy: Policy, action: dict[str, object], by_path: dict[str, object]) -> None:
    by_host = Route(match=RouteMatch(prefix="/"), route=RouteAction(cluster="web", **action))  # type: ignore[arg-type]
    rewritten = RouteAction(cluster="web", prefix_rewrite="/", **{**action, **by_path})  # type: ignore[arg-type]
    expected = RouteConfiguration(
        name="gateway",
        virtual_hosts=[
            VirtualHost(name="web", domains=["web", "web:*"], routes=[by_host]),
            VirtualHost(name="*", domains=["*"], routes=[Route(match=RouteMatch(prefix="/web/"), route=rewritten)]),
        ],
    )
    assert GatewayRoutes().resource([service("web", policy)]).body == bytes(expected)


def test_without_services_there_is_no_virtual_host() -> None:
    assert read() == RouteConfiguration(name="gateway")


def test_no_domain_and_no_virtual_host_appears_twice() -> None:
    """Envoy refuses the whole configuration otherwise."""
    configuration = read(*(service(name) for name in ("a", "a.b", "gateway", "10.0.0.1", "localhost", "a-b")))
    domains = [domain for host in configuration.virtual_hosts for domain in host.domains]
    names = [host.name for host in configuration.virtual_hosts]
    assert len(set(domains)) == len(domains)
    assert len(set(names)) == len(names)


def test_no_path_prefix_hides_another() -> None:
    *_, any_host = read(*(service(name) for name in ("a", "a.b", "aa", "a-b"))).virtual_hosts
    prefixes = [route.match.prefix for route in any_host.routes if route.match is not None]
    assert prefixes == ["/a/", "/a-b/", "/a.b/", "/aa/"]
    assert not [(one, two) for one in prefixes for two in prefixes if one != two and str(two).startswith(str(one))]


def test_an_alias_leads_to_the_same_cluster_by_host_and_by_path() -> None:
    web, others = read(service("web", aliases=("web.shop",))).virtual_hosts
    assert (web.name, web.domains) == ("web", ["web", "web:*", "web.shop", "web.shop:*"])
    by_path = {route.match.prefix: (route.route.cluster, route.route.prefix_rewrite) for route in others.routes}  # type: ignore[union-attr]
    assert by_path == {"/web/": ("web", "/"), "/web.shop/": ("web", "/")}


def test_an_alias_gives_way_to_a_service_of_that_name_and_to_an_earlier_ones() -> None:
    """Envoy refuses every route where two virtual hosts have one domain."""
    found = read(service("a", aliases=("x", "c")), service("b", aliases=("x",)), service("c"))
    assert [(host.name, host.domains) for host in found.virtual_hosts[:3]] == [
        ("a", ["a", "a:*", "x", "x:*"]),
        ("b", ["b", "b:*"]),
        ("c", ["c", "c:*"]),
    ]


def test_it_refers_to_the_clusters_that_it_routes_to() -> None:
    assert GatewayRoutes().resource([service("a"), service("b")]).refs == {(CLUSTER, "a"), (CLUSTER, "b")}


def test_what_is_remembered_never_shows() -> None:
    """Services come, change their policy, come back and go; the bytes are those of a fresh start, in any order."""
    routes = GatewayRoutes()
    slow = Policy(timeout=60)
    for services in (
        [service("a"), service("b")],
        [service("b", slow), service("a")],
        [service("a")],
        [service("a", aliases=("b", "x"))],
        [service("a", aliases=("b", "x")), service("b")],
        [service("b"), service("c", slow), service("a", slow)],
        [],
        [service("b")],
    ):
        assert routes.resource(services) == GatewayRoutes().resource(sorted(services, key=lambda each: each.name))


def test_adding_a_service_to_a_thousand_is_a_join() -> None:
    """The bound is generous, for machines differ; encoding a thousand messages takes 200 ms."""
    routes = GatewayRoutes()
    services = [service(f"svc-{number}") for number in range(1000)]
    routes.resource(services)
    times = []
    for number in range(5):
        services.append(service(f"new-{number}"))
        started = time.process_time()
        routes.resource(services)
        times.append(time.process_time() - started)
    assert min(times) < 0.010
