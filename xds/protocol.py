"""The xDS protocol as a sans-IO machine: one `Stream` per client stream, SotW and Delta in the same class.

Four verbs: `receive` a request and learn what it meant, `offer` a snapshot, send the `responses` that may go
now, `close`. No await, no clock, no log: `xds.wire` spells the messages, `xds.server` moves the bytes and owns
time, `xds.status` listens to the events. Everything that decides what a proxy is told, and when, is here.

Three ideas carry it:

* What a client *holds* is what it acknowledged; whatever else it was sent is in *doubt* until it answers.
* A type owes something only for the names in `dirty` (may differ from the target) and `owed` (to be answered
  even if unchanged), so that an ACK or an unrelated change costs nothing.
* `ORDER` is the whole of make before break. Its rows are tried from the top whenever something happened.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Flag, auto
from itertools import chain
from types import MappingProxyType

from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource, ResourceSet, Snapshot

WILDCARD = "*"
MAX_RESPONSE_BYTES = 3 * 1024 * 1024  # gRPC clients receive at most 4 MiB unless told otherwise (F-01)
_MAX_FOREIGN_TYPES = 32
_MAX_RECENT = 1024


# What goes in and out ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Error:
    """Hold the `error_detail` of a request: its presence, not the version, makes it a NACK (S-05)."""

    code: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SotwRequest:
    """Ask for exactly `names` of a type, and answer the response with `nonce`."""

    type_url: str
    names: frozenset[str] = frozenset()
    version: str = ""
    nonce: str = ""
    error: Error | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaRequest:
    """Add and remove names of a type, and answer the response with `nonce`."""

    type_url: str
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial_versions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    nonce: str = ""
    error: Error | None = None


Request = SotwRequest | DeltaRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """Tell a client resources of one type; `removed` exists on the wire in Delta only.

    `version` is the version of the whole content in SotW, and for the eye only in Delta.
    """

    type_url: str
    version: str
    nonce: str
    resources: tuple[Resource, ...] = ()
    removed: tuple[str, ...] = ()
    delta: bool
    revision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribed:
    """Say that a client changed what it asks for; `names` counts the explicit ones."""

    type_url: str
    added: tuple[str, ...]
    dropped: tuple[str, ...]
    wildcard: bool
    names: int
    known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Say that a response is on its way; built by whoever sends it."""

    type_url: str
    version: str
    nonce: str
    revision: str
    resources: int
    removed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Acked:
    """Say that a client applied a response.

    `names` are the resources that the response changed or removed. `offered_at` is the time that was given to
    `offer` with the oldest change in it, or None where it answered a request. `settled` says that the type
    owes nothing more; `refused` names what stays quarantined.
    """

    type_url: str
    version: str
    nonce: str
    revision: str
    names: tuple[str, ...]
    offered_at: float | None
    settled: bool
    refused: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nacked:
    """Say that a client rejected a response, in its own words; `names` are the suspects."""

    type_url: str
    version: str
    nonce: str
    revision: str
    names: tuple[str, ...]
    code: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """Say that a client took note of a response without applying it: old version, new nonce, no error (S-06)."""

    type_url: str
    version: str
    nonce: str
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outdated:
    """Say that a request answers a response which is not the last one (S-07, D-11)."""

    type_url: str
    nonce: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """Say that the stream is over; `unanswered` are the types whose last response had no answer."""

    unanswered: tuple[str, ...]


Event = Subscribed | Sent | Acked | Nacked | Ignored | Outdated | Closed


# What the types are like, and in which order they go -----------------------------------------------------


def _empty_assignment(name: str) -> bytes:
    """Spell a ClusterLoadAssignment that has a name (field 1) and no endpoints."""
    raw = name.encode()
    length, size = len(raw), bytearray()
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return b"\x0a" + bytes(size) + bytes((length,)) + raw


