"""When instances are checked: a heap of due times, and at most `concurrency` checks at once.

It decides nothing about health (`tracker` does) and speaks no protocol (the probes do). It is told which instances
exist by `watch` and `forget`, and tells what it concluded by `emit`; everything happens on the event loop's thread.
"""

import asyncio
import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from random import Random

from controlplane.health import CheckReport, Outcome, Probe
from controlplane.health.tracker import Tracker
from controlplane.model import CheckType, HealthCheck, Instance, InstanceKey, Judged, Verdict

JITTER = 0.1
"""Share of the interval by which checks wander, so that they do not stay in step with each other."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Watch:
    """Hold one target: an instance's check at one address. Another target is another watch."""

    instance: Instance
    check: HealthCheck
    address: str | None
    interval_s: float
    timeout_s: float
    tracker: Tracker
    newest: tuple[Outcome, float] | None = None
    due: float = 0.0
    ticket: int = -1
    """Which entry of the heap is the valid one; others of this watch are leftovers."""
    task: asyncio.Task[None] | None = None


class HealthMonitor:
    """Check the watched instances, each at its interval, and emit what changes.

    A never judged instance is checked at once; one with a restored verdict within its interval, so that a restart
    is no stampede. A check never overlaps with itself. Results for what was forgotten or replaced are dropped.

    `probes` has one for every check type, or ValueError is raised.
    `clock` is monotonic seconds and advances with the event loop's time; `wall_clock` is seconds since the epoch.
    `emit` and `on_check` are called as soon as a probe returns, and may call back into the monitor.
    """

    def __init__(
        self,
        *,
        probes: Mapping[CheckType, Probe],
        default_interval_s: float,
        default_timeout_s: float,
        emit: Callable[[Judged], None],
        on_check: Callable[[CheckType, Outcome], None],
        random: Random,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        concurrency: int = 256,
    ) -> None:
        if missing := set(CheckType) - set(probes):
            raise ValueError(f"a probe is needed for every check type; missing: {', '.join(sorted(missing))}")
        self._probes = probes
        self._default_interval_s = default_interval_s
        self._default_timeout_s = default_timeout_s
        self._emit = emit
        self._on_check = on_check
        self._random = random
        self._clock = clock
        self._wall_clock = wall_clock
        self._concurrency = concurrency
        self._watches: dict[InstanceKey, _Watch] = {}
        self._heap: list[tuple[float, int, _Watch]] = []
        self._tickets = count()
        self._running = 0
        self._wake = asyncio.Event()
        self._wakes_at = 0.0
        self._pending: set[InstanceKey] = set()
        self._settled = asyncio.Event()
        self._settled.set()

    def watch(self, instance: Instance, address: str | None, verdict: Verdict | None) -> None:
        """Check `instance` at `address` from now on; call again whenever anything about it has changed.

        `verdict` is the last one known, and counts where there is none yet. Where host, port and what is asked are
        unchanged, counts and verdict live on; where the address is too, so does the schedule. At a new address
        the next check is made at once. Without an address nothing can be checked, and nothing is pending.
        """
        key, check = instance.key, instance.health_check
        if check is None or not check.enabled:
            self.forget(key)
            return
        timeout_s = check.timeout or self._default_timeout_s
        interval_s = check.interval or self._default_interval_s
        old = self._watches.get(key)
        same = old is not None and _target(old.instance, old.check) == _target(instance, check)
        if old is None or not same or (old.tracker.verdict is None and verdict is not None):
            tracker = Tracker(
                healthy_threshold=check.healthy_threshold,
                unhealthy_threshold=check.unhealthy_threshold,
                timeout_s=timeout_s,
                verdict=verdict,
            )
        else:
            tracker = old.tracker
            tracker.configure(
                healthy_threshold=check.healthy_threshold,
                unhealthy_threshold=check.unhealthy_threshold,
                timeout_s=timeout_s,
            )
        if old is not None and same and old.address == address:
            slower = interval_s >= old.interval_s
            old.instance, old.check, old.tracker = instance, check, tracker
            old.interval_s, old.timeout_s = interval_s, timeout_s
            if not slower and old.task is None and address is not None:
                self._schedule(old, min(old.due, self._clock() + self._jittered(interval_s)))
        else:
            new = _Watch(
                instance=instance,
                check=check,
                address=address,
                interval_s=interval_s,
                timeout_s=timeout_s,
                tracker=tracker,
                newest=old.newest if old is not None and same else None,
            )
            if old is not None:
                self._drop(old)
            self._watches[key] = new
            if address is not None:
                restored = tracker.verdict is not None and new.newest is None
                self._schedule(new, self._clock() + (self._random.random() * interval_s if restored else 0.0))
        self._set_pending(key, address is not None and tracker.verdict is None)

    def forget(self, key: InstanceKey) -> None:
        """Check an instance no more; unknown ones are ignored."""
        watch = self._watches.pop(key, None)
        if watch is not None:
            self._drop(watch)
            self._set_pending(key, False)

    def report(self, key: InstanceKey) -> CheckReport | None:
        """Return the newest check of an instance; None where none has been made since the start."""
        watch = self._watches.get(key)
        if watch is None or watch.newest is None:
            return None
        outcome, checked_at = watch.newest
        return CheckReport(
            checked_at=checked_at,
            passed=outcome.passed,
            output=outcome.output,
            latency_s=outcome.latency_s,
            score=watch.tracker.score,
            consecutive_passes=watch.tracker.consecutive_passes,
            consecutive_failures=watch.tracker.consecutive_failures,
        )

    def pending(self) -> int:
        """Return how many instances could be checked and have no verdict yet."""
        return len(self._pending)

    async def first_round(self) -> None:
        """Return once nothing is pending: every instance that can be checked has a verdict (law 2)."""
        while self._pending:
            await self._settled.wait()

    async def run(self) -> None:
        """Check until cancelled; running checks are then cancelled too, and awaited."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                self._start_due(group)
                self._wakes_at = self._heap[0][0] if self._heap and self._running < self._concurrency else float("inf")
                timer = None
                if self._wakes_at < float("inf"):
                    timer = loop.call_later(max(0.0, self._wakes_at - self._clock()), self._wake.set)
                try:
                    await self._wake.wait()
                finally:
                    if timer is not None:
                        timer.cancel()

    def _start_due(self, group: asyncio.TaskGroup) -> None:
        now = self._clock()
        while self._heap and self._running < self._concurrency:
            due, ticket, watch = self._heap[0]
            if ticket != watch.ticket:
                heapq.heappop(self._heap)
                continue
            if due > now:
                return
            heapq.heappop(self._heap)
            if watch.address is None:
                continue
            self._running += 1
            watch.ticket = -1
            watch.task = group.create_task(self._check(watch, watch.address, now))
            watch.task.add_done_callback(self._checked)

    async def _check(self, watch: _Watch, address: str, started: float) -> None:
        kind = watch.check.type
        outcome = await self._probes[kind](watch.instance, address, watch.timeout_s)
        watch.task = None
        self._on_check(kind, outcome)
        key = watch.instance.key
        if self._watches.get(key) is not watch:
            return
        now = self._wall_clock()
        watch.newest = outcome, now
        verdict = watch.tracker.observe(outcome, now)
        self._set_pending(key, False)
        self._schedule(watch, max(self._clock(), started + self._jittered(watch.interval_s)))
        if verdict is not None:
            self._emit(Judged(key=key, verdict=verdict))  # last, for it may call `watch` or `forget`

    def _checked(self, _: asyncio.Task[None]) -> None:
        # A callback and not a `finally`: a task that is cancelled before its first step never enters its body.
        if self._running == self._concurrency:
            self._wake.set()
        self._running -= 1

    def _jittered(self, interval_s: float) -> float:
        return interval_s * self._random.uniform(1 - JITTER, 1 + JITTER)

    def _schedule(self, watch: _Watch, due: float) -> None:
        watch.due, watch.ticket = due, next(self._tickets)
        heapq.heappush(self._heap, (due, watch.ticket, watch))
        if len(self._heap) > 2 * len(self._watches) + 64:  # leftovers of long intervals must not pile up
            self._heap = [entry for entry in self._heap if entry[1] == entry[2].ticket]
            heapq.heapify(self._heap)
        if due < self._wakes_at:
            self._wake.set()

    def _drop(self, watch: _Watch) -> None:
        watch.ticket = -1
        if watch.task is not None:
            watch.task.cancel()

    def _set_pending(self, key: InstanceKey, pending: bool) -> None:
        if pending:
            self._pending.add(key)
            self._settled.clear()
        else:
            self._pending.discard(key)
            if not self._pending:
                self._settled.set()


def _target(instance: Instance, check: HealthCheck) -> tuple[object, ...]:
    """Return what a verdict is about: the same thing asked at the same place."""
    return instance.host, instance.port, check.type, check.http_path, check.grpc_service, check.script
