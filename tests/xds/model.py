"""A model client that follows the protocol text, and a conversation between it and `Stream` over two pipes.

The client behaves like Envoy (wildcard clusters and listeners, the rest by what these refer to) or like gRPC
(everything by name, from the listener down). It may refuse resources whose version is in `poison`, forget what
it had and ask again, and reconnect. Everything that happens is written to a transcript.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from xds.protocol import DeltaRequest, Error, Event, Nacked, Request, Response, SotwRequest, Stream
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource, Snapshot

FULL = (CLUSTER, LISTENER)
TYPES = (CLUSTER, ENDPOINT, LISTENER, ROUTE)
SHORT = {CLUSTER: "CDS", ENDPOINT: "EDS", LISTENER: "LDS", ROUTE: "RDS"}


@dataclass
class TypeState:
    """Keep what the client knows of one type."""

    names: set[str] = field(default_factory=set)
    wildcard: bool = False
    held: dict[str, Resource] = field(default_factory=dict)
    nonce: str = ""
    version: str = ""
    asked: bool = False


class Client:
    """Hold configuration, answer responses. `poison`: versions that it refuses; `names_culprits`: in so many words."""

    def __init__(self, *, delta: bool, by_name: bool = False, names_culprits: bool = True) -> None:
        self.delta = delta
        self.by_name = by_name
        self.names_culprits = names_culprits
        self.poison: set[str] = set()
        self.types = {url: TypeState() for url in TYPES}
        self.warming: set[str] = set()
        self.refused: set[tuple[str, str]] = set()

    def connect(self) -> list[Request]:
        """Say what a client says first on a new stream."""
        self.warming = set()
        out: list[Request] = []
        for state in self.types.values():
            state.nonce = ""
            state.asked = False
        if self.by_name:
            self.types[LISTENER].names = {"l"}
            out += self._ask(LISTENER, {"l"})
        else:
            out += self._ask_all(CLUSTER)
        for url in (ENDPOINT, *(() if self.by_name else (LISTENER,)), ROUTE, *((CLUSTER,) if self.by_name else ())):
            if url == LISTENER:
                out += self._ask_all(LISTENER)
            elif self.types[url].names:
                out += self._ask(url, self.types[url].names, again=True)
        return out

    def apply(self, response: Response) -> list[Request]:
        """Take a response as the protocol says, and answer it."""
        url = response.type_url
        state = self.types[url]
        state.nonce = response.nonce
        bad = sorted(one.name for one in response.resources if one.version in self.poison)
        good = {one.name: one for one in response.resources if one.version not in self.poison}
        if bad and url not in FULL:
            good = {}  # refused as a whole; clusters and listeners are taken one by one
        before = dict(state.held)
        self.refused |= {(url, name) for name in bad}
        self.refused -= {(url, name) for name in good}
        if not bad or url in FULL:
            for name in response.removed:
                state.held.pop(name, None)
        if not response.delta and url in FULL:
            kept = {name: held for name, held in state.held.items() if name in bad}
            state.held = kept | {name: one for name, one in good.items() if state.wildcard or name in state.names}
        else:
            state.held |= {name: one for name, one in good.items() if state.wildcard or name in state.names}
        if url == CLUSTER:
            changed = {n for n, one in state.held.items() if n not in before or before[n].version != one.version}
            self.warming = (self.warming | changed) & state.held.keys()
        if url == ENDPOINT:
            self.warming -= good.keys()
        said = (
            f"Error adding/updating cluster(s) {': no, '.join(bad)}: no"
            if self.names_culprits
            else "something is wrong"
        )
        out = [self._answer(response, Error(13, said) if bad else None)]
        return out + self._follow(url)

    def forget(self, url: str, name: str) -> list[Request]:
        """Lose a resource, and ask for it again: SotW by leaving the name out once, Delta by subscribing again."""
        state = self.types[url]
        if name not in state.names:
            return []
        state.held.pop(name, None)
        if self.delta:
            return [DeltaRequest(type_url=url, subscribe=(name,))]
        names = set(state.names)
        return [self._sotw(url, names - {name}), self._sotw(url, names)]

    def _follow(self, url: str) -> list[Request]:
        """Ask for what the held resources refer to."""
        out: list[Request] = []
        for child in {CLUSTER: (ENDPOINT,), LISTENER: (ROUTE,), ROUTE: (CLUSTER,) if self.by_name else ()}.get(url, ()):
            wanted = {name for held in self.types[url].held.values() for kind, name in held.refs if kind == child}
            if wanted != self.types[child].names:
                out += self._ask(child, wanted)
        return out

    def _ask_all(self, url: str) -> list[Request]:
        state = self.types[url]
        state.wildcard = state.asked = True
        if self.delta:
            return [DeltaRequest(type_url=url, initial_versions={n: one.version for n, one in state.held.items()})]
        return [SotwRequest(type_url=url, version=state.version)]

    def _ask(self, url: str, wanted: Iterable[str], *, again: bool = False) -> list[Request]:
        state = self.types[url]
        new, old = set(wanted), set() if again else set(state.names)
        state.names = new
        for gone in state.held.keys() - new:
            del state.held[gone]
        if not self.delta:
            state.asked = True
            return [self._sotw(url, new)]
        first, state.asked = not state.asked, True
        known = {name: one.version for name, one in state.held.items()} if first else {}
        subscribe = tuple(sorted(new if first else new - old))
        if first and not subscribe:
            state.asked = False
            return []
        return [
            DeltaRequest(
                type_url=url, subscribe=subscribe, unsubscribe=tuple(sorted(old - new)), initial_versions=known
            )
        ]

    def _sotw(self, url: str, names: Iterable[str], error: Error | None = None) -> SotwRequest:
        state = self.types[url]
        return SotwRequest(type_url=url, names=frozenset(names), version=state.version, nonce=state.nonce, error=error)

    def _answer(self, response: Response, error: Error | None) -> Request:
        state = self.types[response.type_url]
        if self.delta:
            return DeltaRequest(type_url=response.type_url, nonce=response.nonce, error=error)
        if error is None:
            state.version = response.version
        return self._sotw(response.type_url, state.names, error)


class Conversation:
    """Carry messages between a client and a `Stream`, one at a time, in any order of the two directions.

    Beside the stream runs a twin which is offered every snapshot without the change set: the naive diff is the
    oracle of the clever one, and both must say the same.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.transcript: list[str] = []
        self.target: Snapshot | None = None
        self.responses = 0
        self.nacks = 0
        self.impatient = False
        self.connect()

    def connect(self) -> None:
        self.log("= connect")
        self.stream = Stream(delta=self.client.delta)
        self.twin = Stream(delta=self.client.delta)
        self.up: deque[Request] = deque()
        self.down: deque[Response] = deque()
        self.send(self.client.connect())
        if self.target is not None:
            self.stream.offer(self.target)
            self.twin.offer(self.target)

    def log(self, line: str) -> None:
        self.transcript.append(line)

    def send(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.log(f"> {_request(request)}")
            self.up.append(request)

    def offer(self, snapshot: Snapshot, changed: dict[str, frozenset[str]]) -> None:
        self.log(f"= offer {_snapshot(snapshot)}")
        self.target = snapshot
        self.stream.offer(snapshot, changed)
        self.twin.offer(snapshot)

    def to_server(self) -> None:
        request = self.up.popleft()
        events: list[Event] = self.stream.receive(request)
        self.nacks += sum(isinstance(event, Nacked) for event in events)
        self.twin.receive(request)

    def give_up(self, url: str) -> None:
        """Stop waiting for the answer of a type, as the driver does after a while."""
        self.log(f"= stop waiting for {SHORT[url]}")
        self.impatient = True
        self.stream.stop_waiting(url)
        self.twin.stop_waiting(url)

    def flush(self) -> None:
        sent = list(self.stream.responses())
        again = list(self.twin.responses())
        self.responses += len(sent)
        for response in sent:
            self.log(f"< {_response(response)}")

        assert sent == again, f"{[*map(_response, sent)]}, the naive diff says {[*map(_response, again)]}"
        self.down.extend(sent)
        waiting = [each.type_url for each in self.down]

        assert self.impatient or len(waiting) == len(set(waiting)), "more than one unanswered response of a type"

    def to_client(self) -> None:
        self.send(self.client.apply(self.down.popleft()))

    def settle(self, most: int) -> int:
        """Run until nobody has anything to say; return the number of responses that took."""
        before = self.responses
        self.flush()
        while self.up or self.down:
            if self.up:
                self.to_server()
            else:
                self.to_client()
            self.flush()

            assert self.responses - before <= most, f"more than {most} responses and no end"
        return self.responses - before


def _request(request: Request) -> str:
    words = [SHORT[request.type_url]]
    if isinstance(request, SotwRequest):
        words.append(f"[{' '.join(sorted(request.names))}] v={request.version[-4:]}")
    else:
        words += [f"+{name}" for name in request.subscribe] + [f"-{name}" for name in request.unsubscribe]
        words += [f"{name}@{version[:4]}" for name, version in request.initial_versions.items()]
    words.append(f"n={request.nonce}")
    return " ".join(words) + (f" error={request.error.message!r}" if request.error is not None else "")


def _response(response: Response) -> str:
    names = " ".join(f"{one.name}@{one.version[:4]}" for one in response.resources)
    removed = "".join(f" -{name}" for name in response.removed)
    return f"{SHORT[response.type_url]} [{names}]{removed} v={response.version[-4:]} n={response.nonce}"


def _snapshot(snapshot: Snapshot) -> str:
    parts = (
        f"{SHORT[url]}[{' '.join(f'{one.name}@{one.version[:4]}' for one in found.ordered)}]"
        for url, found in snapshot.by_type.items()
    )
    return " ".join(parts)
