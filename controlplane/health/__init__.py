"""How instances are checked: what other parts may know of it.

`tracker` turns outcomes into verdicts (pure), `monitor` schedules, and one module per check type asks.
Verdicts leave as `Judged` events and come back with the instances after a restart.
"""

from dataclasses import dataclass
from typing import Protocol

from controlplane.model import InstanceKey


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """Show the newest check of an instance: when (seconds since the epoch), what it said, how long it took.

    `score` is 0–100 from recent outcomes and latency, finer than the verdict's.
    """

    checked_at: float
    passed: bool
    output: str
    latency_s: float
    score: int
    consecutive_passes: int
    consecutive_failures: int


class HealthReports(Protocol):
    """Give the edges a view of the checks."""

    def report(self, key: InstanceKey) -> CheckReport | None:
        """Return the newest check of an instance; None where none has been made since the start."""
        ...
