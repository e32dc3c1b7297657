"""How instances are checked: what other parts may know of it.

`tracker` turns outcomes into verdicts (pure), `monitor` schedules, and one module per check type asks, all of
them through `attempt`. Verdicts leave as `Judged` events and come back with the instances after a restart.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from controlplane.model import Instance, InstanceKey

OUTPUT_LIMIT_BYTES = 4096
"""How much of an answer is kept for people to read; the rest is never held in memory."""


class OutcomeKind(StrEnum):
    """Name the ways in which a check can end."""

    PASS = "pass"  # noqa: S105 - not a password
    DEGRADED = "degraded"
    FAIL = "fail"
    TIMEOUT = "timeout"
    UNKNOWN = "unknown"
    """The check could not be made for want of something of ours (file descriptors, memory, processes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Hold how one check ended. The first line of `output` is the summary: "HTTP 503"."""

    kind: OutcomeKind
    output: str
    latency_s: float

    @property
    def passed(self) -> bool:
        """Tell whether the instance can serve; a degraded one can."""
        return self.kind in (OutcomeKind.PASS, OutcomeKind.DEGRADED)

    @property
    def summary(self) -> str:
        """Return the output's first line, cut to what fits into a reason."""
        return self.output.partition("\n")[0][:200]


class Probe(Protocol):
    """Ask one instance, in one way, whether it is well."""

    async def __call__(self, instance: Instance, address: str, timeout_s: float) -> Outcome:
        """Check `instance` at the IP address `address`, and answer within `timeout_s`.

        Never raises (but for cancellation): what goes wrong is an outcome.
        """
        ...


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
