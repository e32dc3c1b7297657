"""Read encoded resources back as proto3 JSON, for people, files and tests; far too slow for anything else."""

from typing import Any, Final

from betterproto2 import Message
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import TypedExtensionConfig
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration, ScopedRouteConfiguration
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import Secret
from envoy_data_plane.envoy.service.runtime.v3 import Runtime

from xds.types import CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, RUNTIME, SCOPED_ROUTE, SECRET, Snapshot

KINDS = {CLUSTER: "clusters", ENDPOINT: "endpoints", LISTENER: "listeners", ROUTE: "routes"}
"""What people call the types, in the order in which Envoy is told of them."""

_MESSAGES: Final[dict[str, type[Message]]] = {
    CLUSTER: Cluster,
    ENDPOINT: ClusterLoadAssignment,
    LISTENER: Listener,
    ROUTE: RouteConfiguration,
    SCOPED_ROUTE: ScopedRouteConfiguration,
    SECRET: Secret,
    RUNTIME: Runtime,
    EXTENSION: TypedExtensionConfig,
}


def as_json(type_url: str, body: bytes) -> dict[str, Any]:
    """Read one resource of a type that is served; a message inside it must be of a type that has been imported.

    Differs from the canonical mapping in one place: 64-bit wrapped numbers are numbers, not strings.
    """
    return _MESSAGES[type_url].parse(body).to_dict()


def documents(snapshot: Snapshot) -> dict[str, list[dict[str, Any]]]:
    """Read a whole snapshot, by kind, each kind's resources by name."""
    return {
        kind: [as_json(type_url, resource.body) for _, resource in sorted(snapshot.of_type(type_url).items())]
        for type_url, kind in KINDS.items()
    }
