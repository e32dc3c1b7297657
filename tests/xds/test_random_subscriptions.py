"""Random conversations about one type: names and wildcards come and go, and so do groups, refusals and connections.

`test_random_walks` follows references between types like a real client. Here the client asks for whatever it
likes, and its node is moved between groups whose snapshots have little in common. A failing seed prints its transcript.
"""

import random
from collections import deque
from collections.abc import Mapping

import pytest

from xds.cache import changes_between
from xds.order import ABSENT
from xds.protocol import DeltaRequest, Error, Request, Response, SotwRequest, Stream
from xds.subscription import WILDCARD
from xds.types import CLUSTER, ENDPOINT, ROUTE, SCOPED_ROUTE, VIRTUAL_HOST, Resource, ResourceSet, Snapshot

pytestmark = pytest.mark.unit

SEEDS = 40
NAMES = "abcde"
FULL = (CLUSTER, SCOPED_ROUTE)
POISON = b"bad"


class Client:
    """Ask for names of a type, and take what is told of them, but refuse what is `POISON`."""

    def __init__(self, url: str, *, delta: bool, names_culprits: bool) -> None:
        self._url, self._delta, self._names_culprits = url, delta, names_culprits
        self.names: set[str] = set()
        self.wildcard = False
        self.held: dict[str, Resource] = {}
        self._nonce = self._version = ""

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.names

    def connect(self, rng: random.Random) -> Request:
        self._nonce = ""
        asked = [*sorted(self.names), *([WILDCARD] if self.wildcard else [])]
        if not self._delta:
            return self._sotw()
        known = {name: one.version for name, one in self.held.items() if not one.unset}
        if known and rng.random() < 0.3:
            known[rng.choice(sorted(known))] = "of another server"
        return DeltaRequest(type_url=self._url, subscribe=asked, initial_versions=known)

    def ask(self, rng: random.Random) -> Request:
        """Change the subscription in some way."""
        add = {name for name in NAMES if rng.random() < 0.25}
        drop = {name for name in NAMES if rng.random() < 0.25}
        wildcard = self.wildcard
        if self._url in FULL and rng.random() < 0.3:
            (add if rng.random() < 0.6 else drop).add(WILDCARD)
        if self._delta and rng.random() < 0.1:
            drop |= add & self.names
        wildcard = (wildcard and WILDCARD not in drop) or WILDCARD in add
        lost = self.wildcard and WILDCARD in drop
        self.names = (self.names - drop | add) - {WILDCARD}
        for name in list(self.held):
            if (lost and name not in self.names) or not (wildcard or name in self.names):
                del self.held[name]
        self.wildcard = wildcard
        if self._delta:
            return DeltaRequest(type_url=self._url, subscribe=sorted(add), unsubscribe=sorted(drop))
        return self._sotw()

    def apply(self, response: Response) -> Request:
        self._nonce = response.nonce
        bad = sorted(one.name for one in response.resources if POISON in one.body)
        good = {one.name: one for one in response.resources if one.name not in bad and self.wants(one.name)}
        if not bad or self._url in FULL:
            if self._url in FULL and not self._delta:
                self.held = {name: self.held[name] for name in bad if name in self.held}
            self.held |= good
            for name in response.removed:
                self.held.pop(name, None)
        error = None
        if bad:
            said = f"Error adding/updating cluster(s) {bad[0]}: no" if self._names_culprits else "something is wrong"
            error = Error(13, said)
        if self._delta:
            return DeltaRequest(type_url=self._url, nonce=response.nonce, error=error)
        self._version = self._version if bad else response.version
        return self._sotw(error)

    def _sotw(self, error: Error | None = None) -> SotwRequest:
        asked = self.names | ({WILDCARD} if self.wildcard else set())
        return SotwRequest(
            type_url=self._url, names=frozenset(asked), version=self._version, nonce=self._nonce, error=error
        )


