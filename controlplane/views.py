"""What each kind of client is told: the planned clusters spelled for Envoys, and for gRPC clients without a proxy.

A `View` keeps the spelled sets of one `Flavour` of clients current; the publisher says what changed and when it goes
out, `translate` how a resource is spelled. No clock, no I/O: a slice is as long as the publisher makes it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol, assert_never

from controlplane.model import ServiceName
from controlplane.plan import Cluster
from controlplane.proxyless import proxyless
from controlplane.raw.overlay import Limit
from controlplane.translate import grpc, lint, listener
from controlplane.translate.cluster import cluster
from controlplane.translate.endpoint import Assignments
from controlplane.translate.names import ADS, Source, Transport
from controlplane.translate.route import GatewayRoutes
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE, Node, Resource, ResourceSet


class Client(StrEnum):
    """Name the programs that speak xDS to us, as far as they are told different things."""

    ENVOY = "envoy"
    GRPC = "grpc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """Name the clients that are told of every service in the same words; each flavour has one view.

    `transport` is how they are told to fetch what a resource refers to.
    """

    client: Client = Client.ENVOY
    transport: Transport = Transport.ADS


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """Name the nodes that are told exactly the same: of one flavour and, if Envoys, with one gateway port (else 0).

    `audience` are those limits of raw resources that let these nodes in.
    """

    flavour: Flavour = Flavour()
    gateway_port: int = 0
    audience: frozenset[Limit] = frozenset()


GRPC = Flavour(client=Client.GRPC)


def by_name_only(node: Node) -> bool:
    """Say whether a client is told only what it asks for by name, whatever a wildcard would mean.

    A gRPC client wants what its channels call and nothing else; older ones ask for everything by mistake when they
    reconnect, and would be sent every service there is (W-07; contract, section 4).
    """
    return node.user_agent_name.startswith("gRPC")


def group_of(node: Node, default_gateway_port: int) -> NodeGroup:
    """Say which group a node belongs to, by what it tells of itself (N-05)."""
    if by_name_only(node):
        return NodeGroup(flavour=GRPC)
    port = node.metadata.get("gateway_port")
    valid = isinstance(port, (int, float)) and not isinstance(port, bool) and 1 <= port <= 65535
    return NodeGroup(
        flavour=Flavour(transport=_transport(node)),
        gateway_port=int(port) if valid else default_gateway_port,  # type: ignore[call-overload]
    )


def _transport(node: Node) -> Transport:
    """Read `xds_transport` of a node's metadata; what is neither `grpc` nor `rest` is ADS, as where it says nothing."""
    match node.metadata.get("xds_transport"):
        case "grpc":
            return Transport.GRPC
        case "rest":
            return Transport.REST
        case _:
            return Transport.ADS


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelled:
    """Hold what was spelled anew of one service, by type."""

    planned: Cluster
    resources: Mapping[str, Resource]


class Spelling(Protocol):
    """Spell services for one flavour of clients."""

    def service(self, planned: Cluster, before: Cluster | None, cluster: Resource | None) -> Mapping[str, Resource]:
        """Spell a service: its assignment, and whatever differs from `before`, of which `cluster` was made.

        Raises:
            Unspeakable: these clients would refuse it.
        """
        ...

    def together(self, planned: Iterable[Cluster]) -> Mapping[str, Resource]:
        """Spell what tells of all services at once."""
        ...

    def group(self, group: NodeGroup) -> Mapping[str, ResourceSet]:
        """Spell what the nodes of one group are told beside the services."""
        ...

    def forget(self, services: Iterable[ServiceName]) -> None:
        """Drop what is remembered of services that have gone."""
        ...


