"""Who checks what, and whose verdict counts, where several control planes share a registry."""

import asyncio
import random
from collections.abc import Callable

import pytest
from builders import instance, key, put, verdict

from controlplane.checks import DISPUTE_S, Checks
from controlplane.health import Outcome, OutcomeKind
from controlplane.health.monitor import HealthMonitor
from controlplane.live import LiveCatalog
from controlplane.model import CheckType, HealthStatus, Instance, InstanceKey, Judged, Verdict
from controlplane.registry.memory import MemoryRegistry
from controlplane.resolver import Resolver
from controlplane.shares import Shares
from controlplane.verdicts import VerdictWriter

pytestmark = pytest.mark.unit

CHECK = {"type": "tcp"}
IDS = [f"i{number}" for number in range(100)]
WELL, SICK = verdict(), verdict(HealthStatus.UNHEALTHY)


class Store(MemoryRegistry):
    """Keep what was written of verdicts."""

    def __init__(self) -> None:
        super().__init__(journal=None)
        self.written: list[tuple[InstanceKey, Verdict | None]] = []

    async def record(self, key: InstanceKey, verdict: Verdict, of: Instance) -> None:
        self.written.append((key, verdict))

    async def forget(self, key: InstanceKey) -> None:
        self.written.append((key, None))


class World:
    """Give a test the checks of the control plane `me`, and say what they do."""

    def __init__(self, *, waits: bool = True) -> None:
        self.live = LiveCatalog(epoch="e", call_later=lambda _delay, _call: None)
        self.store = Store()
        self.verdicts = VerdictWriter(self.store, lambda _error: None)
        self.shares = Shares("me", waits=waits)
        self.later: list[tuple[float, Callable[[], object]]] = []
        self.monitor = HealthMonitor(
            probes=dict.fromkeys(CheckType, _passing),
            default_interval_s=1,
            default_timeout_s=1,
            emit=lambda _event: None,
            on_check=lambda _kind, _outcome: None,
            random=random.Random(1),
            clock=lambda: 0.0,
            wall_clock=lambda: 0.0,
        )
        self.checks = Checks(
            self.live,
            self.monitor,
            Resolver(emit=lambda _event: None, resolve=_nowhere, clock=lambda: 0.0),
            shares=self.shares,
            verdicts=self.verdicts,
            call_later=lambda delay, call: self.later.append((delay, call)),
        )
        self.live.subscribe(self.checks.on_change)

    async def written(self) -> list[tuple[InstanceKey, Verdict | None]]:
        """Return what has been written to the registry by now."""
        task = asyncio.create_task(self.verdicts.run())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        written, self.store.written = self.store.written, []
        return written


def _verdict(world: World, of: InstanceKey) -> Verdict | None:
    entry = world.live.current.entry(of)
    assert entry is not None
    return entry.verdict


async def _passing(_instance: Instance, _address: str, _timeout_s: float) -> Outcome:
    return Outcome(kind=OutcomeKind.PASS, output="", latency_s=0.0)


async def _nowhere(_host: str) -> tuple[str, ...]:
    return ()


async def test_nothing_is_checked_until_the_members_are_known_and_then_a_share_of_it() -> None:
    world = World()
    for port, id_ in enumerate(IDS, start=1):
        world.live.apply(put("web", id_, port=port, health_check=CHECK))
    assert world.monitor.pending() == 0
    world.checks.members(frozenset({"me", "other"}))
    assert 20 < world.monitor.pending() < 80
    world.checks.members(frozenset({"me"}))
    assert world.monitor.pending() == 100


async def test_while_the_others_cannot_be_known_everything_is_checked() -> None:
    world = World()
    world.live.apply(put("web", "a", health_check=CHECK))
    world.checks.members(None)
    assert world.monitor.pending() == 1


async def test_a_new_member_takes_over_its_share() -> None:
    world = World(waits=False)
    for port, id_ in enumerate(IDS, start=1):
        world.live.apply(put("web", id_, port=port, health_check=CHECK))
    assert world.monitor.pending() == 100
    world.checks.members(frozenset({"me", "other"}))
    mine = sum(world.shares.mine(key("web", id_)) for id_ in IDS)
    assert world.monitor.pending() == mine < 100


