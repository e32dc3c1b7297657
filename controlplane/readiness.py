"""Whether this process should be given work, and if not, what it waits for.

Every component that can hold the process back registers a check under a name; the probes of the REST edge
show them, and the xDS server refuses streams while they fail (law 2). Checks are asked when somebody looks:
nothing here runs, waits or reads a clock.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

Ask = Callable[[], str | None]


class Health(StrEnum):
    """Sum up the process in one word."""

    OK = "ok"
    STARTING = "starting"
    DEGRADED = "degraded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Hold what one check says now: `reason` is None where all is well."""

    name: str
    required: bool
    reason: str | None


class Readiness:
    """Collect named checks and answer for all of them.

    A check returns None for "well", else the reason in words that finish the sentence "not ready: …". One
    that is not `required` never makes the process unready, only degraded: a registry that is lost after its
    first sync must not take the control plane out of service (law 1). `draining` is set at shutdown.
    """

    def __init__(self) -> None:
        self._checks: dict[str, tuple[Ask, bool]] = {}
        self._was_ready = False
        self.draining = False

    def add(self, name: str, ask: Ask, *, required: bool = True) -> None:
        """Add a check; `name` is what `/readyz?verbose` prints, "registry/memory" for example.

        Raises ValueError where the name is taken: two components would hide each other.
        """
        if name in self._checks:
            msg = f"a readiness check named {name!r} is registered already; names are unique"
            raise ValueError(msg)
        self._checks[name] = (ask, required)

    def findings(self) -> tuple[Finding, ...]:
        """Ask every check, in the order of registration."""
        return tuple(
            Finding(name=name, required=required, reason=ask()) for name, (ask, required) in self._checks.items()
        )

    def ready(self) -> bool:
        """Tell whether every required check is well and the process is not draining."""
        if self.draining:
            return False
        well = all(not required or ask() is None for ask, required in self._checks.values())
        self._was_ready = self._was_ready or well
        return well

    def health(self) -> Health:
        """Return `starting` until ready for the first time, then `ok`, or `degraded` while any check fails."""
        if not self.ready():
            return Health.DEGRADED if self._was_ready or self.draining else Health.STARTING
        well = all(ask() is None for ask, _ in self._checks.values())
        return Health.OK if well else Health.DEGRADED
