"""Where instances come from: the protocols that every registry keeps, and what can go wrong.

A registry is a source of events; a writable one also accepts what the REST API is told. It knows the model
and nothing else: not the catalog, not xDS, not its siblings.
"""

from collections.abc import Callable
from typing import Protocol

from controlplane.model import Instance, InstanceKey, RawResource, RegistryEvent, ResourceKey, ServiceName, Verdict
from controlplane.policy import Policy

Emit = Callable[[RegistryEvent], None]


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


class Registry(Protocol):
    """Deliver what is registered, as events."""

    @property
    def name(self) -> str:
        """Return the registry's name, as REGISTRY_TYPE spells it; it goes with every event."""
        ...

    async def run(self, emit: Emit) -> None:
        """Emit everything that is held, then `Synced`, then every change, until cancelled.

        A lost connection keeps what was delivered (law 1): deletions are emitted only when they are known.
        """
        ...


class WritableRegistry(Registry, Protocol):
    """Accept registrations too. Every method returns once the write is durable; `run` delivers its event."""

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
        (`same_target`), or is gone, the verdict is ignored: it says nothing about the new target.
        """
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