@dataclass(frozen=True, slots=True)
class Kind:
    """Describe what sets a resource type apart.

    `full`: a SotW response is the whole state, absence deletes, and an empty first request means everything
    (G-01, G-03, W-07). `parents`: the types that may refer to this one, so that nothing is removed from under
    them. `resent_with_parents`: a re-sent parent waits for this one again (O-01). `empty`: how to spell the
    absence of a resource whose removal clients ignore (G-07, D-15).
    """

    type_url: str
    full: bool = False
    parents: tuple[str, ...] = ()
    resent_with_parents: bool = False
    empty: Callable[[str], bytes] | None = None

    def absent(self, name: str) -> Resource:
        """Make the empty resource that stands for a missing one."""
        return Resource.of(name, self.empty(name) if self.empty is not None else b"")


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        CLUSTER: Kind(CLUSTER, full=True, parents=(LISTENER, ROUTE)),
        ENDPOINT: Kind(ENDPOINT, parents=(CLUSTER,), resent_with_parents=True, empty=_empty_assignment),
        LISTENER: Kind(LISTENER, full=True),
        ROUTE: Kind(ROUTE, parents=(LISTENER,)),
    }
)


class Step(Flag):
    """Name the half of an update: what comes into being, or what goes."""

    MAKE = auto()
    BREAK = auto()


@dataclass(frozen=True, slots=True)
class Row:
    """Let a type take a step, once no response of the types in `after` is unanswered."""

    type_url: str
    step: Step
    after: tuple[str, ...] = ()


_ALL = (CLUSTER, ENDPOINT, LISTENER, ROUTE)

# Assignments follow clusters on the wire but do not wait for their ACK: Envoy withholds that ACK for as long
# as a cluster is warming, and the cluster warms until its assignment arrives.
ORDER = (
    Row(CLUSTER, Step.MAKE),
    Row(ENDPOINT, Step.MAKE),
    Row(LISTENER, Step.MAKE, after=(CLUSTER, ENDPOINT)),
    Row(ROUTE, Step.MAKE, after=(CLUSTER, ENDPOINT, LISTENER)),
    Row(LISTENER, Step.BREAK, after=_ALL),
    Row(ROUTE, Step.BREAK, after=_ALL),
    Row(CLUSTER, Step.BREAK, after=_ALL),
    Row(ENDPOINT, Step.BREAK, after=_ALL),
)


def one_row(type_url: str) -> tuple[Row, ...]:
    """Return the order of a per-type stream: nothing to wait for, nothing else to protect (O-08)."""
    return (Row(type_url, Step.MAKE | Step.BREAK),)


# One type of one stream ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Pending:
    """Remember the unanswered response of a type, as the change it makes to what the client holds.

    `kept` are the names in doubt that it tells at the version which the client acknowledged before.
    """

    nonce: str
    version: str
    revision: str
    changes: dict[str, Resource | None]
    kept: tuple[str, ...]
    offered_at: float | None
    released: bool = False


_Versions = dict[str, str]  # name -> version; "" stands for the removal


