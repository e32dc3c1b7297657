"""What an xDS server serves: resources, sets of them, snapshots, and the node that asks.

Values only: immutable, content-versioned, free of I/O. Two processes that build the same configuration
build equal versions, so a restart or a move to another replica changes nothing on a client
(xDS protocol, "resource versions"; conformance items S-04, D-02, R-08).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from types import MappingProxyType

_PREFIX = "type.googleapis.com/"

CLUSTER = _PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINT = _PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = _PREFIX + "envoy.config.listener.v3.Listener"
ROUTE = _PREFIX + "envoy.config.route.v3.RouteConfiguration"
SCOPED_ROUTE = _PREFIX + "envoy.config.route.v3.ScopedRouteConfiguration"
VIRTUAL_HOST = _PREFIX + "envoy.config.route.v3.VirtualHost"
SECRET = _PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"
RUNTIME = _PREFIX + "envoy.service.runtime.v3.Runtime"
EXTENSION = _PREFIX + "envoy.config.core.v3.TypedExtensionConfig"

_VERSION_BYTES = 8
_SET_MASK = (1 << 128) - 1


@dataclass(frozen=True, slots=True)
class Resource:
    """Hold one encoded xDS resource.

    `body` is the serialised message without its `Any` wrapper; `version` is a hash of it, opaque to clients.
    `refs` are the `(type_url, name)` pairs that the message refers to: a resource is not removed from a
    client that still holds one that refers to it (make before break, O-05). `aliases` are further names that the
    resource goes by (VHDS). One that is `unset` has no body at all: it says that there is nothing of that name (V-01).
    """

    name: str
    version: str
    body: bytes
    refs: frozenset[tuple[str, str]] = frozenset()
    aliases: tuple[str, ...] = ()
    unset: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        body: bytes,
        *,
        refs: Iterable[tuple[str, str]] = (),
        parent_version: str = "",
        aliases: tuple[str, ...] = (),
    ) -> "Resource":
        """Version `body` by its content.

        `parent_version` is folded in: a load assignment carries its cluster's version, so that a changed
        cluster re-sends its assignment and Envoy never warms for ever (O-01, envoyproxy/envoy#13009).
        """
        digest = blake2b(body, digest_size=_VERSION_BYTES, key=parent_version.encode()[:64])
        return cls(name, digest.hexdigest(), body, frozenset(refs), aliases)


def _fingerprint(resource: Resource) -> int:
    digest = blake2b(f"{resource.name}\0{resource.version}".encode(), digest_size=16)
    return int.from_bytes(digest.digest())


class ResourceSet(Mapping[str, Resource]):
    """Hold the resources of one type by name, immutable, with a version of the whole.

    The version is a sum of per-resource hashes: independent of order, and updated in time proportional to
    the change rather than to the set.
    """

    __slots__ = ("_but", "_by_name", "_ordered", "_refs", "_selected", "_size", "_step", "_sum", "_token", "_version")

    def __init__(self, resources: Iterable[Resource] = ()) -> None:
        self._by_name: dict[str, Resource] = {}
        self._ordered: tuple[Resource, ...] | None = None
        self._refs: frozenset[tuple[str, str]] | None = None
        self._size: int | None = None
        self._selected: tuple[frozenset[str], ResourceSet | None] | None = None
        self._but: tuple[Mapping[str, Resource | None], ResourceSet] | None = None
        self._sum = 0
        self._version = ""
        self._token = object()
        self._step: tuple[object, frozenset[str]] | None = None
        for resource in resources:
            if resource.name in self._by_name:
                msg = f"two resources are named {resource.name!r}; names are unique within a type (G-08)"
                raise ValueError(msg)
            self._by_name[resource.name] = resource
            self._sum += _fingerprint(resource)
        self._sum &= _SET_MASK

    def replacing(self, changed: Iterable[Resource] = (), removed: Iterable[str] = ()) -> "ResourceSet":
        """Return a set with `changed` put in and the names in `removed` left out."""
        new = ResourceSet.__new__(ResourceSet)
        by_name = dict(self._by_name)
        total = self._sum
        differing = set()
        for name in removed:
            if (gone := by_name.pop(name, None)) is not None:
                total -= _fingerprint(gone)
                differing.add(name)
        for resource in changed:
            if (old := by_name.get(resource.name)) is not None:
                total -= _fingerprint(old)
            if old is None or old.version != resource.version:
                differing.add(resource.name)
            by_name[resource.name] = resource
            total += _fingerprint(resource)
        new._by_name = by_name
        new._ordered = None
        new._refs = None
        new._size = None
        new._selected = None
        new._but = None
        new._sum = total & _SET_MASK
        new._version = ""
        new._token = object()
        new._step = self._token, frozenset(differing)
        return new

    def differing_from(self, before: "ResourceSet") -> frozenset[str]:
        """Name what differs between two sets; at no cost where one was made from the other by `replacing`."""
        if self._step is not None and self._step[0] is before._token:
            return self._step[1]
        differing = {name for name in before._by_name if name not in self._by_name}
        for name, resource in self._by_name.items():
            old = before._by_name.get(name)
            if old is not resource and (old is None or old.version != resource.version):
                differing.add(name)
        return frozenset(differing)

    def selected(self, names: frozenset[str]) -> "ResourceSet | None":
        """Return the set of just these names, None where one is missing; the same object to all who ask in turn.

        Only the last list is remembered: after a restart a thousand equal clients ask for the same names at once.
        """
        if self._selected is None or (self._selected[0] is not names and self._selected[0] != names):
            complete = names <= self._by_name.keys()
            self._selected = names, ResourceSet(self._by_name[name] for name in names) if complete else None
        return self._selected[1]

    def but(self, said: Mapping[str, Resource | None]) -> "ResourceSet":
        """Return the set that says otherwise of some names, or nothing; the same object to all who ask alike in turn.

        Only the last is remembered: a thousand clients that refuse one bad resource all keep its last good version.
        """
        if self._but is None or self._but[0] != said:
            changed = [one for one in said.values() if one is not None]
            self._but = said, self.replacing(changed, [name for name, one in said.items() if one is None])
        return self._but[1]

    @property
    def refs(self) -> frozenset[tuple[str, str]]:
        """Tell what any of the resources refers to; found out once for all who ask."""
        if self._refs is None:
            self._refs = frozenset(ref for each in self._by_name.values() for ref in each.refs)
        return self._refs

    @property
    def size_bytes(self) -> int:
        """Tell how many bytes the resources have in all, without what the wire adds."""
        if self._size is None:
            self._size = sum(len(each.body) + len(each.name) for each in self._by_name.values())
        return self._size

    def get(self, name: str, default: Resource | None = None) -> Resource | None:  # type: ignore[override]
        """Return a resource by name."""
        return self._by_name.get(name, default)

    @property
    def version(self) -> str:
        """Identify the content of the whole set: equal for equal sets, in any process."""
        if not self._version:
            self._version = f"{self._sum:032x}"
        return self._version

    @property
    def ordered(self) -> tuple[Resource, ...]:
        """List the resources by name: one tuple for all who ask, so that equal answers share their bytes."""
        if self._ordered is None:
            self._ordered = tuple(self._by_name[name] for name in sorted(self._by_name))
        return self._ordered

    def __getitem__(self, name: str) -> Resource:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __repr__(self) -> str:
        return f"ResourceSet({len(self)} resources, version {self.version[:8]})"


EMPTY = ResourceSet()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Hold everything that one group of nodes is to be told, at one moment.

    `revision` names the change that led here (opaque; shown in status and metrics, never sent as a version).
    """

    by_type: Mapping[str, ResourceSet] = field(default_factory=lambda: MappingProxyType({}))
    revision: str = ""

    def of_type(self, type_url: str) -> ResourceSet:
        """Return the resources of a type; empty for a type that is not served."""
        return self.by_type.get(type_url, EMPTY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Describe the client at the other end of a stream, as its first request told it (N-01).

    `metadata` is the node's Struct as plain JSON values; extensions are skipped while reading
    (they are 61 kB in Envoy's first request and nothing here needs them). `dynamic_parameters` are by type and may
    change while the stream lives (N-04).
    """

    id: str
    cluster: str = ""
    metadata: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    region: str = ""
    zone: str = ""
    sub_zone: str = ""
    user_agent_name: str = ""
    user_agent_version: str = ""
    client_features: frozenset[str] = frozenset()
    dynamic_parameters: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
