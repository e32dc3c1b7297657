"""What a registry has delivered so far, so that only differences are told, whatever the backend repeats.

Pure. A listing after a reconnect becomes the puts that differ and one `Missing`; a replayed watch event becomes
nothing at all.
"""

from collections.abc import Mapping

from controlplane.model import (
    DeleteInstance,
    Instance,
    InstanceKey,
    Missing,
    PutInstance,
    RegistryEvent,
    Verdict,
    same_instance,
)

MISSING = "missing after a reconnect"
EXPIRED = "ttl expired"


class Delivered:
    """Hold the instances that a registry has delivered, with what the registry itself says of their health."""

    def __init__(self, registry: str) -> None:
        self._registry = registry
        self._known: dict[InstanceKey, tuple[Instance, Verdict | None]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: InstanceKey) -> bool:
        return key in self._known

    def get(self, key: InstanceKey) -> Instance | None:
        """Return an instance as it was delivered last."""
        known = self._known.get(key)
        return None if known is None else known[0]

    def keys(self) -> list[InstanceKey]:
        """Return the keys of all, in no order."""
        return list(self._known)

    def put(self, instance: Instance, stated: Verdict | None = None) -> list[RegistryEvent]:
        """Take an instance as it is now; return what there is to tell, which is nothing where nothing differs."""
        known = self._known.get(instance.key)
        if known is not None and known[1] == stated and same_instance(known[0], instance):
            return []
        self._known[instance.key] = instance, stated
        return [PutInstance(instance=instance, registry=self._registry, stated=stated)]

    def delete(self, key: InstanceKey, reason: str = "deregistered") -> list[RegistryEvent]:
        """Take a deletion that is trusted; return what there is to tell."""
        if self._known.pop(key, None) is None:
            return []
        return [DeleteInstance(key=key, registry=self._registry, reason=reason)]

    def lose(self, keys: list[InstanceKey], reason: str) -> list[RegistryEvent]:
        """Take losses that nobody asked for, all of one occasion; return what there is to tell.

        They are doubted, but for instances that were draining: those were to go anyway.
        """
        told: list[RegistryEvent] = []
        doubted: list[InstanceKey] = []
        for key in sorted(set(keys)):
            known = self._known.get(key)
            if known is not None and known[0].draining:
                told += self.delete(key, reason)
            elif known is not None:
                del self._known[key]
                doubted.append(key)
        return [*told, Missing(keys=tuple(doubted), registry=self._registry, reason=reason)] if doubted else told

    def relist(self, listing: Mapping[InstanceKey, tuple[Instance, Verdict | None]]) -> list[RegistryEvent]:
        """Take everything that the registry holds now; return the puts that differ, then what is missing."""
        told: list[RegistryEvent] = []
        for instance, stated in listing.values():
            told += self.put(instance, stated)
        return told + self.lose([key for key in self._known if key not in listing], MISSING)
