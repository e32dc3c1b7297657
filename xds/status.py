"""What every connected proxy asks for, was sent, holds and refused: the per-proxy picture behind `/proxies`, CSDS
and the CLI.

Fed by the server's events, read by whoever wants to know. Not a log and not a history: one entry per type and
stream, gone with the stream, so its size is that of the fleet. It decides nothing.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from types import MappingProxyType

from xds.history import Changes, Refusal, Refused, safe_words
from xds.protocol import Acked, Closed, Event, Ignored, Nacked, Outdated, Regrouped, Sent, Subscribed
from xds.standing import Standing, State, Waiting
from xds.types import Node, Resource

__all__ = [
    "ProxyStatus",
    "Refusal",
    "ResourceStatus",
    "State",
    "Status",
    "StreamInfo",
    "StreamStatus",
    "Tally",
    "TypeStatus",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """Identify a stream towards whoever listens: who, how, and views of what the client holds and is still owed."""

    id: int
    node: Node
    group: Hashable
    peer: str
    delta: bool
    type_url: str  # empty for ADS
    held: Callable[[str], Mapping[str, Resource]] = field(repr=False, compare=False)
    settled: Callable[[str], bool] = field(repr=False, compare=False)
    names: Callable[[str], list[str]] = field(repr=False, compare=False, default=lambda _type: [])
    standing: Callable[[str, str], Standing | None] = field(
        repr=False, compare=False, default=lambda _type, _name: None
    )
    waiting: Callable[[str], Waiting | None] = field(repr=False, compare=False, default=lambda _type: None)


_WORST_FIRST = (State.ERROR, State.STALE, State.NOT_SENT, State.SYNCED)


def _badness(state: State) -> int:
    return -_WORST_FIRST.index(state)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceStatus:
    """Show one resource of a proxy. `updated_at` is when it was acknowledged, None where it never was.

    It is exact for what changed lately; what changed before the last 256 names of its type is given the time up to
    which those changes were acknowledged. `refusal` is what the client said of `standing.sent`, if the state is ERROR.
    """

    type_url: str
    standing: Standing
    updated_at: float | None
    refusal: Refusal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeStatus:
    """Show one type on one stream. Times are wall-clock seconds, None for what has not happened."""

    type_url: str
    state: State
    wildcard: bool
    names: int
    known: bool
    sent_version: str = ""
    sent_revision: str = ""
    sent_at: float | None = None
    acked_version: str = ""
    acked_revision: str = ""
    acked_at: float | None = None
    refused: tuple[str, ...] = ()
    last_nack: Refusal | None = None
    nacks: int = 0
    outdated: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStatus:
    """Show one stream of a proxy."""

    info: StreamInfo
    connected_at: float
    types: Mapping[str, TypeStatus]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyStatus:
    """Show one proxy: a node id, and all the streams that it has open (T-08)."""

    node: Node
    group: Hashable
    connected_at: float
    streams: tuple[StreamStatus, ...]

    @property
    def state(self) -> State:
        """Sum up: the worst state of any type."""
        states = {each.state for stream in self.streams for each in stream.types.values()}
        return next((state for state in _WORST_FIRST if state in states), State.NOT_SENT)

    @property
    def synced(self) -> bool:
        """Say whether the proxy has acknowledged everything that it asked for."""
        return self.state is State.SYNCED

    @property
    def types(self) -> Mapping[str, TypeStatus]:
        """Show each type once: as on the stream where it stands worst, of equal ones the newest.

        A gRPC client has a stream for each of its channels' targets, which have nothing else in common.
        """
        merged: dict[str, TypeStatus] = {}
        for stream in self.streams:
            for type_url, each in stream.types.items():
                known = merged.get(type_url)
                if known is None or _badness(each.state) >= _badness(known.state):
                    merged[type_url] = each
        return MappingProxyType(merged)

    def held(self, type_url: str) -> Mapping[str, Resource]:
        """Return what the proxy has acknowledged of a type, over all its streams."""
        found: dict[str, Resource] = {}
        for stream in self.streams:
            found |= stream.info.held(type_url)
        return MappingProxyType(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Count streams by type and state, and the resources that any client refuses now by type."""

    clients: Mapping[tuple[str, State], int]
    refused: Mapping[str, int]


