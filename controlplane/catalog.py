"""The merged view of everything that exists, immutable, and how one event changes it.

Pure: no clock, no I/O. `Catalog.apply` returns the next catalog and what changed, or no change at all,
in which case nothing downstream does any work (conformance item P-01). Copying is two-level (services, then one
service's entries), so a change costs microseconds at a thousand services.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from types import MappingProxyType
from typing import assert_never

from controlplane.model import (
    DeleteInstance,
    DeletePolicy,
    DeleteResource,
    Event,
    GraceOver,
    HealthStatus,
    Held,
    Instance,
    InstanceId,
    InstanceKey,
    Judged,
    Lost,
    PutAliases,
    PutInstance,
    PutPolicy,
    PutResource,
    RawResource,
    Resolved,
    ResourceKey,
    ServiceName,
    Synced,
    Verdict,
    is_address,
    same_instance,
    same_target,
)
from controlplane.policy import DEFAULT_POLICY, Policy


class Scope(Enum):
    """Say how far a change reaches: what must be planned again, and how soon."""

    ENDPOINTS = auto()
    """Only the instances of clusters that exist already: takes the fast path to EDS."""
    CLUSTERS = auto()
    """Services appear, go, or change policy: clusters and routes follow."""
    RESOURCES = auto()
    """Raw resources only: no service is planned again."""
    READINESS = auto()
    """Nothing that proxies see; a registry is in sync, or lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Hold one instance with what is known about it. `checked`: a check is asked for and checks are on.

    `verdict` is what our checks concluded, `stated` what the registry says of it by itself.
    `held` is the id of the mass-loss guard's hold that keeps it offered though its registry has lost it; else "".
    """

    instance: Instance
    registry: str
    checked: bool
    verdict: Verdict | None = None
    stated: Verdict | None = None
    held: str = ""
    revision: int = 0

    @property
    def status(self) -> HealthStatus:
        """Return what the instance counts as: draining wins, then anything but healthy that the registry states.

        Else it is what our checks concluded; unchecked is healthy, unjudged is unknown.
        """
        if self.instance.draining:
            return HealthStatus.DRAINING
        if self.stated is not None and self.stated.status is not HealthStatus.HEALTHY:
            return self.stated.status
        if not self.checked:
            return HealthStatus.HEALTHY
        return HealthStatus.UNKNOWN if self.verdict is None else self.verdict.status

    @property
    def score(self) -> int:
        """Return the health score, 0–100; 100 where nothing is checked."""
        return self.verdict.score if self.checked and self.verdict is not None else 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Hold a service: its entries by id, its own policy (and which registry has that), its cluster's grace.

    `aliases` are names by which it is reached besides its own, as one registry says. `revision` is that of its last
    change; `emptied_at` the one that took its last instance, while its cluster has grace. A service is known while it
    has any of these.
    """

    name: ServiceName
    entries: Mapping[InstanceId, Entry] = field(default_factory=lambda: MappingProxyType({}))
    own_policy: Policy | None = None
    policy_registry: str = ""
    emptied_at: int | None = None
    aliases: tuple[ServiceName, ...] = ()
    aliases_registry: str = ""
    revision: int = 0

    @property
    def policy(self) -> Policy:
        """Return the policy in force: the service's own, else the default."""
        return self.own_policy or DEFAULT_POLICY

    @property
    def has_cluster(self) -> bool:
        """Tell whether proxies are to know the service as a cluster."""
        return bool(self.entries) or self.emptied_at is not None

    def sorted_entries(self) -> list[Entry]:
        """Return the entries by id, the order in which everything shows them."""
        return [self.entries[key] for key in sorted(self.entries)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawEntry:
    """Hold a raw resource, the registry that has it, and the revision of its last change."""

    resource: RawResource
    revision: int
    registry: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Say what an event changed, and with which revision. `emptied`: a service lost its last instance."""

    revision: int
    scope: Scope
    services: tuple[ServiceName, ...]
    event: Event
    emptied: ServiceName | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """Hold everything that exists at one revision.

    `ranking` names the registries, first the one whose instance has an address that two of them claim.
    `synced` names the registries that have said everything at least once, `lost` those that cannot be heard now,
    with the reason. `size` is the number of instances, counted as they come and go.
    """

    revision: int = 0
    size: int = 0
    services: Mapping[ServiceName, Service] = field(default_factory=lambda: MappingProxyType({}))
    resolutions: Mapping[str, Resolved] = field(default_factory=lambda: MappingProxyType({}))
    raw: Mapping[ResourceKey, RawEntry] = field(default_factory=lambda: MappingProxyType({}))
    synced: frozenset[str] = frozenset()
    lost: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    checks_enabled: bool = True
    ranking: tuple[str, ...] = ()

    def apply(self, event: Event) -> "tuple[Catalog, Change | None]":
        """Return the catalog after `event`, and what it changed; the same catalog and None for no change."""
        match event:
            case PutInstance():
                return self._put(event)
            case DeleteInstance():
                return self._delete(event)
            case Judged():
                return self._judge(event)
            case PutPolicy():
                service = self.services.get(event.service) or Service(name=event.service)
                return self._policy(service, event.policy, event)
            case DeletePolicy():
                known = self.services.get(event.service)
                return (self, None) if known is None else self._policy(known, None, event)
            case PutAliases():
                return self._alias(event)
            case PutResource(resource=resource):
                known_entry = self.raw.get(resource.key)
                if known_entry is not None and known_entry.resource == resource:
                    return self, None
                entry = RawEntry(resource=resource, revision=self.revision + 1, registry=event.registry)
                return self._resources({**self.raw, resource.key: entry}, event)
            case DeleteResource():
                if event.key not in self.raw:
                    return self, None
                return self._resources({key: kept for key, kept in self.raw.items() if key != event.key}, event)
            case GraceOver():
                return self._grace_over(event)
            case Resolved():
                return self._resolve(event)
            case Held():
                return self._hold(event)
            case Synced(registry=registry):
                lost = {name: why for name, why in self.lost.items() if name != registry}
                return self._reach(self.synced | {registry}, lost, event)
            case Lost(registry=registry):
                return self._reach(self.synced, {**self.lost, registry: event.reason}, event)
            case _:
                assert_never(event)

    def _reach(self, synced: frozenset[str], lost: Mapping[str, str], event: Event) -> "tuple[Catalog, Change | None]":
        if synced == self.synced and lost == self.lost:
            return self, None
        revision = self.revision + 1
        change = Change(revision=revision, scope=Scope.READINESS, services=(), event=event)
        return replace(self, revision=revision, synced=synced, lost=lost), change

    def _hold(self, event: Held) -> "tuple[Catalog, Change | None]":
        revision = self.revision + 1
        services = dict(self.services)
        touched: list[ServiceName] = []
        by_service: dict[ServiceName, dict[InstanceId, Entry]] = {}
        for key in event.keys:
            old = self.entry(key)
            if old is not None and old.held != event.hold:
                entries = by_service.setdefault(key.service, {})
                entries[key.id] = replace(old, held=event.hold, revision=revision)
        for name, entries in by_service.items():
            services[name] = replace(services[name], entries={**services[name].entries, **entries}, revision=revision)
            touched.append(name)
        if not touched:
            return self, None
        change = Change(revision=revision, scope=Scope.ENDPOINTS, services=tuple(sorted(touched)), event=event)
        return replace(self, revision=revision, services=services), change

    def has_cluster(self, name: ServiceName) -> bool:
        """Tell whether proxies are to know a service as a cluster."""
        service = self.services.get(name)
        return service is not None and service.has_cluster

    def entry(self, key: InstanceKey) -> Entry | None:
        """Return what is known about an instance."""
        service = self.services.get(key.service)
        return None if service is None else service.entries.get(key.id)

    def entries(self) -> Iterator[Entry]:
        """Iterate over every instance of every service."""
        for service in self.services.values():
            yield from service.entries.values()

    def address_of(self, instance: Instance) -> str | None:
        """Return the IP address that proxies are given; None while a DNS name has not been resolved.

        A name with several addresses stands for one of them, IPv4 before IPv6, then the lowest: replicas agree
        (law 3), and the family that every proxy can reach comes first.
        """
        if is_address(instance.host):
            return instance.host
        resolved = self.resolutions.get(instance.host)
        if resolved is None or not resolved.addresses:
            return None
        return min(resolved.addresses, key=lambda address: (":" in address, address))

    def forgetting(self, host: str) -> "Catalog":
        """Return the catalog without what a name stood for; for a name that no instance uses any more.

        Nothing that anyone sees changes, so there is no new revision.
        """
        return replace(self, resolutions={name: known for name, known in self.resolutions.items() if name != host})

    def _resources(self, raw: Mapping[ResourceKey, RawEntry], event: Event) -> "tuple[Catalog, Change]":
        revision = self.revision + 1
        change = Change(revision=revision, scope=Scope.RESOURCES, services=(), event=event)
        return replace(self, revision=revision, raw=raw), change

    def _with(self, service: Service, change: Change, more: int = 0) -> "tuple[Catalog, Change]":
        services = dict(self.services)
        if service.entries or service.own_policy is not None or service.emptied_at is not None or service.aliases:
            services[service.name] = replace(service, revision=change.revision)
        else:
            services.pop(service.name, None)
        return replace(self, revision=change.revision, size=self.size + more, services=services), change

    def _put(self, event: PutInstance) -> "tuple[Catalog, Change | None]":
        instance = event.instance
        key = instance.key
        service = self.services.get(key.service) or Service(name=key.service)
        old = service.entries.get(key.id)
        verdict = event.verdict
        if verdict is None and old is not None and same_target(old.instance, instance):
            verdict = old.verdict
        revision = self.revision + 1
        entry = Entry(
            instance=instance,
            registry=event.registry,
            checked=instance.checked and self.checks_enabled,
            verdict=verdict,
            stated=event.stated,
            revision=revision,
        )
        if old is not None and replace(old, revision=revision) == entry and same_instance(old.instance, instance):
            return self, None
        scope = Scope.ENDPOINTS if service.has_cluster else Scope.CLUSTERS
        changed = replace(service, entries={**service.entries, key.id: entry}, emptied_at=None)
        change = Change(revision=revision, scope=scope, services=(key.service,), event=event)
        return self._with(changed, change, more=1 if old is None else 0)

    def _delete(self, event: DeleteInstance) -> "tuple[Catalog, Change | None]":
        service = self.services.get(event.key.service)
        if service is None or event.key.id not in service.entries:
            return self, None
        entries = dict(service.entries)
        del entries[event.key.id]
        emptied = None if entries else service.name
        change = Change(
            revision=self.revision + 1,
            scope=Scope.ENDPOINTS,
            services=(service.name,),
            event=event,
            emptied=emptied,
        )
        emptied_at = None if entries else change.revision
        return self._with(replace(service, entries=entries, emptied_at=emptied_at), change, more=-1)

    def _judge(self, event: Judged) -> "tuple[Catalog, Change | None]":
        service = self.services.get(event.key.service)
        old = None if service is None else service.entries.get(event.key.id)
        if service is None or old is None or old.verdict == event.verdict:
            return self, None
        revision = self.revision + 1
        entry = replace(old, verdict=event.verdict, revision=revision)
        changed = replace(service, entries={**service.entries, event.key.id: entry})
        return self._with(
            changed, Change(revision=revision, scope=Scope.ENDPOINTS, services=(service.name,), event=event)
        )

    def _policy(
        self, service: Service, policy: Policy | None, event: PutPolicy | DeletePolicy
    ) -> "tuple[Catalog, Change | None]":
        if service.own_policy == policy and (policy is None or service.policy_registry == event.registry):
            return self, None
        change = Change(revision=self.revision + 1, scope=Scope.CLUSTERS, services=(service.name,), event=event)
        registry = "" if policy is None else event.registry
        return self._with(replace(service, own_policy=policy, policy_registry=registry), change)

    def _alias(self, event: PutAliases) -> "tuple[Catalog, Change | None]":
        service = self.services.get(event.service) or Service(name=event.service)
        if service.aliases == event.aliases and (not event.aliases or service.aliases_registry == event.registry):
            return self, None
        change = Change(revision=self.revision + 1, scope=Scope.CLUSTERS, services=(service.name,), event=event)
        registry = event.registry if event.aliases else ""
        return self._with(replace(service, aliases=event.aliases, aliases_registry=registry), change)

    def _grace_over(self, event: GraceOver) -> "tuple[Catalog, Change | None]":
        service = self.services.get(event.service)
        if service is None or service.emptied_at != event.emptied_at:
            return self, None
        change = Change(revision=self.revision + 1, scope=Scope.CLUSTERS, services=(service.name,), event=event)
        return self._with(replace(service, emptied_at=None), change)

    def _resolve(self, event: Resolved) -> "tuple[Catalog, Change | None]":
        old = self.resolutions.get(event.host)
        if old == event:
            return self, None
        revision = self.revision + 1
        touched = tuple(
            sorted(
                name
                for name, service in self.services.items()
                if any(entry.instance.host == event.host for entry in service.entries.values())
            )
        )
        services = dict(self.services)
        for name in touched:
            services[name] = replace(services[name], revision=revision)
        after = replace(self, revision=revision, services=services, resolutions={**self.resolutions, event.host: event})
        return after, Change(revision=revision, scope=Scope.ENDPOINTS, services=touched, event=event)
