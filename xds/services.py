"""The gRPC services of the resource types, as their protos name them (T-01). Constants only."""

from collections.abc import Mapping
from types import MappingProxyType

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
)

ADS = "envoy.service.discovery.v3.AggregatedDiscoveryService"
SERVICES: Mapping[str, tuple[str, str, str]] = MappingProxyType(  # VHDS has no SotW variant
    {
        CLUSTER: ("envoy.service.cluster.v3.ClusterDiscoveryService", "StreamClusters", "DeltaClusters"),
        ENDPOINT: ("envoy.service.endpoint.v3.EndpointDiscoveryService", "StreamEndpoints", "DeltaEndpoints"),
        LISTENER: ("envoy.service.listener.v3.ListenerDiscoveryService", "StreamListeners", "DeltaListeners"),
        ROUTE: ("envoy.service.route.v3.RouteDiscoveryService", "StreamRoutes", "DeltaRoutes"),
        SCOPED_ROUTE: (
            "envoy.service.route.v3.ScopedRoutesDiscoveryService",
            "StreamScopedRoutes",
            "DeltaScopedRoutes",
        ),
        VIRTUAL_HOST: ("envoy.service.route.v3.VirtualHostDiscoveryService", "", "DeltaVirtualHosts"),
        SECRET: ("envoy.service.secret.v3.SecretDiscoveryService", "StreamSecrets", "DeltaSecrets"),
        RUNTIME: ("envoy.service.runtime.v3.RuntimeDiscoveryService", "StreamRuntime", "DeltaRuntime"),
        EXTENSION: (
            "envoy.service.extension.v3.ExtensionConfigDiscoveryService",
            "StreamExtensionConfigs",
            "DeltaExtensionConfigs",
        ),
    }
)
"""A type's service, its SotW method (empty for none) and its Delta method."""
