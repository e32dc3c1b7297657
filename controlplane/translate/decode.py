"""Read encoded resources back as proto3 JSON, for people, files and tests; far too slow for anything else."""

import re
from base64 import b64encode
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from betterproto2 import Message
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import TypedExtensionConfig
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration, ScopedRouteConfiguration, VirtualHost
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import Secret
from envoy_data_plane.envoy.service.runtime.v3 import Runtime

from controlplane.translate.redaction import PRIVATE_KEY, redacted
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
    Snapshot,
)

KINDS = {CLUSTER: "clusters", ENDPOINT: "endpoints", LISTENER: "listeners", ROUTE: "routes"}
"""What people call the types, in the order in which Envoy is told of them."""

_MESSAGES: Final[dict[str, type[Message]]] = {
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

_NESTED: Final = re.compile(rb"type\.googleapis\.com/((?:envoy|udpa|xds)(?:\.[a-z0-9_]+)+)\.[A-Z]")
_MAX_DECODED_BYTES: Final = 256 * 1024  # a quarter of a second


def as_json(type_url: str, body: bytes) -> dict[str, Any]:
    """Read one resource of a type that is served.

    Differs from the canonical mapping in one place: 64-bit wrapped numbers are numbers, not strings.
    """
    return _MESSAGES[type_url].parse(body).to_dict()


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Show a resource's content: as JSON, or else as base64 or not at all, with the reason."""

    json: dict[str, Any] | None = None
    base64: str | None = None
    note: str | None = None


def readable(type_url: str, body: bytes) -> Content:
    """Read one resource of any type for a person, without keys and passwords.

    Whatever cannot be read is no fault here: a raw resource may hold messages that nobody here knows.
    """
    if type_url == SECRET:
        return Content(note="secrets are not shown; the version is a hash of the content")
    if not body:
        return Content(note="only the version is known: the client reported it when it connected")
    if type_url not in _MESSAGES:
        return _unread(body, "the type is not known here")
    if len(body) > _MAX_DECODED_BYTES:
        return Content(note=f"{len(body)} bytes are too many to be shown; at most {_MAX_DECODED_BYTES} are")
    for package in {found.decode() for found in _NESTED.findall(body)}:
        try:
            import_module(f"envoy_data_plane.{package}")  # known is what has been imported
        except ModuleNotFoundError:
            continue  # the reader says which message it misses
    try:
        return Content(json=redacted(as_json(type_url, body)))
    # What the generated reader raises for bytes that are no message of its type.
    except (ValueError, LookupError, EOFError, TypeError, ArithmeticError, AttributeError, RecursionError) as error:
        return _unread(body, f"it cannot be read as {type_url}: {error}")


def _unread(body: bytes, note: str) -> Content:
    if PRIVATE_KEY.encode() in body:
        return Content(note=f"{note}; it holds a private key and is not shown")
    return Content(base64=b64encode(body).decode(), note=note)


def documents(snapshot: Snapshot) -> dict[str, list[dict[str, Any]]]:
    """Read a whole snapshot, by kind, each kind's resources by name."""
    return {
        kind: [as_json(type_url, resource.body) for _, resource in sorted(snapshot.of_type(type_url).items())]
        for type_url, kind in KINDS.items()
    }
