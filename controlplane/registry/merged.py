"""Several registries as one: whose word counts where more than one speaks of the same thing.

Pure. The registries are ranked as REGISTRY_TYPE lists them. An instance that several hold is the one of the first
that holds it, and when that one loses it the next one's takes over: so a service can move from one registry to
another without leaving the catalog.
"""

from collections.abc import Sequence
from dataclasses import replace

from controlplane.model import (
    DeleteInstance,
    DeletePolicy,
    InstanceKey,
    Missing,
    PutInstance,
    PutPolicy,
    RegistryEvent,
    ServiceName,
)


class Merged:
    """Turn the events of several registries into those of one.

    `ranking` names the registries, first the one whose instances win; `store` the one whose policies do, for it is
    the one that takes them from the REST API.
    """

    def __init__(self, ranking: Sequence[str], store: str) -> None:
        self._rank = {name: rank for rank, name in enumerate(ranking)}
        self._store = store
        self._instances: dict[InstanceKey, dict[str, PutInstance]] = {}
        self._policies: dict[ServiceName, dict[str, PutPolicy]] = {}

    def take(self, event: RegistryEvent) -> list[RegistryEvent]:
        """Return what an event of one registry means for all."""
        if len(self._rank) == 1:
            return [event]
        match event:
            case PutInstance(instance=instance, registry=registry):
                held = self._instances.setdefault(instance.key, {})
                held[registry] = event
                return [event] if self._first(held) == registry else []
            case DeleteInstance(key=key, registry=registry):
                return self._left(key, registry) or [event] if self._was_first(key, registry) else []
            case Missing(keys=keys, registry=registry):
                told: list[RegistryEvent] = []
                gone: list[InstanceKey] = []
                for key in keys:
                    if self._was_first(key, registry):
                        if instead := self._left(key, registry):
                            told += instead
                        else:
                            gone.append(key)
                if gone:
                    told.append(replace(event, keys=tuple(gone)))
                return told
            case PutPolicy(service=service, registry=registry):
                policies = self._policies.setdefault(service, {})
                policies[registry] = event
                return [event] if self._policy_of(policies) is event else []
            case DeletePolicy(service=service, registry=registry):
                policies = self._policies.get(service, {})
                before = policies.pop(registry, None)
                if before is None or (policies and self._policy_of({**policies, registry: before}) is not before):
                    return []
                if policies:
                    return [self._policy_of(policies)]
                del self._policies[service]
                return [event]
            case _:
                return [event]

    def _first(self, held: dict[str, PutInstance]) -> str:
        return min(held, key=self._rank.__getitem__)

    def _was_first(self, key: InstanceKey, registry: str) -> bool:
        """Tell whether the registry's word counted; where it did not, forget that it held the instance."""
        held = self._instances.get(key)
        if held is None or registry not in held:
            return False
        if self._first(held) == registry:
            return True
        del held[registry]
        return False

    def _left(self, key: InstanceKey, registry: str) -> list[RegistryEvent]:
        """Forget the first registry's instance; return the next one's, if there is one."""
        held = self._instances[key]
        del held[registry]
        if held:
            return [held[self._first(held)]]
        del self._instances[key]
        return []

    def _policy_of(self, policies: dict[str, PutPolicy]) -> PutPolicy:
        return policies[min(policies, key=lambda name: (name != self._store, self._rank[name]))]