class Subscription:
    """Keep what one client asks for, holds and refused of one type. Bounded by the names in play."""

    __slots__ = (
        "_own",
        "answer",
        "dirty",
        "doubt",
        "foreign",
        "held",
        "kind",
        "leaving",
        "legacy",
        "names",
        "nonce",
        "owed",
        "pending",
        "refused",
        "repeat",
        "requested",
        "since",
        "suspects",
        "wildcard",
    )

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._own: set[str] = set()
        self.names: AbstractSet[str] = self._own  # explicit names
        self.wildcard = False
        self.legacy = kind.full  # an empty list still means everything
        self.requested: frozenset[str] | None = None  # SotW: the last list, as it came
        self.held: dict[str, Resource] = {}  # acknowledged
        self.foreign: set[str] = set()  # held, but only the version is known: reported by a reconnecting client
        self.doubt: dict[str, Resource | None] = {}  # sent and not acknowledged: possibly applied
        self.dirty: set[str] = set()  # may differ from the target
        self.owed: set[str] = set()  # to be answered even if unchanged
        self.repeat: set[str] = set()  # of the dirty: to be sent even if the same was sent before
        self.answer = False  # a response is owed, be it empty
        self.leaving: set[str] = set()  # held, gone from the target, not yet removed
        self.refused: dict[str, _Versions] = {}  # name -> the refused set that it is part of
        self.suspects: list[_Versions] = []  # Delta: parts of refused batches that are still to be tried
        self.pending: _Pending | None = None
        self.nonce = ""
        self.since: float | None = None

    def wants(self, name: str) -> bool:
        """Say whether the client asks for a name."""
        return self.wildcard or name in self.names

    @property
    def free(self) -> bool:
        """Say whether a response may be sent: at most one is unanswered, unless the wait was given up."""
        return self.pending is None or self.pending.released

    @property
    def settled(self) -> bool:
        """Say whether nothing is unanswered, owed or waiting to go."""
        return self.pending is None and not (self.dirty or self.owed or self.answer or self.suspects or self.leaving)

    def replace(self, names: frozenset[str]) -> tuple[Collection[str], Collection[str]]:
        """Take a SotW list of names; return what was added and dropped.

        The same list again is an ACK or a repetition, and costs nothing.
        """
        before = self.requested
        if before is not None and (names is before or names == before):
            return (), ()
        self.requested = names
        if names:
            self.legacy = False  # from here on an empty list means nothing (W-07)
        wildcard = (self.kind.full and WILDCARD in names) or self.legacy
        added = names - (before or frozenset())
        dropped = (before or frozenset()) - names
        lost_wildcard = self.wildcard and not wildcard
        self.answer |= self.kind.full and (bool(added) or (wildcard and not self.wildcard))
        self.wildcard = wildcard
        self.names = names - {WILDCARD} if wildcard and WILDCARD in names else names
        if not wildcard:
            self._forget([name for name in self._known() if name not in names] if lost_wildcard else dropped)
        self._owe(name for name in added if name in self.names)
        return added, dropped

    def edit(self, subscribe: Iterable[str], unsubscribe: Iterable[str], *, first: bool) -> None:
        """Apply a Delta edit: removals first, so that a name in both lists ends up subscribed and sent (D-10)."""
        for name in unsubscribe:
            if name == WILDCARD and self.wildcard:
                self.wildcard = False
                self._forget([known for known in self._known() if known not in self._own])
            elif name in self._own:
                self._own.discard(name)
                if self.wildcard:
                    self.owed.add(name)  # the client cannot know what the wildcard says of it (D-09)
                else:
                    self._forget((name,))
        if first and self.kind.full and not subscribe:
            self.wildcard = self.answer = True  # the legacy way to ask for everything (D-01, D-13)
        for name in subscribe:
            if name == WILDCARD and self.kind.full:
                self.wildcard = self.answer = True
            else:
                self._own.add(name)
                self._owe((name,))  # whatever it holds by our account, it asks: it may have forgotten (D-06, R-04)

    def note(self, changed: AbstractSet[str], target: ResourceSet, at: float | None) -> bool:
        """Take note of names that changed in the target; say whether any concerns this client."""
        fresh = changed if self.wildcard else changed & self.names
        if not fresh:
            return False
        self.retry(fresh & self.refused.keys(), target)
        if self.since is None:
            self.since = at
        self.dirty |= fresh
        if len(self.dirty) > 64 + 2 * (len(target) + len(self.held)):
            self.dirty = {name for name in self.dirty if name in target or self.may_hold(name)}
        return True

    def may_hold(self, name: str) -> bool:
        """Say whether the client holds a name, as far as anyone can know."""
        return name in self.held or self.doubt.get(name) is not None

    def has_content(self, name: str) -> bool:
        """Say whether the client may hold more of a name than the empty resource that stands for a missing one."""
        candidates = (self.held.get(name), self.doubt.get(name), self.last_told(name))
        return any(each is not None and not self.is_absence(name, each.version) for each in candidates)

    def last_told(self, name: str) -> Resource | None:
        """Return what the client was last told of a name, whatever it made of it."""
        if self.pending is not None:
            if name in self.pending.changes:
                return self.pending.changes[name]
            if name in self.pending.kept:
                return self.held.get(name)
        return self.doubt[name] if name in self.doubt else self.held.get(name)

    def was_told_absence(self, name: str) -> bool:
        """Say whether the client was told last that a name does not exist."""
        told = self.last_told(name)
        return told is None or self.is_absence(name, told.version)

    def is_absence(self, name: str, version: str) -> bool:
        """Say whether a version tells that the resource does not exist."""
        return not version or (self.kind.empty is not None and version == self.kind.absent(name).version)

    def still(self, name: str, version: str, target: ResourceSet) -> bool:
        """Say whether a version is what the target has to say of a name."""
        found = target.get(name)
        return found.version == version if found is not None else self.is_absence(name, version)

    def possible(self) -> Iterator[Resource]:
        """List every resource that the client may be using now."""
        sent = self.pending.changes.values() if self.pending is not None else ()
        return (each for each in chain(self.held.values(), self.doubt.values(), sent) if each is not None)

    def told(self) -> set[str]:
        """List the names that the client was told anything about."""
        sent = self.pending.changes if self.pending is not None else {}
        return {*self.held, *self.doubt, *self.refused, *sent}

    def acknowledge(self, pending: _Pending) -> None:
        """Believe a response: the only place where the client's state advances (law: only an ACK is believed)."""
        for name, resource in pending.changes.items():
            self.doubt.pop(name, None)
            self.foreign.discard(name)
            if resource is None:
                self.held.pop(name, None)
            elif self.wants(name):
                self.held[name] = resource
        for name in pending.kept:
            self.doubt.pop(name, None)

    def reject(self, pending: _Pending, named: AbstractSet[str], *, split: bool) -> None:
        """Remember a refusal so that it is never repeated unchanged, and go on with what is not suspect (law 6).

        Delta (`split`): halve the batch until the bad resource stands alone; a client that refuses for ever
        sees at most 2k - 1 responses for k resources. SotW: quarantine what the client `named`, or else all
        as one set which is offered again when any of it changes; the rest goes in one corrective response.
        """
        changes = {name: resource for name, resource in pending.changes.items() if self.wants(name)}
        self.doubt.update(changes)
        suspects = named or changes.keys()
        batch = {name: _version(resource) for name, resource in changes.items()}
        if split and len(batch) > 1:
            self.suspects = [part for part in self.suspects if part.keys().isdisjoint(batch)]
            self.suspects += _halves(batch, named)
            return
        refusal = {name: version for name, version in batch.items() if name in suspects}
        for name, version in refusal.items():
            self.refused.setdefault(name, {name: version} if named else refusal)
        self._again(batch.keys() - self.refused.keys())

    def retry(self, names: Iterable[str], target: ResourceSet) -> None:
        """Offer a refused set again if any of it is no longer what was refused."""
        for name in names:
            refusal = self.refused.get(name)  # none if another member of the set came first
            if refusal is None or self.still(name, refusal[name], target):
                continue
            members = [member for member in refusal if self.refused.get(member) is refusal]
            for member in members:
                del self.refused[member]
            self._again(members)

    def supersede(self) -> None:
        """Give up on an unanswered response because a newer one is about to be sent."""
        if self.pending is not None:
            told = {name: self.held.get(name) for name in self.pending.kept} | self.pending.changes
            self.doubt.update({name: resource for name, resource in told.items() if self.wants(name)})
            self.pending = None

    def _again(self, names: Iterable[str]) -> None:
        """Have names sent again that were sent before: what is in doubt is not sent twice by itself."""
        self.dirty.update(names)
        self.repeat.update(names)

    def _known(self) -> AbstractSet[str]:
        return self.held.keys() | self.doubt.keys() | self.dirty | self.owed | self.refused.keys()

    def _owe(self, names: Iterable[str]) -> None:
        for name in names:
            self.owed.add(name)
            self.refused.pop(name, None)

    def _forget(self, names: Collection[str]) -> None:
        for gone in (self.held, self.doubt, self.refused):
            for name in names:
                gone.pop(name, None)
        for ended in (self.foreign, self.dirty, self.owed, self.repeat, self.leaving):
            ended.difference_update(names)


