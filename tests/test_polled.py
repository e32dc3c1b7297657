"""Groups of nodes that poll: kept for a while after each poll, and only so many."""

import asyncio
from collections.abc import Callable

import pytest

from controlplane.polled import KEPT_S, MAX_GROUPS, PolledGroups
from xds.cache import SnapshotCache
from xds.types import Node, Snapshot

pytestmark = pytest.mark.unit


class Timers:
    """Hold the calls that were to come, until a test lets the time pass."""

    def __init__(self) -> None:
        self.waiting: dict[int, Callable[[], None]] = {}
        self._made = 0

    def call_later(self, delay_s: float, call: Callable[[], None]) -> "Handle":
        assert delay_s == KEPT_S
        self._made += 1
        self.waiting[self._made] = call
        return Handle(self, self._made)

    def pass_by(self) -> None:
        for number in list(self.waiting):
            self.waiting.pop(number)()


class Handle:
    def __init__(self, timers: Timers, number: int) -> None:
        self._timers, self._number = timers, number

    def cancel(self) -> None:
        self._timers.waiting.pop(self._number, None)


def polled(cache: SnapshotCache, timers: Timers, *, ready: bool = True) -> PolledGroups:
    return PolledGroups(
        cache=cache, group_of=lambda node: node.cluster, ready=lambda: ready, call_later=timers.call_later
    )


async def test_a_group_counts_as_watched_until_it_has_not_been_polled_for_a_while() -> None:
    cache, timers = SnapshotCache(), Timers()
    cache.set("edge", newest := Snapshot(revision="e.1"))
    groups = polled(cache, timers)
    assert await groups.snapshot(Node(id="a", cluster="edge")) is newest
    assert await groups.snapshot(Node(id="b", cluster="edge")) is newest
    assert cache.watched() == ("edge",)
    assert len(timers.waiting) == 1
    timers.pass_by()
    assert cache.watched() == ()


async def test_a_poll_waits_for_a_group_that_is_being_made() -> None:
    cache = SnapshotCache()
    groups = polled(cache, Timers())
    asked = asyncio.create_task(groups.snapshot(Node(id="a", cluster="edge")))
    await asyncio.sleep(0)
    cache.set("edge", newest := Snapshot(revision="e.1"))
    assert await asked is newest


async def test_nothing_is_said_and_nothing_kept_before_the_first_publication() -> None:
    cache = SnapshotCache()
    assert await polled(cache, Timers(), ready=False).snapshot(Node(id="a", cluster="edge")) is None
    assert cache.watched() == ()


async def test_nodes_cannot_make_us_keep_any_number_of_groups() -> None:
    cache, timers = SnapshotCache(), Timers()
    groups = polled(cache, timers)
    for number in range(MAX_GROUPS + 10):
        cache.set(str(number), Snapshot())
        await groups.snapshot(Node(id="a", cluster=str(number)))
    assert len(cache.watched()) == len(timers.waiting) == MAX_GROUPS
    assert "0" not in cache.watched()
    assert str(MAX_GROUPS + 9) in cache.watched()
