"""The newest snapshot of each group of nodes, and who waits for the next one.

`set` works out what changed once, for all streams of the group. No history and no queue: a watcher is called
with the newest snapshot, and what a stream has not sent yet is the stream's to merge. Called on the event loop
only; holds no lock and does no I/O. The publisher writes here, `xds.server` watches.
"""

from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType

from xds.types import ResourceSet, Snapshot

Changes = Mapping[str, frozenset[str]]
Watcher = Callable[[Snapshot, Changes | None], None]


Differing = Callable[[str, ResourceSet, ResourceSet], frozenset[str]]


def _differing(_type_url: str, before: ResourceSet, after: ResourceSet) -> frozenset[str]:
    return after.differing_from(before)


def changes_between(old: Snapshot, new: Snapshot, differing: Differing = _differing) -> Changes:
    """Name what differs between two snapshots, per type; a type that is equal is left out.

    `differing` compares the sets of a type from the older to the newer.
    """
    changed: dict[str, frozenset[str]] = {}
    for type_url in old.by_type.keys() | new.by_type.keys():
        before, after = old.of_type(type_url), new.of_type(type_url)
        if before is not after and (names := differing(type_url, before, after)):
            changed[type_url] = names
    return MappingProxyType(changed)


class SnapshotCache:
    """Keep the newest snapshot per group, and call the group's watchers when it changes."""

    def __init__(self) -> None:
        self._snapshots: dict[Hashable, Snapshot] = {}
        self._watchers: dict[Hashable, dict[int, Watcher]] = {}
        self._next_id = 0
        self._newest: dict[str, tuple[ResourceSet, ResourceSet, frozenset[str]]] = {}

    def get(self, group: Hashable) -> Snapshot | None:
        """Return the newest snapshot of a group, or None before the first."""
        return self._snapshots.get(group)

    def groups(self) -> tuple[Hashable, ...]:
        """List the groups that have a snapshot."""
        return tuple(self._snapshots)

    def watched(self) -> tuple[Hashable, ...]:
        """List the groups that a client is waiting on, with or without a snapshot."""
        return tuple(self._watchers)

    def set(self, group: Hashable, snapshot: Snapshot) -> Changes:
        """Publish a snapshot; return what changed. Equal content wakes nobody (P-01)."""
        previous = self._snapshots.get(group)
        changes = changes_between(previous if previous is not None else Snapshot(), snapshot, self._differing)
        self._snapshots[group] = snapshot
        if previous is None or changes:
            for watcher in tuple(self._watchers.get(group, {}).values()):
                watcher(snapshot, changes if previous is not None else None)
        return changes

    def _differing(self, type_url: str, before: ResourceSet, after: ResourceSet) -> frozenset[str]:
        """Compare two sets that many groups share only once per publication."""
        known = self._newest.get(type_url)
        if known is None or known[0] is not before or known[1] is not after:
            known = self._newest[type_url] = (before, after, after.differing_from(before))
        return known[2]

    def drop(self, group: Hashable) -> None:
        """Forget a group that nobody needs any more; its watchers keep what they have."""
        self._snapshots.pop(group, None)

    def watch(self, group: Hashable, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher` with every later snapshot of a group, and at once if there is one; return how to stop."""
        self._next_id += 1
        key = self._next_id
        self._watchers.setdefault(group, {})[key] = watcher
        if (snapshot := self._snapshots.get(group)) is not None:
            watcher(snapshot, None)

        def stop() -> None:
            watchers = self._watchers.get(group, {})
            watchers.pop(key, None)
            if not watchers:
                self._watchers.pop(group, None)

        return stop
