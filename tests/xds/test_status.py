"""The per-proxy picture: what a person asks when a proxy does not do what it should."""

from dataclasses import replace

import pytest

from xds.history import Changes, safe_words
from xds.protocol import (
    Acked,
    Closed,
    DeltaRequest,
    Error,
    Ignored,
    Nacked,
    Outdated,
    Regrouped,
    Sent,
    Stream,
    Subscribed,
)
from xds.standing import Standing, standing
from xds.status import State, Status, StreamInfo
from xds.types import CLUSTER, ENDPOINT, SECRET, Node, Resource, ResourceSet, Snapshot

pytestmark = pytest.mark.unit

A = Resource.of("a", b"1")


def info(number: int = 1, node_id: str = "edge-1", *, settled: bool = True) -> StreamInfo:
    return StreamInfo(
        id=number,
        node=Node(id=node_id, cluster="edge"),
        group="edge",
        peer="ipv4:127.0.0.1:1",
        delta=True,
        type_url="",
        names=lambda _url: list("abcd"),
        held=lambda url: {"a": A} if url == CLUSTER else {},
        settled=lambda _url: settled,
    )


def subscribed(url: str = CLUSTER, *, names: int = 0) -> Subscribed:
    return Subscribed(type_url=url, added=(), dropped=(), wildcard=not names, names=names)


def drops(*dropped: str, leaves: int, wildcard: bool = False) -> Subscribed:
    return Subscribed(type_url=CLUSTER, added=(), dropped=dropped, wildcard=wildcard, names=leaves)


def sent(version: str = "v1") -> Sent:
    return Sent(type_url=CLUSTER, version=version, nonce="1", revision="r1", resources=1, removed=0)


def acked(version: str = "v1", *, settled: bool = True, refused: tuple[str, ...] = ()) -> Acked:
    return Acked(
        type_url=CLUSTER,
        version=version,
        nonce="1",
        revision="r1",
        names=("a",),
        offered_at=None,
        settled=settled,
        refused=refused,
    )


def nacked() -> Nacked:
    return Nacked(type_url=CLUSTER, version="v2", nonce="2", revision="r2", names=("a",), code=13, message="kaputt")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def state(status: Status) -> State:
    proxy = status.proxy("edge-1")

    assert proxy is not None
    return proxy.types[CLUSTER].state


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([subscribed()], State.NOT_SENT),
        ([subscribed(), sent()], State.STALE),
        ([subscribed(), sent(), acked()], State.SYNCED),
        ([subscribed(), sent(), acked(settled=False)], State.SYNCED),
        ([Subscribed(type_url=CLUSTER, added=(), dropped=(), wildcard=False, names=0)], State.SYNCED),
        ([subscribed(), sent(), acked(), sent("v2")], State.STALE),
        ([subscribed(), sent(), acked(), sent("v2"), nacked()], State.ERROR),
        ([subscribed(), sent(), nacked(), sent("v3")], State.ERROR),
        ([subscribed(), sent(), nacked(), sent("v3"), acked("v3", refused=("a",))], State.ERROR),
        ([subscribed(), sent(), nacked(), sent("v3"), acked("v3")], State.SYNCED),
        (
            [
                subscribed(),
                sent(),
                acked(),
                sent("v2"),
                Ignored(type_url=CLUSTER, version="v2", nonce="2", revision=""),
            ],
            State.SYNCED,
        ),
        ([subscribed(), sent(), acked(), Outdated(type_url=CLUSTER, nonce="0")], State.SYNCED),
        ([subscribed(names=1), sent(), nacked(), drops("a", leaves=0)], State.SYNCED),
        ([subscribed(names=2), sent(), acked(), sent("v2"), nacked(), drops("a", leaves=1)], State.SYNCED),
        ([subscribed(names=2), sent(), acked(), sent("v2"), nacked(), drops("b", leaves=1)], State.ERROR),
        ([subscribed(), sent(), acked(), sent("v2"), nacked(), drops("a", leaves=0, wildcard=True)], State.ERROR),
    ],
    ids=lambda value: " ".join(type(each).__name__ for each in value) if isinstance(value, list) else value.name,
)
def test_q_02_the_state_of_a_type(events: list[Subscribed | Sent | Acked | Nacked], expected: State) -> None:
    status = Status(clock=Clock())
    for event in events:
        status.on_event(info(), event)

    assert state(status) is expected


