"""When things are due: leases that are renewed all the time, and removals that were put off.

Pure: time is an argument, in seconds of any one clock. Renewing is the hot operation (every heartbeat), so it
only writes a dict entry; the heap learns of a later deadline when the earlier one comes up.
"""

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)

_SPARE = 64
"""How many outdated heap entries are kept, besides as many as there are keys, before the heap is made anew."""


class Deadlines(Generic[KeyT]):
    """Hold one deadline per key. Setting is O(1) for a later one, else O(log n); taking what is due O(log n)."""

    __slots__ = ("_at", "_heap", "_order", "_queued")

    def __init__(self) -> None:
        self._at: dict[KeyT, float] = {}
        self._queued: dict[KeyT, float] = {}
        self._heap: list[tuple[float, int, KeyT]] = []
        self._order = 0

    def __len__(self) -> int:
        return len(self._at)

    def set(self, key: KeyT, at: float) -> None:
        """Make `key` due at `at`, whatever its deadline was."""
        self._at[key] = at
        queued = self._queued.get(key)
        if queued is None or at < queued:
            self._push(key, at)

    def discard(self, key: KeyT) -> None:
        """Forget a key; unknown ones are fine."""
        if self._at.pop(key, None) is not None:
            del self._queued[key]

    def at(self, key: KeyT) -> float | None:
        """Return when a key is due; None where it has no deadline."""
        return self._at.get(key)

    def pop_due(self, now: float) -> list[KeyT]:
        """Take out the keys that are due at `now`, the earliest deadline first."""
        due: list[tuple[float, int, KeyT]] = []
        while self._heap and self._heap[0][0] <= now:
            queued, order, key = heapq.heappop(self._heap)
            if self._queued.get(key) != queued:
                continue
            at = self._at[key]
            if at > now:
                self._push(key, at)
            else:
                due.append((at, order, key))
                self.discard(key)
        return [key for _, _, key in sorted(due, key=lambda entry: entry[:2])]

    def next(self) -> float | None:
        """Return when to look again: never later than the first deadline, now and then earlier; None for never."""
        while self._heap and self._queued.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _push(self, key: KeyT, at: float) -> None:
        self._queued[key] = at
        self._order += 1
        if len(self._heap) > 2 * len(self._at) + _SPARE:
            self._heap = [(queued, order, each) for order, (each, queued) in enumerate(self._queued.items())]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (at, self._order, key))
