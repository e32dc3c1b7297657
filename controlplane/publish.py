"""From catalog changes to snapshots: what to plan again, when, and for whom.

Sits between the live catalog and the xDS cache. Endpoint and health changes go out in the same turn of the
event loop; changes of clusters and routes are debounced. A resource that breaks a content rule is refused alone:
its last good version stays, everything else goes on (law 15).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from controlplane.catalog import Change, Scope, Service
from controlplane.debounce import Debounce
from controlplane.live import LiveCatalog
from controlplane.model import ResourceKey, ServiceName
from controlplane.plan import Cluster, Planner
from controlplane.raw.overlay import Limit, Overlay
from controlplane.translate import lint, listener
from controlplane.translate.cluster import cluster
from controlplane.translate.endpoint import Assignments
from controlplane.translate.route import GatewayRoutes
from xds.cache import SnapshotCache
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE, Node, Resource, ResourceSet, Snapshot

_SLICE_S = 0.008
"""How long a full build may hold the event loop before it yields."""


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Name the nodes that are told the same: Envoys whose gateway listens on `gateway_port`.

    `audience` are those limits of raw resources that let these nodes in.
    """

    gateway_port: int
    audience: frozenset[Limit] = frozenset()


class _Refused(Exception):
    """Report why a service's resources are not published."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(*problems)
        self.problems = problems


@dataclass(frozen=True, slots=True)
class _Pending:
    """Hold what waits to be planned of a service, and the first revision that waits."""

    scope: Scope
    since: int


class Observer(Protocol):
    """Hear what was published; called synchronously, must not block."""

    def published(self, reason: str, revision: str, duration_s: float) -> None:
        """Hear of a publication: `reason` is "start", "endpoints", "clusters" or "resources" (raw ones only)."""
        ...

    def refused(self, service: str, problems: list[str]) -> None:
        """Hear that a service's resources broke a content rule and were not published."""
        ...


