"""Who hears of a change, and when a service's cluster goes."""

import asyncio
from collections.abc import Callable

import pytest
from builders import key, put

from controlplane.catalog import Change
from controlplane.live import GRACE_S, LiveCatalog
from controlplane.model import DeleteInstance, ServiceName

pytestmark = pytest.mark.unit

WEB = ServiceName("web")
GONE = DeleteInstance(key=key("web", "a"), registry="memory")


class Timers:
    """Keep what was to be called later, to be called by hand."""

    def __init__(self) -> None:
        self.pending: list[tuple[float, Callable[[], object]]] = []

    def __call__(self, delay_s: float, callback: Callable[[], object]) -> None:
        self.pending.append((delay_s, callback))


def test_listeners_hear_of_changes_after_the_catalog_has_moved() -> None:
    live = LiveCatalog(epoch="e1")
    seen: list[tuple[Change, int]] = []
    live.subscribe(lambda change: seen.append((change, live.current.revision)))

    change = live.apply(put("web", "a"))
    live.apply(put("web", "a"))

    assert [(change, 1)] == seen
    assert live.revision == "e1.1"


async def test_a_watch_on_one_service_does_not_wake_for_another() -> None:
    live = LiveCatalog(epoch="e1")
    web = asyncio.ensure_future(live.wait(WEB))
    everything = asyncio.ensure_future(live.wait())
    await asyncio.sleep(0)

    live.apply(put("api", "a"))
    await asyncio.wait_for(everything, 1)
    assert not web.done()

    live.apply(put("web", "a"))
    await asyncio.wait_for(web, 1)


async def test_a_cancelled_watch_leaves_nothing_behind() -> None:
    live = LiveCatalog(epoch="e1")
    watch = asyncio.ensure_future(live.wait(WEB))
    await asyncio.sleep(0)

    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)

    assert live.watchers == 0


def test_an_emptied_service_goes_when_its_grace_is_over() -> None:
    timers = Timers()
    live = LiveCatalog(epoch="e1", call_later=timers)
    live.apply(put("web", "a"))
    live.apply(GONE)
    assert WEB in live.current.services

    ((delay_s, callback),) = timers.pending
    callback()

    assert delay_s == GRACE_S
    assert WEB not in live.current.services


def test_a_service_that_came_back_outlives_its_timer() -> None:
    timers = Timers()
    live = LiveCatalog(epoch="e1", call_later=timers)
    live.apply(put("web", "a"))
    live.apply(GONE)
    live.apply(put("web", "b"))

    timers.pending[0][1]()

    assert WEB in live.current.services
