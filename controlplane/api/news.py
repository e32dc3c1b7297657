"""What a change has to tell, spelled once for all who watch.

A thousand streams wake for the same change, most of them at the same revision and with the same filter.
"""

from collections.abc import Callable, Iterable

from controlplane.model import ServiceName

_NEAR = 16
"""How many revisions behind a watcher may be for its news to be kept: those far behind are few, and theirs are long."""
_MOST = 64
"""How many different news of one revision are kept."""


class SharedNews:
    """Keep the news of the newest revision, by what the watcher knew and which services it watches (none: all)."""

    def __init__(self) -> None:
        self._revision = -1
        self._kept: dict[tuple[int, frozenset[ServiceName]], tuple[bytes, ...]] = {}

    def told(
        self, revision: int, since: int, only: frozenset[ServiceName], spell: Callable[[], Iterable[bytes]]
    ) -> Iterable[bytes]:
        """Return what happened after `since` up to `revision`, by `spell` where nobody has asked for it yet."""
        if revision - since > _NEAR:
            return spell()
        if revision != self._revision:
            self._revision = revision
            self._kept.clear()
        known = self._kept.get((since, only))
        if known is None:
            known = tuple(spell())
            if len(self._kept) < _MOST:
                self._kept[since, only] = known
        return known