class Conversation:
    """Carry messages both ways between a client, a stream, and its twin that is offered every snapshot as a whole."""

    def __init__(self, client: Client, groups: list[Snapshot], url: str, *, delta: bool, by_name_only: bool) -> None:
        self.client, self.groups, self._url = client, groups, url
        self._delta, self._by_name_only = delta, by_name_only
        self.group = 0
        self.transcript: list[str] = []
        self.responses = 0

    def connect(self, rng: random.Random) -> None:
        self.transcript.append("= connect")
        self.stream, self._twin = Stream(delta=self._delta), Stream(delta=self._delta)
        self.stream.by_name_only = self._twin.by_name_only = self._by_name_only
        self.up: deque[Request] = deque()
        self.down: deque[Response] = deque()
        self.offer(None)
        self.send(self.client.connect(rng))

    def send(self, request: Request) -> None:
        self.transcript.append(f"> {request}")
        self.up.append(request)

    def offer(self, changes: Mapping[str, frozenset[str]] | None) -> None:
        snapshot = self.groups[self.group]
        told = ", ".join(f"{one.name}={one.body.decode()}" for one in snapshot.of_type(self._url).ordered)
        self.transcript.append(f"= offer group {self.group}: {told}")
        self.stream.offer(snapshot, changes)
        self._twin.offer(snapshot)

    def publish(self, group: int, resources: ResourceSet) -> None:
        old, self.groups[group] = self.groups[group], Snapshot({self._url: resources})
        if group == self.group:
            self.offer(dict(changes_between(old, self.groups[group])))

    def step(self, rng: random.Random) -> None:
        """Carry a message one way or the other, or let the server speak."""
        match rng.randrange(3):
            case 0 if self.up:
                request = self.up.popleft()
                self.stream.receive(request)
                self._twin.receive(request)
            case 1 if self.down:
                self.send(self.client.apply(self.down.popleft()))
            case _:
                said, again = list(self.stream.responses()), list(self._twin.responses())
                self.transcript += [f"< {one}" for one in said]
                self.responses += len(said)
                self.down.extend(said)

                assert said == again, f"the naive diff says {again}"
                if self._by_name_only:
                    named = self.stream.subscriptions[self._url].names if said else ()
                    assert all(one.name in named for each in said for one in each.resources)

    def settle(self, rng: random.Random) -> None:
        """Run until nobody has anything to say."""
        before, quiet = self.responses, 0
        while quiet < 20:
            self.step(rng)
            quiet = 0 if self.up or self.down else quiet + 1

            assert self.responses - before < 60, "there is no end"


def resources(rng: random.Random, url: str, poison: bool) -> ResourceSet:
    def body() -> bytes:
        return POISON + str(rng.random()).encode() if poison and rng.random() < 0.2 else f"v{rng.randrange(3)}".encode()

    return ResourceSet(Resource.of(name, name.encode() + body()) for name in NAMES if rng.random() < 0.6)


def check(talk: Conversation, url: str, *, delta: bool, poison: bool, by_name_only: bool) -> None:
    client, target = talk.client, talk.groups[talk.group].of_type(url)
    sub = talk.stream.subscriptions[url]
    for name in NAMES:
        if not (name in client.names if by_name_only else client.wants(name)):
            continue
        want, have = target.get(name), client.held.get(name)
        if (want is not None and POISON in want.body) or (poison and not delta):
            continue  # a SotW client that does not say whose the error is goes on with all that it had (law 6)
        if want is not None:
            assert have is not None
            assert have.version == want.version
            assert poison or sub.held.get(name) == want
        elif delta or url != ROUTE:  # absence tells a SotW client of routes nothing (G-04)
            assert have is None or have.version == ABSENT, f"{name} is gone, and the client has {have}"
    assert not sub.pending
    assert not sub.owed
    assert not sub.dirty
    assert not sub.suspects


def walk(seed: int, url: str, *, delta: bool, poison: bool, by_name_only: bool) -> None:
    rng = random.Random(seed)
    groups = [Snapshot({url: resources(rng, url, poison)}) for _ in range(2)]
    client = Client(url, delta=delta, names_culprits=rng.random() < 0.5)
    client.ask(rng)
    if not client.names and not client.wildcard:
        client.names = {"a"}
    talk = Conversation(client, groups, url, delta=delta, by_name_only=by_name_only)
    try:
        talk.connect(rng)
        for _ in range(rng.randint(20, 120)):
            match rng.randrange(16):
                case 0:
                    talk.send(client.ask(rng))
                case 1:
                    talk.publish(rng.randrange(2), resources(rng, url, poison))
                case 2:
                    group = rng.randrange(2)
                    old = talk.groups[group].of_type(url)
                    name = rng.choice(NAMES)
                    new = (
                        old.replacing(removed=[name])
                        if rng.random() < 0.4
                        else old.replacing([Resource.of(name, f"{name}v{rng.randrange(9)}".encode())])
                    )
                    talk.publish(group, new)
                case 3:
                    talk.group = 1 - talk.group
                    talk.offer(None)
                case 4 if rng.random() < 0.1:
                    talk.connect(rng)
                case _:
                    talk.step(rng)
        talk.settle(rng)
        check(talk, url, delta=delta, poison=poison, by_name_only=by_name_only)
    except AssertionError as error:
        raise AssertionError("\n".join((f"seed {seed}: {error}", *talk.transcript[-60:]))) from error


@pytest.mark.parametrize(
    "url", [CLUSTER, SCOPED_ROUTE, ENDPOINT, VIRTUAL_HOST, ROUTE], ids=lambda u: u.rpartition(".")[2]
)
@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
@pytest.mark.parametrize("poison", [False, True], ids=["content", "refusing"])
@pytest.mark.parametrize("by_name_only", [False, True], ids=["all", "by name only"])
def test_stream_and_client_agree_in_the_end(url: str, delta: bool, poison: bool, by_name_only: bool) -> None:
    for seed in range(SEEDS):
        walk(seed, url, delta=delta, poison=poison, by_name_only=by_name_only)