@dataclass(slots=True)
class _Type:
    """Collect what happened to one type of one stream."""

    subscribed: Subscribed
    sent: Sent | None = None
    sent_at: float | None = None
    acked: Acked | None = None
    acked_at: float | None = None
    nack: Refusal | None = None
    nacks: int = 0
    outdated: int = 0
    unanswered: bool = False
    failed: bool = False
    splitting: bool = False
    changes: Changes = field(default_factory=Changes)
    refused: dict[str, Refused] = field(default_factory=dict)

    def resubscribe(self, event: Subscribed) -> None:
        """Take note of what is asked for now. What a client no longer asks for, it no longer refuses."""
        self.subscribed = event
        if event.wildcard:
            return
        # No acknowledgement will say so: what is not asked for is not sent either.
        if not event.names:
            self.refused, self.failed = {}, False
        elif dropped := self.refused.keys() & event.dropped:
            self.refused = {name: each for name, each in self.refused.items() if name not in dropped}
            self.failed = bool(self.refused)

    def state(self, info: StreamInfo) -> State:
        """Judge by events, and by where the stream stands now: it may have come to owe nothing without a word."""
        if self.failed and self._refuses_still(info):
            return State.ERROR
        settled = info.settled(self.subscribed.type_url)
        asked = bool(self.subscribed.wildcard or self.subscribed.names)
        if self.sent is None:
            return State.NOT_SENT if asked else State.SYNCED
        behind = self.unanswered or (asked and self.acked is None) or not settled
        return State.STALE if behind else State.SYNCED

    def _refuses_still(self, info: StreamInfo) -> bool:
        """Say whether anything refused is still what the client is to be told: its author may have taken it back."""
        if self.splitting or not self.refused:
            return True
        standings = (info.standing(self.subscribed.type_url, name) for name in self.refused)
        return any(each is None or each.state is State.ERROR for each in standings)


@dataclass(slots=True)
class _Stream:
    info: StreamInfo
    connected_at: float
    types: dict[str, _Type] = field(default_factory=dict)


class _Asking:
    """Look up where the resources of a type stand on one stream."""

    def __init__(self, info: StreamInfo, seen: _Type, type_url: str) -> None:
        self._info = info
        self._seen = seen
        self._type_url = type_url
        self._updated_at = seen.changes.at()

    def resource(self, name: str) -> ResourceStatus | None:
        standing = self._info.standing(self._type_url, name)
        if standing is None:
            return None
        refused = self._seen.refused.get(name) if standing.state is State.ERROR else None
        if standing.state is State.ERROR and refused is None:
            standing = replace(standing, state=State.STALE)
        return ResourceStatus(
            type_url=self._type_url,
            standing=standing,
            updated_at=self._updated_at(name) if standing.held is not None else None,
            refusal=refused.refusal if refused is not None else None,
        )


