"""The fixture of the conformance list, spelled with real messages: small, and every resource changes by its edition.

Clusters c1 and c2 (by EDS) and c3 (static), assignments c1 and c2, listeners l1 (route r1) and l2 (inline), route r1
to c1 and c2, secret s1, runtime layer rt, extension f1, scope sc and virtual host r1/foo.example. Nothing else.
"""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType, ClusterEdsClusterConfig
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    AggregatedConfigSource,
    ApiVersion,
    ConfigSource,
    DataSource,
    ExtensionConfigSource,
    SocketAddress,
    TransportSocket,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener
from envoy_data_plane.envoy.config.route.v3 import (
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    ScopedRouteConfiguration,
    ScopedRouteConfigurationKey,
    ScopedRouteConfigurationKeyFragment,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.http.buffer.v3 import Buffer
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpFilter,
    Rds,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CommonTlsContext,
    GenericSecret,
    SdsSecretConfig,
    Secret,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.service.runtime.v3 import Runtime
from envoy_data_plane.google.protobuf import Struct, Value

from xds.encode import Encoder
from xds.types import (
    CLUSTER,
    ENDPOINT,
    EXTENSION,
    LISTENER,
    ROUTE,
    RUNTIME,
    SCOPED_ROUTE,
    SECRET,
    VIRTUAL_HOST,
    Resource,
)

Key = tuple[str, str]  # type URL, name

MESSAGES: Mapping[str, Any] = MappingProxyType(
    {
        CLUSTER: Cluster,
        ENDPOINT: ClusterLoadAssignment,
        LISTENER: Listener,
        ROUTE: RouteConfiguration,
        SCOPED_ROUTE: ScopedRouteConfiguration,
        VIRTUAL_HOST: VirtualHost,
        SECRET: Secret,
        RUNTIME: Runtime,
        EXTENSION: TypedExtensionConfig,
    }
)
FIXTURE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        CLUSTER: ("c1", "c2", "c3"),
        ENDPOINT: ("c1", "c2"),
        LISTENER: ("l1", "l2"),
        ROUTE: ("r1",),
        SCOPED_ROUTE: ("sc",),
        VIRTUAL_HOST: ("r1/foo.example",),
        SECRET: ("s1",),
        RUNTIME: ("rt",),
        EXTENSION: ("f1",),
    }
)
ROUTED: Mapping[str, tuple[str, ...]] = MappingProxyType({"r1": ("c1", "c2")})
_OVER_ADS = ConfigSource(ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3)
_STATIC = "c3"
_REFERENCES = {"l1": ("r1", "")}
"""What listeners take: routes and an extension. Others are called after it, `l-r9-f9`, and clusters, `c9-s1`."""
_BUFFER = "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer"


@lru_cache(maxsize=4096)
def resource(type_url: str, name: str, edition: int, *, routed: tuple[str, ...] = (), parent: str = "") -> Resource:
    """Spell one resource; `edition` shows in its bytes.

    `routed` are the clusters that a route leads to, `parent` is the version of the cluster above an assignment.
    Remembered: the tests ask for the same few hundreds of times.
    """
    encoder = Encoder()
    message, refs = _message(type_url, name, edition, routed, encoder)
    aliases = (name,) if type_url == VIRTUAL_HOST else ()
    return Resource.of(name, encoder.encode(message), refs=refs, parent_version=parent, aliases=aliases)


