"""Spell a planned cluster's endpoints as a ClusterLoadAssignment: the hot path.

An endpoint's bytes are made once, when the endpoint changes, and an assignment is the join of its endpoints'
bytes; the bytes equal those of envoy-data-plane's own encoding of the same message (the tests hold them to it).
Building and encoding the message instead takes a hundred times as long.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, compress, count, islice
from operator import is_not

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

    What a service's last assignment began and ended with costs a comparison by identity. In between, an endpoint
    planned anew from the same instance costs a comparison by value, any other a fresh encoding. What is gone is
    forgotten.
    """

    def __init__(self) -> None:
        self._spelled: dict[str, _Spelled] = {}

    def __len__(self) -> int:
        """Return how many endpoints are remembered."""
        return sum(len(spelled.endpoints) for spelled in self._spelled.values())

    def assignment(self, planned: plan.Cluster, cluster_version: str) -> Resource:
        """Spell the assignment of a cluster; its version changes with the cluster's, too (law 8)."""
        endpoints = tuple(chain.from_iterable(group.endpoints for group in planned.localities))
        spelled = _spell(endpoints, self._spelled.get(planned.name, _NOTHING))
        self._spelled[planned.name] = spelled
        groups = _localities(planned.localities, iter(spelled.frames))
        body = b"".join(chain((frame(1, planned.name.encode()),), groups))
        return Resource.of(planned.name, body, parent_version=cluster_version)

    def forget(self, services: Iterable[str]) -> None:
        """Drop what is remembered of services that have no cluster any more."""
        for service in services:
            self._spelled.pop(service, None)


@dataclass(frozen=True, slots=True)
class _Spelled:
    """Hold the endpoints of an assignment and, in the same order, their bytes."""

    endpoints: tuple[plan.Endpoint, ...]
    frames: tuple[bytes, ...]


_NOTHING = _Spelled((), ())


def _spell(endpoints: tuple[plan.Endpoint, ...], before: _Spelled) -> _Spelled:
    """Spell endpoints, taking over what has been spelled before."""
    shorter = min(len(endpoints), len(before.endpoints))
    head = _first(map(is_not, endpoints, before.endpoints), shorter)
    tail = _first(map(is_not, reversed(endpoints), reversed(before.endpoints)), shorter - head)
    old = slice(head, len(before.endpoints) - tail)
    known = {each.id: (each, spelled) for each, spelled in zip(before.endpoints[old], before.frames[old], strict=True)}
    between = []
    for endpoint in endpoints[head : len(endpoints) - tail]:
        same, spelled = known.get(endpoint.id, (None, b""))
        # The metadata must be the very same object: to Python 1 == True == 1.0, to Envoy they differ.
        if same is endpoint or (same == endpoint and same.metadata is endpoint.metadata):
            between.append(spelled)
        else:
            between.append(lb_endpoint(endpoint))
    return _Spelled(endpoints, (*before.frames[:head], *between, *before.frames[len(before.frames) - tail :]))


def _first(differences: Iterable[bool], limit: int) -> int:
    """Return where the first difference is, `limit` where it is not before."""
    return min(next(compress(count(), differences), limit), limit)


def _localities(groups: Iterable[plan.LocalityEndpoints], frames: Iterator[bytes]) -> Iterator[bytes]:
    """Spell the groups, all of priority 0, the value that need not be written; `frames` has their endpoints."""
    for group in groups:
        weight = frame(3, b"\x08" + varint(group.weight))
        yield frame(2, b"".join((frame(1, _locality(group.locality)), *islice(frames, len(group.endpoints)), weight)))


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
