"""Where a resource stands between server and client, and what a type waits for, read off a stream when somebody asks.

A view for people, CSDS and `/proxies`; it keeps nothing and decides nothing, so that acknowledgements cost nothing
for it. What happened when, and what a client said, is `xds.status`'s.
"""

from dataclasses import dataclass
from enum import Enum

from xds.order import KINDS
from xds.protocol import Stream
from xds.subscription import WILDCARD, Subscription
from xds.types import EMPTY, Resource, ResourceSet


class State(Enum):
    """Say how a resource, or a whole type, stands between server and client; the names are CSDS's (Q-02)."""

    NOT_SENT = "NOT_SENT"
    STALE = "STALE"
    SYNCED = "SYNCED"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Show one resource on one stream.

    `sent` is what the client was told last, which for ERROR is what it refused; `held` what it acknowledged last,
    and so what it goes on with. None stands for nothing, be it a removal. `version` is `sent`'s, and is known even
    where the content is not: a reconnecting client reports versions only.
    """

    name: str
    state: State
    version: str
    sent: Resource | None
    held: Resource | None


def names_in_play(sub: Subscription, target: ResourceSet) -> list[str]:
    """List by name what the client asks for by name, was told of, or is about to be told of."""
    waiting = (name for name in sub.dirty if name in target)
    return sorted({*sub.names, *sub.told(), *waiting} - {WILDCARD})


def standing(sub: Subscription, target: ResourceSet, name: str) -> Standing:
    """Work out where a resource stands (Q-02); `target` is what the client is to hold in the end."""
    held = sub.held.get(name)
    if (refusal := sub.refused.get(name)) is not None:
        version = refusal.get(name, "")
        # While it is refused the target still says so; the client may have been told its last good version since.
        candidates = (sub.doubt.get(name), target.get(name))
        sent = next((each for each in candidates if each is not None and each.version == version), None)
        return Standing(name=name, state=State.ERROR, version=version, sent=sent, held=held)
    told = sub.last_told(name)
    unanswered = name in sub.doubt or (sub.pending is not None and name in sub.pending.changes)
    if held is None and told is None:
        state = State.NOT_SENT
    elif unanswered or held is None or not sub.still(name, held.version, target):
        state = State.STALE
    else:
        state = State.SYNCED
    return Standing(name=name, state=state, version=told.version if told is not None else "", sent=told, held=held)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """Name what a resource refers to and the client does not have, which may be why it does not answer for it.

    `exists`: there is one to be had. `asked`: the client has asked for it.
    """

    of: str
    type_url: str
    name: str
    exists: bool
    asked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Say what a type waits for that is not in step; names in the order in which the client was told them.

    `unanswered` were sent and never answered for. `lacks` is what these refer to and the client has not. `behind` are
    the types whose answers come first. `kept` has gone, but the client may hold something that refers to it.
    """

    unanswered: tuple[str, ...]
    lacks: tuple[Lack, ...]
    behind: tuple[str, ...]
    kept: tuple[str, ...]


def waiting(stream: Stream, type_url: str) -> Waiting | None:
    """Work out what a type waits for; None where it is not asked for."""
    sub = stream.subscriptions.get(type_url)
    if sub is None:
        return None
    sent = {**sub.doubt, **(sub.pending.changes if sub.pending is not None else {})}
    unanswered = {name: told for name, told in sent.items() if name not in sub.refused}
    return Waiting(
        unanswered=tuple(unanswered),
        lacks=tuple(
            lack
            for told in unanswered.values()
            if told is not None
            for ref in sorted(told.refs)
            if ref[0] in KINDS
            and type_url in KINDS[ref[0]].parents
            and (lack := _lack(stream, told.name, *ref)) is not None
        ),
        behind=tuple(sorted(stream.held_up_by(type_url))),
        kept=tuple(sorted(sub.leaving)),
    )


def _lack(stream: Stream, of: str, type_url: str, name: str) -> Lack | None:
    child = stream.subscriptions.get(type_url)
    if child is not None and name in child.held:
        return None
    target = EMPTY if stream.target is None else stream.target.of_type(type_url)
    asked = child is not None and child.wants(name)
    return Lack(of=of, type_url=type_url, name=name, exists=name in target, asked=asked)
