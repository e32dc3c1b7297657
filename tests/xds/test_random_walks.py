"""Random conversations between `Stream` and a model client: they agree in the end, and nothing breaks on the way.

A failing seed prints its transcript.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.xds.model import FULL, TYPES, Client, Conversation
from xds.cache import changes_between
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource, ResourceSet, Snapshot

pytestmark = pytest.mark.unit

SEEDS = 60
NAMES = "abcdef"


class World:
    """Make random snapshots in which every reference resolves."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._edition = dict.fromkeys(NAMES, 0)
        self._endpoints = dict.fromkeys(NAMES, 0)
        self._present = {"a", "b"}
        self._routed = {"a"}
        self._listeners = {"l"}
        self._table = 0
        self.snapshot = self._build()

    def mutate(self) -> Snapshot:
        for _ in range(self._rng.randint(1, 4)):
            name = self._rng.choice(NAMES)
            match self._rng.randrange(7):
                case 0:
                    self._present.add(name)
                case 1:
                    self._present.discard(name)
                case 2:
                    self._edition[name] += 1
                case 3:
                    self._endpoints[name] += 1
                case 4:
                    self._routed ^= {name}
                case 5:
                    self._table += 1
                case _:
                    self._listeners ^= {self._rng.choice("mn")}
        if not self._present:
            self._present = {"a"}
        self.snapshot = self._build()
        return self.snapshot

    def renew(self) -> Snapshot:
        """Change everything, so that nothing of it was ever refused."""
        for name in NAMES:
            self._edition[name] += 1000
        self._table += 1000
        self.snapshot = self._build()
        return self.snapshot

    def _build(self) -> Snapshot:
        clusters = [
            Resource.of(name, f"{name}:{self._edition[name]}".encode(), refs=[(ENDPOINT, name)])
            for name in sorted(self._present)
        ]
        assignments = [
            Resource.of(one.name, f"{one.name}={self._endpoints[one.name]}".encode(), parent_version=one.version)
            for one in clusters
        ]
        routed = sorted(self._routed & self._present) or sorted(self._present)[:1]
        routes = [
            Resource.of(f"r-{one}", f"{one}{routed}{self._table}".encode(), refs=[(CLUSTER, name) for name in routed])
            for one in sorted(self._listeners)
        ]
        listeners = [
            Resource.of(one, f"{one}{self._table // 5}".encode(), refs=[(ROUTE, f"r-{one}")])
            for one in sorted(self._listeners)
        ]
        return Snapshot(
            {
                CLUSTER: ResourceSet(clusters),
                ENDPOINT: ResourceSet(assignments),
                LISTENER: ResourceSet(listeners),
                ROUTE: ResourceSet(routes),
            }
        )


@contextmanager
def told(talk: Conversation) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        raise AssertionError("\n".join((str(error), *talk.transcript[-80:]))) from error


def publish(talk: Conversation, old: Snapshot, new: Snapshot) -> int:
    changes = dict(changes_between(old, new))
    talk.offer(new, changes)
    return sum(map(len, changes.values()))


def check_references(client: Client) -> None:
    """See that nothing the client uses points at something that it was not given or has refused itself."""
    clusters = client.types[CLUSTER].held
    for route in client.types[ROUTE].held.values():
        for _, name in route.refs:
            assert name in clusters or (CLUSTER, name) in client.refused, (
                f"{route.name} refers to {name}, which is gone"
            )


def check_agreement(talk: Conversation) -> None:
    client = talk.client
    assert talk.target is not None
    for url in TYPES:
        state = client.types[url]
        target = talk.target.of_type(url)
        wanted = set(target) if state.wildcard else state.names & set(target)
        held = {name: one.version for name, one in state.held.items() if name in target or url in FULL}

        assert held == {name: target[name].version for name in wanted}, f"{url}: the client differs from the target"
        if url in talk.stream.subscriptions:
            sub = talk.stream.subscriptions[url]
            believed = {name: one.version for name, one in sub.held.items() if name in target}

            assert believed == held, f"{url}: the server's belief differs from the client"
            assert not sub.pending
            assert not sub.dirty
            assert not sub.owed
            assert not sub.leaving
    assert not client.warming, f"{client.warming} warm for ever"


def walk(seed: int, *, delta: bool, by_name: bool, poison: bool, reconnect: bool) -> None:
    rng = random.Random(seed)
    world = World(rng)
    client = Client(delta=delta, by_name=by_name, names_culprits=rng.random() < 0.5)
    talk = Conversation(client)
    publish(talk, Snapshot(), world.snapshot)
    impatient = rng.random() < 0.2
    sound = not impatient  # a SotW client that reconnects cannot say what it has: nobody can protect its references
    with told(talk):
        for _ in range(rng.randint(20, 120)):
            match rng.randrange(13 if impatient else 12):
                case 0 | 1:
                    old = world.snapshot
                    new = world.mutate()
                    if poison and rng.random() < 0.4:
                        pool = [one for url in TYPES for one in new.of_type(url).values()]
                        client.poison |= {one.version for one in rng.sample(pool, min(2, len(pool)))}
                        client.poison -= {one.version for url in TYPES for one in client.types[url].held.values()}
                    publish(talk, old, new)
                case 2 | 3 | 4:
                    if talk.up:
                        talk.to_server()
                case 5 | 6 | 7:
                    if talk.down:
                        talk.to_client()
                case 8 | 9:
                    talk.flush()
                case 10:
                    if rng.random() < 0.5:
                        url = rng.choice((ENDPOINT, ROUTE))
                        if names := sorted(client.types[url].names):
                            talk.send(client.forget(url, rng.choice(names)))
                case 12:
                    talk.give_up(rng.choice(TYPES))
                case _:
                    if reconnect and rng.random() < 0.3:
                        talk.connect()
                        sound = sound and delta
            if sound and not by_name:
                check_references(client)
        talk.settle(most=400)

        # The bound of law 6: from rest, k changes cost at most 2k responses and one answer per type asked anew.
        old = world.snapshot
        new = world.mutate()
        changed = changes_between(old, new)
        if poison:
            client.poison |= {
                one.version
                for url, names in changed.items()
                for one in (new.of_type(url).get(name) for name in names)
                if one is not None
            } - {one.version for url in TYPES for one in client.types[url].held.values()}
        k = publish(talk, old, new)
        talk.settle(most=4 * k + 12)
        talk.flush()

        assert not talk.down, "it was quiet, and then it was not"
        client.poison = set()
        old = world.snapshot
        publish(talk, old, world.renew())
        talk.settle(most=200)
        check_agreement(talk)
        check_references(client)


@pytest.mark.parametrize("by_name", [False, True], ids=["like Envoy", "like gRPC"])
@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
@pytest.mark.parametrize("reconnect", [False, True], ids=["one stream", "reconnecting"])
@pytest.mark.parametrize("poison", [False, True], ids=["content", "refusing"])
def test_stream_and_client_agree_in_the_end(delta: bool, by_name: bool, poison: bool, reconnect: bool) -> None:
    for seed in range(SEEDS):
        try:
            walk(seed, delta=delta, by_name=by_name, poison=poison, reconnect=reconnect)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
