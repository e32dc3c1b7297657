"""What etcd's keys and their changes tell: listings and watch events become registry events. Pure.

Each revision of etcd is one transaction, so what a request deleted can say so in the revision that deletes (the sign,
`keys.DELETED`): a deletion under a lease that bears no sign is an expiry, and doubted (law 14).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any

from aetcd import rpc

from controlplane.model import InstanceId, InstanceKey, Members, RegistryEvent, ServiceName
from controlplane.registry import REMARKS_MAX
from controlplane.registry.documents import Kind, Unreadable, event_of, parse_path, read_instance, read_removal
from controlplane.registry.etcd.keys import DELETED, IDENTITY, RESUMED, Keys, instance_key
from controlplane.registry.etcd.view import Stored, View
from controlplane.registry.leases import Deadlines
from controlplane.registry.reconcile import EXPIRED, MISSING, Delivered

_OURS = frozenset({DELETED, IDENTITY, RESUMED})


_SLICE = 50
"""How many keys of a listing are read in one go: a few milliseconds."""


class Feed:
    """Hold what has been told, and what is known besides: who else is there, what is to be removed and when.

    `member` is our own id among the control planes, None where nothing but instances is followed. `rescheduled` is
    called when there is another time in `due`, which is in seconds since the epoch.
    """

    def __init__(self, *, registry: str, keys: Keys, member: str | None, rescheduled: Callable[[], None]) -> None:
        self._registry = registry
        self._keys = keys
        self._member = member
        self._rescheduled = rescheduled
        self._delivered = Delivered(registry)
        self._documents: dict[str, RegistryEvent] = {}
        self._verdicts: dict[InstanceKey, bytes] = {}
        self._members: set[str] = set()
        self._removals: dict[InstanceKey, int] = {}
        self._remarks: dict[str, str] = {}
        self.view = View()
        self.due: Deadlines[InstanceKey] = Deadlines()
        self.identity: bytes | None = None

    @property
    def remarks(self) -> Mapping[str, str]:
        """Return what cannot be used, by its key, and why."""
        return MappingProxyType(self._remarks)

    def lists(self, member: str) -> bool:
        """Tell whether etcd lists a control plane."""
        return member in self._members

    def removal(self, key: InstanceKey) -> int | None:
        """Return the revision of the removal that is pending for an instance."""
        return self._removals.get(key)

    def verdict(self, key: InstanceKey) -> bytes | None:
        """Return the verdict that etcd holds of an instance, as it lies there."""
        return self._verdicts.get(key)

    def stored(self, key: InstanceKey, kv: Any) -> Stored:
        """Return what a key holds: where that cannot be read, the instance as it could be read last."""
        try:
            instance = read_instance(kv.value, key)
        except Unreadable:
            last = self._delivered.get(key)
            return Stored(instance=last, lease=kv.lease, revision=kv.mod_revision, readable=False)
        return Stored(instance=instance, lease=kv.lease, revision=kv.mod_revision)

    def listing(self, kvs: Sequence[Any], revision: int) -> Iterator[list[RegistryEvent]]:
        """Take everything that etcd holds at a revision; tell the differences, what is missing last, and at once.

        What there is to tell comes in slices, which may be empty: between two, others may have a turn.
        """
        seen: set[str] = set()
        found: set[InstanceKey] = set()
        self._remarks.clear()
        self._members.clear()
        self._removals.clear()
        self.due = Deadlines()
        self.identity = None
        for start in range(0, len(kvs), _SLICE):
            yield [event for kv in kvs[start : start + _SLICE] for event in self._listed(kv, seen, found)]
        told = [event for path in sorted(set(self._documents) - seen) for event in self._document(path, None)]
        self.view.keep(found, revision)
        known = self._delivered.keys()
        told += self._delivered.lose([key for key in known if key not in found], MISSING)
        yield [*told, *self._told_members()]

    def _listed(self, kv: Any, seen: set[str], found: set[InstanceKey]) -> Iterator[RegistryEvent]:
        if (path := self._keys.path(kv.key)) is not None:
            seen.add(path)
            yield from self._document(path, kv)
        elif (place := self._keys.place(kv.key)) is not None and (key := self._key(place)) is not None:
            found.add(key)
            yield from self._put(key, kv)

    def changes(self, events: Sequence[Any]) -> Iterator[RegistryEvent]:
        """Take what a watch reports, in its order."""
        for revision, of_one in groupby(events, key=lambda event: event.kv.mod_revision):
            yield from self._revision(revision, list(of_one))

    def _revision(self, revision: int, events: list[Any]) -> Iterator[RegistryEvent]:
        asked = {
            event.kv.value.decode(errors="replace") for event in events if self._keys.path(event.kv.key) == DELETED
        }
        expired: list[InstanceKey] = []
        members = frozenset(self._members)
        for event in events:
            kv = None if event.type == rpc.Event.DELETE else event.kv
            if (path := self._keys.path(event.kv.key)) is not None:
                yield from self._document(path, kv)
            elif (place := self._keys.place(event.kv.key)) is not None:
                if kv is None:
                    self._remarks.pop(self._named(place), None)
                if (key := self._key(place, there=kv is not None)) is None:
                    continue
                if kv is not None:
                    yield from self._put(key, kv)
                    continue
                self.view.delete(key, revision)
                if event.prev_kv.lease and str(key) not in asked:
                    expired.append(key)
                else:
                    yield from self._delivered.delete(key)
        yield from self._delivered.lose(expired, EXPIRED)
        if members != self._members:
            yield from self._told_members()

    def _told_members(self) -> Iterator[Members]:
        if self._member is not None:
            yield Members(ids=frozenset({*self._members, self._member}), registry=self._registry)

    def _key(self, place: str, *, there: bool = True) -> InstanceKey | None:
        try:
            return instance_key(place)
        except Unreadable as error:
            if there:
                self._remark(self._named(place), error)
            return None

    def _put(self, key: InstanceKey, kv: Any) -> list[RegistryEvent]:
        named = self._named(str(key))
        try:
            instance = read_instance(kv.value, key)
        except Unreadable as error:
            self._remark(named, error)
            self.view.put(key, self.stored(key, kv))
            return []
        self._remarks.pop(named, None)
        self.view.put(key, Stored(instance=instance, lease=kv.lease, revision=kv.mod_revision))
        return self._delivered.put(instance)

    def _document(self, path: str, kv: Any | None) -> Iterator[RegistryEvent]:
        """Take a document of the common state, None where it has been deleted."""
        if path in _OURS:
            if path == IDENTITY:
                self.identity = None if kv is None else kv.value
            return
        named = self._keys.state + path
        try:
            kind, name = parse_path(path)
            event = event_of(kind, name, None if kv is None else kv.value, self._registry)
            self._note(kind, name, kv)
        except Unreadable as error:
            if kv is None:
                self._remarks.pop(named, None)
            else:
                self._remark(named, error)
            return
        self._remarks.pop(named, None)
        if event is None or kv is None:
            if self._documents.pop(path, None) is not None and event is not None:
                yield event
        elif self._documents.get(path) != event:
            self._documents[path] = event
            yield event

    def _note(self, kind: Kind, name: tuple[str, ...], kv: Any | None) -> None:
        """Keep what is needed of a document here. Raises Unreadable."""
        match kind:
            case Kind.MEMBER:
                (self._members.discard if kv is None else self._members.add)(name[0])
            case Kind.VERDICT:
                if kv is None:
                    self._verdicts.pop(_key_of(name), None)
                else:
                    self._verdicts[_key_of(name)] = kv.value
            case Kind.REMOVAL:
                key = _key_of(name)
                if kv is None:
                    self._removals.pop(key, None)
                    self.due.discard(key)
                else:
                    self.due.set(key, read_removal(kv.value))
                    self._removals[key] = kv.mod_revision
                    self._rescheduled()
            case _:
                pass

    def _named(self, place: str) -> str:
        return self._keys.prefix + place

    def _remark(self, named: str, error: Unreadable) -> None:
        if named in self._remarks or len(self._remarks) < REMARKS_MAX:
            self._remarks[named] = str(error)


def _key_of(name: tuple[str, ...]) -> InstanceKey:
    return InstanceKey(ServiceName(name[0]), InstanceId(name[1]))