def test_a_nack_is_kept_in_the_clients_own_words() -> None:
    clock = Clock()
    status = Status(clock=clock)
    status.on_event(info(), subscribed())
    status.on_event(info(), sent("v2"))
    clock.now = 160.0
    status.on_event(info(), nacked())
    proxy = status.proxy("edge-1")

    assert proxy is not None
    found = proxy.types[CLUSTER]
    assert found.last_nack is not None
    assert (found.last_nack.message, found.last_nack.code, found.last_nack.version) == ("kaputt", 13, "v2")
    assert (found.last_nack.names, found.last_nack.revision, found.last_nack.at) == (("a",), "r2", 160.0)
    assert (found.sent_at, found.nacks, proxy.connected_at) == (100.0, 1, 100.0)


def test_several_streams_of_a_node_are_one_proxy_t_08() -> None:
    status = Status(clock=Clock())
    status.on_event(info(1), subscribed())
    status.on_event(info(2), subscribed(ENDPOINT, names=3))
    status.on_event(info(3, "edge-0"), subscribed())

    assert [proxy.node.id for proxy in status.proxies()] == ["edge-0", "edge-1"]
    proxy = status.proxy("edge-1")

    assert proxy is not None
    assert len(proxy.streams) == 2
    assert proxy.types.keys() == {CLUSTER, ENDPOINT}
    assert proxy.types[ENDPOINT].names == 3
    assert proxy.held(CLUSTER) == {"a": A}
    assert not proxy.synced


def test_nothing_is_left_of_a_node_whose_last_stream_closed() -> None:
    status = Status(clock=Clock())
    for number in (1, 2):
        status.on_event(info(number), subscribed())
    status.on_event(info(1), Closed(unanswered=()))

    assert len(status) == 1
    status.on_event(info(2), Closed(unanswered=(CLUSTER,)))
    status.on_event(info(2), Closed(unanswered=()))

    assert len(status) == 0
    assert status.proxy("edge-1") is None


def test_the_state_of_a_proxy_is_its_worst() -> None:
    status = Status(clock=Clock())
    for event in (subscribed(), sent(), acked(), subscribed(ENDPOINT, names=1)):
        status.on_event(info(), event)
    proxy = status.proxy("edge-1")

    assert proxy is not None
    assert proxy.state is State.NOT_SENT
    status.on_event(info(), nacked())
    proxy = status.proxy("edge-1")

    assert proxy is not None
    assert proxy.state is State.ERROR


def test_a_proxy_that_is_owed_something_now_is_stale() -> None:
    status = Status(clock=Clock())
    for event in (subscribed(), sent(), acked()):
        status.on_event(info(settled=False), event)

    assert state(status) is State.STALE


def test_a_proxy_that_moves_to_another_group_is_shown_there() -> None:
    status = Status(clock=lambda: 0.0)
    status.on_event(info(), subscribed())
    status.on_event(replace(info(), group="mesh", node=Node(id="edge-1", cluster="edge", zone="b")), Regrouped())
    proxy = status.proxy("edge-1")

    assert proxy is not None
    assert (proxy.group, proxy.node.zone) == ("mesh", "b")
    assert CLUSTER in proxy.types


def test_while_a_refused_batch_is_split_the_type_stays_refused_and_so_does_each_suspect() -> None:
    clock = Clock()
    status, stream = Status(clock=clock), Stream(delta=True)
    target = ResourceSet(Resource.of(name, b"1") for name in "abcd")

    def standing_of(url: str, name: str) -> Standing:
        return standing(stream.subscriptions[url], target, name)

    it = replace(info(), settled=lambda url: stream.subscriptions[url].settled, standing=standing_of)

    def hear(request: DeltaRequest) -> None:
        clock.now += 10
        for event in stream.receive(request):
            status.on_event(it, event)
        for said in stream.responses():
            status.on_event(it, sent(said.nonce))

    stream.offer(Snapshot({CLUSTER: target}))
    hear(DeltaRequest(type_url=CLUSTER))
    states = []
    for refuses in (True, False, True, False, True):  # a b c d, a b, c d, c, d
        error = Error(13, "kaputt") if refuses else None
        hear(DeltaRequest(type_url=CLUSTER, nonce=stream.subscriptions[CLUSTER].nonce, error=error))
        states.append(state(status))
    (refused,) = [each for each in status.resources("edge-1", CLUSTER) if each.refusal is not None]

    assert states == [State.ERROR] * 5
    assert refused.standing.name == "d"
    assert refused.refusal is not None
    assert (refused.refusal.since, refused.refusal.at) == (120.0, 160.0)
    assert status.tally().refused == {CLUSTER: 1}