def _version(resource: Resource | None) -> str:
    return "" if resource is None else resource.version


def _halves(batch: _Versions, named: AbstractSet[str]) -> list[_Versions]:
    """Split a refused batch into what the client named and what it did not, or else in the middle."""
    names = sorted(batch, key=lambda name: (name in named, name))
    first_named = sum(name not in named for name in names)
    cut = first_named if 0 < first_named < len(names) else len(names) // 2
    return [{name: batch[name] for name in part} for part in (names[:cut], names[cut:])]


def _continues(beside: str) -> bool:
    return beside.isalnum() or beside in ("_", "-")


def named_in(message: str, names: Iterable[str]) -> set[str]:
    """Find the names that an error message speaks of, longest first, so that `web` is not found in `web-2`."""
    found = set()
    for name in sorted(names, key=len, reverse=True):
        start = message.find(name) if name else -1
        while start >= 0:
            end = start + len(name)
            if not (_continues(message[start - 1 : start]) or _continues(message[end : end + 1])):
                found.add(name)
                message = f"{message[:start]}\0{message[end:]}"
                break
            start = message.find(name, end)
    return found


# The machine ---------------------------------------------------------------------------------------------


class Stream:
    """Speak xDS with one client. Not safe for threads; never blocks; holds no more than the client's state."""

    def __init__(
        self, *, delta: bool, rows: Sequence[Row] = ORDER, max_response_bytes: int = MAX_RESPONSE_BYTES
    ) -> None:
        self._delta = delta
        self._rows = list(rows)
        self._known_types = frozenset(row.type_url for row in rows)
        self._max_response_bytes = max_response_bytes
        self._subscriptions: dict[str, Subscription] = {}
        self._target: Snapshot | None = None
        self._recent: dict[tuple[str, str], None] = {}  # what clusters referred to that left this client
        self._sent = 0

    def __repr__(self) -> str:
        types = {
            url.rpartition(".")[2]: "settled" if sub.settled else "owes" for url, sub in self._subscriptions.items()
        }
        return f"Stream({'delta' if self._delta else 'sotw'}, sent {self._sent}, {types})"

    @property
    def subscriptions(self) -> Mapping[str, Subscription]:
        """Show the state per type, to read only."""
        return MappingProxyType(self._subscriptions)

    def receive(self, request: Request) -> list[Event]:
        """Apply a request: first what it answers, then what it asks for. Both count whatever the other is."""
        events: list[Event] = []
        sub = self._subscriptions.get(request.type_url)
        first = sub is None
        if sub is None:
            if (opened := self._open(request.type_url)) is None:
                return events
            sub = opened
        else:
            events += self._answered(sub, request)  # the first request of a stream is initial even with a nonce (S-09)
        added: Collection[str]
        dropped: Collection[str]
        wildcard = sub.wildcard
        if isinstance(request, SotwRequest):
            added, dropped = sub.replace(request.names)
        else:
            added, dropped = request.subscribe, request.unsubscribe
            sub.edit(added, dropped, first=first)
            if first:
                self._recall(sub, request.initial_versions)
        if sub.wildcard and not wildcard:
            self._compare_all(sub)
        if first or added or dropped or sub.wildcard is not wildcard:
            events.append(
                Subscribed(
                    type_url=request.type_url,
                    added=tuple(added),
                    dropped=tuple(dropped),
                    wildcard=sub.wildcard,
                    names=len(sub.names),
                    known=request.type_url in self._known_types,
                )
            )
        return events

    def offer(
        self, snapshot: Snapshot, changed: Mapping[str, AbstractSet[str]] | None = None, at: float | None = None
    ) -> bool:
        """Set the target; say whether any of it may concern this client.

        `changed` names what differs from the snapshot offered before, per type; None compares everything. `at`
        is the moment of the change; it comes back in `Acked`.
        """
        moved = False
        known, self._target = self._target is not None, snapshot
        for type_url, sub in self._subscriptions.items():
            target = snapshot.of_type(type_url)
            if changed is not None and known:
                names: AbstractSet[str] = changed.get(type_url, frozenset())
            else:
                names = target.keys() | sub.told()
            moved |= bool(names) and sub.note(names, target, at)
        return moved or not known

    def responses(self) -> Iterator[Response]:
        """Yield what may be sent now, in order; each is taken for sent. Looks again from the top after each."""
        while (response := self._next()) is not None:
            yield response

    def unanswered(self) -> Mapping[str, str]:
        """Tell the nonce of the unanswered response of each type that others wait for."""
        waiting = ((url, sub.pending) for url, sub in self._subscriptions.items())
        return {url: pending.nonce for url, pending in waiting if pending is not None and not pending.released}

    def stop_waiting(self, type_url: str) -> None:
        """Let everything go on without the answer of a type (O-06); it counts all the same if it comes later.

        The client is not at fault: some responses are never answered, and Envoy delays answers while clusters
        warm (S-06, S-12).
        """
        sub = self._subscriptions.get(type_url)
        if sub is not None and sub.pending is not None:
            sub.pending.released = True

    def close(self) -> list[Event]:
        """End the stream; what it held is forgotten."""
        open_types = tuple(url for url, sub in self._subscriptions.items() if sub.pending is not None)
        self._subscriptions.clear()
        return [Closed(unanswered=open_types)]

    # What a request means

    def _open(self, type_url: str) -> Subscription | None:
        """Start a type; one that has no row is served last and unordered, and mostly has nothing (T-05, T-06)."""
        if type_url not in self._known_types:
            if len(self._subscriptions) >= len(self._known_types) + _MAX_FOREIGN_TYPES:
                return None
            self._rows.append(Row(type_url, Step.MAKE | Step.BREAK))
        sub = Subscription(KINDS.get(type_url) or Kind(type_url))
        self._subscriptions[type_url] = sub
        return sub

    def _answered(self, sub: Subscription, request: Request) -> list[Event]:
        pending = sub.pending
        if pending is None or request.nonce != pending.nonce:
            spontaneous = request.nonce == sub.nonce or (self._delta and not request.nonce)
            return [] if spontaneous else [Outdated(type_url=request.type_url, nonce=request.nonce)]
        sub.pending = None
        about = {"type_url": request.type_url, "version": pending.version, "nonce": pending.nonce}
        if request.error is not None:
            named = named_in(request.error.message, pending.changes)
            self._reject(sub, pending, named, split=self._delta)
            code, message = request.error.code, request.error.message
            names = tuple(sorted(named or pending.changes))
            return [Nacked(**about, revision=pending.revision, names=names, code=code, message=message)]
        if isinstance(request, SotwRequest) and request.version != pending.version:
            self._reject(sub, pending, frozenset(), split=False)
            return [Ignored(**about, revision=pending.revision)]
        if sub.kind.type_url == CLUSTER:
            self._remember_departed(sub, pending)
        sub.acknowledge(pending)
        return [
            Acked(
                **about,
                revision=pending.revision,
                names=tuple(pending.changes),
                offered_at=pending.offered_at,
                settled=sub.settled,
                refused=tuple(sorted(sub.refused)),
            )
        ]

    def _reject(self, sub: Subscription, pending: _Pending, named: AbstractSet[str], *, split: bool) -> None:
        sub.reject(pending, named, split=split)
        if self._target is not None:  # it may have changed while the refusal was on its way
            sub.retry(pending.changes, self._target.of_type(sub.kind.type_url))

    def _recall(self, sub: Subscription, versions: Mapping[str, str]) -> None:
        """Believe a reconnecting client about what it holds; this subscribes it to nothing (R-01, R-02)."""
        for name, version in versions.items():
            if sub.wants(name):
                sub.held[name] = Resource(name, version, b"")
                sub.foreign.add(name)

    def _compare_all(self, sub: Subscription) -> None:
        target = self._target.of_type(sub.kind.type_url) if self._target is not None else ResourceSet()
        sub.dirty |= target.keys() | sub.held.keys()

    def _remember_departed(self, clusters: Subscription, pending: _Pending) -> None:
        """Note what removed clusters referred to: a client may still ask for their assignments (law 9, G-07)."""
        for name, resource in pending.changes.items():
            if resource is None and (cluster := clusters.held.get(name)) is not None:
                self._recent.update(dict.fromkeys(cluster.refs))
        while len(self._recent) > _MAX_RECENT:
            del self._recent[next(iter(self._recent))]

    # What may be sent

    def _next(self) -> Response | None:
        if self._target is None:
            return None
        for row in self._rows:
            sub = self._subscriptions.get(row.type_url)
            if sub is None or not sub.free:
                continue
            if any(other in self._subscriptions and not self._subscriptions[other].free for other in row.after):
                continue
            if (response := self._take(sub, row.step, self._target)) is not None:
                return response
        return None

    def _take(self, sub: Subscription, step: Step, snapshot: Snapshot) -> Response | None:
        target = snapshot.of_type(sub.kind.type_url)
        changes: dict[str, Resource | None] = {}
        answer = False
        if Step.MAKE in step and (sub.dirty or sub.owed or sub.answer or sub.suspects):
            changes = self._made(sub, target)
            answer, sub.answer = sub.answer, False
        if Step.BREAK in step and sub.leaving:
            changes |= self._broken(sub)
        if not changes and not answer:
            if sub.settled:
                sub.since = None  # it changed and changed back: nothing to tell (P-05)
            return None
        return self._response(sub, target, changes, snapshot.revision)

    def _made(self, sub: Subscription, target: ResourceSet) -> dict[str, Resource | None]:
        """Work out what the client is to be told of what exists, and of what it asks for in vain."""
        changes: dict[str, Resource | None] = {}
        later: set[str] = set()
        size = 0
        split = self._delta or not sub.kind.full
        candidates = sorted(sub.dirty | sub.owed) if sub.owed or len(sub.dirty) > 1 else sub.dirty
        used = self._in_use(sub, {name for name in sub.owed if name not in target})
        for name in candidates:
            if not sub.wants(name):
                continue
            if split and size > self._max_response_bytes:
                later.add(name)
                continue
            want, have, owed = target.get(name), sub.held.get(name), name in sub.owed
            if want is None:
                if owed:
                    changes |= self._in_vain(sub, name, used=name in used)
                elif sub.has_content(name) and (name in sub.repeat or not sub.was_told_absence(name)):
                    sub.leaving.add(name)
                continue
            sub.leaving.discard(name)
            if name in sub.refused:
                continue
            if not owed and name not in sub.repeat:
                sent = sub.last_told(name)
                if sent is not None and sent.version == want.version:
                    if name in sub.foreign and sent is have:
                        sub.foreign.discard(name)
                        sub.held[name] = want
                    continue
            if have is not None and self._leans_on_refused(want):
                later.add(name)
                continue
            changes[name] = want
            size += len(want.body) + len(name) + 64
        sub.owed &= later
        sub.repeat &= later
        sub.dirty = later - sub.owed
        if not changes:
            return self._next_suspects(sub, target)
        if not split:  # the set is another one now, so what could not be taken out of the last may be tried again
            for name in [name for name, refusal in sub.refused.items() if not refusal[name]]:
                del sub.refused[name]
                sub.leaving.add(name)
        return changes

    def _in_vain(self, sub: Subscription, name: str, *, used: bool) -> dict[str, Resource | None]:
        """Answer for a name that is asked for and does not exist; the subscription stays (G-06, D-07, law 9)."""
        have = sub.held.get(name)
        if used and have is not None:
            sub.leaving.add(name)
            return {name: have} if name not in sub.foreign else {}
        spelled = name not in ("", WILDCARD)  # Envoy takes no assignment without a name (W-10)
        if (
            spelled
            and sub.kind.empty is not None
            and (not self._delta or used or (sub.kind.type_url, name) in self._recent)
        ):
            return {name: sub.kind.absent(name)}
        if self._delta:
            return {name: None}
        if sub.may_hold(name):
            sub.leaving.add(name)
        return {}

    def _next_suspects(self, sub: Subscription, target: ResourceSet) -> dict[str, Resource | None]:
        while sub.suspects:
            batch = sub.suspects.pop(0)
            same = [name for name in batch if sub.wants(name) and sub.still(name, batch[name], target)]
            if same:
                return {name: target.get(name) or (sub.kind.absent(name) if batch[name] else None) for name in same}
        return {}

    def _broken(self, sub: Subscription) -> dict[str, Resource | None]:
        """Work out what may be taken from the client: nothing that it may be referring to (O-05)."""
        gone = {name for name in sub.leaving if name not in sub.refused}
        gone -= self._in_use(sub, gone)
        sub.leaving -= gone
        if self._delta or sub.kind.full:
            return dict.fromkeys(sorted(gone))
        if sub.kind.empty is None:  # absence tells a SotW client nothing, so there is nothing to send (G-04)
            for name in gone:
                sub.held.pop(name, None)
                sub.doubt.pop(name, None)
            return {}
        return {name: sub.kind.absent(name) for name in sorted(gone)}

    def _in_use(self, sub: Subscription, names: set[str]) -> set[str]:
        """Find the names that the target, or anything the client may be using, refers to."""
        if not names or self._target is None:
            return set()
        keys = {(sub.kind.type_url, name) for name in names}
        used: set[tuple[str, str]] = set()
        for parent in sub.kind.parents:
            holder = self._subscriptions.get(parent)
            if holder is not None and holder.foreign:
                return names  # a reconnected client holds something whose references nobody knows
            resources = chain(self._target.of_type(parent).values(), holder.possible() if holder is not None else ())
            for resource in resources:
                if not resource.refs.isdisjoint(keys):
                    used |= resource.refs & keys
        return {name for _, name in used}

    def _leans_on_refused(self, resource: Resource) -> bool:
        """Say whether a resource refers to one that the client refused and has in no version (O-06).

        Then the client keeps the older version that it has. One that it has in no version is sent all the
        same: a route table with one dead route is better than none.
        """
        refusing = {url: sub for url, sub in self._subscriptions.items() if sub.refused}
        if not refusing:
            return False
        return any(
            type_url in refusing and name in refusing[type_url].refused and name not in refusing[type_url].held
            for type_url, name in resource.refs
        )

    def _response(
        self, sub: Subscription, target: ResourceSet, changes: dict[str, Resource | None], revision: str
    ) -> Response:
        sub.supersede()
        version = target.version
        removed: tuple[str, ...] = ()
        kept: tuple[str, ...] = ()
        if self._delta:
            resources = tuple(found for found in changes.values() if found is not None)
            removed = tuple(name for name, found in changes.items() if found is None)
        elif sub.kind.full:
            as_held = (sub.refused.keys() | sub.leaving | sub.dirty) - changes.keys()
            whole = self._whole(sub, target, as_held)
            resources, version = whole.ordered, whole.version
            kept = tuple(name for name in as_held if name in sub.doubt)
        else:
            resources = tuple(found for found in changes.values() if found is not None)
        for resource in changes.values():
            if resource is not None and resource.refs:
                self._owe_children(resource)
        self._sent += 1
        sub.nonce = str(self._sent)
        sub.pending = _Pending(sub.nonce, version, revision, changes, kept, sub.since)
        sub.since = None
        return Response(
            type_url=sub.kind.type_url,
            version=version,
            nonce=sub.nonce,
            resources=resources,
            removed=removed,
            delta=self._delta,
            revision=revision,
        )

    def _whole(self, sub: Subscription, target: ResourceSet, as_held: AbstractSet[str]) -> ResourceSet:
        """Assemble the full state of a SotW type: the target, but `as_held` as the client has it.

        That is what it refused, what is withheld, and what cannot go yet.
        """
        whole = target if sub.wildcard else ResourceSet(target[name] for name in sub.names if name in target)
        if not as_held:
            return whole
        present = [sub.held[name] for name in as_held if name in sub.held]
        return whole.replacing(present, [name for name in as_held if name not in sub.held])

    def _owe_children(self, parent: Resource) -> None:
        """Owe the children of a parent that is sent: it waits for them again, changed or not (law 8, O-01)."""
        for type_url, name in parent.refs:
            child = self._subscriptions.get(type_url)
            if child is not None and child.kind.resent_with_parents and child.wants(name):
                child.owed.add(name)
