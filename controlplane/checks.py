"""What there is to check and to resolve: catalog changes told to the health monitor and the resolver.

Both know the model only; this is where they meet the catalog.
"""

from collections import Counter

from controlplane.catalog import Change
from controlplane.health.monitor import HealthMonitor
from controlplane.live import LiveCatalog
from controlplane.model import DeleteInstance, InstanceKey, PutInstance, Resolved, is_address
from controlplane.resolver import Resolver


class Checks:
    """Tell the monitor and the resolver what there is to check and to resolve."""

    def __init__(self, live: LiveCatalog, monitor: HealthMonitor, resolver: Resolver) -> None:
        self._live = live
        self._monitor = monitor
        self._resolver = resolver
        self._names: dict[InstanceKey, str] = {}
        self._users: Counter[str] = Counter()

    def on_change(self, change: Change) -> None:
        """Pass on what a change means for checks and names."""
        match change.event:
            case PutInstance(instance=instance):
                self._resolve(instance.key, None if is_address(instance.host) else instance.host)
                self._check(instance.key)
            case DeleteInstance(key=key):
                self._resolve(key, None)
                self._monitor.forget(key)
            case Resolved(host=host):
                for key in [key for key, name in self._names.items() if name == host]:
                    self._check(key)
            case _:
                pass

    def _check(self, key: InstanceKey) -> None:
        entry = self._live.current.entry(key)
        if entry is None or not entry.checked or entry.stated:
            self._monitor.forget(key)
        else:
            self._monitor.watch(entry.instance, self._live.current.address_of(entry.instance), entry.verdict)

    def _resolve(self, key: InstanceKey, name: str | None) -> None:
        old = self._names.get(key)
        if old == name:
            return
        if name is None:
            del self._names[key]
        else:
            self._names[key] = name
            self._users[name] += 1
            self._resolver.watch(name)
        if old is not None:
            self._users[old] -= 1
            if not self._users[old]:
                del self._users[old]
                self._resolver.forget(old)
                self._live.forget(old)