def refusing(number: int) -> StreamInfo:
    """Be a stream that holds `a` and refuses what it was told of it since."""

    def standing(_url: str, name: str) -> Standing:
        return Standing(name=name, state=State.ERROR, version="v2", sent=None, held=A)

    return replace(info(number, f"edge-{number}"), names=lambda _url: ["a"], standing=standing)


def test_a_resource_that_several_clients_refuse_is_counted_once_and_each_client_once() -> None:
    status = Status(clock=Clock())
    for number in (1, 2):
        for event in (subscribed(), sent(), acked(), sent("v2"), nacked()):
            status.on_event(refusing(number), event)
    for event in (subscribed(), sent(), acked()):
        status.on_event(info(3, "edge-3"), event)
    tally = status.tally()

    assert tally.clients == {(CLUSTER, State.ERROR): 2, (CLUSTER, State.SYNCED): 1}
    assert tally.refused == {CLUSTER: 1}

    for number in (1, 2):
        status.on_event(refusing(number), acked("v3"))

    assert status.tally().clients == {(CLUSTER, State.SYNCED): 3}
    assert status.tally().refused == {}


def test_what_changed_lately_is_dated_exactly_and_what_changed_before_by_a_bound() -> None:
    changes = Changes()
    changes.add(1.0, tuple(f"old-{number}" for number in range(1_000)))
    changes.add(2.0, ("a", "b"))
    changes.add(3.0, ("a",))
    at = changes.at()

    assert (at("a"), at("b"), at("old-1")) == (3.0, 2.0, 1.0)

    for number in range(10_000):
        changes.add(4.0 + number, (f"c-{number % 1_000}",))
    at = changes.at()

    assert [at(f"c-{number}") for number in (999, 800)] == [10_003.0, 9_804.0]  # the last 256 exactly
    assert 3.0 < (at("a") or 0) < 10_003.0 - 255  # of all others, by when it was at the latest


@pytest.mark.parametrize("type_url", [SECRET, CLUSTER], ids=["a secret", "a cluster with its key inline"])
def test_a_refusal_is_not_repeated_where_it_may_quote_a_private_key(type_url: str) -> None:
    said = 'Proto constraint validation failed: private_key { inline_string: "hush" }'

    assert "hush" not in safe_words(type_url, said)
    assert safe_words(type_url, said).startswith("Proto constraint validation failed")


def test_a_refusal_is_repeated_in_full_otherwise_up_to_a_bound() -> None:
    said = 'Failed to load private key from <inline>, body { inline_string: "a" }'

    assert safe_words(CLUSTER, said) == said
    assert len(safe_words(CLUSTER, "x" * 100_000)) < 10_000


def test_what_was_refused_and_then_taken_back_by_its_author_is_no_error_any_more() -> None:
    now = State.ERROR

    def standing(_url: str, name: str) -> Standing:
        return Standing(name=name, state=now, version="v2", sent=None, held=A)

    status = Status(clock=Clock())
    for event in (subscribed(), sent(), acked(), sent("v2"), nacked()):
        status.on_event(replace(info(), names=lambda _url: ["a"], standing=standing), event)

    assert state(status) is State.ERROR
    now = State.STALE
    assert state(status) is not State.ERROR
    assert (CLUSTER, State.ERROR) not in status.tally().clients


def test_what_one_of_several_streams_refuses_is_not_hidden_by_what_another_took() -> None:
    """A gRPC client has a stream for each target that it calls, each with names of its own."""
    status = Status(clock=Clock())
    for number, name in ((1, "odd"), (2, "web")):
        stream = replace(
            info(number),
            names=lambda _url, name=name: [name],
            standing=lambda _url, name: Standing(
                name=name, state=State.ERROR if name == "odd" else State.SYNCED, version="v", sent=A, held=None
            ),
        )
        status.on_event(stream, subscribed(names=1))
        status.on_event(stream, sent())
        status.on_event(stream, replace(nacked(), names=("odd",)) if name == "odd" else acked())
    proxy = status.proxy("edge-1")

    assert proxy is not None
    assert proxy.types[CLUSTER].state is State.ERROR
    assert proxy.types[CLUSTER].last_nack is not None
    assert {one.standing.name for one in status.resources("edge-1", CLUSTER)} == {"odd", "web"}
    assert [one.standing.name for one in status.resources("edge-1", CLUSTER, after="odd")] == ["web"]

    status.on_event(info(1), Closed(unanswered=()))

    assert state(status) is State.SYNCED
    assert [one.standing.name for one in status.resources("edge-1", CLUSTER)] == ["web"]
