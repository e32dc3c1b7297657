"""The xDS protocol as a sans-IO machine: one `Stream` per client stream, SotW and Delta in the same class.

Four verbs: `receive` a request and learn what it meant, `offer` a snapshot, send the `responses` that may go
now, `close`. No await, no clock, no log: `xds.requests` and `xds.responses` spell the messages, `xds.server` moves
the bytes and owns time, `xds.status` listens to the events. Everything that decides what a proxy is told, and when,
is here.

Three ideas carry it:

* What a client *holds* is what it acknowledged; whatever else it was sent is in *doubt* until it answers.
* A type owes something only for the names in `dirty` (may differ from the target) and `owed` (to be answered
  even if unchanged), so that an ACK or an unrelated change costs nothing.
* `ORDER` is the whole of make before break. Its rows are tried from the top whenever something happened.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from types import MappingProxyType

from xds.messages import (
    Acked,
    Closed,
    DeltaRequest,
    Error,
    Event,
    Ignored,
    Nacked,
    Outdated,
    Regrouped,
    Request,
    Response,
    Sent,
    SotwRequest,
    Subscribed,
)
from xds.order import KINDS, ORDER, WITH_CHILDREN, Kind, Row, Step, one_row
from xds.subscription import WILDCARD, Pending, Subscription, culprit_in, named_in
from xds.types import CLUSTER, Resource, ResourceSet, Snapshot

__all__ = [
    "KINDS",
    "ORDER",
    "Acked",
    "Closed",
    "DeltaRequest",
    "Error",
    "Event",
    "Ignored",
    "Kind",
    "Nacked",
    "Outdated",
    "Regrouped",
    "Request",
    "Response",
    "Row",
    "Sent",
    "SotwRequest",
    "Step",
    "Stream",
    "Subscribed",
    "Subscription",
    "one_row",
]

MAX_RESPONSE_BYTES = 3 * 1024 * 1024  # gRPC clients receive at most 4 MiB unless told otherwise (F-01)
_FRAME_BYTES = 128  # what the wire adds to a resource, at most: type, name twice, version
_MAX_IN_VAIN = 4096  # names that do not exist which one response answers for: some 30 ms of work
_MAX_FOREIGN_TYPES = 32
_MAX_RECENT = 1024
_NOTHING: frozenset[str] = frozenset()


_Turn = tuple[Row, Subscription, bool, bool]  # a row with its type's state, and whether it makes and breaks


class Stream:
    """Speak xDS with one client. Not safe for threads; never blocks; holds no more than the client's state."""

    def __init__(
        self, *, delta: bool, rows: Sequence[Row] = ORDER, max_response_bytes: int = MAX_RESPONSE_BYTES
    ) -> None:
        self.by_name_only = False  # the client is told what it names and nothing else; to be set before it asks
        self._delta = delta
        self._rows = list(rows)
        self._known_types = frozenset(row.type_url for row in rows)
        self._max_response_bytes = max_response_bytes
        self._subscriptions: dict[str, Subscription] = {}
        self._order: tuple[_Turn, ...] = ()  # the rows of the types that are asked for
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

    @property
    def target(self) -> Snapshot | None:
        """Show what the client is to hold in the end; None before the first offer."""
        return self._target

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
            wildcard = wildcard and WILDCARD not in dropped  # in both lists it is taken up anew (D-10)
            sub.edit(added, dropped, first=first)
            if first:
                self._recall(sub, request.initial_versions)
        if sub.wildcard and not wildcard:
            self._compare_all(sub)
        if first or added or dropped or sub.wildcard is not wildcard:
            events.append(
                Subscribed(
                    type_url=request.type_url,
                    added=added,
                    dropped=dropped,
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
        known, self._target = self._target is not None, snapshot
        if changed is None or not known:
            for type_url, sub in self._subscriptions.items():
                target = snapshot.of_type(type_url)
                if names := target.keys() | sub.told():
                    sub.note(names, target, at)
            return True
        moved = False
        for type_url, changed_names in changed.items():
            if (concerned := self._subscriptions.get(type_url)) is not None:
                moved |= concerned.note(changed_names, snapshot.of_type(type_url), at)
        # What still referred to the leaving may have gone, though nothing of their own type changed.
        return moved or any(sub.leaving for sub in self._subscriptions.values())

    def responses(self) -> Iterator[Response]:
        """Yield what may be sent now, in order; each is taken for sent. Looks again from the top after each."""
        while (response := self._next()) is not None:
            yield response

    @property
    def owes(self) -> bool:
        """Say whether anything is waiting to be sent, be it that it may not be sent yet."""
        return self._target is not None and any(sub.owes for sub in self._subscriptions.values())

    def unanswered(self) -> Mapping[str, str]:
        """Tell the nonce of the unanswered response of each type that others wait for."""
        waiting = ((url, sub.pending) for url, sub in self._subscriptions.items())
        return {url: pending.nonce for url, pending in waiting if pending is not None and not pending.released}

    def held_up_by(self, type_url: str) -> frozenset[str]:
        """Name the types whose answers are waited for before what a type owes may go."""
        found: set[str] = set()
        if self._target is not None:
            for row, sub, makes, breaks in self._order:
                more = sub.dirty or sub.owed or sub.answer or sub.suspects
                if row.type_url == type_url and ((makes and more) or (breaks and sub.leaving)):
                    found.update(self._holding_up(row, self._target))
        return frozenset(found)

    def stop_waiting(self, type_url: str) -> None:
        """Let everything go on without the answer of a type (O-06); it counts all the same if it comes later.

        The client is not at fault: some responses are never answered, and Envoy delays answers while clusters
        warm (S-06, S-12). One that never warms must not cost each later change the wait again, so nothing waits for
        this type any more until the client answers.
        """
        sub = self._subscriptions.get(type_url)
        if sub is not None and sub.pending is not None:
            sub.pending.released = sub.overdue = True

    def close(self) -> list[Event]:
        """End the stream; what it held is forgotten."""
        open_types = tuple(url for url, sub in self._subscriptions.items() if sub.pending is not None)
        self._subscriptions.clear()
        self._order = ()
        return [Closed(unanswered=open_types)]

    # What a request means

    def _open(self, type_url: str) -> Subscription | None:
        """Start a type; one that has no row is served last and unordered, and mostly has nothing (T-05, T-06)."""
        if type_url not in self._known_types:
            if len(self._subscriptions) >= len(self._known_types) + _MAX_FOREIGN_TYPES:
                return None
            self._rows.append(Row(type_url, Step.MAKE | Step.BREAK))
        sub = Subscription(KINDS.get(type_url) or Kind(type_url), by_name_only=self.by_name_only)
        self._subscriptions[type_url] = sub
        turns = ((row, self._subscriptions.get(row.type_url)) for row in self._rows)
        self._order = tuple(
            (row, sub, Step.MAKE in row.step, Step.BREAK in row.step) for row, sub in turns if sub is not None
        )
        return sub

    def _answered(self, sub: Subscription, request: Request) -> list[Event]:
        pending = sub.answered(request.nonce)
        if pending is None:
            spontaneous = request.nonce == sub.nonce or (self._delta and not request.nonce)
            return [] if spontaneous else [Outdated(type_url=request.type_url, nonce=request.nonce)]
        about = {"type_url": request.type_url, "version": pending.version, "nonce": pending.nonce}
        about["revision"] = pending.revision
        if request.error is not None:
            split = self._delta or not sub.kind.full
            culprit = culprit_in(request.error.message, pending.changes)
            named = {culprit} if culprit is not None else set()
            if split and not named:
                named = named_in(request.error.message, pending.changes)
            self._reject(sub, pending, named, split=split)
            code, message = request.error.code, request.error.message
            names = tuple(sorted(named or pending.changes))
            return [Nacked(**about, names=names, code=code, message=message, splitting=bool(sub.suspects))]
        if isinstance(request, SotwRequest) and request.version != pending.version:
            self._reject(sub, pending, frozenset(), split=False)
            return [Ignored(**about)]
        if sub.kind.type_url == CLUSTER:
            self._remember_departed(sub, pending)
        sub.acknowledge(pending)
        if self._target is not None:
            sub.settle(self._target.of_type(sub.kind.type_url))
        if pending.nonce != sub.nonce:  # believed, but not the news that the client is up to date
            return [Outdated(type_url=request.type_url, nonce=request.nonce)]
        return [
            Acked(
                **about,
                names=pending.changes.keys(),
                offered_at=pending.offered_at,
                settled=sub.settled,
                refused=tuple(sorted(sub.refused)) if sub.refused else (),
                splitting=bool(sub.suspects),
            )
        ]

    def _reject(self, sub: Subscription, pending: Pending, named: AbstractSet[str], *, split: bool) -> None:
        sub.reject(pending, named, split=split)
        if self._target is not None:  # it may have changed while the refusal was on its way
            sub.retry(pending.changes, self._target.of_type(sub.kind.type_url))

    def _recall(self, sub: Subscription, versions: Mapping[str, str]) -> None:
        """Believe a reconnecting client about what it holds; this subscribes it to nothing (R-01, R-02)."""
        target = self._target.of_type(sub.kind.type_url) if self._target is not None else ResourceSet()
        for name, version in versions.items():
            if not sub.wants(name):
                continue
            known = target.get(name)
            if known is not None and known.version == version:
                sub.held[name] = known
            else:
                sub.held[name] = Resource(name, version or "?", b"")  # an empty version would stand for nothing held
                sub.foreign.add(name)

    def _compare_all(self, sub: Subscription) -> None:
        target = self._target.of_type(sub.kind.type_url) if self._target is not None else ResourceSet()
        sub.dirty |= target.keys() | sub.held.keys()

    def _remember_departed(self, clusters: Subscription, pending: Pending) -> None:
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
        for row, sub, makes, may_break in self._order:
            if not sub.owes or not sub.free:
                continue
            if (row.after or row.first) and self._waits(row, self._target):
                continue
            # A type that changes without end would never come to its removals.
            breaks = may_break or (bool(sub.leaving) and any(self._may_break(row, turn) for turn in self._order))
            if (response := self._take(sub, self._target, makes=makes, breaks=breaks)) is not None:
                return response
        return None

    def _waits(self, row: Row, snapshot: Snapshot) -> bool:
        return next(self._holding_up(row, snapshot), None) is not None

    def _holding_up(self, row: Row, snapshot: Snapshot) -> Iterator[str]:
        subs = self._subscriptions
        yield from (url for url in row.after if url in subs and not subs[url].free)
        yield from (url for url in row.first if url in subs and subs[url].awaits(snapshot.of_type(url)))

    def _may_break(self, making: Row, turn: _Turn) -> bool:
        row, _, _, breaks = turn
        return (
            breaks
            and row.type_url == making.type_url
            and self._target is not None
            and not self._waits(row, self._target)
        )

    def _take(self, sub: Subscription, snapshot: Snapshot, *, makes: bool, breaks: bool) -> Response | None:
        target = snapshot.of_type(sub.kind.type_url)
        if makes and (only := sub.take_only_change(target)) is not None:
            return self._response(sub, target, only, snapshot.revision, first=any(map(sub.never_answered, only)))
        changes: Mapping[str, Resource | None] = {}
        answer = False
        asked = frozenset(sub.owed) if sub.owed else _NOTHING
        if makes and (sub.dirty or sub.owed or sub.answer or sub.suspects):
            changes = self._everything(sub, target) or self._made(sub, target)
            answer, sub.answer = sub.answer, False
        if breaks and sub.leaving:
            changes = {**changes, **self._broken(sub)}
        if not changes and not answer:
            if sub.settled:
                sub.since = None  # it changed and changed back: nothing to tell (P-05)
            return None
        first = not asked.isdisjoint(changes) or changes is target or any(map(sub.never_answered, changes))
        return self._response(sub, target, changes, snapshot.revision, first=first)

    def _everything(self, sub: Subscription, target: ResourceSet) -> ResourceSet | None:
        """Answer a client that holds nothing with all that it asks for, in one object for all clients alike.

        None where that does not fit: some of it is missing, too much for one response, or not for the first time.
        """
        if not sub.fresh:
            return None
        if sub.wildcard:
            whole = target if sub.owed <= target.keys() else None
        elif isinstance(sub.names, frozenset) and sub.owed == sub.names:
            whole = target.selected(sub.names)
        else:
            return None
        split = self._delta or not sub.kind.full
        if not whole or (split and whole.size_bytes + _FRAME_BYTES * len(whole) > self._max_response_bytes):
            return None
        sub.owed.clear()
        sub.dirty.clear()
        return whole

    def _made(self, sub: Subscription, target: ResourceSet) -> dict[str, Resource | None]:
        """Work out what the client is to be told of what exists, and of what it asks for in vain.

        Suspects go when there is nothing else to tell, and in turn with what is: a type that changes without end
        must not keep the good ones among them away.
        """
        if sub.passed_over and not sub.owed and (trial := self._next_suspects(sub, target)):
            sub.passed_over = False
            return trial
        changes: dict[str, Resource | None] = {}
        size = 0
        split = self._delta or not sub.kind.full
        vain = sorted(name for name in sub.owed if name not in target)
        later = set(vain[_MAX_IN_VAIN:]) if split else set()
        used = self._in_use(sub, set(vain[:_MAX_IN_VAIN] if split else vain))
        candidates = sorted((sub.dirty | sub.owed) - later) if sub.owed or len(sub.dirty) > 1 else sub.dirty
        for name in candidates:
            if not sub.wants(name):
                continue
            want, have, owed = target.get(name), sub.held.get(name), name in sub.owed
            if want is None and owed:
                size += 2 * len(name) + _FRAME_BYTES
                if split and changes and size > self._max_response_bytes:
                    later.add(name)
                else:
                    changes |= self._in_vain(sub, name, used=name in used)
                continue
            if want is None:
                if sub.has_content(name) and (name in sub.repeat or not sub.was_told_absence(name)):
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
            size += len(want.body) + len(name) + _FRAME_BYTES
            if split and changes and size > self._max_response_bytes:
                later.add(name)  # the rest goes after the ACK of this part (D-14, F-02)
                continue
            changes[name] = want
        sub.owed &= later
        sub.repeat &= later
        sub.dirty = later - sub.owed
        if not changes:
            return self._made(sub, target) if later else self._next_suspects(sub, target)
        sub.passed_over = bool(sub.suspects)
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
        known = used or (sub.kind.type_url, name) in self._recent
        if spelled and sub.kind.empty is not None and (known or not self._delta or sub.kind.empty_for_unknown):
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
            # What changed since, and was not told yet, may become again what it was.
            sub.repeat.update(name for name in batch if name not in same and sub.was_told(name, batch[name]))
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
                sub.held.drop(name)
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
            used |= self._target.of_type(parent).refs & keys
            if holder is not None:
                used |= holder.referred(keys)
        return {name for _, name in used}

    def _response(
        self,
        sub: Subscription,
        target: ResourceSet,
        changes: Mapping[str, Resource | None],
        revision: str,
        *,
        first: bool,
    ) -> Response:
        sub.supersede()
        version = target.version
        removed: tuple[str, ...] = ()
        kept: tuple[str, ...] = ()
        if type(changes) is ResourceSet:  # not isinstance: of a Mapping that is slow to tell
            resources = changes.ordered
            version = changes.version if sub.kind.full and not self._delta else version
        elif self._delta:
            resources = tuple(found for found in changes.values() if found is not None)
            removed = tuple(name for name, found in changes.items() if found is None)
        elif sub.kind.full:
            as_held = (sub.refused.keys() | sub.leaving | sub.dirty) - changes.keys()
            whole = self._whole(sub, target, as_held)
            resources, version = whole.ordered, whole.version
            kept = tuple(name for name in as_held if name in sub.doubt)
        else:
            resources = tuple(found for found in changes.values() if found is not None)
        if sub.kind.type_url in WITH_CHILDREN:
            self._owe_children(sub.kind.type_url, changes)
        self._sent += 1
        sub.nonce = str(self._sent)
        sub.pending = Pending(sub.nonce, version, revision, changes, kept, sub.since, first, released=sub.overdue)
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

        That is what it refused, and what cannot go yet.
        """
        whole = target if sub.wildcard else self._named(sub, target)
        if not as_held:
            return whole
        return whole.but({name: sub.held.get(name) for name in as_held})

    @staticmethod
    def _named(sub: Subscription, target: ResourceSet) -> ResourceSet:
        shared = target.selected(sub.names) if isinstance(sub.names, frozenset) else None
        if shared is not None:
            return shared
        return ResourceSet(target[name] for name in sub.names if name in target)

    def _owe_children(self, type_url: str, parents: Mapping[str, Resource | None]) -> None:
        """Owe the children of parents that are sent: they wait for them again, changed or not (law 8, O-01, V-02)."""
        for child_type, child in self._subscriptions.items():
            kind = child.kind
            if kind.resent_with_parents and type_url in kind.parents:
                refs = chain.from_iterable(parent.refs for parent in parents.values() if parent is not None)
                child.owed.update(name for url, name in refs if url == child_type and child.wants(name))
            elif kind.resent_below == type_url and child.names:
                below = tuple(f"{name}/" for name, parent in parents.items() if parent is not None)
                child.owed.update(name for name in child.names if name.startswith(below))
