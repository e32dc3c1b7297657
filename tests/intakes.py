"""The way from a registry to the catalog as the process has it, with nobody to tell and nothing to check."""

from collections.abc import Callable, Sequence

from controlplane.guard import Guard, Limits, Notice
from controlplane.intake import Clocks, Intake
from controlplane.live import LiveCatalog
from controlplane.model import InstanceKey, Judged
from controlplane.registry.merged import Merged
from controlplane.remembered import Remembered

DEFAULT_LIMITS = Limits()


class Told:
    """Keep what an intake tells those who check, and the people."""

    def __init__(self) -> None:
        self.members_seen: list[frozenset[str] | None] = []
        self.gone_seen: list[InstanceKey] = []
        self.let_go_seen: list[tuple[str, str, list[InstanceKey]]] = []
        self.said: list[tuple[str, str]] = []
        self.counts = True

    def members(self, ids: frozenset[str] | None) -> None:
        self.members_seen.append(ids)

    def recorded(self, judged: Judged) -> bool:
        return self.counts

    def gone(self, key: InstanceKey) -> None:
        self.gone_seen.append(key)

    def registry_lost(self, registry: str, reason: str, *, heard: bool) -> None:
        self.said.append(("lost", registry))

    def registry_synced(self, registry: str) -> None:
        self.said.append(("synced", registry))

    def let_go(self, registry: str, reason: str, keys: Sequence[InstanceKey]) -> None:
        self.let_go_seen.append((registry, reason, list(keys)))

    def held(self, notice: Notice) -> None:
        self.said.append(("held", notice.id))

    def released(self, notice: Notice) -> None:
        self.said.append(("released", notice.id))


def intake_of(
    live: LiveCatalog,
    *,
    registries: tuple[str, ...] = ("memory",),
    store: str | None = None,
    remembered: Remembered | None = None,
    limits: Limits = DEFAULT_LIMITS,
    told: Told | None = None,
    clock: Callable[[], float] = lambda: 0.0,
    call_later: Callable[[float, Callable[[], object]], object] = lambda _delay, _call: None,
) -> Intake:
    """Build the intake of these registries; the first is the store unless another is named."""
    told = told or Told()
    store = store or registries[0]
    return Intake(
        live,
        remembered=remembered,
        merged=Merged(registries, store=store),
        guard=Guard(limits),
        store=store,
        work=told,
        observer=told,
        clocks=Clocks(monotonic=clock, wall=lambda: 1_000.0 + clock(), call_later=call_later),
    )