class Unspeakable(Exception):
    """Report why a service cannot be told to a flavour of clients: each problem names the field and the remedy."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(*problems)
        self.problems = problems


class View:
    """Keep the resources that clients of one flavour are told.

    A view begins empty, with every service `missing`, and is not `complete` before each has been spelled or refused:
    until then nobody must be told of it, for what it does not hold would look deleted (law 1).
    """

    def __init__(self, spelling: Spelling, missing: Iterable[ServiceName] = ()) -> None:
        self.missing: dict[ServiceName, None] = dict.fromkeys(missing)
        self._spelling = spelling
        self._spelled: dict[ServiceName, Cluster] = {}
        self._sets: Mapping[str, ResourceSet] = {t: ResourceSet() for t in (CLUSTER, ENDPOINT, LISTENER, ROUTE)}
        self._stale = True

    @property
    def complete(self) -> bool:
        """Say whether no service is missing."""
        return not self.missing

    def spell(self, planned: Cluster) -> Spelled:
        """Spell a service and leave the sets alone until `take`.

        Raises:
            Unspeakable: clients of this flavour would refuse it; others may well be told.
        """
        made = self._spelling.service(planned, self._spelled.get(planned.name), self._sets[CLUSTER].get(planned.name))
        return Spelled(planned=planned, resources=made)

    def give_up(self, name: ServiceName) -> None:
        """Go on without a service that cannot be spelled; its last good version stays, where there is one."""
        self.missing.pop(name, None)

    def take(self, spelled: Collection[Spelled], gone: Collection[ServiceName]) -> None:
        """Put what was spelled into the sets, all together."""
        had = [name for name in gone if name in self._spelled]
        sets = {}
        for type_url, old in self._sets.items():
            made = [each.resources[type_url] for each in spelled if type_url in each.resources]
            sets[type_url] = _replaced(old, made, had)
        self._sets = sets
        aliased = any(
            each.planned.aliases != (() if (known := self._spelled.get(each.planned.name)) is None else known.aliases)
            for each in spelled
        )
        self._spelled.update((each.planned.name, each.planned) for each in spelled)
        for name in had:
            del self._spelled[name]
        self._spelling.forget(gone)
        for name in (*gone, *(each.planned.name for each in spelled)):
            self.missing.pop(name, None)
        self._stale |= bool(had) or aliased or any(CLUSTER in each.resources for each in spelled)

    def sets(self) -> Mapping[str, ResourceSet]:
        """Return the sets, what tells of all services at once brought up to date."""
        if self._stale:
            together = self._spelling.together(self._spelled.values())
            changed = {url: _replaced(self._sets[url], [resource], []) for url, resource in together.items()}
            self._sets = {**self._sets, **changed}
            self._stale = False
        return self._sets

    def group(self, group: NodeGroup) -> Mapping[str, ResourceSet]:
        """Return the sets that a group has for itself alone."""
        return self._spelling.group(group)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoySpelling:
    """Spell services for Envoys: clusters and assignments, and one gateway that routes to all of them."""

    gateway_host: str
    source: Source = ADS
    _assignments: Assignments = field(default_factory=Assignments)
    _routes: GatewayRoutes = field(default_factory=GatewayRoutes)

    def service(self, planned: Cluster, before: Cluster | None, known: Resource | None) -> Mapping[str, Resource]:
        """Spell the assignment, and the cluster where the policy, all that it depends on, is another one."""
        same = before is not None and before.policy == planned.policy
        made = known if same and known is not None else cluster(planned, self.source)
        assignment = self._assignments.assignment(planned, made.version)
        return {ENDPOINT: assignment} if made is known else {CLUSTER: made, ENDPOINT: assignment}

    def together(self, planned: Iterable[Cluster]) -> Mapping[str, Resource]:
        """Spell the gateway's routes."""
        return {ROUTE: self._routes.resource(planned)}

    def group(self, group: NodeGroup) -> Mapping[str, ResourceSet]:
        """Spell the gateway's listener on the group's port."""
        gateway = listener.gateway(self.gateway_host, group.gateway_port, self.source)
        return MappingProxyType({LISTENER: ResourceSet([gateway])})

    def forget(self, services: Iterable[ServiceName]) -> None:
        """Drop the endpoints' bytes."""
        self._assignments.forget(services)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcSpelling:
    """Spell services for gRPC clients without a proxy: four resources each, in the form that gRPC accepts."""

    _assignments: Assignments = field(default_factory=Assignments)

    def service(self, planned: Cluster, before: Cluster | None, known: Resource | None) -> Mapping[str, Resource]:
        """Spell the assignment, the cluster and route where the policy is another one, and a new service's listener."""
        offered = proxyless(planned)
        if problems := lint.grpc_problems(offered):
            raise Unspeakable(problems)
        if known is not None and before is not None and before.policy == planned.policy:
            return {ENDPOINT: self._assignments.assignment(offered, known.version)}
        made = grpc.cluster(planned)
        return {
            CLUSTER: made,
            ENDPOINT: self._assignments.assignment(offered, made.version),
            ROUTE: grpc.routes(planned),
            **({LISTENER: grpc.listener(planned.name)} if before is None else {}),
        }

    def together(self, planned: Iterable[Cluster]) -> Mapping[str, Resource]:
        """Spell nothing: each service is told by itself."""
        return {}

    def group(self, group: NodeGroup) -> Mapping[str, ResourceSet]:
        """Spell nothing: all gRPC clients are told the same."""
        return {}

    def forget(self, services: Iterable[ServiceName]) -> None:
        """Drop the endpoints' bytes."""
        self._assignments.forget(services)


def spelling_for(flavour: Flavour, gateway_host: str) -> Spelling:
    """Return how services are spelled for a flavour."""
    match flavour.client:
        case Client.ENVOY:
            return EnvoySpelling(gateway_host=gateway_host, source=Source(transport=flavour.transport))
        case Client.GRPC:
            return GrpcSpelling()
        case _:
            assert_never(flavour.client)


def _replaced(old: ResourceSet, changed: list[Resource], gone: list[ServiceName]) -> ResourceSet:
    """Return `old` itself where nothing differs, so that identity tells the cache that nothing changed."""
    news = [resource for resource in changed if (known := old.get(resource.name)) is None or known != resource]
    return old.replacing(news, gone) if news or gone else old
