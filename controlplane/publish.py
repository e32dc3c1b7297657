"""From catalog changes to snapshots: what to plan again, when, and for whom.

Sits between the live catalog and the xDS cache; what each kind of client is told is `views`'. Endpoint and health
changes go out in the same turn of the event loop; changes of clusters and routes are debounced. A resource that
breaks a content rule is refused alone: its last good version stays, everything else goes on (law 15).
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

from controlplane.catalog import Change, Scope, Service
from controlplane.debounce import Debounce
from controlplane.live import LiveCatalog
from controlplane.model import ResourceKey, ServiceName
from controlplane.plan import Cluster, Planner
from controlplane.raw.overlay import Overlay
from controlplane.translate import lint
from controlplane.views import Flavour, NodeGroup, Spelled, Unspeakable, View, group_of, spelling_for
from xds.cache import SnapshotCache
from xds.types import Node, ResourceSet, Snapshot

_SLICE_S = 0.008
"""How long a full build may hold the event loop before it yields."""

_Problems = Mapping[Flavour | None, list[str]]
"""What keeps a service from clients of a flavour, or (None) from everybody."""


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
        self._default_group = NodeGroup(gateway_port=gateway_port)
        self._observer = observer
        self._clock = clock
        self._debounce = debounce
        self._overlay = overlay or Overlay()
        self._regroup = regroup
        self._dirty: dict[ServiceName, _Pending] = {}
        self._unlaid: int | None = 0  # the first revision that may change what the overlay does and has not been laid
        self._wake = asyncio.Event()
        self._planner = Planner()
        self._planned: dict[ServiceName, Cluster] = {}
        self._views: dict[Flavour, View] = {}
        self._groups: dict[NodeGroup, Mapping[str, ResourceSet]] = {}  # with what each is told beside the services
        self._refused: dict[ServiceName, _Problems] = {}
        self._flush_scheduled = False
        self._fill_scheduled = False
        self.ready = False
        self._add_group(self._default_group)

    @property
    def refused(self) -> Mapping[ServiceName, list[str]]:
        """Return the services whose newest state broke a content rule, with the rules' words.

        What is kept from one flavour of clients counts while any of them is connected.
        """
        there = {None, *self._flavours()}
        said = {
            name: [problem for flavour, of_it in problems.items() if flavour in there for problem in of_it]
            for name, problems in self._refused.items()
        }
        return {name: list(dict.fromkeys(problems)) for name, problems in said.items() if problems}

    @property
    def left_out(self) -> Mapping[ResourceKey, str]:
        """Return the raw resources that nobody is told of, and why."""
        return self._overlay.left_out

    def group_of(self, node: Node) -> NodeGroup:
        """Return the group of a node and see that it has a snapshot, or gets one as soon as its view is complete."""
        group = replace(group_of(node, self._default_group.gateway_port), audience=self._overlay.audience(node))
        if group not in self._groups:
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
        await self._compile_raw()
        self._publish("start", started)
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

    async def _compile_raw(self) -> None:
        """Read the raw resources slice by slice: a restart may find thousands, and probes ask meanwhile."""
        deadline = self._clock() + _SLICE_S
        for entry in tuple(self._live.current.raw.values()):
            self._overlay.compile(entry.resource)
            if self._clock() >= deadline:
                await asyncio.sleep(0)
                deadline = self._clock() + _SLICE_S

    def _on_change(self, change: Change) -> None:
        if self._unlaid is None and change.scope in (Scope.CLUSTERS, Scope.RESOURCES):
            self._unlaid = change.revision
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
            self._replan(names)
            self._publish("endpoints", started)
            if any(name in self._dirty for name in names):  # more than one slice: the others get a turn first
                self._flush_scheduled = True
                asyncio.get_running_loop().call_soon(self._flush_endpoints)

    async def _flush_clusters(self) -> None:
        """Publish everything that waits now, slice by slice, so that others get turns between."""
        self._debounce.published(self._clock())
        waiting = list(self._dirty)
        if not waiting:
            self._publish("resources", self._clock())
        while names := [name for name in waiting if name in self._dirty]:
            started = self._clock()
            self._replan(names)
            self._publish("clusters", started)
            await asyncio.sleep(0)

    def _replan(self, names: list[ServiceName]) -> None:
        """Bring these services' resources up to date, as many as fit a slice, at least one.

        Everything is committed together, and only then are services taken off the list and refusals reported: what
        fails on the way loses no change.
        """
        planned: dict[ServiceName, Cluster] = {}
        spelled: dict[Flavour, list[Spelled]] = {flavour: [] for flavour in self._views}
        refused: dict[ServiceName, dict[Flavour | None, list[str]]] = {}
        gone: list[ServiceName] = []
        done: list[ServiceName] = []
        deadline = self._clock() + _SLICE_S
        for name in names:
            service = self._live.current.services.get(name)
            if service is None or not service.has_cluster:
                gone.append(name)
            else:
                try:
                    cluster = self._plan(service)
                except Unspeakable as error:
                    refused[name] = {None: error.problems}
                else:
                    planned[name] = cluster
                    for flavour, view in self._views.items():
                        self._spell(flavour, view, cluster, spelled[flavour], refused)
            done.append(name)
            if self._clock() >= deadline:
                break
        for flavour, view in self._views.items():
            view.take(spelled[flavour], gone)
        self._planned.update(planned)
        for name in gone:
            self._planned.pop(name, None)
        self._planner.forget(gone)
        for name in done:
            del self._dirty[name]
            self._refused.pop(name, None)
        self._refuse(refused)

    def _plan(self, service: Service) -> Cluster:
        """Plan a service; raise Unspeakable where nobody may be told of it."""
        try:
            planned = self._planner.plan(service, self._live.current)
            problems = lint.problems(planned)
        except Exception as error:
            # A fault of ours in one service must not stop the others' endpoints (law 15); it is reported.
            raise Unspeakable([f"internal error: {error!r}"]) from error
        if problems:
            raise Unspeakable(problems)
        return planned

    def _spell(
        self,
        flavour: Flavour,
        view: View,
        planned: Cluster,
        spelled: list[Spelled],
        refused: dict[ServiceName, dict[Flavour | None, list[str]]],
    ) -> None:
        """Add what a view makes of a plan to `spelled`, or why it does not to `refused`; other views go on."""
        try:
            spelled.append(view.spell(planned))
        except Unspeakable as error:
            view.give_up(planned.name)
            problems = [f"{flavour.client} clients are not told: {problem}" for problem in error.problems]
            refused.setdefault(planned.name, {})[flavour] = problems
        except Exception as error:
            # As above: a fault in the spelling of one service is its own.
            view.give_up(planned.name)
            refused.setdefault(planned.name, {})[flavour] = [f"internal error: {error!r}"]

    def _refuse(self, refused: Mapping[ServiceName, _Problems]) -> None:
        for name, problems in refused.items():
            self._refused[name] = {**self._refused.get(name, {}), **problems}
            self._observer.refused(name, list(dict.fromkeys(chain(*problems.values()))))

    def _publish(self, reason: str, started: float) -> None:
        if self._unlaid is not None:
            regrouped = self._overlay.update(self._live.current.raw, self._planned.__contains__)
            clusters = (pending.since for pending in self._dirty.values() if pending.scope is Scope.CLUSTERS)
            self._unlaid = min(clusters, default=None)  # a name changes hands when its service is planned
            if regrouped:
                # Before the old groups are told: a node that may have more now must not first be told that it has less.
                self._regroup()
        self._drop_unwatched()
        self._set(self._groups)
        self._observer.published(reason, self._revision(), self._clock() - started)

    def _drop_unwatched(self) -> None:
        """Forget the groups that no stream watches, and the views that no group needs, but the default's."""
        wanted = {self._default_group, *self._cache.watched()}
        for group in [group for group in self._groups if group not in wanted]:
            del self._groups[group]
            self._cache.drop(group)
        for flavour in self._views.keys() - self._flavours():
            del self._views[flavour]
            left = ((name, _without(flavour, problems)) for name, problems in self._refused.items())
            self._refused = {name: problems for name, problems in left if problems}

    def _flavours(self) -> set[Flavour]:
        """Return the flavours of which a client is connected, and the default's."""
        watched = (group.flavour for group in self._cache.watched() if isinstance(group, NodeGroup))
        return {self._default_group.flavour, *watched}

    def _set(self, groups: Collection[NodeGroup]) -> None:
        """Give each group its snapshot, view by view: the cache compares sets that groups share only once."""
        for flavour, view in self._views.items():
            if view.complete:
                for group in groups:
                    if group.flavour == flavour:
                        ours = {**view.sets(), **self._groups[group]}
                        told = self._overlay.over(ours, group.audience, flavour)
                        self._cache.set(group, Snapshot(told, self._revision()))

    def _revision(self) -> str:
        """Return the newest revision of which, and of all before it, everything is in the sets (law 10)."""
        waiting = [pending.since for pending in self._dirty.values()]
        if self._unlaid is not None:
            waiting.append(self._unlaid)
        return self._live.label(min(waiting) - 1 if waiting else self._live.current.revision)

    def _add_group(self, group: NodeGroup) -> None:
        view = self._views.get(group.flavour)
        if view is None:
            view = View(spelling_for(group.flavour, self._gateway_host), missing=self._planned)
            self._views[group.flavour] = view
        self._groups[group] = view.group(group)
        if not view.complete:
            self._schedule_fill()
        elif self.ready:
            self._set([group])

    def _schedule_fill(self) -> None:
        if not self._fill_scheduled:
            self._fill_scheduled = True
            asyncio.get_running_loop().call_soon(self._fill_views)

    def _fill_views(self) -> None:
        """Spell a slice of what new views are missing, while the streams that want them wait."""
        self._fill_scheduled = False
        self._drop_unwatched()
        for flavour, view in self._views.items():
            if not view.complete:
                self._fill(flavour, view)
                if not view.complete:
                    self._schedule_fill()
                elif self.ready:
                    self._set([group for group in self._groups if group.flavour == flavour])

    def _fill(self, flavour: Flavour, view: View) -> None:
        spelled: list[Spelled] = []
        refused: dict[ServiceName, dict[Flavour | None, list[str]]] = {}
        gone: list[ServiceName] = []
        deadline = self._clock() + _SLICE_S
        for name in list(view.missing):
            if (planned := self._planned.get(name)) is None:
                gone.append(name)
            else:
                self._spell(flavour, view, planned, spelled, refused)
            if self._clock() >= deadline:
                break
        view.take(spelled, gone)
        self._refuse(refused)


def _without(flavour: Flavour, problems: _Problems) -> _Problems:
    return {each: of_it for each, of_it in problems.items() if each != flavour}
