"""Where instances come from: the protocols that every registry keeps, and what can go wrong.

A registry is a source of events; a writable one also accepts what the REST API is told. It knows the model
and nothing else: not the catalog, not xDS, not its siblings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from controlplane.model import Instance, InstanceKey, RawResource, RegistryEvent, ResourceKey, ServiceName, Verdict
from controlplane.policy import Policy

Emit = Callable[[RegistryEvent], None]

REMARKS_MAX = 100
"""How many unusable objects of a registry are told one by one."""


class RegistryError(Exception):
    """Report that a registry could not do what was asked."""


class UnknownInstance(RegistryError):
    """Report that the registry holds no instance of that key."""


class AddressTaken(RegistryError):
    """Report that another instance of the service has the address already; `owner` is its id."""

    def __init__(self, instance: Instance, owner: str) -> None:
        super().__init__(
            f"{instance.host}:{instance.port} belongs to instance {owner!r} of {instance.name!r} already; "
            "deregister that one first, or register under its id"
        )
        self.owner = owner


class Conflict(RegistryError):
    """Report that the instance has changed since it was read; read it again and repeat."""


class RegistryUnavailable(RegistryError):
    """Report that the registry cannot take writes now; nothing was stored."""


class ReadOnly(RegistryError):
    """Report that the registry takes no such writes from here; the message says where to make them instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """Hold how a control plane takes part in a registry that several share.

    `member` is its id among them, fresh at each start; it counts as gone when it has not been heard for `ttl_s`.
    """

    member: str
    ttl_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Say how closely a registry is listened to while it has nothing to say.

    It is asked for a sign of life every `probe_s`, and counts as lost `patience_s` after that without one: so what is
    answered from memory was confirmed within the sum of both, or is said to be no longer.
    """

    probe_s: float = 3.0
    patience_s: float = 4.0

    @classmethod
    def within(cls, cache_ttl_s: float, at_most: "Attention | None" = None) -> "Attention":
        """Return how closely to listen for nothing to be older than `cache_ttl_s` unsaid (CACHE_TTL).

        `at_most` is what is enough where CACHE_TTL asks for no more: the default, unless the registry has its own.
        """
        enough, half = at_most or cls(), cache_ttl_s / 2
        return cls(probe_s=min(enough.probe_s, half), patience_s=min(enough.patience_s, half))


class Registry(Protocol):
    """Deliver what is registered, as events.

    One that several control planes share, and that is given `Sharing`, keeps their common state too: policies, raw
    resources, verdicts, members and releases. Without, it delivers instances only.
    """

    @property
    def name(self) -> str:
        """Return the registry's name, as REGISTRY_TYPE spells it; it goes with every event."""
        ...

    @property
    def remarks(self) -> Mapping[str, str]:
        """Return what the registry holds and cannot be used, by its place there, and why; what was good of it stays.

        At most `REMARKS_MAX` of them. One invalid object never keeps the rest from being served (law 15).
        """
        ...

    def age_s(self) -> float:
        """Return how many seconds ago the registry was last known to have said everything; 0 where it is in here.

        While a watch is live it is the time since its last sign of life, of which there is one every few seconds.
        """
        ...

    async def run(self, emit: Emit) -> None:
        """Emit everything that is held, then `Synced`, then every change, until cancelled.

        A lost connection keeps what was delivered (law 1): `Lost` is emitted, once, when it is noticed, whether
        the registry is dead or hangs; then it is tried again for ever, with back-off and at other servers where
        there are several. On return only the differences are emitted, what is absent as one `Missing`, then
        `Synced`. Wrong credentials are no other case: `Lost` says so, and each try uses what is configured.
        """
        ...


class WritableRegistry(Registry, Protocol):
    """Accept registrations too. Every method returns once the write is durable; `run` delivers its event.

    Every method raises RegistryUnavailable, within seconds, where the registry cannot be reached, and ReadOnly where
    it never takes such writes.
    """

    async def put(self, instance: Instance, *, expected: Instance | None = None) -> bool:
        """Store an instance, with a fresh lease where it has a `ttl`; return whether it is new.

        With `expected`, only where the stored instance equals it (compare and swap). Equal means `same_instance`.

        Raises AddressTaken, Conflict, UnknownInstance (with `expected`), RegistryUnavailable.
        """
        ...

    async def delete(self, key: InstanceKey) -> bool:
        """Remove an instance; return whether there was one."""
        ...

    async def drain(self, key: InstanceKey, delay_s: float) -> None:
        """Mark an instance draining now and remove it after `delay_s`.

        A `put` that says `draining: false` cancels the removal; one of an instance that is still draining, a change
        of its weight for example, leaves it and its time as they are.

        Raises UnknownInstance, RegistryUnavailable.
        """
        ...

    async def heartbeat(self, key: InstanceKey) -> float | None:
        """Renew an instance's lease; return the seconds until it expires, None where it has no `ttl`.

        Raises UnknownInstance.
        """
        ...

    async def record(self, key: InstanceKey, verdict: Verdict, of: Instance) -> None:
        """Keep a health verdict with its instance, so that a restart takes nobody out.

        `of` is the instance that was judged. Where the accepted one is checked elsewhere or otherwise by now
        (`same_target`), or is gone, the verdict is ignored: it says nothing about the new target. A shared registry
        keeps verdicts of other registries' instances as well, and tells every control plane by `Recorded`.
        """
        ...

    async def forget(self, key: InstanceKey) -> None:
        """Drop the verdict of an instance that exists no more, in whatever registry it was."""
        ...

    async def release(self, hold: str) -> None:
        """Tell every control plane that shares the registry what the mass-loss guard is to let go (`Release`)."""
        ...

    async def put_policy(self, service: ServiceName, policy: Policy) -> bool:
        """Store a service's policy; return whether it is new."""
        ...

    async def delete_policy(self, service: ServiceName) -> bool:
        """Remove a service's policy; return whether there was one."""
        ...

    async def put_resource(self, resource: RawResource) -> bool:
        """Store a raw resource; return whether it is new."""
        ...

    async def delete_resource(self, key: ResourceKey) -> bool:
        """Remove a raw resource; return whether there was one."""
        ...
