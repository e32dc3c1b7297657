"""Section C of the conformance list: what clients enforce, on everything that a whole control plane tells an Envoy.

What the last gate refuses that no write can bring in is `tests/translate/test_lint.py`'s.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any

import pytest
from betterproto2 import Message
from envoy_data_plane.envoy.config.cluster.v3 import ClusterDiscoveryType, ClusterLbPolicy
from envoy_data_plane.envoy.config.core.v3 import ApiVersion, ConfigSource, HealthStatus
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpConnectionManager

from controlplane.policy import Strategy
from tests.xds.client import Response
from tests.xds.conformance.plane import TYPES, Plane, running
from tests.xds.conformance.world import contents, ports, settle
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE

pytestmark = pytest.mark.integration

Told = dict[str, dict[str, Any]]
_PLACES = [{"region": "eu", "zone": "eu-1"}, {"region": "eu", "zone": "eu-2"}, {"region": "", "zone": ""}]


async def with_everything(plane: Plane) -> None:
    """Register a service of each strategy, with instances of every sort."""
    for strategy in Strategy:
        name = strategy.value.replace("_", "-")
        await plane.policy(name, strategy=strategy.value)
        for number, locality in enumerate(_PLACES):
            fields = {"port": 8000 + number, "weight": number * 400 + 1, "locality": locality}
            await plane.register(name, f"i{number}", **fields)
        await plane.register(name, "six", host="fd00::1", draining=True, metadata={"b": 1, "a": True})


@asynccontextmanager
async def telling() -> AsyncIterator[Told]:
    """Run a control plane with a service of each sort, and give what an Envoy is told of them."""
    async with running() as plane:
        await with_everything(plane)
        await plane.published(*(strategy.value.replace("_", "-") for strategy in Strategy))
        yield await plane.everything()


def groups(told: Told) -> Iterator[Any]:
    """List all localities of all assignments."""
    for assignment in told[ENDPOINT].values():
        yield from assignment.endpoints


def routes(told: Told) -> Iterator[Any]:
    """List all routes."""
    for host in told[ROUTE]["gateway"].virtual_hosts:
        yield from host.routes


async def test_c_01_c_02_c_03_endpoints_and_localities_have_weights_and_one_priority() -> None:
    async with telling() as told:
        for group in groups(told):
            weights = [endpoint.load_balancing_weight for endpoint in group.lb_endpoints]

            assert all(weight >= 1 for weight in weights)
            assert group.locality is not None
            assert group.load_balancing_weight == sum(weights) < 2**32
            assert group.priority == 0


async def test_c_01_c_04_a_write_that_would_break_a_clients_rule_is_refused() -> None:
    async with running() as plane:
        await plane.register("web", "one")
        instance = {"host": "10.0.0.2", "port": 80}
        path = "/api/v1/services/web/instances/two"

        assert await plane.send("PUT", path, {**instance, "weight": 0}) == 400
        assert await plane.send("PUT", path, {"host": "10.0.0.1", "port": 8080}) == 409
        assert await plane.send("PUT", "/api/v1/services/xds_cluster/instances/one", instance) == 400


async def test_c_04_no_locality_and_no_address_stands_twice() -> None:
    async with telling() as told:
        for assignment in told[ENDPOINT].values():
            places = [(group.locality.region, group.locality.zone) for group in assignment.endpoints]
            where = [
                (each.endpoint.address.socket_address.address, each.endpoint.address.socket_address.port_value)
                for group in assignment.endpoints
                for each in group.lb_endpoints
            ]

            assert len(places) == len(set(places)) == len(_PLACES)
            assert len(where) == len(set(where)) == 4


async def test_c_05_every_endpoint_says_its_health() -> None:
    async with telling() as told:
        seen = {each.health_status for group in groups(told) for each in group.lb_endpoints}

        assert seen == {HealthStatus.HEALTHY, HealthStatus.DRAINING}


async def test_c_06_c_07_c_08_assignments_drop_nothing_never_expire_and_hold_their_endpoints() -> None:
    async with telling() as told:
        for assignment in told[ENDPOINT].values():
            assert assignment.policy is None
        for group in groups(told):
            assert group.lb_endpoints
            assert group.leds_cluster_locality_config is None
            assert group.load_balancer_endpoints is None


async def test_c_10_each_policy_is_told_in_both_forms() -> None:
    legacy = {
        "round-robin": ClusterLbPolicy.ROUND_ROBIN,
        "weighted-round-robin": ClusterLbPolicy.ROUND_ROBIN,
        "least-connections": ClusterLbPolicy.LEAST_REQUEST,
        "random": ClusterLbPolicy.RANDOM,
        "consistent-hash": ClusterLbPolicy.RING_HASH,
        "health-based": ClusterLbPolicy.LEAST_REQUEST,
    }
    async with telling() as told:
        assert {name: cluster.lb_policy for name, cluster in told[CLUSTER].items()} == legacy
        for cluster in told[CLUSTER].values():
            [typed] = cluster.load_balancing_policy.policies

            assert typed.typed_extension_config.typed_config.type_url.startswith("type.googleapis.com/envoy.ext")


async def test_c_11_c_09_clusters_take_their_endpoints_by_eds_and_match_no_sockets() -> None:
    async with telling() as told:
        for cluster in told[CLUSTER].values():
            assert cluster.type == ClusterDiscoveryType.EDS
            assert cluster.eds_cluster_config.service_name == ""
            assert cluster.transport_socket_matches == []
            assert cluster.connect_timeout.total_seconds() > 0


async def test_c_12_every_route_says_what_it_matches_and_where_it_leads_and_no_domain_stands_twice() -> None:
    async with telling() as told:
        seen = list(routes(told))
        domains = [domain for host in told[ROUTE]["gateway"].virtual_hosts for domain in host.domains]

        assert len(seen) >= 2 * len(told[CLUSTER])
        assert all(route.match.prefix or route.match.path for route in seen)
        assert {route.route.cluster for route in seen if route.route is not None} == told[CLUSTER].keys()
        assert len(domains) == len(set(domains))


def sources(message: Message) -> Iterator[ConfigSource]:
    """List the config sources in a message, wherever they are."""
    if isinstance(message, ConfigSource):
        yield message
        return
    for field in fields(message):
        value = getattr(message, field.name)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Message):
                yield from sources(each)


async def test_c_14_everything_that_is_referred_to_comes_over_ads_in_version_3() -> None:
    async with telling() as told:
        [chain] = told[LISTENER]["gateway"].filter_chains
        manager = HttpConnectionManager.parse(chain.filters[-1].typed_config.value)
        found = [*sources(manager), *(each for cluster in told[CLUSTER].values() for each in sources(cluster))]

        assert len(found) == 1 + len(told[CLUSTER])
        assert all(source.ads is not None for source in found)
        assert all(source.resource_api_version == ApiVersion.V3 for source in found)
        assert manager.http_filters[-1].name == "envoy.filters.http.router"


async def test_c_16_no_name_is_empty_and_none_could_be_a_bootstraps() -> None:
    async with telling() as told:
        names = {type_url: [*told[type_url]] for type_url in TYPES}

        assert names[LISTENER] == names[ROUTE] == ["gateway"]
        assert names[CLUSTER] == names[ENDPOINT]
        assert all(name and "_" not in name for each in names.values() for name in each)


async def test_c_17_the_order_in_which_things_were_said_does_not_show() -> None:
    async with running() as one, running() as other:
        await one.register("web", metadata={"a": 1, "b": "x"}, tags=["p", "q"])
        await one.register("web", "two", port=8081)
        await other.register("web", "two", port=8081)
        await other.register("web", metadata={"b": "x", "a": 1}, tags=["q", "p"])
        resources = [(await served(each)).resources for each in (one, other)]

        assert resources[0] == resources[1]


async def served(plane: Plane) -> Response:
    """Read the assignment of `web` once both of its instances are in it."""
    stream = plane.client.ads(delta=True)
    response = await settle(stream, ENDPOINT, ["web"])
    while len(ports(contents(response).get("web"))) < 2:
        response = await stream.expect(ENDPOINT)
        await stream.ack(response)
    return response