class Status:
    """Listen to a server and remember the present.

    Args:
        clock: seconds since the epoch, for what people read.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._streams: dict[int, _Stream] = {}
        self._by_node: dict[str, dict[int, _Stream]] = {}

    def on_event(self, info: StreamInfo, event: Event) -> None:
        """Take note of an event; pass this to the server."""
        stream = self._streams.get(info.id)
        if isinstance(event, Closed):
            self._drop(info)
            return
        if stream is None:
            stream = self._streams[info.id] = _Stream(info, self._clock())
            self._by_node.setdefault(info.node.id, {})[info.id] = stream
        if isinstance(event, Regrouped):
            stream.info = info
            return
        if isinstance(event, Subscribed):
            if (known := stream.types.get(event.type_url)) is not None:
                known.resubscribe(event)
            else:
                stream.types[event.type_url] = _Type(event)
            return
        if (seen := stream.types.get(event.type_url)) is not None:
            self._note(info, seen, event)

    def _note(self, info: StreamInfo, seen: _Type, event: Sent | Acked | Nacked | Ignored | Outdated) -> None:
        match event:
            case Sent():
                seen.sent, seen.sent_at, seen.unanswered = event, self._clock(), True
            case Acked():
                now = self._clock()
                seen.acked, seen.acked_at, seen.unanswered = event, now, False
                seen.failed, seen.splitting = event.splitting or bool(event.refused), event.splitting
                seen.changes.add(now, event.names)
                if seen.refused and event.splitting:  # what is not acknowledged is not cleared
                    seen.refused = {name: one for name, one in seen.refused.items() if name not in event.names}
                elif seen.refused:
                    seen.refused = {name: seen.refused[name] for name in event.refused if name in seen.refused}
            case Nacked():
                seen.unanswered, seen.failed, seen.nacks = False, True, seen.nacks + 1
                seen.splitting = event.splitting
                now = self._clock()
                seen.nack = Refusal(
                    code=event.code,
                    message=safe_words(event.type_url, event.message),
                    version=event.version,
                    names=event.names,
                    revision=event.revision,
                    at=now,
                    since=now,
                )
                seen.refused = _refused(info, seen, event, seen.nack)
            case Ignored():
                seen.unanswered = False
            case Outdated():
                seen.outdated += 1

    def _drop(self, info: StreamInfo) -> None:
        self._streams.pop(info.id, None)
        of_node = self._by_node.get(info.node.id, {})
        of_node.pop(info.id, None)
        if not of_node:
            self._by_node.pop(info.node.id, None)

    def proxies(self) -> tuple[ProxyStatus, ...]:
        """List the connected proxies by node id."""
        return tuple(self._proxy(self._by_node[node_id]) for node_id in sorted(self._by_node))

    def nodes(self) -> tuple[Node, ...]:
        """List the connected nodes by id, each as it told itself last."""
        return tuple(streams[max(streams)].info.node for _, streams in sorted(self._by_node.items()))

    def proxy(self, node_id: str) -> ProxyStatus | None:
        """Return a connected proxy, or None."""
        streams = self._by_node.get(node_id)
        return self._proxy(streams) if streams else None

    def waiting(self, node_id: str, type_url: str) -> Waiting | None:
        """Tell what a type waits for, on the stream that `ProxyStatus.types` shows; None where none has it."""
        having = self._having(node_id, type_url)
        if not having:
            return None
        shown = max(having, key=lambda stream: _badness(stream.types[type_url].state(stream.info)))
        return shown.info.waiting(type_url)

    def resources(self, node_id: str, type_url: str, *, after: str = "") -> Iterator[ResourceStatus]:
        """List what a proxy asks for, holds and refuses of a type, by name, each looked up when it is asked for.

        Begins behind the name `after`. A client that left a response unapplied without a word (S-06) did not refuse
        it: that is STALE. Of a name that several streams of a node ask for, the newest counts.
        """
        asking: dict[str, _Asking] = {}
        for stream in reversed(self._having(node_id, type_url)):
            each = _Asking(stream.info, stream.types[type_url], type_url)
            names = stream.info.names(type_url)
            asking = {**dict.fromkeys(names, each), **asking} if asking else dict.fromkeys(names, each)
        names = sorted(asking)
        for name in islice(names, bisect_right(names, after) if after else 0, None):
            found = asking[name].resource(name)
            if found is not None:  # else the stream ended meanwhile
                yield found

    def _having(self, node_id: str, type_url: str) -> list[_Stream]:
        """Return the streams of a node that have a type, the newest first."""
        streams = self._by_node.get(node_id, {})
        return [streams[key] for key in sorted(streams, reverse=True) if type_url in streams[key].types]

    def tally(self) -> Tally:
        """Count all streams. May be called from another thread: it copies what it walks over."""
        clients: Counter[tuple[str, State]] = Counter()
        refused: set[tuple[str, str]] = set()
        for stream in list(self._streams.values()):
            for type_url, seen in list(stream.types.items()):
                clients[type_url, seen.state(stream.info)] += 1
                if seen.failed:
                    refused.update((type_url, name) for name in list(seen.refused))
        return Tally(
            clients=MappingProxyType(clients), refused=MappingProxyType(Counter(type_url for type_url, _ in refused))
        )

    def __len__(self) -> int:
        return len(self._by_node)

    @staticmethod
    def _proxy(streams: Mapping[int, _Stream]) -> ProxyStatus:
        ordered = [streams[key] for key in sorted(streams)]
        newest = ordered[-1].info
        return ProxyStatus(
            node=newest.node,
            group=newest.group,
            connected_at=min(stream.connected_at for stream in ordered),
            streams=tuple(_stream_status(stream) for stream in ordered),
        )


def _refused(info: StreamInfo, seen: _Type, event: Nacked, refusal: Refusal) -> dict[str, Refused]:
    """Bring up to date what is refused of a type: one entry for each name that the client will not be sent again.

    While a batch is being split nobody knows which of it that is: all of it is kept until it is acknowledged.
    """

    def version(name: str) -> str:
        standing = info.standing(event.type_url, name)
        return standing.version if standing is not None else ""

    def still(name: str) -> bool:
        standing = info.standing(event.type_url, name)
        return event.splitting or (standing is not None and standing.state is State.ERROR)

    found = {name: before for name, before in seen.refused.items() if still(name)}
    for name in event.names:
        now, before = version(name), seen.refused.get(name)
        since = before.refusal.since if before is not None and before.version == now else refusal.at
        found[name] = Refused(now, refusal if since == refusal.at else replace(refusal, since=since))
    return found


def _stream_status(stream: _Stream) -> StreamStatus:
    types = {url: _type_status(each, stream.info) for url, each in sorted(stream.types.items())}
    return StreamStatus(info=stream.info, connected_at=stream.connected_at, types=MappingProxyType(types))


def _type_status(seen: _Type, info: StreamInfo) -> TypeStatus:
    return TypeStatus(
        type_url=seen.subscribed.type_url,
        state=seen.state(info),
        wildcard=seen.subscribed.wildcard,
        names=seen.subscribed.names,
        known=seen.subscribed.known,
        sent_version=seen.sent.version if seen.sent is not None else "",
        sent_revision=seen.sent.revision if seen.sent is not None else "",
        sent_at=seen.sent_at,
        acked_version=seen.acked.version if seen.acked is not None else "",
        acked_revision=seen.acked.revision if seen.acked is not None else "",
        acked_at=seen.acked_at,
        refused=seen.acked.refused if seen.acked is not None else (),
        last_nack=seen.nack,
        nacks=seen.nacks,
        outdated=seen.outdated,
    )
