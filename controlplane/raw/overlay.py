"""Lay raw resources over what services make, for each audience; a name of ours is never shadowed.

Memoised by identity: a change of endpoints costs what the raw resources of that one type cost, which is mostly none.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from controlplane.catalog import Catalog, RawEntry, Service
from controlplane.model import RawResource, ResourceKey, ServiceName
from controlplane.raw.compile import Compiled, Compiler
from controlplane.raw.reading import Unreadable
from controlplane.raw.references import Reference
from controlplane.translate.names import GATEWAY
from xds.types import CLUSTER, EMPTY, ENDPOINT, LISTENER, ROUTE, Node, Resource, ResourceSet

Sets = Mapping[str, ResourceSet]
_Laid = tuple[str, "frozenset[Limit]", Hashable]  # a type, who sees it, whose sets lie below


@dataclass(frozen=True, slots=True)
class Limit:
    """Say which nodes may have a resource: those of one of the clusters and one of the zones; empty = all."""

    clusters: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()

    def admits(self, node: Node) -> bool:
        """Tell whether a node may have it."""
        return (not self.clusters or node.cluster in self.clusters) and (not self.zones or node.zone in self.zones)


_EVERYONE = Limit()


def limit_of(raw: RawResource) -> Limit:
    """Return who may have a resource."""
    return Limit(raw.node_clusters, raw.node_zones)


def owner(services: Mapping[ServiceName, Service], key: ResourceKey) -> str | None:
    """Return whom a name belongs to that raw resources may not have (contract, section 4); None where it is free."""
    if key.type_url in (LISTENER, ROUTE) and key.name == GATEWAY:
        return "the gateway"
    if key.type_url in (CLUSTER, ENDPOINT, LISTENER, ROUTE):
        name = ServiceName(key.name.partition("@")[0])
        service = services.get(name)
        if service is not None and service.has_cluster:
            return f"service {name!r}"
    return None


def dangling(catalog: Catalog, refs: frozenset[Reference]) -> list[Reference]:
    """Return those references that lead to nothing that exists now (O-09)."""
    return sorted(
        reference
        for reference in refs
        if (key := ResourceKey(*reference)) not in catalog.raw and owner(catalog.services, key) is None
    )


class Overlay:
    """Hold what the raw resources of a catalog become, and merge it with sets of ours.

    `left_out` tells of each resource that is not published why. One that cannot be read, which had been judged by
    another version, is left out alone (law 15).
    """

    def __init__(self, compiler: Compiler | None = None) -> None:
        self._compiler = compiler or Compiler()
        self._raw: Mapping[ResourceKey, RawEntry] = {}
        self._owned: Mapping[ResourceKey, str] = {}
        self._limits: frozenset[Limit] = frozenset()
        self._resources: Mapping[Limit, Mapping[str, tuple[Resource, ...]]] = {}
        self._visible: dict[frozenset[Limit], Mapping[str, tuple[Resource, ...]]] = {}
        self._laid: dict[_Laid, tuple[ResourceSet, tuple[Resource, ...], ResourceSet]] = {}
        self.left_out: Mapping[ResourceKey, str] = {}

    def update(self, catalog: Catalog) -> bool:
        """Follow the catalog; return whether nodes may have another audience than before."""
        owned = {key: by for key in catalog.raw if (by := owner(catalog.services, key)) is not None}
        if catalog.raw is self._raw and owned == self._owned:
            return False
        self._raw, self._owned = catalog.raw, owned
        self._compile()
        limits = frozenset(limit_of(entry.resource) for entry in self._raw.values()) - {_EVERYONE}
        changed = limits != self._limits
        self._limits = limits
        return changed

    def audience(self, node: Node) -> frozenset[Limit]:
        """Return the limits that let a node in: nodes of one audience are told the same."""
        return frozenset(limit for limit in self._limits if limit.admits(node))

    def over(self, ours: Sets, audience: frozenset[Limit], whose: Hashable = None) -> Sets:
        """Return our sets with the raw resources of an audience added; a name that we use is ours.

        `whose` names the sets from one call to the next, where there are several families of them.
        """
        visible = self._visible.get(audience)
        if visible is None:
            visible = self._visible[audience] = self._seen_by(audience)
        if not visible:
            return ours
        added = {
            type_url: self._lay((type_url, audience, whose), ours.get(type_url, EMPTY), resources)
            for type_url, resources in visible.items()
        }
        return {**ours, **added}

    def _lay(self, key: _Laid, below: ResourceSet, resources: tuple[Resource, ...]) -> ResourceSet:
        known = self._laid.get(key)
        if known is not None and known[0] is below and known[1] == resources:
            return known[2]
        made = below.replacing(resource for resource in resources if resource.name not in below)
        self._laid[key] = (below, resources, made)
        return made

    def _compile(self) -> None:
        left_out = {key: f"{by} has this name" for key, by in self._owned.items()}
        compiled: dict[ResourceKey, Compiled] = {}
        for key in sorted(self._raw):
            if key in left_out:
                continue
            try:
                compiled[key] = self._compiler.compile(self._raw[key].resource)
            except Unreadable as error:
                left_out[key] = str(error)
        parents = _parents(compiled)
        by_limit: dict[Limit, dict[str, dict[str, Resource]]] = {}
        taken: set[Reference] = set()
        for key, each in compiled.items():
            of_type = by_limit.setdefault(limit_of(self._raw[key].resource), {}).setdefault(key.type_url, {})
            for resource in each.resources:
                if (key.type_url, resource.name) in taken:
                    left_out[key] = f"{resource.name!r} is another resource's already"
                    continue
                taken.add((key.type_url, resource.name))
                of_type[resource.name] = _versioned(key.type_url, resource, parents)
        self._resources = {
            limit: {type_url: tuple(resources.values()) for type_url, resources in of_limit.items()}
            for limit, of_limit in by_limit.items()
        }
        self._visible.clear()
        self._laid = {key: known for key, known in self._laid.items() if key[1] <= self._limits}
        self.left_out = left_out

    def _seen_by(self, audience: frozenset[Limit]) -> Mapping[str, tuple[Resource, ...]]:
        seen: dict[str, tuple[Resource, ...]] = {}
        for limit, of_limit in self._resources.items():
            if limit == _EVERYONE or limit in audience:
                for type_url, resources in of_limit.items():
                    seen[type_url] = seen.get(type_url, ()) + resources
        return seen


def _parents(compiled: Mapping[ResourceKey, Compiled]) -> Mapping[str, ResourceSet]:
    """Return the clusters that each assignment is of, by the assignment's name."""
    found: dict[str, list[Resource]] = {}
    for key, each in compiled.items():
        if key.type_url == CLUSTER:
            for type_url, name in each.refs:
                if type_url == ENDPOINT:
                    found.setdefault(name, []).extend(each.resources)
    return {name: ResourceSet(clusters) for name, clusters in found.items()}


def _versioned(type_url: str, resource: Resource, parents: Mapping[str, ResourceSet]) -> Resource:
    """Fold the versions of an assignment's clusters into its own: a changed cluster waits for it again (O-01)."""
    if type_url != ENDPOINT or resource.name not in parents:
        return resource
    return Resource.of(resource.name, resource.body, refs=resource.refs, parent_version=parents[resource.name].version)
