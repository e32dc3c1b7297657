"""Endpoints may change for ever: what else changes gets through all the same, and in the right order.

The endpoints of one service change before every single message, so that there is always something newer to tell.
"""

import random

import pytest

from tests.xds.model import TYPES, Client, Conversation
from xds.cache import changes_between
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource, ResourceSet, Snapshot

pytestmark = pytest.mark.unit

MESSAGES = 20  # both ways; the slowest of these conversations takes 12
SEEDS = 30


def snapshot(names: str, edition: int, churning: str) -> Snapshot:
    clusters = [Resource.of(name, name.encode(), refs=[(ENDPOINT, name)]) for name in names]
    assignments = [
        Resource.of(one.name, f"{one.name}={edition if one.name in churning else 0}".encode(), parent_version="1")
        for one in clusters
    ]
    return Snapshot(
        {
            CLUSTER: ResourceSet(clusters),
            ENDPOINT: ResourceSet(assignments),
            LISTENER: ResourceSet([Resource.of("l", b"l", refs=[(ROUTE, "r")])]),
            ROUTE: ResourceSet([Resource.of("r", names.encode(), refs=[(CLUSTER, name) for name in names])]),
        }
    )


class Churn:
    """Carry one message at a time, and change endpoints before each."""

    def __init__(self, *, delta: bool, churning: str, rng: random.Random) -> None:
        self.client = Client(delta=delta)
        self.talk = Conversation(self.client)
        self._churning = churning
        self._rng = rng
        self._edition = 0
        self._now = Snapshot()
        self.publish("az")
        self.talk.settle(most=40)

    def publish(self, names: str) -> None:
        self._names = names
        self._edition += 1
        new = snapshot(names, self._edition, self._churning)
        self.talk.offer(new, dict(changes_between(self._now, new)))
        self._now = new

    def step(self) -> None:
        self.publish(self._names)
        if self._rng.random() < 0.7:
            self._flush()
        if self.talk.up and (not self.talk.down or self._rng.random() < 0.5):
            self.talk.to_server()
        elif self.talk.down:
            self.talk.to_client()
        self._flush()
        (table,) = self.client.types[ROUTE].held.values()
        for _, name in table.refs:
            assert name in self.client.types[CLUSTER].held, "\n".join(self.talk.transcript[-40:])

    def _flush(self) -> None:
        """See that no route is sent ahead of what it refers to: clusters, and the endpoints that were asked for."""
        before = len(self.talk.down)
        self.talk.flush()
        clusters, endpoints = (self.talk.stream.subscriptions[url] for url in (CLUSTER, ENDPOINT))
        for table in (one for sent in [*self.talk.down][before:] for one in sent.resources if sent.type_url == ROUTE):
            for _, name in table.refs:
                assert name in clusters.held, "\n".join(self.talk.transcript[-40:])
                assert name in endpoints.held or name not in endpoints.names, "\n".join(self.talk.transcript[-40:])

    def arrived(self, names: str) -> bool:
        (table,) = self.client.types[ROUTE].held.values()
        return table.body == names.encode() and self.client.types[CLUSTER].held.keys() == set(names)


@pytest.mark.parametrize("churning", ["a", "b", "ab", "abz"])
@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
def test_a_new_service_and_a_removal_get_through_while_endpoints_change_without_end(delta: bool, churning: str) -> None:
    for seed in range(SEEDS):
        churn = Churn(delta=delta, churning=churning, rng=random.Random(seed))
        for _ in range(seed % 7):
            churn.step()
        churn.publish("ab")
        messages = 0
        while not churn.arrived("ab"):
            messages += 1

            assert messages <= MESSAGES, f"seed {seed}\n" + "\n".join(churn.talk.transcript[-60:])
            churn.step()
        for _ in range(MESSAGES):
            churn.step()
        assert not any(churn.talk.stream.subscriptions[url].leaving for url in TYPES), f"seed {seed}"


@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
def test_endpoints_that_the_client_refuses_again_and_again_hold_up_nothing(delta: bool) -> None:
    churn = Churn(delta=delta, churning="abx", rng=random.Random(1))
    churn.publish("abx")
    for _ in range(200):
        now = churn.talk.target
        assert now is not None
        if (bad := now.of_type(ENDPOINT).get("x")) is not None:
            churn.client.poison.add(bad.version)
        churn.talk.flush()
        if churn.talk.up:
            churn.talk.to_server()
        elif churn.talk.down:
            churn.talk.to_client()
        churn.publish("abx")
    assert churn.arrived("abx")
