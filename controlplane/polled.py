"""What polling clients are to be told, kept current between their polls.

A stream watches its group for as long as it lives; a poll is over at once, and the publisher drops the group that
nobody watches. Building a view anew for each poll would cost more than all streams, so a group counts as watched for
a while after each.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

from xds.cache import Changes, SnapshotCache
from xds.types import Node, Snapshot

KEPT_S = 60.0
"""How long after a poll its group is kept: several times what clients pause."""

MAX_GROUPS = 256
"""How many groups are kept for polls at most, those polled last: what a node says of itself makes its group."""

_FIRST_S = 2.0
"""How long a poll waits for a group that is being made; after that the client is told to come back."""


class Timer(Protocol):
    """Cancel a call that was to come."""

    def cancel(self) -> None:
        """Call it off."""
        ...


@dataclass(slots=True)
class _Kept:
    stop: Callable[[], None]
    timer: Timer
    arrived: asyncio.Event


class PolledGroups:
    """Give each polling node the newest snapshot of its group."""

    def __init__(
        self,
        *,
        cache: SnapshotCache,
        group_of: Callable[[Node], Hashable],
        ready: Callable[[], bool],
        call_later: Callable[[float, Callable[[], None]], Timer],
    ) -> None:
        self._cache = cache
        self._group_of = group_of
        self._ready = ready
        self._call_later = call_later
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()

    async def snapshot(self, node: Node) -> Snapshot | None:
        """Return what a node is to be told; None where nothing has been published, or not yet for nodes like it."""
        if not self._ready():
            return None
        group = self._group_of(node)
        kept = self._keep(group)
        if self._cache.get(group) is None:
            try:
                async with asyncio.timeout(_FIRST_S):
                    await kept.arrived.wait()
            except TimeoutError:
                return None
        return self._cache.get(group)

    def _keep(self, group: Hashable) -> _Kept:
        timer = self._call_later(KEPT_S, lambda: self._drop(group))
        kept = self._kept.get(group)
        if kept is not None:
            kept.timer.cancel()
            kept.timer = timer
            self._kept.move_to_end(group)
            return kept
        arrived = asyncio.Event()

        def hear(_snapshot: Snapshot, _changes: Changes | None) -> None:
            arrived.set()

        kept = self._kept[group] = _Kept(self._cache.watch(group, hear), timer, arrived)
        if len(self._kept) > MAX_GROUPS:
            self._drop(next(iter(self._kept)))
        return kept

    def _drop(self, group: Hashable) -> None:
        kept = self._kept.pop(group)
        kept.timer.cancel()
        kept.stop()
