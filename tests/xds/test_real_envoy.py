"""A real Envoy, SotW and Delta: what the protocol text leaves open, Envoy decides."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType, ClusterEdsClusterConfig
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    AggregatedConfigSource,
    ApiVersion,
    ConfigSource,
    SocketAddress,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener
from envoy_data_plane.envoy.config.route.v3 import Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpFilter,
    Rds,
)
from envoy_data_plane.google.protobuf import Any as AnyMessage
from envoys import EVERY_ENVOY

from xds.cache import SnapshotCache
from xds.protocol import Acked, Event, Nacked
from xds.server import StreamInfo, XdsServer
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource, ResourceSet, Snapshot

pytestmark = pytest.mark.e2e

_ADS = ConfigSource(ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3)
_START_S = 12.0  # below Envoy's 15 s, after which it stops waiting for endpoints


def cluster(name: str, *, connect_ms: int = 500) -> Resource:
    message = Cluster(
        name=name,
        type=ClusterDiscoveryType.EDS,
        eds_cluster_config=ClusterEdsClusterConfig(eds_config=_ADS),
        connect_timeout=timedelta(milliseconds=connect_ms),
    )
    return Resource.of(name, bytes(message), refs=[(ENDPOINT, name)])


def assignment(parent: Resource, port: int) -> Resource:
    endpoint = Endpoint(address=Address(socket_address=SocketAddress(address="127.0.0.1", port_value=port)))
    message = ClusterLoadAssignment(
        cluster_name=parent.name, endpoints=[LocalityLbEndpoints(lb_endpoints=[LbEndpoint(endpoint=endpoint)])]
    )
    return Resource.of(parent.name, bytes(message), parent_version=parent.version)


def routes(to: Sequence[str]) -> Resource:
    """Lead `/a/` to the cluster `a`, in the one table that all share."""
    host = VirtualHost(
        name="all",
        domains=["*"],
        routes=[Route(match=RouteMatch(prefix=f"/{name}/"), route=RouteAction(cluster=name)) for name in to],
    )
    body = bytes(RouteConfiguration(name="gateway", virtual_hosts=[host]))
    return Resource.of("gateway", body, refs=[(CLUSTER, name) for name in to])


def listener() -> Resource:
    manager = HttpConnectionManager(
        stat_prefix="gateway",
        rds=Rds(config_source=_ADS, route_config_name="gateway"),
        http_filters=[HttpFilter(name="envoy.filters.http.router", typed_config=AnyMessage.pack(Router()))],
    )
    chain = FilterChain(
        filters=[Filter(name="envoy.filters.network.http_connection_manager", typed_config=AnyMessage.pack(manager))]
    )
    message = Listener(
        name="gateway",
        address=Address(socket_address=SocketAddress(address="127.0.0.1", port_value=0)),
        filter_chains=[chain],
    )
    return Resource.of("gateway", bytes(message), refs=[(ROUTE, "gateway")])


def snapshot(revision: str, clusters: list[Resource], *to: str, port: int = 1) -> Snapshot:
    return Snapshot(
        {
            CLUSTER: ResourceSet(clusters),
            ENDPOINT: ResourceSet(assignment(each, port) for each in clusters),
            LISTENER: ResourceSet([listener()]),
            ROUTE: ResourceSet([routes(to)]),
        },
        revision,
    )


async def status(port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.readline()
    writer.close()
    return int(answer.split()[1])


@asynccontextmanager
async def upstream() -> AsyncIterator[int]:
    """Answer every request with 200; yield the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


