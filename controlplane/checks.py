"""What there is to check here and to resolve: catalog changes told to the health monitor and the resolver.

Both know the model only; this is where they meet the catalog, and where control planes that share a registry share
out the checks between them.
"""

from collections import Counter
from collections.abc import Callable

from controlplane.catalog import Change
from controlplane.health.monitor import HealthMonitor
from controlplane.live import LiveCatalog
from controlplane.model import (
    DeleteInstance,
    Instance,
    InstanceKey,
    Judged,
    PutInstance,
    Resolved,
    is_address,
    same_target,
)
from controlplane.resolver import Resolver
from controlplane.shares import Shares
from controlplane.verdicts import VerdictWriter

DISPUTE_S = 1.0
"""How long another's verdict about what is checked here may stand in the registry before ours is put there again.

Two control planes can both take an instance for theirs while they do not know each other yet; this bounds the pace.
"""


class Checks:
    """Tell the monitor and the resolver what there is to check and to resolve."""

    def __init__(
        self,
        live: LiveCatalog,
        monitor: HealthMonitor,
        resolver: Resolver,
        *,
        shares: Shares,
        verdicts: VerdictWriter,
        call_later: Callable[[float, Callable[[], object]], object],
    ) -> None:
        self._live = live
        self._monitor = monitor
        self._resolver = resolver
        self._shares = shares
        self._verdicts = verdicts
        self._call_later = call_later
        self._disputed: dict[InstanceKey, tuple[Judged, Instance]] = {}
        """What others say of what is checked here, the newest, and of which instance they say it."""
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

    def members(self, ids: frozenset[str] | None) -> None:
        """Share out the checks anew. While the others cannot be known, all are made here: nothing goes unchecked."""
        if self._shares.set(ids or ()):
            for entry in list(self._live.current.entries()):
                if entry.checked:
                    self._check(entry.instance.key)

    def recorded(self, judged: Judged) -> bool:
        """Tell whether a verdict that the registry keeps counts; what is checked here is judged here."""
        key = judged.key
        if not self._shares.mine(key):
            self._disputed.pop(key, None)
            return True
        entry = self._live.current.entry(key)
        if entry is not None:
            if key not in self._disputed:
                self._call_later(DISPUTE_S, lambda: self._settle(key))
            self._disputed[key] = judged, entry.instance
        return False

    def gone(self, key: InstanceKey) -> None:
        """See that the verdict of an instance that is gone is not kept for ever."""
        if self._shares.mine(key):
            self._verdicts.forget(key)

    def _settle(self, key: InstanceKey) -> None:
        """End a dispute: with our verdict in the registry, or where another checks it by now, with theirs here."""
        disputed = self._disputed.pop(key, None)
        entry = self._live.current.entry(key)
        if disputed is None or entry is None:
            return
        judged, instance = disputed
        if not self._shares.mine(key):
            if same_target(entry.instance, instance):
                self._live.apply(judged)
        elif entry.verdict is not None:
            self._verdicts.add(Judged(key=key, verdict=entry.verdict), entry.instance)

    def _check(self, key: InstanceKey) -> None:
        entry = self._live.current.entry(key)
        if entry is None or not entry.checked or not self._shares.mine(key):
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