class Publisher:
    """Keep the cache's snapshots equal to what the catalog says.

    Nothing is published before `first_state` returns (law 2); until then `ready` is False. `regroup` is called when
    `group_of` may answer otherwise than before for nodes that are connected.
    """

    def __init__(
        self,
        *,
        live: LiveCatalog,
        cache: SnapshotCache,
        gateway_host: str,
        gateway_port: int,
        observer: Observer,
        clock: Callable[[], float],
        debounce: Debounce,
        overlay: Overlay | None = None,
        regroup: Callable[[], None] = lambda: None,
    ) -> None:
        self._live = live
        self._cache = cache
        self._gateway_host = gateway_host
        self._default_group = NodeGroup(gateway_port)
        self._observer = observer
        self._clock = clock
        self._debounce = debounce
        self._overlay = overlay or Overlay()
        self._regroup = regroup
        self._dirty: dict[ServiceName, _Pending] = {}
        self._wake = asyncio.Event()
        self._planner = Planner()
        self._assignments = Assignments()
        self._routes = GatewayRoutes()
        self._planned: dict[ServiceName, Cluster] = {}
        self._sets: Mapping[str, ResourceSet] = {type_url: ResourceSet() for type_url in (CLUSTER, ENDPOINT, ROUTE)}
        self._listeners: dict[NodeGroup, ResourceSet] = {}
        self._refused: dict[ServiceName, list[str]] = {}
        self._flush_scheduled = False
        self.ready = False

    @property
    def refused(self) -> Mapping[ServiceName, list[str]]:
        """Return the services whose newest state broke a content rule, with the rules' words."""
        return self._refused

    @property
    def left_out(self) -> Mapping[ResourceKey, str]:
        """Return the raw resources that nobody is told of, and why."""
        return self._overlay.left_out

    def group_of(self, node: Node) -> NodeGroup:
        """Return the group of a node and see that it has a snapshot."""
        port = node.metadata.get("gateway_port")
        valid = isinstance(port, (int, float)) and not isinstance(port, bool) and 1 <= port <= 65535
        listens_on = int(port) if valid else self._default_group.gateway_port  # type: ignore[call-overload]
        group = NodeGroup(listens_on, self._overlay.audience(node))
        if group not in self._listeners:
            self._add_group(group)
        return group

    async def run(self, first_state: Callable[[], Awaitable[None]], on_ready: Callable[[], Awaitable[None]]) -> None:
        """Publish the first snapshot once `first_state` returns, then every change, until cancelled."""
        self._live.subscribe(self._on_change)
        await first_state()
        started = self._clock()
        now = self._live.current.revision
        self._dirty = {name: _Pending(Scope.CLUSTERS, now) for name in self._live.current.services}
        while self._dirty:
            self._replan(list(self._dirty))
            await asyncio.sleep(0)
        self._add_group(self._default_group)
        self._publish("start", started, routes=True)
        self._debounce.published(self._clock())
        self.ready = True
        await on_ready()
        while True:
            await self._wake.wait()
            self._wake.clear()
            due = self._debounce.due()
            if due is None:
                continue
            if (delay := due - self._clock()) > 0:
                # A change meanwhile may move the due time; endpoints do not pass through here.
                await asyncio.sleep(delay)
                self._wake.set()
                continue
            await self._flush_clusters()

    def _on_change(self, change: Change) -> None:
        for name in change.services:
            pending = self._dirty.get(name)
            if pending is None:
                self._dirty[name] = _Pending(change.scope, change.revision)
            elif pending.scope is Scope.ENDPOINTS:
                self._dirty[name] = _Pending(change.scope, pending.since)
        if not self.ready or change.scope is Scope.READINESS:
            return
        if change.scope in (Scope.CLUSTERS, Scope.RESOURCES):
            self._debounce.touch(self._clock())
            self._wake.set()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush_endpoints)

    def _flush_endpoints(self) -> None:
        """Publish the endpoint changes of this turn of the loop; clusters wait for their debounce."""
        self._flush_scheduled = False
        started = self._clock()
        if names := [name for name, pending in self._dirty.items() if pending.scope is Scope.ENDPOINTS]:
            self._publish("endpoints", started, routes=self._replan(names))
            if any(name in self._dirty for name in names):  # more than one slice: the others get a turn first
                self._flush_scheduled = True
                asyncio.get_running_loop().call_soon(self._flush_endpoints)

    async def _flush_clusters(self) -> None:
        """Publish everything that waits now, slice by slice, so that others get turns between."""
        self._debounce.published(self._clock())
        waiting = list(self._dirty)
        if not waiting:
            self._publish("resources", self._clock(), routes=False)
        while names := [name for name in waiting if name in self._dirty]:
            started = self._clock()
            self._publish("clusters", started, routes=self._replan(names))
            await asyncio.sleep(0)

    def _replan(self, names: list[ServiceName]) -> bool:
        """Bring these services' resources up to date, as many as fit a slice, at least one.

        Return whether clusters or routes are touched. Everything is committed together, and only then are
        services taken off the list and refusals reported: what fails on the way loses no change.
        """
        planned: dict[ServiceName, Cluster] = {}
        clusters: list[Resource] = []
        assignments: list[Resource] = []
        refused: dict[ServiceName, list[str]] = {}
        gone: list[ServiceName] = []
        done: list[ServiceName] = []
        deadline = self._clock() + _SLICE_S
        for name in names:
            service = self._live.current.services.get(name)
            if service is None or not service.has_cluster:
                gone.append(name)
            else:
                try:
                    planned[name], made, assignment = self._build(service)
                except _Refused as error:
                    refused[name] = error.problems
                else:
                    assignments.append(assignment)
                    clusters += [] if made is None else [made]
            done.append(name)
            if self._clock() >= deadline:
                break
        had = [name for name in gone if name in self._planned]
        self._sets = {
            **self._sets,
            CLUSTER: _replaced(self._sets[CLUSTER], clusters, had),
            ENDPOINT: _replaced(self._sets[ENDPOINT], assignments, had),
        }
        self._planned.update(planned)
        for name in had:
            del self._planned[name]
        self._planner.forget(gone)
        self._assignments.forget(gone)
        for name in done:
            del self._dirty[name]
            self._refused.pop(name, None)
        self._refused.update(refused)
        for name, problems in refused.items():
            self._observer.refused(name, problems)
        return bool(clusters or had)

    def _build(self, service: Service) -> tuple[Cluster, Resource | None, Resource]:
        """Plan a service; return the plan, its cluster, None where it is as before, and its assignment."""
        try:
            planned = self._planner.plan(service, self._live.current)
            _refuse_faulty(planned)
            old = self._planned.get(service.name)
            same = old is not None and old.policy == planned.policy
            made = None if same else cluster(planned)
            version = self._sets[CLUSTER][service.name].version if made is None else made.version
            assignment = self._assignments.assignment(planned, version)
        except _Refused:
            raise
        except Exception as error:
            # A fault of ours in one service must not stop the others' endpoints (law 15); it is reported.
            raise _Refused([f"internal error: {error!r}"]) from error
        return planned, made, assignment

    def _publish(self, reason: str, started: float, *, routes: bool) -> None:
        if routes:
            route = self._routes.resource(self._planned.values())
            self._sets = {**self._sets, ROUTE: _replaced(self._sets[ROUTE], [route], [])}
        if self._overlay.update(self._live.current):
            # Before the old groups are told: a node that may have more now must not first be told that it has less.
            self._regroup()
        wanted = {self._default_group, *self._cache.watched()}
        for group in [group for group in self._listeners if group not in wanted]:
            del self._listeners[group]
            self._cache.drop(group)
        for group in self._listeners:
            self._cache.set(group, self._snapshot(group))
        self._observer.published(reason, self._revision(), self._clock() - started)

    def _revision(self) -> str:
        """Return the newest revision of which, and of all before it, everything is in the sets (law 10)."""
        waiting = min((pending.since - 1 for pending in self._dirty.values()), default=self._live.current.revision)
        return self._live.label(waiting)

    def _snapshot(self, group: NodeGroup) -> Snapshot:
        ours = {**self._sets, LISTENER: self._listeners[group]}
        return Snapshot(self._overlay.over(ours, group.audience), self._revision())

    def _add_group(self, group: NodeGroup) -> None:
        self._listeners[group] = ResourceSet([listener.gateway(self._gateway_host, group.gateway_port)])
        self._cache.set(group, self._snapshot(group))


def _refuse_faulty(planned: Cluster) -> None:
    if problems := lint.problems(planned):
        raise _Refused(problems)


def _replaced(old: ResourceSet, changed: list[Resource], gone: list[ServiceName]) -> ResourceSet:
    """Return `old` itself where nothing differs, so that identity tells the cache that nothing changed."""
    news = [resource for resource in changed if (known := old.get(resource.name)) is None or known != resource]
    return old.replacing(news, gone) if news or gone else old