class Watching:
    """Hear the events, and wait for one."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._news = asyncio.Event()

    def __call__(self, _info: StreamInfo, event: Event) -> None:
        self._events.append(event)
        self._news.set()

    async def acked(self, type_url: str, revision: str) -> None:
        def asked(event: Event) -> bool:
            return isinstance(event, Acked) and (event.type_url, event.revision) == (type_url, revision)

        await self._first(asked)

    async def nacked(self) -> Nacked:
        found = await self._first(lambda event: isinstance(event, Nacked))
        assert isinstance(found, Nacked)
        return found

    async def _first(self, asked: Callable[[Event], bool]) -> Event:
        async with asyncio.timeout(_START_S):
            while True:
                self._news.clear()
                for event in self._events:
                    if asked(event):
                        return event
                await self._news.wait()


class Envoy:
    def __init__(self, admin: int) -> None:
        self._admin = admin

    async def get(self, path: str) -> str:
        def fetch() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._admin}{path}", timeout=5) as answer:
                return str(answer.read().decode())

        return await asyncio.to_thread(fetch)

    async def gateway(self) -> int:
        """Tell the port that the listener got."""
        (found,) = json.loads(await self.get("/listeners?format=json"))["listener_statuses"]
        return int(found["local_address"]["socket_address"]["port_value"])

    async def stats(self, pattern: str) -> dict[str, int]:
        found = json.loads(await self.get(f"/stats?format=json&filter={pattern}"))["stats"]
        return {stat["name"]: stat["value"] for stat in found if "value" in stat}


@asynccontextmanager
async def envoy(binary: Path, folder: Path, xds_port: int, *, delta: bool) -> AsyncIterator[Envoy]:
    """Run an Envoy whose only configuration is ours, with no mercy for a cluster that never warms."""
    admin_file = folder / "admin"
    bootstrap = {
        "node": {"id": "edge-1", "cluster": "edge"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC" if delta else "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds_cluster"}}],
            },
            "cds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"},
            "lds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"},
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "xds_cluster",
                    "type": "STATIC",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                    "load_assignment": {
                        "cluster_name": "xds_cluster",
                        "endpoints": [
                            {
                                "lb_endpoints": [
                                    {
                                        "endpoint": {
                                            "address": {
                                                "socket_address": {"address": "127.0.0.1", "port_value": xds_port}
                                            }
                                        }
                                    }
                                ]
                            }
                        ],
                    },
                }
            ]
        },
    }
    log = (folder / "envoy.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        str(binary),
        *("--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"),
        *("--admin-address-path", str(admin_file), "--config-yaml", json.dumps(bootstrap)),
        stdout=log,
        stderr=log,
    )
    try:
        async with asyncio.timeout(_START_S):
            while not admin_file.exists() or ":" not in (address := admin_file.read_text()):
                assert process.returncode is None, (folder / "envoy.log").read_text()
                await asyncio.sleep(0.02)
        yield Envoy(int(address.rpartition(":")[2]))
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        log.close()


@EVERY_ENVOY
@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
async def test_envoy_follows_a_rollout_without_a_rejection_or_a_cluster_that_never_warms(
    envoy_path: Path, tmp_path: Path, delta: bool
) -> None:
    heard = Watching()
    cache = SnapshotCache()
    cache.set("edge", snapshot("r1", [cluster("a"), cluster("b")], "a"))
    # Nobody gives up waiting here: what hangs on an ACK that Envoy withholds until a cluster is warm must show.
    server = XdsServer(
        cache,
        group_of=lambda node: node.cluster,
        ready=lambda: True,
        identifier="test",
        on_event=heard,
        ack_timeout_s=60.0,
    )
    port = await server.start("127.0.0.1", 0)
    try:
        async with upstream() as http_port, envoy(envoy_path, tmp_path, port, delta=delta) as proxy:
            await heard.acked(ROUTE, "r1")

            # A cluster changes, its endpoints do not: Envoy warms it until its assignment comes again (O-01).
            cache.set("edge", snapshot("r2", [cluster("a", connect_ms=700), cluster("b")], "a"))
            await heard.acked(ENDPOINT, "r2")
            await heard.acked(CLUSTER, "r2")

            # The route moves to a new cluster, the old one goes: make before break (O-05).
            cache.set("edge", snapshot("r3", [cluster("b"), cluster("c")], "c"))
            await heard.acked(ROUTE, "r3")
            async with asyncio.timeout(_START_S):
                while "a::" in await proxy.get("/clusters"):
                    await asyncio.sleep(0.02)

            # The client refuses one of two new clusters: the other gets through, and it is said which and why.
            bad = cluster("bad", connect_ms=0)
            cache.set("edge", snapshot("r4", [cluster("b"), cluster("c"), bad, cluster("d")], "c", "bad", "d"))
            refusal = await heard.nacked()

            assert "bad" in refusal.names
            assert refusal.message
            async with asyncio.timeout(_START_S):
                while "d::" not in await proxy.get("/clusters"):
                    await asyncio.sleep(0.02)

            # The one route table refers to what was refused. It follows all the same, and so does what comes later.
            await heard.acked(ROUTE, "r4")
            clusters = [cluster("b"), cluster("c"), bad, cluster("d"), cluster("e")]
            cache.set("edge", snapshot("r5", clusters, "c", "bad", "d", "e", port=http_port))
            await heard.acked(ROUTE, "r5")
            gateway = await proxy.gateway()
            async with asyncio.timeout(_START_S):
                while await status(gateway, "/e/") != 200:
                    await asyncio.sleep(0.02)

            assert await status(gateway, "/d/") == 200
            assert await status(gateway, "/bad/") == 503
            assert await status(gateway, "/unknown/") == 404
            stats = await proxy.stats("warming|update_rejected|init_fetch_timeout|connected_state")

            assert stats["cluster_manager.warming_clusters"] == 0
            assert stats["control_plane.connected_state"] == 1
            assert sum(value for name, value in stats.items() if name.endswith("init_fetch_timeout")) == 0
            assert stats["listener_manager.lds.update_rejected"] == 0
            assert 1 <= stats["cluster_manager.cds.update_rejected"] <= 3
    finally:
        await server.stop(0.0)


@EVERY_ENVOY
@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
async def test_services_whose_names_are_words_of_an_error_are_not_taken_for_the_refused_one(
    envoy_path: Path, tmp_path: Path, delta: bool
) -> None:
    heard = Watching()
    cache = SnapshotCache()
    words = ("ads", "name", "type", "value")
    good = [cluster(name) for name in words]
    cache.set("edge", snapshot("r1", good, *words))
    server = XdsServer(cache, group_of=lambda node: node.cluster, ready=lambda: True, identifier="test", on_event=heard)
    port = await server.start("127.0.0.1", 0)
    try:
        async with upstream() as http_port, envoy(envoy_path, tmp_path, port, delta=delta) as proxy:
            await heard.acked(ROUTE, "r1")
            good = [cluster(name, connect_ms=700) for name in (*words, "com")]
            bad = cluster("bad", connect_ms=0)
            cache.set("edge", snapshot("r2", [*good, bad], *words, "com", "bad", port=http_port))
            refusal = await heard.nacked()

            assert refusal.names == ("bad",)
            assert "ads {" in refusal.message

            await heard.acked(CLUSTER, "r2")
            await heard.acked(ROUTE, "r2")
            gateway = await proxy.gateway()
            async with asyncio.timeout(_START_S):
                for name in (*words, "com"):
                    while await status(gateway, f"/{name}/") != 200:
                        await asyncio.sleep(0.02)

            assert await status(gateway, "/bad/") == 503
    finally:
        await server.stop(0.0)
