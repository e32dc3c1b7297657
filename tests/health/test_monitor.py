"""When instances are checked, and what becomes of the results."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from builders import instance as build
from builders import key as build_key
from builders import verdict
from virtual_time import run_virtual

from controlplane.health import Outcome, OutcomeKind
from controlplane.health.monitor import HealthMonitor
from controlplane.model import CheckType, HealthCheck, HealthStatus, Instance, Judged

pytestmark = pytest.mark.unit

WALL = 1_700_000_000.0
PASS = Outcome(kind=OutcomeKind.PASS, output="HTTP 200", latency_s=0.001)
FAIL = Outcome(kind=OutcomeKind.FAIL, output="HTTP 503", latency_s=0.001)
KEY = build_key("web", "a")


def checked(id: str = "a", *, host: str = "10.0.0.1", **check: Any) -> Instance:
    return build(id=id, host=host, health_check=HealthCheck(**check))


class Bench:
    """A monitor on virtual time, with one probe for all types that answers as told and keeps a record.

    `answers` is asked for every check; by default everything passes after `takes_s`.
    """

    def __init__(self, *, concurrency: int = 256, takes_s: float = 0.0, seed: int = 1) -> None:
        self.time = asyncio.get_running_loop().time
        self.started: list[tuple[float, str, str]] = []
        self.judged: list[Judged] = []
        self.outcomes: list[tuple[CheckType, Outcome]] = []
        self.running: dict[str, int] = defaultdict(int)
        self.most_at_once = 0
        self.overlaps = 0
        self.cancelled = 0
        self.outcome = PASS
        self.takes_s: Callable[[Instance], float] = lambda _: takes_s
        self.on_judged: Callable[[Judged], None] = lambda _: None
        self.monitor = HealthMonitor(
            probes=dict.fromkeys(CheckType, self.probe),
            default_interval_s=10,
            default_timeout_s=3,
            emit=self._emit,
            on_check=lambda kind, outcome: self.outcomes.append((kind, outcome)),
            random=Random(seed),
            clock=self.time,
            wall_clock=lambda: WALL + self.time(),
            concurrency=concurrency,
        )

    async def probe(self, instance: Instance, address: str, timeout_s: float) -> Outcome:
        self.started.append((self.time(), instance.id, address))
        self.running[instance.id] += 1
        self.overlaps += self.running[instance.id] > 1
        self.most_at_once = max(self.most_at_once, sum(self.running.values()))
        try:
            if (takes_s := self.takes_s(instance)) > 0:
                await asyncio.sleep(takes_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running[instance.id] -= 1
        return self.outcome

    def _emit(self, judged: Judged) -> None:
        self.judged.append(judged)
        self.on_judged(judged)

    def times(self, id: str = "a") -> list[float]:
        return [at for at, who, _ in self.started if who == id]

    def statuses(self) -> list[HealthStatus]:
        return [judged.verdict.status for judged in self.judged]


def on_bench(scenario: Callable[[Bench], Awaitable[None]], **options: Any) -> None:
    """Play a scenario while the monitor runs, and stop it."""

    async def main() -> None:
        bench = Bench(**options)
        running = asyncio.create_task(bench.monitor.run())
        try:
            await scenario(bench)
        finally:
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        assert not any(bench.running.values()), "a check outlived the monitor"

    run_virtual(main())


def test_the_first_check_is_at_once_and_the_next_an_interval_later_more_or_less() -> None:
    async def scenario(bench: Bench) -> None:
        bench.monitor.watch(checked(), "10.0.0.1", None)
        await asyncio.sleep(100_000)
        times = bench.times()
        gaps = [b - a for a, b in pairwise(times)]
        assert times[0] == 0
        assert all(9 <= gap <= 11 for gap in gaps)
        assert max(gaps) > 10.9
        assert min(gaps) < 9.1
        assert sum(gaps) / len(gaps) == pytest.approx(10, rel=0.01)

    on_bench(scenario)


def test_an_instance_watched_while_the_monitor_sleeps_is_checked_at_once() -> None:
    async def scenario(bench: Bench) -> None:
        bench.monitor.watch(checked("a"), "10.0.0.1", None)
        await asyncio.sleep(4)
        bench.monitor.watch(checked("b"), "10.0.0.1", None)
        await asyncio.sleep(0.1)
        assert bench.times("b") == [4]

    on_bench(scenario)


def test_restored_instances_are_spread_over_their_interval_and_are_not_pending() -> None:
    async def scenario(bench: Bench) -> None:
        for n in range(200):
            bench.monitor.watch(checked(f"i{n}"), "10.0.0.1", verdict())
        assert bench.monitor.pending() == 0
        await asyncio.sleep(10)
        first = sorted(bench.times(f"i{n}")[0] for n in range(200))
        assert len(first) == 200
        assert all(sum(start <= at < start + 1 for at in first) > 5 for start in range(10))
        assert bench.judged == []

    on_bench(scenario)


def test_a_restored_instance_goes_down_only_after_its_threshold() -> None:
    async def scenario(bench: Bench) -> None:
        bench.outcome = FAIL
        bench.monitor.watch(checked(unhealthy_threshold=3), "10.0.0.1", verdict())
        await asyncio.sleep(60)
        down = next(judged for judged in bench.judged if judged.verdict.status is HealthStatus.UNHEALTHY)
        assert down.key == KEY
        assert down.verdict.since == pytest.approx(WALL + bench.times()[2])
        assert down.verdict.reason == "HTTP 503, 3 of 3"

    on_bench(scenario)


def test_a_slow_check_never_overlaps_with_itself() -> None:
    async def scenario(bench: Bench) -> None:
        bench.monitor.watch(checked(interval=1.0), "10.0.0.1", None)
        for _ in range(50):
            await asyncio.sleep(1)
            bench.monitor.watch(checked(interval=1.0), "10.0.0.1", None)
        assert bench.overlaps == 0
        assert bench.times() == [pytest.approx(2.5 * n) for n in range(len(bench.times()))]

    on_bench(scenario, takes_s=2.5)


def test_no_more_checks_than_the_bound_run_at_once_and_all_get_their_turn() -> None:
    async def scenario(bench: Bench) -> None:
        for n in range(50):
            bench.monitor.watch(checked(f"i{n}"), "10.0.0.1", None)
        await bench.monitor.first_round()
        assert bench.time() == pytest.approx(10)
        assert bench.most_at_once == 5
        assert len({who for _, who, _ in bench.started}) == 50

    on_bench(scenario, concurrency=5, takes_s=1)


def test_slow_instances_delay_nobody_below_the_bound() -> None:
    async def scenario(bench: Bench) -> None:
        bench.takes_s = lambda instance: 3.0 if instance.id.startswith("slow") else 0.01
        for n in range(9):
            bench.monitor.watch(checked(f"slow{n}"), "10.0.0.1", None)
        for n in range(20):
            bench.monitor.watch(checked(f"quick{n}"), "10.0.0.1", None)
        await asyncio.sleep(0.5)
        assert len(bench.judged) == 20

    on_bench(scenario, concurrency=10)


def test_the_first_round_ends_with_the_last_first_verdict() -> None:
    async def scenario(bench: Bench) -> None:
        bench.takes_s = lambda instance: 2.0 if instance.id == "slow" else 0.1
        await bench.monitor.first_round()
        for id in ("quick", "slow"):
            bench.monitor.watch(checked(id), "10.0.0.1", None)
        assert bench.monitor.pending() == 2
        await bench.monitor.first_round()
        assert (bench.time(), bench.monitor.pending(), len(bench.judged)) == (2.0, 0, 2)

    on_bench(scenario)


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(lambda monitor: monitor.forget(KEY), id="it is forgotten"),
        pytest.param(lambda monitor: monitor.watch(checked(), None, None), id="its address is lost"),
        pytest.param(lambda monitor: monitor.watch(checked(), "10.0.0.1", verdict()), id="a verdict is delivered"),
        pytest.param(lambda monitor: monitor.watch(build(id="a"), "10.0.0.1", None), id="its check is taken away"),
        pytest.param(lambda monitor: monitor.watch(checked(enabled=False), "10.0.0.1", None), id="it is switched off"),
    ],
)
def test_the_first_round_does_not_wait_for_an_instance_when(leave: Callable[[HealthMonitor], None]) -> None:
    async def scenario(bench: Bench) -> None:
        bench.monitor.watch(checked(), "10.0.0.1", None)
        waiting = asyncio.create_task(bench.monitor.first_round())
        await asyncio.sleep(0.5)
        assert not waiting.done()
        leave(bench.monitor)
        await waiting
        assert bench.time() == 0.5

    on_bench(scenario, takes_s=1)


def test_without_an_address_nothing_is_checked_or_pending_until_it_is_known() -> None:
    async def scenario(bench: Bench) -> None:
        monitor, there = bench.monitor, checked(host="web.internal")
        monitor.watch(there, None, None)
        assert monitor.pending() == 0
        await asyncio.sleep(100)
        assert bench.started == []
        monitor.watch(there, "10.0.0.7", None)
        assert monitor.pending() == 1
        await monitor.first_round()
        assert bench.started == [(100, "a", "10.0.0.7")]

    on_bench(scenario)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"weight": 7}, id="weight"),
        pytest.param({"draining": True}, id="draining: checks go on"),
        pytest.param({"health_check": HealthCheck(unhealthy_threshold=9)}, id="a threshold"),
        pytest.param({"health_check": HealthCheck(timeout=1.0)}, id="the timeout"),
    ],
)
def test_counts_and_schedule_survive_a_change_of(change: dict[str, Any]) -> None:
    async def scenario(bench: Bench) -> None:
        bench.monitor.watch(checked(), "10.0.0.1", None)
        await asyncio.sleep(5)
        bench.monitor.watch(replace(checked(), **change), "10.0.0.1", None)
        assert bench.monitor.pending() == 0
        await asyncio.sleep(6.5)
        assert len(bench.times()) == 2
        report = bench.monitor.report(KEY)
        assert report is not None
        assert report.consecutive_passes == 2

    on_bench(scenario)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"host": "10.0.0.2"}, id="host"),
        pytest.param({"port": 81}, id="port"),
        pytest.param({"health_check": HealthCheck(http_path="/other")}, id="path"),
        pytest.param({"health_check": HealthCheck(type=CheckType.TCP)}, id="type"),
    ],
)
def test_another_target_is_judged_anew_and_at_once_after_a_change_of(change: dict[str, Any]) -> None:
    async def scenario(bench: Bench) -> None:
        bench.monitor.watch(checked(), "10.0.0.1", None)
        await asyncio.sleep(5)
        bench.outcome = FAIL
        bench.monitor.watch(replace(checked(), **change), "10.0.0.1", None)
        assert bench.monitor.pending() == 1
        assert bench.monitor.report(KEY) is None
        await bench.monitor.first_round()
        assert bench.times() == [0, 5]
        assert [(judged.verdict.status, judged.verdict.passed) for judged in bench.judged] == [
            (HealthStatus.HEALTHY, True),
            (HealthStatus.UNHEALTHY, False),
        ]

    on_bench(scenario)


def test_another_address_of_the_same_name_is_checked_at_once_and_keeps_the_verdict() -> None:
    async def scenario(bench: Bench) -> None:
        there = checked(host="web.internal")
        bench.monitor.watch(there, "10.0.0.1", None)
        await asyncio.sleep(5)
        bench.outcome = FAIL
        bench.monitor.watch(there, "10.0.0.2", verdict())
        await asyncio.sleep(1)
        assert bench.started[1:] == [(5, "a", "10.0.0.2")]
        assert HealthStatus.UNHEALTHY not in bench.statuses()

    on_bench(scenario)


def test_a_shorter_interval_holds_at_once() -> None:
    async def scenario(bench: Bench) -> None:
        bench.monitor.watch(checked(interval=1000.0), "10.0.0.1", None)
        await asyncio.sleep(5)
        bench.monitor.watch(checked(interval=1.0), "10.0.0.1", None)
        await asyncio.sleep(1.2)
        assert len(bench.times()) == 2

    on_bench(scenario)


def test_a_longer_interval_holds_from_the_next_check_on() -> None:
    async def scenario(bench: Bench) -> None:
        bench.monitor.watch(checked(interval=1.0), "10.0.0.1", None)
        await asyncio.sleep(0.5)
        bench.monitor.watch(checked(interval=1000.0), "10.0.0.1", None)
        await asyncio.sleep(800)
        assert len(bench.times()) == 2

    on_bench(scenario)


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(lambda monitor: monitor.forget(KEY), id="forgotten"),
        pytest.param(lambda monitor: monitor.watch(checked(host="10.0.0.2"), None, None), id="replaced"),
        pytest.param(lambda monitor: monitor.watch(checked(), None, None), id="without an address"),
    ],
)
def test_the_result_of_a_running_check_is_dropped_for_an_instance(leave: Callable[[HealthMonitor], None]) -> None:
    async def scenario(bench: Bench) -> None:
        bench.monitor.watch(checked(), "10.0.0.1", None)
        await asyncio.sleep(0.5)
        leave(bench.monitor)
        await asyncio.sleep(100)
        assert (bench.judged, bench.cancelled, len(bench.started)) == ([], 1, 1)
        assert bench.monitor.report(KEY) is None

    on_bench(scenario, takes_s=1)


def test_a_result_that_comes_in_spite_of_cancellation_is_dropped() -> None:
    async def scenario(bench: Bench) -> None:
        answered = asyncio.Event()

        async def stubborn(instance: Instance, address: str, timeout_s: float) -> Outcome:
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                answered.set()
            return PASS

        bench.monitor._probes = dict.fromkeys(CheckType, stubborn)
        bench.monitor.watch(checked(), "10.0.0.1", None)
        await asyncio.sleep(0.5)
        bench.monitor.forget(KEY)
        await answered.wait()
        await asyncio.sleep(0)
        assert bench.judged == []

    on_bench(scenario)


def test_an_instance_forgotten_before_its_check_began_frees_its_place() -> None:
    async def scenario(bench: Bench) -> None:
        bench.on_judged = lambda _: bench.monitor.forget(build_key("web", "never"))
        bench.monitor.watch(checked("first"), "10.0.0.1", None)
        bench.monitor.watch(checked("never"), "10.0.0.1", None)
        await asyncio.sleep(1)
        bench.takes_s = lambda _: 2.0
        bench.monitor.watch(checked("left"), "10.0.0.1", None)
        bench.monitor.watch(checked("right"), "10.0.0.1", None)
        await asyncio.sleep(1)
        assert [who for _, who, _ in bench.started] == ["first", "left", "right"]

    on_bench(scenario, concurrency=2)


def test_emit_may_call_back_with_what_it_was_told() -> None:
    async def scenario(bench: Bench) -> None:
        def call_back(judged: Judged) -> None:
            assert bench.monitor.pending() == 0
            bench.monitor.watch(checked(), "10.0.0.1", judged.verdict)
            report = bench.monitor.report(KEY)
            assert report is not None
            assert report.passed

        bench.on_judged = call_back
        bench.monitor.watch(checked(), "10.0.0.1", None)
        await asyncio.sleep(35)
        assert len(bench.judged) == 1
        assert len(bench.started) == 4

    on_bench(scenario)


def test_emit_may_forget_the_instance() -> None:
    async def scenario(bench: Bench) -> None:
        bench.on_judged = lambda judged: bench.monitor.forget(judged.key)
        bench.monitor.watch(checked(), "10.0.0.1", None)
        await asyncio.sleep(100)
        assert len(bench.started) == 1

    on_bench(scenario)


def test_every_check_is_counted_and_the_newest_reported() -> None:
    async def scenario(bench: Bench) -> None:
        bench.monitor.watch(checked(type=CheckType.TCP), "10.0.0.1", None)
        await asyncio.sleep(5)
        bench.outcome = FAIL
        await asyncio.sleep(8)
        assert bench.outcomes == [(CheckType.TCP, PASS), (CheckType.TCP, FAIL)]
        report = bench.monitor.report(KEY)
        assert report is not None
        assert report.checked_at == pytest.approx(WALL + bench.times()[1])
        assert (report.passed, report.output, report.latency_s) == (False, "HTTP 503", 0.001)
        assert (report.score, report.consecutive_passes, report.consecutive_failures) == (79, 0, 1)
        assert bench.monitor.report(build_key("web", "unknown")) is None

    on_bench(scenario)


def test_leaving_and_returning_for_long_does_not_pile_up() -> None:
    async def scenario(bench: Bench) -> None:
        for _ in range(5_000):
            bench.monitor.watch(checked(interval=86_400.0), "10.0.0.1", verdict())
            bench.monitor.forget(KEY)
        assert len(bench.monitor._heap) < 100

    on_bench(scenario)


def test_what_is_watched_before_the_start_is_checked_at_the_start() -> None:
    async def main() -> None:
        bench = Bench()
        bench.monitor.watch(checked(), "10.0.0.1", None)
        async with asyncio.timeout(1):
            running = asyncio.create_task(bench.monitor.run())
            await bench.monitor.first_round()
        running.cancel()
        await asyncio.wait([running])
        assert bench.statuses() == [HealthStatus.HEALTHY]

    run_virtual(main())


def test_a_missing_probe_is_said_at_once() -> None:
    def never(judged: Judged) -> None:
        raise AssertionError(judged)

    with pytest.raises(ValueError, match="missing: grpc, http, script, tcp"):
        HealthMonitor(
            probes={},
            default_interval_s=1,
            default_timeout_s=1,
            emit=never,
            on_check=lambda kind, outcome: None,
            random=Random(1),
            clock=lambda: 0.0,
            wall_clock=lambda: 0.0,
        )
