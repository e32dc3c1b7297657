"""What a former process last knew, until the registries have said what there is.

Pure. It is offered in place of a registry that says nothing (law 2's exception), and it is what a registry's first
listing is compared with: what is missing there is a loss like after any reconnect, and the guard has its look.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controlplane.model import (
    DeleteInstance,
    DeletePolicy,
    DeleteResource,
    InstanceKey,
    Missing,
    PutAliases,
    PutInstance,
    PutPolicy,
    PutResource,
    RegistryEvent,
    Resolved,
    ResourceKey,
    ServiceName,
    Synced,
)

Saved = PutInstance | PutPolicy | PutAliases | PutResource | Resolved
_Registered = PutInstance | PutPolicy | PutAliases | PutResource
_Key = InstanceKey | ServiceName | tuple[ServiceName] | ResourceKey

MISSING = "missing after a restart"


@dataclass(frozen=True, slots=True, kw_only=True)
class LastGood:
    """Hold what was in force, as events, and when that was last known to be true (seconds since the epoch).

    `held` names those instances that no registry had any more and the mass-loss guard kept, with its hold's id.
    """

    confirmed_at: float
    events: tuple[Saved, ...]
    held: Mapping[InstanceKey, str]


class Remembered:
    """Put what was last known beside what registries say.

    `journalled` names registries that have a journal of their own, which is the truth about them: only what the
    guard held is remembered of those. Not `fresh`: it is too old to doubt a listing by, and only stands in for one.
    """

    def __init__(self, known: LastGood, registries: Iterable[str], *, journalled: frozenset[str], fresh: bool) -> None:
        self._fresh = fresh
        self._held = known.held
        self._unconfirmed: dict[str, dict[_Key, _Registered]] = {name: {} for name in registries}
        self._offered: set[str] = set()
        for event in known.events:
            if isinstance(event, Resolved) or event.registry not in self._unconfirmed:
                continue
            key = _key(event)
            if event.registry not in journalled or key in known.held:
                self._unconfirmed[event.registry][key] = event

    @property
    def offered(self) -> frozenset[str]:
        """Return the registries in whose place what was last known is offered now."""
        return frozenset(self._offered)

    def fall_back(self, without: Iterable[str]) -> list[RegistryEvent]:
        """Return what is to be offered in place of these registries, which have not said anything."""
        told: list[RegistryEvent] = []
        for registry in without:
            if events := self._unconfirmed.get(registry):
                self._offered.add(registry)
                told += events.values()
        return told

    def take(self, event: RegistryEvent) -> list[RegistryEvent]:
        """Return what a registry's event means beside what was last known: itself, and at its first listing more."""
        match event:
            case PutInstance() | PutPolicy() | PutAliases() | PutResource():
                self._unconfirmed.get(event.registry, {}).pop(_key(event), None)
            case Synced(registry=registry) if registry in self._unconfirmed:
                return [*self._compared(registry, self._unconfirmed.pop(registry)), event]
            case _:
                pass
        return [event]

    def _compared(self, registry: str, absent: Mapping[_Key, _Registered]) -> list[RegistryEvent]:
        offered = registry in self._offered
        self._offered.discard(registry)
        if not offered and not self._fresh:
            return []
        told: list[RegistryEvent] = []
        gone: dict[str, list[InstanceKey]] = {}
        for event in absent.values():
            match event:
                case PutInstance(instance=instance):
                    if not offered:
                        told.append(event)  # the guard may keep only what there is
                    gone.setdefault(self._held.get(instance.key, ""), []).append(instance.key)
                case PutPolicy(service=service):
                    told += [event] if not offered else []
                    told.append(DeletePolicy(service=service, registry=registry))
                case PutAliases(service=service) if offered:
                    told.append(PutAliases(service=service, aliases=(), registry=registry))
                case PutResource(resource=resource):
                    told += [event] if not offered else []
                    told.append(DeleteResource(key=resource.key, registry=registry))
                case _:
                    pass
        if not self._fresh:
            lost = (key for keys in gone.values() for key in keys)
            return [*told, *(DeleteInstance(key=key, registry=registry, reason=MISSING) for key in lost)]
        return told + [
            Missing(keys=tuple(gone[hold]), registry=registry, reason=MISSING, hold=hold)
            for hold in sorted(gone, reverse=True)  # what was held comes first: else it counts as what is left
        ]


def _key(event: _Registered) -> _Key:
    match event:
        case PutInstance(instance=instance):
            return instance.key
        case PutPolicy(service=service):
            return service
        case PutAliases(service=service):
            return (service,)  # which its policy's is not
        case PutResource(resource=resource):
            return resource.key
