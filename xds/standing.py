"""Where one resource stands between server and client, read off a stream's subscription when somebody asks.

A view for people, CSDS and `/proxies`; it keeps nothing and decides nothing, so that acknowledgements cost nothing
for it. What happened when, and what a client said, is `xds.status`'s.
"""

from dataclasses import dataclass
from enum import Enum

from xds.subscription import WILDCARD, Subscription
from xds.types import Resource, ResourceSet


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
