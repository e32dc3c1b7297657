"""One type of one stream: what the client asks for, what it holds, what it refused, what it is owed.

State and the rules that change it; what is sent when is `xds.protocol`'s. SotW and Delta differ in how a request
edits the names, and in how a refusal is followed up.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import chain

from xds.held import Held
from xds.order import ABSENT, Kind
from xds.types import Resource, ResourceSet

WILDCARD = "*"
_LISTED = re.compile(r"Error adding/updating (?:cluster|listener)\(s\) |resource index \d+: ")
_QUOTED = re.compile(r'^(?:cluster_)?name: "([^"]*)"', re.MULTILINE)  # indented is a name of something else
_SEARCHED = 2048  # characters of an error; clients say whose it is at the beginning, and may go on for megabytes


@dataclass(slots=True)
class Pending:
    """Remember the unanswered response of a type, as the change it makes to what the client holds.

    `kept` are the names in doubt that it tells at the version which the client acknowledged before. `first` says
    whether it tells the client what it waits for: something that it asked for, or was never told before.
    """

    nonce: str
    version: str
    revision: str
    changes: Mapping[str, Resource | None]
    kept: tuple[str, ...]
    offered_at: float | None
    first: bool
    released: bool = False


_MAX_LATE = 8  # responses that were given up, whose answer still counts
_Versions = dict[str, str]  # name -> version; "" stands for the removal


class Subscription:
    """Keep what one client asks for, holds and refused of one type. Bounded by the names in play."""

    __slots__ = (
        "_by_name_only",
        "answer",
        "dirty",
        "doubt",
        "foreign",
        "held",
        "kind",
        "late",
        "leaving",
        "legacy",
        "names",
        "nonce",
        "overdue",
        "owed",
        "passed_over",
        "pending",
        "refused",
        "repeat",
        "requested",
        "since",
        "suspects",
        "wildcard",
    )

    def __init__(self, kind: Kind, *, by_name_only: bool = False) -> None:
        self.kind = kind
        self._by_name_only = by_name_only  # a wildcard is answered, but means nothing
        self.names: AbstractSet[str] = frozenset()  # explicit names; a frozen set is shared with other clients
        self.wildcard = False
        self.legacy = kind.full  # an empty list still means everything
        self.requested: frozenset[str] | None = None  # SotW: the last list, as it came
        self.held = Held(self.wants)  # acknowledged
        self.foreign: set[str] = set()  # held, but only the version is known: reported by a reconnecting client
        self.doubt: dict[str, Resource | None] = {}  # sent and not acknowledged: possibly applied
        self.dirty: set[str] = set()  # may differ from the target
        self.owed: set[str] = set()  # to be answered even if unchanged
        self.repeat: set[str] = set()  # of the dirty: to be sent even if the same was sent before
        self.answer = False  # a response is owed, be it empty
        self.leaving: set[str] = set()  # held, gone from the target, not yet removed
        self.refused: dict[str, _Versions] = {}  # name -> the refused set that it is part of
        self.suspects: list[_Versions] = []  # Delta: parts of refused batches that are still to be tried
        self.passed_over = False  # the last response told changes although there were suspects
        self.pending: Pending | None = None
        self.late: dict[str, Pending] = {}  # by nonce: given up, and not answered since
        self.overdue = False  # the client has let an answer wait for too long, and given none since
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
    def owes(self) -> bool:
        """Say whether anything waits to be sent."""
        return bool(self.dirty or self.owed or self.answer or self.suspects or self.leaving)

    @property
    def settled(self) -> bool:
        """Say whether nothing is unanswered, owed or waiting to go."""
        return self.pending is None and not self.owes

    def awaits(self, target: ResourceSet) -> bool:
        """Say whether the client still waits for the first answer about a name.

        It does for what is owed, and for what it holds nothing of; a newer version of what it holds is none.
        """
        if self.free:
            return False
        if self.owed or (self.pending is not None and self.pending.first):
            return True
        tried = chain(self.dirty, *self.suspects)
        return any(name in target and self.never_answered(name) for name in tried)

    def never_answered(self, name: str) -> bool:
        """Say whether the client has never answered for content of a name, neither way."""
        have = self.held.get(name)
        return name not in self.doubt and (have is None or self.is_absence(have.version))

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
        everything = (self.kind.full and WILDCARD in names) or self.legacy
        wildcard = everything and not self._by_name_only
        added = names - before if before else names  # the very list, which equal clients share
        dropped = before - names if before else frozenset()
        lost_wildcard = self.wildcard and not wildcard
        newly = everything and not self.wildcard and (before is None or wildcard)
        self.answer |= self.kind.full and (bool(added) or newly)
        if wildcard:
            self._hold_only_named()
        elif lost_wildcard:
            self._forget([name for name in self._known() if name not in names])
        else:
            self._forget(dropped)
        fresh = () if self.wildcard or wildcard else added
        self.wildcard = wildcard
        self.names = names - {WILDCARD} if everything and WILDCARD in names else names
        self._owe(added if WILDCARD not in added else added & self.names, fresh)
        return added, dropped

    def edit(self, subscribe: Collection[str], unsubscribe: Collection[str], *, first: bool) -> None:
        """Apply a Delta edit: removals first, so that a name in both lists ends up subscribed and sent (D-10)."""
        takes_all = self.kind.full and WILDCARD in subscribe and not self._by_name_only
        for name in unsubscribe:
            if name == WILDCARD and self.wildcard:
                self._forget([known for known in self._known() if known not in self.names])
                self.wildcard = False
            elif name in self.names:
                self._own_names().discard(name)
                if self.wildcard or takes_all:
                    self.owed.add(name)  # the client cannot know what the wildcard says of it (D-09)
                else:
                    self._forget((name,))
        if first and self.kind.full and not subscribe:
            self.answer = True  # the legacy way to ask for everything (D-01, D-13)
            self.wildcard = not self._by_name_only
        if not subscribe:
            return
        if self.kind.full and WILDCARD in subscribe:
            self._hold_only_named()
            self.answer = True
            self.wildcard = takes_all
            subscribe = [name for name in subscribe if name != WILDCARD]
        # Whatever it holds by our account, it asks: it may have forgotten (D-06, R-04).
        if not self.names and isinstance(subscribe, frozenset):
            self._owe(subscribe, subscribe)
            self.names = subscribe
        else:
            own = self._own_names()
            self._owe(subscribe, () if self.wildcard else [name for name in subscribe if name not in own])
            own.update(subscribe)

    def _own_names(self) -> set[str]:
        """Return the names as a set of this client's own, to be edited."""
        if not isinstance(self.names, set):
            self.names = set(self.names)
        return self.names

    def _hold_only_named(self) -> None:
        """Forget what the wildcard's return would bring back to mind: the client has been told nothing of it."""
        if not self.wildcard:
            self.held.narrow()

    def note(self, changed: AbstractSet[str], target: ResourceSet, at: float | None) -> bool:
        """Take note of names that changed in the target; say whether any concerns this client."""
        fresh = changed if self.wildcard else changed & self.names
        if not fresh:
            self.settle(target)
            return False
        if self.refused:
            self.retry(fresh & self.refused.keys(), target)
        if self.since is None:
            self.since = at
        self.dirty |= fresh
        if len(self.dirty) > 64 + 2 * (len(target) + self.held.at_most):
            self.dirty = {name for name in self.dirty if name in target or self.may_hold(name)}
        return True

    def settle(self, target: ResourceSet) -> None:
        """Let go of what this client holds by itself, where it holds what the target says."""
        if self.settled and not (self.doubt or self.refused or self.foreign):
            self.held.rebase(target)

    @property
    def fresh(self) -> bool:
        """Say whether the client was never told anything that counts still: a full answer suits it."""
        return self.held.untouched and not (
            self.pending or self.doubt or self.refused or self.suspects or self.leaving or self.foreign or self.repeat
        )

    def take_only_change(self, target: ResourceSet) -> dict[str, Resource | None] | None:
        """Take the one change that there is, as mostly there is one; None where anything else is to be weighed."""
        if len(self.dirty) != 1 or self.pending is not None or self.owed or self.answer or self.leaving:
            return None
        if self.doubt or self.refused or self.suspects or self.foreign or self.repeat:
            return None
        (name,) = self.dirty
        want, have = target.get(name), self.held.get(name)
        if want is None or not self.wants(name) or (have is not None and have.version == want.version):
            return None
        self.dirty.clear()
        return {name: want}

    def may_hold(self, name: str) -> bool:
        """Say whether the client holds a name, as far as anyone can know."""
        return name in self.held or self.doubt.get(name) is not None

    def has_content(self, name: str) -> bool:
        """Say whether the client may hold more of a name than the empty resource that stands for a missing one."""
        candidates = (self.held.get(name), self.doubt.get(name), self.last_told(name))
        return any(each is not None and not self.is_absence(each.version) for each in candidates)

    def last_told(self, name: str) -> Resource | None:
        """Return what the client was last told of a name, whatever it made of it."""
        if self.pending is not None:
            if name in self.pending.changes:
                return self.pending.changes[name]
            if name in self.pending.kept:
                return self.held.get(name)
        return self.doubt[name] if name in self.doubt else self.held.get(name)

    def was_told(self, name: str, version: str) -> bool:
        """Say whether a version is what the client was told last of a name."""
        return self.wants(name) and _version(self.last_told(name)) == version

    def was_told_absence(self, name: str) -> bool:
        """Say whether the client was told last that a name does not exist."""
        told = self.last_told(name)
        return told is None or self.is_absence(told.version)

    def is_absence(self, version: str) -> bool:
        """Say whether a version tells that the resource does not exist."""
        return not version or (self.kind.empty is not None and version == ABSENT)

    def still(self, name: str, version: str, target: ResourceSet) -> bool:
        """Say whether a version is what the target has to say of a name."""
        found = target.get(name)
        return found.version == version if found is not None else self.is_absence(version)

    def referred(self, among: AbstractSet[tuple[str, str]]) -> set[tuple[str, str]]:
        """Return what the resources refer to that the client may be using now."""
        sent = self.pending.changes if self.pending is not None else {}
        if type(sent) is ResourceSet and among.isdisjoint(sent.refs):
            sent = {}
        possible = (each for each in chain(self.doubt.values(), sent.values()) if each is not None)
        return self.held.referred(among).union(*(each.refs & among for each in possible))

    def told(self) -> set[str]:
        """List the names that the client was told anything about."""
        sent = self.pending.changes if self.pending is not None else {}
        return {*self.held, *self.doubt, *self.refused, *sent}

    def acknowledge(self, pending: Pending) -> None:
        """Believe a response: the only place where the client's state advances (law: only an ACK is believed)."""
        self.held.take(pending.changes)
        if self.suspects:
            self._clear(pending.changes.keys())
        if self.doubt or self.foreign:
            for name in pending.changes:
                self.doubt.pop(name, None)
                self.foreign.discard(name)
            for name in pending.kept:
                self.doubt.pop(name, None)

    def reject(self, pending: Pending, named: AbstractSet[str], *, split: bool) -> None:
        """Remember a refusal so that it is never repeated unchanged, and go on with what is not suspect (law 6).

        Where absence does not delete (`split`): halve the batch until the bad resource stands alone; a client that
        refuses for ever sees at most 2k - 1 responses for k resources. `named` only orders the halves. Else
        quarantine what the client `named`, or all as one set which is offered again when any of it changes; the
        rest goes in a corrective response. What is left out of that is deleted, so no guess may be among `named`.
        """
        changes = {name: resource for name, resource in pending.changes.items() if self.wants(name)}
        self.doubt.update(changes)
        suspects = named or changes.keys()
        batch = {name: _version(resource) for name, resource in changes.items()}
        if split and len(batch) > 1:
            self._clear(batch.keys())
            self.suspects += _halves(batch, named)
            return
        refusal = {name: version for name, version in batch.items() if name in suspects}
        for name, version in refusal.items():
            self.refused.setdefault(name, {name: version} if named else refusal)
        self._again(batch.keys() - self.refused.keys())

    def _clear(self, names: Collection[str]) -> None:
        """Suspect names no more for what an earlier refusal held of them; the others of that refusal stay suspects."""
        gone = frozenset(names)
        left = ({name: version for name, version in part.items() if name not in gone} for part in self.suspects)
        self.suspects = [part for part in left if part]

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
            told = {**{name: self.held.get(name) for name in self.pending.kept}, **self.pending.changes}
            self.doubt.update({name: resource for name, resource in told.items() if self.wants(name)})
            self.late[self.pending.nonce] = self.pending
            if len(self.late) > _MAX_LATE:
                del self.late[next(iter(self.late))]
            self.pending = None

    def answered(self, nonce: str) -> Pending | None:
        """Take off the response that a client answers; None where it is one that nothing depends on any more.

        One that was given up comes back as what is left of it: the names that the client was not told anew.
        """
        if self.pending is not None and self.pending.nonce == nonce:
            self.overdue = False
            answered, self.pending = self.pending, None
            return answered
        if (late := self.late.pop(nonce, None)) is None:
            return None
        self.overdue = False
        anew = self.pending.changes if self.pending is not None else {}
        left = {
            name: told
            for name, told in late.changes.items()
            if name not in anew and name in self.doubt and self.doubt[name] is told
        }
        return replace(late, changes=left, kept=()) if left else None

    def _again(self, names: Iterable[str]) -> None:
        """Have names sent again that were sent before: what is in doubt is not sent twice by itself."""
        self.dirty.update(names)
        self.repeat.update(names)

    def _known(self) -> AbstractSet[str]:
        return self.held.keys() | self.doubt.keys() | self.dirty | self.owed | self.refused.keys()

    def _owe(self, names: Collection[str], fresh: Collection[str]) -> None:
        """Owe an answer about names; of the `fresh` ones the client has asked for nothing before."""
        self.owed.update(names)
        if self.refused:
            for name in names:
                self.refused.pop(name, None)
        if not self.held.untouched:
            for name in fresh:
                self.held.drop(name)

    def _forget(self, names: Collection[str]) -> None:
        if not names:
            return
        for name in names:
            self.held.forget(name)
        if self.suspects:
            self._clear(names)
        for gone in (self.doubt, self.refused):
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


def culprit_in(message: str, names: Collection[str]) -> str | None:
    """Find the name that an error message gives to what was refused, in one of the places made for it.

    Envoy lists it (`Error adding/updating cluster(s) web: …`) or quotes the whole resource, whose name then stands
    at the beginning of a line; gRPC counts (`resource index 0: web: …`). Only the first is told: what else is bad
    comes with the next refusal, while a list cannot be told from the words of an error.
    """
    message = message[:_SEARCHED]
    for listed in _LISTED.finditer(message):
        name, ends, _ = message[listed.end() :].partition(": ")
        if ends and name and name in names:
            return name
    return next((name for name in _QUOTED.findall(message) if name in names), None)


def named_in(message: str, names: Iterable[str]) -> set[str]:
    """Find the names that an error message contains, longest first, so that `web` is not found in `web-2`.

    A guess, for Envoy quotes what it refuses: a service that is called `type` or `ads` is in many messages.
    """
    found = set()
    message = message[:_SEARCHED]
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
