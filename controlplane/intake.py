"""Where what registries say becomes what the catalog is told."""

from controlplane.live import LiveCatalog
from controlplane.model import DeleteInstance, Judged, Members, Missing, Recorded, RegistryEvent, Release, target_of


class Intake:
    """Take the events of registries and apply what they mean to the catalog."""

    def __init__(self, live: LiveCatalog) -> None:
        self._live = live

    def heard(self, event: RegistryEvent) -> None:
        """Take one event of a registry."""
        match event:
            case Missing(keys=keys, registry=registry, reason=reason):
                for key in keys:
                    self._live.apply(DeleteInstance(key=key, registry=registry, reason=reason))
            case Recorded(key=key, target=target, verdict=verdict):
                entry = self._live.current.entry(key)
                if verdict is not None and entry is not None and target_of(entry.instance) == target:
                    self._live.apply(Judged(key=key, verdict=verdict))
            case Members() | Release():
                pass
            case _:
                self._live.apply(event)
