"""What the memory registry holds, and the records that change it: one per accepted write.

The same records are the lines of the journal, so that a restart is nothing but applying them again. Pure: no
clock, no I/O. Whether a write is allowed has been decided before a record exists; applying one cannot fail.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal, assert_never

from pydantic import ConfigDict, Field, with_config

from controlplane.model import (
    DeleteInstance,
    DeletePolicy,
    DeleteResource,
    Instance,
    InstanceId,
    InstanceIdField,
    InstanceKey,
    Missing,
    PutInstance,
    PutPolicy,
    PutResource,
    RawResource,
    RegistryEvent,
    ResourceKey,
    ServiceName,
    ServiceNameField,
    Verdict,
    same_instance,
    same_target,
)
from controlplane.policy import Policy

REGISTRY = "memory"

EXPIRED = "ttl expired"
"""The reason of a `Delete` that nobody asked for."""

_STRICT = ConfigDict(extra="forbid")


@with_config(_STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Store an instance; a removal that was pending is called off, unless the instance is still draining."""

    instance: Instance
    op: Literal["put"] = "put"

    @property
    def key(self) -> InstanceKey:
        """Return whom it is about."""
        return self.instance.key


@with_config(_STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Remove an instance. `reason` is the event's."""

    service: ServiceNameField
    id: InstanceIdField
    reason: str
    op: Literal["delete"] = "delete"

    @property
    def key(self) -> InstanceKey:
        """Return whom it is about."""
        return InstanceKey(ServiceName(self.service), InstanceId(self.id))


@with_config(_STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Mark an instance draining, and remove it `delay_s` seconds after that was stored, or after a restart."""

    service: ServiceNameField
    id: InstanceIdField
    delay_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    op: Literal["drain"] = "drain"

    @property
    def key(self) -> InstanceKey:
        """Return whom it is about."""
        return InstanceKey(ServiceName(self.service), InstanceId(self.id))


@with_config(_STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Keep a health verdict with its instance."""

    service: ServiceNameField
    id: InstanceIdField
    verdict: Verdict
    op: Literal["verdict"] = "verdict"

    @property
    def key(self) -> InstanceKey:
        """Return whom it is about."""
        return InstanceKey(ServiceName(self.service), InstanceId(self.id))


@with_config(_STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class SetPolicy:
    """Give a service its own policy."""

    service: ServiceNameField
    policy: Policy
    op: Literal["policy"] = "policy"


@with_config(_STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class DropPolicy:
    """Take a service's own policy away."""

    service: ServiceNameField
    op: Literal["no_policy"] = "no_policy"


@with_config(_STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class SetResource:
    """Store a raw resource."""

    resource: RawResource
    op: Literal["resource"] = "resource"


@with_config(_STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class DropResource:
    """Remove a raw resource."""

    type_url: str
    name: str
    op: Literal["no_resource"] = "no_resource"


Record = Put | Delete | Drain | Judge | SetPolicy | DropPolicy | SetResource | DropResource


class State:
    """Hold instances with their verdicts and pending removals, policies and raw resources. Mutable; `copy` is cheap.

    `removals` says by how many seconds the removal of a draining instance was put off; `addresses` who has
    which host and port in a service.
    """

    __slots__ = ("addresses", "instances", "policies", "removals", "resources", "verdicts")

    def __init__(self) -> None:
        self.instances: dict[InstanceKey, Instance] = {}
        self.verdicts: dict[InstanceKey, Verdict] = {}
        self.removals: dict[InstanceKey, float] = {}
        self.policies: dict[ServiceName, Policy] = {}
        self.resources: dict[ResourceKey, RawResource] = {}
        self.addresses: dict[tuple[str, str, int], str] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and all(getattr(self, n) == getattr(other, n) for n in State.__slots__)

    __hash__ = None  # type: ignore[assignment]  # mutable

    def copy(self) -> "State":
        """Return an independent state of the same, immutable, values."""
        new = State()
        new.instances = self.instances.copy()
        new.verdicts = self.verdicts.copy()
        new.removals = self.removals.copy()
        new.policies = self.policies.copy()
        new.resources = self.resources.copy()
        new.addresses = self.addresses.copy()
        return new

    def apply(self, record: Record) -> RegistryEvent | None:
        """Apply a record and return the event that tells of it; None where nobody outside can see a change."""
        match record:
            case Put():
                return self._put(record.instance)
            case Delete():
                return self._delete(record.key, record.reason)
            case Drain():
                return self._drain(record.key, record.delay_s)
            case Judge():
                if record.key in self.instances:
                    self.verdicts[record.key] = record.verdict
                return None
            case SetPolicy():
                service = ServiceName(record.service)
                if self.policies.get(service) == record.policy:
                    return None
                self.policies[service] = record.policy
                return PutPolicy(service=service, policy=record.policy, registry=REGISTRY)
            case DropPolicy():
                service = ServiceName(record.service)
                gone = self.policies.pop(service, None)
                return None if gone is None else DeletePolicy(service=service, registry=REGISTRY)
            case SetResource(resource=resource):
                if self.resources.get(resource.key) == resource:
                    return None
                self.resources[resource.key] = resource
                return PutResource(resource=resource, registry=REGISTRY)
            case DropResource():
                key = ResourceKey(record.type_url, record.name)
                removed = self.resources.pop(key, None)
                return None if removed is None else DeleteResource(key=key, registry=REGISTRY)
            case _:
                assert_never(record)

    def owner(self, instance: Instance) -> str | None:
        """Return the id of the instance that has this one's address in its service, be it itself."""
        return self.addresses.get((instance.name, instance.host, instance.port))

    def events(self) -> Iterator[RegistryEvent]:
        """Tell of everything that is held, policies first: a cluster is planned with its own from the start."""
        for service, policy in self.policies.items():
            yield PutPolicy(service=service, policy=policy, registry=REGISTRY)
        for resource in self.resources.values():
            yield PutResource(resource=resource, registry=REGISTRY)
        for key, instance in self.instances.items():
            yield PutInstance(instance=instance, registry=REGISTRY, verdict=self.verdicts.get(key))

    def records(self) -> Iterator[Record]:
        """Return the shortest list of records that leads to this state."""
        for service, policy in self.policies.items():
            yield SetPolicy(service=service, policy=policy)
        for resource in self.resources.values():
            yield SetResource(resource=resource)
        for key, instance in self.instances.items():
            yield Put(instance=instance)
            if (verdict := self.verdicts.get(key)) is not None:
                yield Judge(service=key.service, id=key.id, verdict=verdict)
            if (delay_s := self.removals.get(key)) is not None:
                yield Drain(service=key.service, id=key.id, delay_s=delay_s)

    def size(self) -> int:
        """Return how many records `records` returns."""
        held = (self.policies, self.resources, self.instances, self.verdicts, self.removals)
        return sum(len(each) for each in held)

    def _put(self, instance: Instance) -> PutInstance | None:
        key = instance.key
        old = self.instances.get(key)
        if not instance.draining:
            self.removals.pop(key, None)
        if old is not None:
            if same_instance(old, instance):
                return None
            self._release(old)
            if not same_target(old, instance):
                self.verdicts.pop(key, None)
        self.instances[key] = instance
        self.addresses[instance.name, instance.host, instance.port] = instance.id
        return PutInstance(instance=instance, registry=REGISTRY)

    def _delete(self, key: InstanceKey, reason: str) -> RegistryEvent | None:
        old = self.instances.pop(key, None)
        if old is None:
            return None
        self._release(old)
        self.verdicts.pop(key, None)
        self.removals.pop(key, None)
        if reason == EXPIRED and not old.draining:  # one that was draining was to go anyway
            return Missing(keys=(key,), registry=REGISTRY, reason=reason)
        return DeleteInstance(key=key, registry=REGISTRY, reason=reason)

    def _drain(self, key: InstanceKey, delay_s: float) -> PutInstance | None:
        old = self.instances.get(key)
        if old is None:
            return None
        event = self._put(replace(old, draining=True))
        self.removals[key] = delay_s
        return event

    def _release(self, instance: Instance) -> None:
        address = (instance.name, instance.host, instance.port)
        if self.addresses.get(address) == instance.id:
            del self.addresses[address]
