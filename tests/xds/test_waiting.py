"""What a type waits for, read off a stream: the cause that nobody else can see."""

import pytest

from controlplane.api.waits import waits_for
from tests.xds.transcript import TYPES, make
from xds.protocol import DeltaRequest, Error, Stream
from xds.standing import Lack, Waiting, waiting
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource, ResourceSet, Snapshot

pytestmark = pytest.mark.unit


def snapshot(**resources: str) -> Snapshot:
    """Build a snapshot of what transcripts call resources: `CDS="a@1 b@1"`."""
    made = {TYPES[short]: [make(TYPES[short], spec) for spec in specs.split()] for short, specs in resources.items()}
    return Snapshot({url: ResourceSet(each) for url, each in made.items()})


class Talk:
    """Speak to a delta stream."""

    def __init__(self, told: Snapshot) -> None:
        self.stream = Stream(delta=True)
        self.stream.offer(told)

    def ask(self, type_url: str, *names: str) -> list[str]:
        """Subscribe to names, or to everything; return the nonces of what is said to that."""
        self.stream.receive(DeltaRequest(type_url=type_url, subscribe=names))
        return [each.nonce for each in self.stream.responses()]

    def answer(self, type_url: str, nonce: str, error: str = "") -> None:
        self.stream.receive(DeltaRequest(type_url=type_url, nonce=nonce, error=Error(13, error) if error else None))
        for _ in self.stream.responses():
            pass


def test_what_is_in_step_waits_for_nothing() -> None:
    talk = Talk(snapshot(CDS="a@1"))
    (nonce,) = talk.ask(CLUSTER)
    talk.answer(CLUSTER, nonce)

    assert waiting(talk.stream, CLUSTER) == Waiting(unanswered=(), lacks=(), behind=(), kept=())
    assert waiting(talk.stream, LISTENER) is None
    assert waits_for(CLUSTER, waiting(talk.stream, CLUSTER)) == ()


def test_a_cluster_that_was_never_answered_for_names_the_assignment_that_the_client_lacks() -> None:
    talk = Talk(snapshot(CDS="a@1 b@1", EDS="a@1 b@1"))
    talk.ask(CLUSTER)
    (nonce,) = talk.ask(ENDPOINT, "a")
    talk.answer(ENDPOINT, nonce)
    found = waiting(talk.stream, CLUSTER)

    assert found is not None
    assert found.unanswered == ("a", "b")
    assert found.lacks == (Lack(of="b", type_url=ENDPOINT, name="b", exists=True, asked=False),)
    assert waits_for(CLUSTER, found)[0] == (
        "Cluster 'b' refers to ClusterLoadAssignment 'b', which the proxy has not asked for"
    )


def test_a_type_that_may_not_go_yet_says_whose_answer_comes_first() -> None:
    talk = Talk(snapshot(CDS="a@1", LDS="l@1>r"))
    talk.ask(CLUSTER)

    assert talk.ask(LISTENER) == []
    assert waits_for(LISTENER, waiting(talk.stream, LISTENER)) == ("what it says of Cluster comes first",)


def test_a_removal_that_waits_says_that_something_may_refer_to_it() -> None:
    talk = Talk(snapshot(CDS="a@1 b@1", RDS="r@1>a,b"))
    for type_url, *names in ((CLUSTER,), (ROUTE, "r")):
        (nonce,) = talk.ask(type_url, *names)
        talk.answer(type_url, nonce)
    talk.stream.offer(snapshot(CDS="b@1", RDS="r@2>b"))
    (refused,) = talk.stream.responses()
    talk.answer(ROUTE, refused.nonce, "no")

    assert waits_for(CLUSTER, waiting(talk.stream, CLUSTER)) == (
        "Cluster 'a' goes once nothing that the proxy may hold refers to it",
    )
    assert waits_for(ROUTE, waiting(talk.stream, ROUTE)) == ()  # a refusal is told as such


def test_a_thousand_names_make_one_line() -> None:
    resources = [Resource.of(f"c{number:04}", b"x") for number in range(1_000)]
    talk = Talk(Snapshot({CLUSTER: ResourceSet(resources)}))
    talk.ask(CLUSTER)
    (said,) = waits_for(CLUSTER, waiting(talk.stream, CLUSTER))

    assert said.startswith("the proxy has not acknowledged Cluster 'c0000', ")
    assert "and 995 more" in said
