"""From a raw resource as it was written to the resources that clients are sent."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Any

import betterproto2
import orjson
from envoy_data_plane.envoy.config.core.v3 import TypedExtensionConfig
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from envoy_data_plane.envoy.config.route.v3 import VirtualHost
from envoy_data_plane.envoy.service.runtime.v3 import Runtime

from controlplane.model import RawResource, ResourceKey
from controlplane.raw import lint
from controlplane.raw.certificates import Certificate, NoCertificate, certificates
from controlplane.raw.reading import RawFault, Unreadable, read
from controlplane.raw.references import Reference, references
from xds.encode import Encoder
from xds.types import ENDPOINT, VIRTUAL_HOST, Resource

_BOOTSTRAP_CLUSTER = "xds_cluster"
"""The cluster of every bootstrap of ours by which Envoy reaches the control plane; Envoy ignores another (C-16)."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """Hold what a raw resource becomes: one resource, or one for each domain of a virtual host.

    `version` names the content, whatever it is that is published of it. `certificates` are those that stand in it.
    """

    resources: tuple[Resource, ...]
    version: str
    refs: frozenset[Reference]
    certificates: tuple[Certificate | NoCertificate, ...] = ()


class Compiler:
    """Compile raw resources, each once: the edge judges with it what the overlay then publishes.

    Of each name the newest is remembered; nothing of what is replaced stays, old keys least of all. May be called in
    a thread, where a large resource holds nobody up.
    """

    def __init__(self) -> None:
        self._encoder = Encoder()
        self._known: dict[ResourceKey, tuple[RawResource, Compiled]] = {}

    def compile(self, raw: RawResource) -> Compiled:
        """Read, judge and encode a raw resource.

        Raises Unreadable with every fault that it has.
        """
        known = self._known.get(raw.key)
        if known is None or known[0] != raw:
            known = self._known[raw.key] = raw, self._compile(raw)
        return known[1]

    def forget_all_but(self, keys: Container[ResourceKey]) -> None:
        """Drop what is remembered of resources that have gone."""
        for key in [key for key in list(self._known) if key not in keys]:
            self._known.pop(key, None)

    def _compile(self, raw: RawResource) -> Compiled:
        document: Mapping[str, Any] = orjson.loads(raw.body)
        misnamed = _name_faults(raw, document)
        try:
            reading = read(raw.type_url, document)
        except Unreadable as error:
            raise Unreadable([*misnamed, *error.faults]) from None
        message = reading.message
        if found := [*misnamed, *_required(message), *lint.faults(reading.parts)]:
            raise Unreadable(found)
        refs = references(reading.parts)
        whole = Resource.of(raw.name, self._encoder.encode(message), refs=refs)
        if isinstance(message, VirtualHost):
            table = raw.name.rpartition("/")[0]
            made = (_on_demand(message, f"{table}/{each}", each, refs, self._encoder) for each in message.domains)
            return Compiled(tuple(made), whole.version, refs)
        return Compiled((whole,), whole.version, refs, certificates(reading.parts))


def _on_demand(host: VirtualHost, name: str, domain: str, refs: frozenset[Reference], encoder: Encoder) -> Resource:
    """Spell what Envoy is told of one domain.

    It asks by domain, keeps virtual hosts by their inner name, removes them by the resource's, and refuses a domain
    that two of them have. So each domain is a virtual host of its own, called as the resource is (V-01).
    """
    body = encoder.encode(replace(host, name=name, domains=[domain]))
    return Resource.of(name, body, refs=refs, aliases=(name,))


def _name_faults(raw: RawResource, document: Mapping[str, Any]) -> list[RawFault]:
    """Check that the name inside is the path's (C-16, G-09); a virtual host's may leave its table's out.

    Asked of the document, so that it is told along with what keeps that from being read.
    """
    spellings = ("cluster_name", "clusterName") if raw.type_url == ENDPOINT else ("name",)
    field = next((each for each in spellings if document.get(each) is not None), spellings[0])
    found = document.get(field) or ""
    if not isinstance(found, str):
        return []  # reading it says so
    allowed = {raw.name}
    if raw.type_url == VIRTUAL_HOST:
        table, _, last = raw.name.rpartition("/")
        if not table or not last:
            detail = f"a virtual host's path ends with <route configuration>/<name>, found {raw.name!r}"
            return [RawFault((), detail)]
        allowed.add(last)
    if found not in allowed:
        return [RawFault((field,), f"must be {raw.name!r}, as the path says, found {found!r} (C-16)")]
    if found == _BOOTSTRAP_CLUSTER and raw.type_url != ENDPOINT:
        return [RawFault((field,), f"{found!r} is the bootstrap's own cluster, which Envoy does not replace (C-16)")]
    return []


def _required(message: betterproto2.Message) -> list[RawFault]:
    match message:
        case Runtime() if message.layer is None:
            return [RawFault(("layer",), "required, but missing; {} is an empty layer")]
        case TypedExtensionConfig() if message.typed_config is None:
            return [RawFault(("typed_config",), "required, but missing")]
        case ClusterLoadAssignment():
            return [RawFault(*found) for found in (*lint.host_names(message), *lint.unplaced(message))]
        case _:
            return []
