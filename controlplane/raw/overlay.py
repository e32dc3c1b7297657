"""Lay raw resources over what services make, for each audience; a name of ours is never shadowed.

Memoised by identity: a change of endpoints costs the same however many raw resources there are.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from controlplane.catalog import Catalog, RawEntry
from controlplane.model import RawResource, ResourceKey, ServiceName
from controlplane.raw.compile import Compiled, Compiler
from controlplane.raw.reading import Unreadable
from controlplane.raw.references import Reference
from controlplane.translate.names import GATEWAY
from xds.types import CLUSTER, EMPTY, ENDPOINT, LISTENER, ROUTE, Node, Resource, ResourceSet

Sets = Mapping[str, ResourceSet]
_Named = Mapping[str, Resource]
_Laid = tuple[str, "frozenset[Limit]", Hashable]  # a type, who sees it, whose sets lie below


@dataclass(frozen=True, slots=True)
class Limit:
    """Say which nodes may have a resource: those of one of the clusters and one of the zones; empty = all."""

    clusters: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()

    def admits(self, node: Node) -> bool:
        """Tell whether a node may have it."""
        return (not self.clusters or node.cluster in self.clusters) and (not self.zones or node.zone in self.zones)

    def __str__(self) -> str:
        """Spell it for people."""
        named = (("clusters", self.clusters), ("zones", self.zones))
        return " in ".join(f"{what} {', '.join(names)}" for what, names in named if names) or "everyone"


_EVERYONE = Limit()
_MAX_PLACES = 1024
"""For how many clusters and zones of nodes the audience is remembered: nodes name them as they like."""


def limit_of(raw: RawResource) -> Limit:
    """Return who may have a resource."""
    return Limit(raw.node_clusters, raw.node_zones)


def owner(has_cluster: Callable[[ServiceName], bool], key: ResourceKey) -> str | None:
    """Return whom a name belongs to that raw resources may not have (contract, section 4); None where it is free.

    `has_cluster` tells of which services there is a cluster.
    """
    if key.type_url in (LISTENER, ROUTE) and key.name == GATEWAY:
        return "the gateway"
    if key.type_url in (CLUSTER, ENDPOINT, LISTENER, ROUTE):
        name = ServiceName(key.name.partition("@")[0])
        if has_cluster(name):
            return f"service {name!r}"
    return None


def dangling(catalog: Catalog, refs: frozenset[Reference]) -> list[Reference]:
    """Return those references that lead to nothing that exists now (O-09)."""
    return sorted(
        reference
        for reference in refs
        if (key := ResourceKey(*reference)) not in catalog.raw and owner(catalog.has_cluster, key) is None
    )


def holders(compiled: Mapping[ResourceKey, Compiled]) -> Mapping[Reference, ResourceKey]:
    """Return which resource has each name that is published; of virtual hosts with one domain, the first by name."""
    found: dict[Reference, ResourceKey] = {}
    for key in sorted(compiled):
        for resource in compiled[key].resources:
            found.setdefault((key.type_url, resource.name), key)
    return found


def lost(key: ResourceKey, compiled: Compiled, by_name: Mapping[Reference, ResourceKey]) -> str:
    """Say what of a resource is not published, because others have it; empty where all is."""
    found = [
        f"{each.name!r} is already published by {holder.name!r}"
        for each in compiled.resources
        if (holder := by_name.get((key.type_url, each.name), key)) != key
    ]
    return "; ".join(found)


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
        self._audiences: dict[tuple[str, str], frozenset[Limit]] = {}
        self._resources: Mapping[Limit, Mapping[str, _Named]] = {}
        self._visible: dict[frozenset[Limit], Mapping[str, _Named]] = {}
        self._laid: dict[_Laid, tuple[ResourceSet, _Named, ResourceSet]] = {}
        self.left_out: Mapping[ResourceKey, str] = {}

    def compile(self, raw: RawResource) -> Compiled | str:
        """Return what a resource becomes, or why it is left out.

        Reading one takes a fraction of a millisecond, so whoever has thousands does it slice by slice before `update`,
        which then finds them known.
        """
        try:
            return self._compiler.compile(raw)
        except Unreadable as error:
            return str(error)
        except Exception as error:
            # A fault of ours in one resource must not stop the rest (law 15). What it quotes may be secret.
            return f"internal error: {type(error).__name__}"

    def update(self, raw: Mapping[ResourceKey, RawEntry], has_cluster: Callable[[ServiceName], bool]) -> bool:
        """Follow the catalog; return whether nodes may have another audience than before.

        `has_cluster` tells of which services a cluster is published: a name must not be taken from a raw resource
        before its service is there to have it (make before break).
        """
        owned = {key: by for key in raw if (by := owner(has_cluster, key)) is not None}
        if raw is self._raw and owned == self._owned:
            return False
        self._raw, self._owned = raw, owned
        self._lay_out()
        limits = frozenset(limit_of(entry.resource) for entry in self._raw.values()) - {_EVERYONE}
        changed = limits != self._limits
        if changed:
            self._limits = limits
            self._audiences.clear()
        return changed

    def audience(self, node: Node) -> frozenset[Limit]:
        """Return the limits that let a node in: nodes of one audience are told the same."""
        place = node.cluster, node.zone
        audience = self._audiences.get(place)
        if audience is None:
            if len(self._audiences) >= _MAX_PLACES:
                self._audiences.clear()
            audience = self._audiences[place] = frozenset(limit for limit in self._limits if limit.admits(node))
        return audience

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

    def _lay(self, key: _Laid, below: ResourceSet, resources: _Named) -> ResourceSet:
        known = self._laid.get(key)
        if known is None or (known[1] is not resources and known[1] != resources):
            made = below.replacing(each for name, each in resources.items() if name not in below)
        elif known[0] is below:
            return known[2]
        else:
            # From step to step, as the sets below are made: what differs is then known without a look at all of it.
            named = {name: below.get(name) or resources.get(name) for name in below.differing_from(known[0])}
            changed = [each for each in named.values() if each is not None]
            made = known[2].replacing(changed, [name for name, each in named.items() if each is None])
        self._laid[key] = (below, resources, made)
        return made

    def _lay_out(self) -> None:
        left_out = {key: f"{by} has this name" for key, by in self._owned.items()}
        compiled: dict[ResourceKey, Compiled] = {}
        for key in sorted(self._raw):
            if key in left_out:
                continue
            made = self.compile(self._raw[key].resource)
            if isinstance(made, str):
                left_out[key] = made
            else:
                compiled[key] = made
        self._compiler.forget_all_but(self._raw)
        parents, by_name = _parents(compiled), holders(compiled)
        by_limit: dict[Limit, dict[str, dict[str, Resource]]] = {}
        for key, each in compiled.items():
            of_type = by_limit.setdefault(limit_of(self._raw[key].resource), {}).setdefault(key.type_url, {})
            if why := lost(key, each, by_name):
                left_out[key] = why
            for resource in each.resources:
                if by_name[key.type_url, resource.name] == key:
                    of_type[resource.name] = _versioned(key.type_url, resource, parents)
        self._resources = by_limit
        self._visible.clear()
        self._laid = {key: known for key, known in self._laid.items() if key[1] <= self._limits}
        self.left_out = left_out

    def _seen_by(self, audience: frozenset[Limit]) -> Mapping[str, _Named]:
        seen: dict[str, dict[str, Resource]] = {}
        for limit, of_limit in self._resources.items():
            if limit == _EVERYONE or limit in audience:
                for type_url, resources in of_limit.items():
                    seen.setdefault(type_url, {}).update(resources)
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
