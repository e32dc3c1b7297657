"""What a raw resource refers to, so that nothing goes while something in service refers to it (O-05, D-15)."""

from collections.abc import Iterable, Iterator

from betterproto2 import Message
from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType
from envoy_data_plane.envoy.config.route.v3 import (
    RouteAction,
    RouteActionRequestMirrorPolicy,
    ScopedRouteConfiguration,
    WeightedClusterClusterWeight,
)
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter, Rds
from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy.v3 import (
    TcpProxy,
    TcpProxyWeightedClusterClusterWeight,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import SdsSecretConfig

from controlplane.raw.reading import Part
from xds.types import CLUSTER, ENDPOINT, EXTENSION, ROUTE, SECRET

Reference = tuple[str, str]


def references(parts: Iterable[Part]) -> frozenset[Reference]:
    """Return the `(type_url, name)` pairs that a resource refers to, by its messages, those in an `Any` included."""
    found = (reference for part in parts for reference in _of(part.message))
    return frozenset((type_url, name) for type_url, name in found if name)


def _of(message: Message) -> Iterator[Reference]:
    match message:
        case Cluster() if message.type == ClusterDiscoveryType.EDS:
            eds = message.eds_cluster_config
            yield ENDPOINT, (eds.service_name if eds is not None else "") or message.name
        case RouteAction() | TcpProxy():
            yield CLUSTER, message.cluster or ""
        case RouteActionRequestMirrorPolicy():
            yield CLUSTER, message.cluster
        case WeightedClusterClusterWeight() | TcpProxyWeightedClusterClusterWeight():
            yield CLUSTER, message.name
        case Rds():
            yield ROUTE, message.route_config_name
        case ScopedRouteConfiguration():
            yield ROUTE, message.route_configuration_name
        case SdsSecretConfig() if message.sds_config is not None:
            yield SECRET, message.name
        case HttpFilter() if message.config_discovery is not None:
            yield EXTENSION, message.name
        case _:
            pass