def _message(
    type_url: str, name: str, edition: int, routed: tuple[str, ...], encoder: Encoder
) -> tuple[Any, list[Key]]:
    if type_url == CLUSTER and name == _STATIC:
        static = ClusterDiscoveryType.STATIC
        inline = ClusterLoadAssignment(cluster_name=name, endpoints=[_endpoints(edition)])
        return Cluster(name=name, type=static, load_assignment=inline), []
    if type_url == CLUSTER:
        cluster = Cluster(
            name=name,
            type=ClusterDiscoveryType.EDS,
            eds_cluster_config=ClusterEdsClusterConfig(eds_config=_OVER_ADS),
            connect_timeout=timedelta(seconds=edition),
        )
        if secret := name.partition("-")[2]:
            cluster.transport_socket = _tls(secret, encoder)
            return cluster, [(ENDPOINT, name), (SECRET, secret)]
        return cluster, [(ENDPOINT, name)]
    if type_url == ENDPOINT:
        return ClusterLoadAssignment(cluster_name=name, endpoints=[_endpoints(edition)]), []
    if type_url == LISTENER:
        return _listener(name, edition, encoder)
    if type_url == ROUTE:
        refs = [(CLUSTER, each) for each in routed]
        return RouteConfiguration(name=name, virtual_hosts=[_host(name, edition, routed)]), refs
    if type_url == VIRTUAL_HOST:
        return _host(name, edition, ("c1",)), [(CLUSTER, "c1")]
    if type_url == SCOPED_ROUTE:
        fragment = ScopedRouteConfigurationKeyFragment(string_key=f"edition {edition}")
        key = ScopedRouteConfigurationKey(fragments=[fragment])
        return ScopedRouteConfiguration(name=name, route_configuration_name="r1", key=key), [(ROUTE, "r1")]
    if type_url == SECRET:
        secret = DataSource(inline_string=f"edition {edition}")
        return Secret(name=name, generic_secret=GenericSecret(secret=secret)), []
    if type_url == RUNTIME:
        return Runtime(name=name, layer=Struct(fields={"edition": Value(number_value=edition)})), []
    return TypedExtensionConfig(name=name, typed_config=encoder.pack(Buffer(max_request_bytes=edition))), []


def _endpoints(edition: int) -> LocalityLbEndpoints:
    where = Address(socket_address=SocketAddress(address="127.0.0.1", port_value=8000 + edition))
    return LocalityLbEndpoints(lb_endpoints=[LbEndpoint(endpoint=Endpoint(address=where))])


def _host(name: str, edition: int, to: Iterable[str]) -> VirtualHost:
    routes = [Route(match=RouteMatch(prefix=f"/{each}/{edition}/"), route=RouteAction(cluster=each)) for each in to]
    return VirtualHost(name=name, domains=[f"edition-{edition}.example"], routes=routes)


def _tls(secret: str, encoder: Encoder) -> TransportSocket:
    by_sds = [SdsSecretConfig(name=secret, sds_config=_OVER_ADS)]
    context = UpstreamTlsContext(common_tls_context=CommonTlsContext(tls_certificate_sds_secret_configs=by_sds))
    return TransportSocket(name="tls", typed_config=encoder.pack(context))


def _listener(name: str, edition: int, encoder: Encoder) -> tuple[Listener, list[Key]]:
    filters = [HttpFilter(name="router", typed_config=encoder.pack(Router()))]
    refs: list[Key] = []
    manager = HttpConnectionManager(stat_prefix=name)
    route, extension = _REFERENCES.get(name) or (*name.split("-")[1:], "", "")[:2]
    if route:
        manager.rds = Rds(config_source=_OVER_ADS, route_config_name=route)
        refs.append((ROUTE, route))
    else:
        manager.route_config = RouteConfiguration(name=name, virtual_hosts=[_host(name, edition, ())])
    if extension:
        source = ExtensionConfigSource(config_source=_OVER_ADS, type_urls=[_BUFFER])
        filters.insert(0, HttpFilter(name=extension, config_discovery=source))
        refs.append((EXTENSION, extension))
    manager.http_filters = filters
    chain = FilterChain(filters=[Filter(name="hcm", typed_config=encoder.pack(manager))])
    where = Address(socket_address=SocketAddress(address="127.0.0.1", port_value=9000 + edition))
    return Listener(name=name, address=where, filter_chains=[chain]), refs