async def test_a_verdict_of_what_others_check_counts_and_is_not_disputed() -> None:
    world = World()
    world.live.apply(put("web", "a", health_check=CHECK, verdict=WELL))
    assert world.checks.recorded(Judged(key=key("web", "a"), verdict=SICK))
    assert world.later == []


async def test_anothers_verdict_about_what_is_checked_here_is_answered_once_with_ours_and_not_at_once() -> None:
    world = World(waits=False)
    world.live.apply(put("web", "a", health_check=CHECK, verdict=WELL))
    disputed = Judged(key=key("web", "a"), verdict=SICK)
    assert not world.checks.recorded(disputed)
    assert not world.checks.recorded(disputed)
    assert await world.written() == []
    ((delay, insist),) = world.later
    assert delay == DISPUTE_S
    insist()
    assert await world.written() == [(key("web", "a"), WELL)]


async def test_a_dispute_ends_when_the_instance_becomes_anothers_to_check() -> None:
    world = World(waits=False)
    many = [key("web", id_) for id_ in IDS]
    for port, id_ in enumerate(IDS, start=1):
        world.live.apply(put("web", id_, port=port, health_check=CHECK, verdict=WELL))
        world.checks.recorded(Judged(key=key("web", id_), verdict=SICK))
    world.checks.members(frozenset({"me", "other"}))
    for _, insist in world.later:
        insist()
    assert {each for each, _ in await world.written()} == {each for each in many if world.shares.mine(each)}
    # Nobody tells those verdicts again: without them this control plane would serve other bytes for ever.
    assert {each for each in many if _verdict(world, each) == SICK} == {
        each for each in many if not world.shares.mine(each)
    }


async def test_what_was_disputed_gives_way_to_what_the_one_that_checks_it_has_said_since() -> None:
    world = World(waits=False)
    for port, id_ in enumerate(IDS, start=1):
        world.live.apply(put("web", id_, port=port, health_check=CHECK, verdict=WELL))
        world.checks.recorded(Judged(key=key("web", id_), verdict=SICK))
    world.checks.members(frozenset({"me", "other"}))
    theirs = next(key("web", id_) for id_ in IDS if not world.shares.mine(key("web", id_)))
    newest = verdict(HealthStatus.DEGRADED)
    assert world.checks.recorded(Judged(key=theirs, verdict=newest))
    world.live.apply(Judged(key=theirs, verdict=newest))
    for _, settle in world.later:
        settle()
    assert _verdict(world, theirs) == newest


async def test_what_was_disputed_says_nothing_of_an_instance_that_is_elsewhere_by_now() -> None:
    world = World(waits=False)
    for port, id_ in enumerate(IDS, start=1):
        world.live.apply(put("web", id_, port=port, health_check=CHECK, verdict=WELL))
        world.checks.recorded(Judged(key=key("web", id_), verdict=SICK))
    world.checks.members(frozenset({"me", "other"}))
    for port, id_ in enumerate(IDS, start=1_001):
        world.live.apply(put("web", id_, port=port, health_check=CHECK))
    for _, settle in world.later:
        settle()
    assert {_verdict(world, key("web", id_)) for id_ in IDS} == {None}


async def test_the_verdict_of_what_is_gone_is_dropped_by_the_one_that_checked_it() -> None:
    world = World()
    world.checks.gone(key("web", "a"))
    assert await world.written() == []
    world.checks.members(frozenset({"me"}))
    world.checks.gone(key("web", "a"))
    assert await world.written() == [(key("web", "a"), None)]


async def test_an_instance_that_comes_back_while_its_verdict_is_dropped_has_its_new_one_kept() -> None:
    world = World()
    world.verdicts.forget(key("web", "a"))
    world.verdicts.add(Judged(key=key("web", "a"), verdict=SICK), instance("web", "a", health_check=CHECK))
    assert await world.written() == [(key("web", "a"), SICK)]
