"""What a series of outcomes says about an instance: rise and fall thresholds, and a score.

Pure: time and outcomes come in, verdicts come out. It neither asks nor schedules; `monitor` does.

The score is `100 × mean(quality)`. A check's quality is 1 (pass), 0.5 (degraded) or 0 (failed), times a latency
factor; the mean is exponentially weighted with a half-life of three checks. The latency factor is 1 up to a
hundredth of the check's timeout, and loses a quarter for each tenfold beyond: 0.75 at a tenth, 0.5 at the
timeout. On a logarithmic scale the usual jitter of a few milliseconds does not matter, and one slow answer
weighs no more than half a failed one.

A verdict is durable and reaches proxies, so its score moves in steps of ten, and only once the fine score is
eight points away from it: a score that trembles around a boundary changes nothing.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

from controlplane.health import Outcome, OutcomeKind
from controlplane.model import HealthStatus, Verdict

HALF_LIFE_CHECKS = 3
_WEIGHT_OF_NEWEST = 1 - 0.5 ** (1 / HALF_LIFE_CHECKS)
_STEP = 10
_HYSTERESIS = 8

_STATUS: Mapping[OutcomeKind, HealthStatus] = MappingProxyType(
    {
        OutcomeKind.PASS: HealthStatus.HEALTHY,
        OutcomeKind.DEGRADED: HealthStatus.DEGRADED,
        OutcomeKind.FAIL: HealthStatus.UNHEALTHY,
        OutcomeKind.UNKNOWN: HealthStatus.UNHEALTHY,
        OutcomeKind.TIMEOUT: HealthStatus.TIMEOUT,
    }
)
_UP = frozenset({HealthStatus.HEALTHY, HealthStatus.DEGRADED})
_DOWN = frozenset({HealthStatus.UNHEALTHY, HealthStatus.TIMEOUT})


class Tracker:
    """Turn one instance's outcomes into verdicts.

    The first outcome decides at once, so that nobody waits for thresholds at the start. After that,
    `unhealthy_threshold` failures in a row take an instance down and `healthy_threshold` passes bring it back;
    being degraded, and the kind of a failure, follow the last outcome, for they decide nothing alone.
    """

    __slots__ = (
        "_healthy_threshold",
        "_mean",
        "_passed",
        "_timeout_s",
        "_unhealthy_threshold",
        "consecutive_failures",
        "consecutive_passes",
        "verdict",
    )

    def __init__(
        self, *, healthy_threshold: int, unhealthy_threshold: int, timeout_s: float, verdict: Verdict | None = None
    ) -> None:
        """Begin anew, or where `verdict` left off before a restart: then the thresholds hold from the first check.

        A verdict that says neither up nor down is no verdict; that a check has ever passed is kept all the same.
        """
        self.configure(
            healthy_threshold=healthy_threshold, unhealthy_threshold=unhealthy_threshold, timeout_s=timeout_s
        )
        self.verdict = verdict if verdict is not None and verdict.status in _UP | _DOWN else None
        self.consecutive_passes = 0
        self.consecutive_failures = 0
        self._passed = verdict is not None and verdict.passed
        self._mean = None if self.verdict is None else self.verdict.score / 100

    def configure(self, *, healthy_threshold: int, unhealthy_threshold: int, timeout_s: float) -> None:
        """Take other thresholds and another timeout from the next outcome on; what was counted stays counted."""
        self._healthy_threshold = healthy_threshold
        self._unhealthy_threshold = unhealthy_threshold
        self._timeout_s = timeout_s

    @property
    def score(self) -> int:
        """Return the fine score, 0–100; 100 before the first outcome."""
        return 100 if self._mean is None else round(100 * self._mean)

    def observe(self, outcome: Outcome, now: float) -> Verdict | None:
        """Take an outcome at `now` (seconds since the epoch); return the new verdict, None where nothing changed.

        What could not be checked leaves a verdict as it is: a checker short of file descriptors must not
        take everything down. Where there is no verdict yet, it counts as a failure, and takes nobody out.
        """
        old = self.verdict
        if outcome.kind is OutcomeKind.UNKNOWN and old is not None:
            return None
        self._count(outcome)
        status = self._status(outcome, old)
        changed = old is None or old.status is not status
        verdict = Verdict(
            status=status,
            passed=self._passed,
            since=now if old is None or changed else old.since,
            score=_coarse(100 * (self._mean or 0), None if old is None else old.score),
            reason=self._reason(outcome, old, status) if old is None or changed else old.reason,
        )
        if verdict == old:
            return None
        self.verdict = verdict
        return verdict

    def _count(self, outcome: Outcome) -> None:
        if outcome.passed:
            self._passed = True
            self.consecutive_passes += 1
            self.consecutive_failures = 0
        else:
            self.consecutive_failures += 1
            self.consecutive_passes = 0
        quality = _quality(outcome, self._timeout_s)
        self._mean = quality if self._mean is None else self._mean + _WEIGHT_OF_NEWEST * (quality - self._mean)

    def _status(self, outcome: Outcome, old: Verdict | None) -> HealthStatus:
        if old is None:
            return _STATUS[outcome.kind]
        if outcome.passed:
            decided = old.status in _UP or self.consecutive_passes >= self._healthy_threshold
        else:
            decided = old.status in _DOWN or self.consecutive_failures >= self._unhealthy_threshold
        return _STATUS[outcome.kind] if decided else old.status

    def _reason(self, outcome: Outcome, old: Verdict | None, status: HealthStatus) -> str:
        if old is None:
            return f"{outcome.summary}, first check"
        if (old.status in _UP) is (status in _UP):
            return outcome.summary
        if outcome.passed:
            return f"{outcome.summary}, {self._healthy_threshold} of {self._healthy_threshold}"
        return f"{outcome.summary}, {self._unhealthy_threshold} of {self._unhealthy_threshold}"


def _quality(outcome: Outcome, timeout_s: float) -> float:
    if not outcome.passed:
        return 0.0
    tenfolds = math.log10(max(1.0, 100 * outcome.latency_s / timeout_s))
    factor = max(0.5, 1 - 0.25 * tenfolds)
    return factor if outcome.kind is OutcomeKind.PASS else 0.5 * factor


def _coarse(fine: float, old: int | None) -> int:
    if old is not None and abs(fine - old) < _HYSTERESIS:
        return old
    return int(fine / _STEP + 0.5) * _STEP
