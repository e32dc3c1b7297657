"""What proxies are told of a service, and the reason of each step."""

import pytest
from builders import catalog, key, put, verdict
from hypothesis import given
from hypothesis import strategies as st

from controlplane.model import DeleteInstance, Event, HealthStatus, Judged, PutPolicy, Resolved, ServiceName
from controlplane.plan import Cluster, Planner, plan
from controlplane.policy import Policy, Strategy

pytestmark = pytest.mark.unit

WEB = ServiceName("web")
CHECK = {"type": "http"}


def planned(*events: Event) -> Cluster:
    state = catalog(*events)
    return plan(state.services[WEB], state)


def with_strategy(strategy: Strategy) -> PutPolicy:
    return PutPolicy(service=WEB, policy=Policy(strategy=strategy), registry="memory")


def offered(cluster: Cluster) -> dict[str, int]:
    return {e.id: e.weight for locality in cluster.localities for e in locality.endpoints}


@pytest.mark.parametrize(
    ("strategy", "weights"),
    [
        (Strategy.ROUND_ROBIN, {"a": 1, "b": 1}),
        (Strategy.RANDOM, {"a": 1, "b": 1}),
        (Strategy.WEIGHTED_ROUND_ROBIN, {"a": 2, "b": 6}),
        (Strategy.LEAST_CONNECTIONS, {"a": 2, "b": 6}),
        (Strategy.CONSISTENT_HASH, {"a": 2, "b": 6}),
        (Strategy.HEALTH_BASED, {"a": 100, "b": 40}),
    ],
)
def test_each_strategy_weighs_as_the_contract_says(strategy: Strategy, weights: dict[str, int]) -> None:
    cluster = planned(
        put("web", "a", weight=2),
        put("web", "b", port=2, weight=6, health_check=CHECK),
        Judged(key=key("web", "b"), verdict=verdict(score=40)),
        with_strategy(strategy),
    )

    assert offered(cluster) == weights
    assert {decision.instance_id: decision.weight for decision in cluster.decisions} == weights


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        pytest.param(
            [put("web", "a", health_check=CHECK)], "awaiting first check", id="an instance that was never checked"
        ),
        pytest.param(
            [
                put("web", "a", health_check=CHECK),
                Judged(key=key("web", "a"), verdict=verdict(HealthStatus.UNHEALTHY, passed=False)),
            ],
            "awaiting first check",
            id="an instance whose check has never passed",
        ),
        pytest.param(
            [put("web", "a", host="api.internal")], "api.internal has not been resolved", id="an unknown name"
        ),
        pytest.param(
            [put("web", "a", host="api.internal"), Resolved(host="api.internal", error="no such name")],
            "api.internal has not been resolved",
            id="a name that does not exist",
        ),
    ],
)
def test_what_is_left_out_says_why(events: list[Event], reason: str) -> None:
    cluster = planned(*events)

    assert offered(cluster) == {}
    assert any(reason in text for text in cluster.decisions[0].reasons)


@pytest.mark.parametrize(
    "status", [HealthStatus.UNHEALTHY, HealthStatus.TIMEOUT, HealthStatus.DEGRADED, HealthStatus.HEALTHY]
)
def test_what_once_passed_is_sent_with_its_status(status: HealthStatus) -> None:
    cluster = planned(
        put("web", "a", health_check=CHECK), Judged(key=key("web", "a"), verdict=verdict(status, reason="HTTP 503"))
    )

    (endpoint,) = cluster.localities[0].endpoints
    assert endpoint.status is status
    assert cluster.decisions[0].reasons[0] == f"{status}: HTTP 503"


def test_a_draining_instance_is_sent_as_draining() -> None:
    cluster = planned(put("web", "a", draining=True))

    assert cluster.localities[0].endpoints[0].status is HealthStatus.DRAINING


def test_of_two_instances_at_one_address_the_lowest_id_is_offered() -> None:
    cluster = planned(
        put("web", "b", host="10.0.0.9", port=1),
        put("web", "a", host="api.internal", port=1),
        Resolved(host="api.internal", addresses=("10.0.0.9",)),
    )

    assert offered(cluster) == {"a": 1}
    assert "already offered as a" in cluster.decisions[1].reasons[-1]


def test_the_order_of_events_does_not_show() -> None:
    events = [
        put("web", "c", port=3, locality={"zone": "z2"}, tags=["y", "x"]),
        put("web", "b", port=2, locality={"zone": "z1"}),
        put("web", "a", port=1, locality={"zone": "z2"}),
    ]

    forwards, backwards = planned(*events), planned(*reversed(events))

    assert forwards == backwards
    assert [locality.locality.zone for locality in forwards.localities] == ["z1", "z2"]
    assert [e.id for e in forwards.localities[1].endpoints] == ["a", "c"]
    assert forwards.localities[1].weight == 2
    assert forwards.localities[1].endpoints[1].tags == ("x", "y")


def test_the_order_of_tags_does_not_show() -> None:
    assert planned(put("web", "a", tags=["x", "y"])) == planned(put("web", "a", tags=["y", "x"]))


EVENTS = st.sampled_from(
    [
        event
        for id, host in (("a", "10.0.0.1"), ("b", "api.internal"), ("c", "10.0.0.1"))
        for event in (
            put("web", id, host=host, port=1),
            put("web", id, host=host, port=2, weight=3, locality={"zone": "z"}),
            put("web", id, host=host, port=1, health_check=CHECK),
            DeleteInstance(key=key("web", id), registry="memory"),
            Judged(key=key("web", id), verdict=verdict(HealthStatus.UNHEALTHY)),
            Judged(key=key("web", id), verdict=verdict(score=40)),
        )
    ]
    + [
        with_strategy(Strategy.RANDOM),
        with_strategy(Strategy.HEALTH_BASED),
        Resolved(host="api.internal", addresses=("10.0.0.1",)),
        Resolved(host="api.internal", addresses=("10.0.0.2",)),
    ]
)


@given(st.lists(EVENTS, max_size=25))
def test_what_is_remembered_never_shows(events: list[Event]) -> None:
    planner = Planner()
    state = catalog()
    for event in events:
        state, _ = state.apply(event)
        if WEB in state.services:
            assert planner.plan(state.services[WEB], state) == plan(state.services[WEB], state)


def test_only_the_changed_entry_is_decided_anew() -> None:
    planner = Planner()
    state = catalog(*(put("web", f"w{number}", port=1 + number) for number in range(50)))
    before = planner.plan(state.services[WEB], state)
    state, _ = state.apply(put("web", "w7", port=8, weight=5))

    after = planner.plan(state.services[WEB], state)

    pairs = zip(before.localities[0].endpoints, after.localities[0].endpoints, strict=True)
    assert [new.id for old, new in pairs if old is not new] == ["w7"]
