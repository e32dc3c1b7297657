"""Spell a planned cluster's endpoints as a ClusterLoadAssignment: the hot path.

An endpoint's bytes are made once, when the endpoint changes, and an assignment is the join of its endpoints'
bytes; the bytes equal those of envoy-data-plane's own encoding of the same message (the tests hold them to it).
Building and encoding the message instead takes a hundred times as long.
"""

import struct
from collections.abc import Iterable, Iterator
from itertools import chain

from controlplane import plan
from controlplane.model import HealthStatus, Locality, MetadataValue
from xds.encode import frame, varint
from xds.types import Resource

# Field numbers from envoy/config/endpoint/v3/endpoint_components.proto, core/v3/address.proto and base.proto.
_HEALTH = {
    HealthStatus.HEALTHY: b"\x10\x01",
    HealthStatus.UNHEALTHY: b"\x10\x02",
    HealthStatus.DRAINING: b"\x10\x03",
    HealthStatus.TIMEOUT: b"\x10\x04",
    HealthStatus.DEGRADED: b"\x10\x05",
}
"""UNKNOWN is missing: Envoy takes it for healthy, so the plan never offers it, and lint refuses it."""


class Assignments:
    """Spell load assignments, remembering the bytes of the endpoints that each service has now.

    An endpoint object seen in the service's last assignment costs a look-up by identity, one that was planned anew
    from the same instance a comparison, any other a fresh encoding. What is gone is forgotten.
    """

    def __init__(self) -> None:
        self._frames: dict[str, _Frames] = {}

    def assignment(self, planned: plan.Cluster, cluster_version: str) -> Resource:
        """Spell the assignment of a cluster; its version changes with the cluster's, too (law 8)."""
        remembered = self._frames.get(planned.name)
        endpoints = tuple(chain.from_iterable(group.endpoints for group in planned.localities))
        frames = self._frames[planned.name] = _Frames(endpoints, remembered)
        body = b"".join(chain((frame(1, planned.name.encode()),), _localities(planned.localities, frames)))
        return Resource.of(planned.name, body, parent_version=cluster_version)

    def forget(self, services: Iterable[str]) -> None:
        """Drop what is remembered of services that have no cluster any more."""
        for service in services:
            self._frames.pop(service, None)


class _Frames:
    """Hold the endpoints of one assignment with their bytes. Holding the endpoints keeps their ids theirs."""

    __slots__ = ("_by_identity", "_endpoints")

    def __init__(self, endpoints: tuple[plan.Endpoint, ...], before: "_Frames | None") -> None:
        self._endpoints = endpoints
        if before is None:
            self._by_identity = {id(endpoint): lb_endpoint(endpoint) for endpoint in endpoints}
            return
        known = before._by_identity
        identities = list(map(id, endpoints))
        self._by_identity = by_identity = {key: known[key] for key in identities if key in known}
        if len(by_identity) < len(endpoints):
            old = {endpoint.id: endpoint for endpoint in before._endpoints}
            for endpoint in endpoints:
                if id(endpoint) in by_identity:
                    continue
                same = old.get(endpoint.id)
                # The metadata must be the very same object: to Python 1 == True == 1.0, to Envoy they differ.
                if same is not None and same.metadata is endpoint.metadata and same == endpoint:
                    by_identity[id(endpoint)] = known[id(same)]
                else:
                    by_identity[id(endpoint)] = lb_endpoint(endpoint)

    def of(self, endpoints: tuple[plan.Endpoint, ...]) -> Iterator[bytes]:
        return map(self._by_identity.__getitem__, map(id, endpoints))


def _localities(groups: Iterable[plan.LocalityEndpoints], frames: _Frames) -> Iterator[bytes]:
    """Spell the groups, all of priority 0, the value that need not be written."""
    for group in groups:
        weight = frame(3, b"\x08" + varint(group.weight))
        yield frame(2, b"".join((frame(1, _locality(group.locality)), *frames.of(group.endpoints), weight)))


def _locality(locality: Locality) -> bytes:
    """Spell a locality; one without any name is an empty message, for gRPC refuses a missing one (C-02)."""
    parts = (locality.region, locality.zone, locality.sub_zone)
    return b"".join(frame(number, part.encode()) for number, part in enumerate(parts, start=1) if part)


def lb_endpoint(endpoint: plan.Endpoint) -> bytes:
    """Spell one endpoint as an element of `lb_endpoints`, tag and length included."""
    socket_address = frame(2, endpoint.address.encode()) + b"\x18" + varint(endpoint.port)
    return frame(
        2,
        frame(1, frame(1, frame(1, socket_address)))
        + _HEALTH[endpoint.status]
        + frame(3, _metadata(endpoint))
        + frame(4, b"\x08" + varint(endpoint.weight)),
    )


def _metadata(endpoint: plan.Endpoint) -> bytes:
    """Spell the `envoy.lb` metadata: what was registered, under `id` and `tags` (which win over entries so named)."""
    values: dict[str, bytes] = {key: _value(value) for key, value in endpoint.metadata.items()}
    values["id"] = _value(endpoint.id)
    values["tags"] = frame(6, b"".join(frame(1, _value(tag)) for tag in endpoint.tags))
    entries = b"".join(frame(1, frame(1, key.encode()) + frame(2, values[key])) for key in sorted(values))
    return frame(1, frame(1, b"envoy.lb") + frame(2, entries))


def _value(value: MetadataValue) -> bytes:
    """Spell a google.protobuf.Value."""
    match value:
        case bool():
            return b"\x20\x01" if value else b"\x20\x00"
        case str():
            return frame(3, value.encode())
        case _:
            return b"\x11" + struct.pack("<d", value)
