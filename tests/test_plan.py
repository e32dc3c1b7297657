"""What proxies are told of a service, and the reason of each step."""

import pytest
from builders import catalog, instance, key, put, verdict
from hypothesis import given
from hypothesis import strategies as st

from controlplane.catalog import Catalog
from controlplane.model import (
    DeleteInstance,
    Event,
    HealthStatus,
    Held,
    Judged,
    PutInstance,
    PutPolicy,
    Resolved,
    ServiceName,
)
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


def test_what_the_mass_loss_guard_keeps_says_so_offered_or_not() -> None:
    cluster = planned(
        put("web", "a"),
        put("web", "b"),
        put("web", "c", port=2),
        Held(keys=(key("web", "a"), key("web", "b")), hold="_everything"),
    )

    held, twin, other = cluster.decisions
    assert [decision.offered for decision in cluster.decisions] == [True, False, True]
    for decision in (held, twin):
        (reason,) = [each for each in decision.reasons if each.startswith("held: ")]
        assert "memory has lost it" in reason
        assert "_everything" in reason
    assert twin.reasons[-1] == "left out: 10.0.0.1:8080 is already offered as a"
    assert not any("held" in reason for reason in other.reasons)


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


class TestSeveralRegistries:
    """An address that two of them claim belongs to the first registry, then to the lowest id."""

    @staticmethod
    def planned(*claims: tuple[str, str, str]) -> Cluster:
        state = Catalog(ranking=("consul", "etcd"))
        for id_, registry, host in claims:
            state, _ = state.apply(PutInstance(instance=instance("web", id_, host=host), registry=registry))
        return plan(state.services[WEB], state)

    @pytest.mark.parametrize(
        ("claims", "winner"),
        [
            pytest.param([("a", "etcd"), ("b", "consul")], "b", id="the first registry's wins over a lower id"),
            pytest.param([("b", "consul"), ("a", "etcd")], "b", id="whichever came first"),
            pytest.param([("b", "etcd"), ("a", "etcd")], "a", id="within one registry the lowest id wins"),
            pytest.param([("a", "kubernetes"), ("b", "etcd")], "b", id="a registry without a rank comes last"),
        ],
    )
    def test_who_has_an_address(self, claims: list[tuple[str, str]], winner: str) -> None:
        cluster = self.planned(*((id_, registry, "10.0.0.1") for id_, registry in claims))
        assert list(offered(cluster)) == [winner]
        (loser,) = (decision for decision in cluster.decisions if not decision.offered)
        assert loser.reasons[-1] == f"left out: 10.0.0.1:8080 is already offered as {winner}"

    def test_what_is_shown_is_in_the_order_of_ids(self) -> None:
        cluster = self.planned(("c", "consul", "10.0.0.3"), ("a", "etcd", "10.0.0.1"), ("b", "consul", "10.0.0.2"))
        assert [decision.instance_id for decision in cluster.decisions] == ["a", "b", "c"]
        assert list(offered(cluster)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("stated", "ours", "draining", "status", "why"),
    [
        pytest.param(HealthStatus.UNHEALTHY, None, False, HealthStatus.UNHEALTHY, "consul says disk", id="stated"),
        pytest.param(
            HealthStatus.DEGRADED, HealthStatus.HEALTHY, False, HealthStatus.DEGRADED, "consul", id="over ours"
        ),
        pytest.param(
            HealthStatus.HEALTHY, HealthStatus.UNHEALTHY, False, HealthStatus.UNHEALTHY, "HTTP", id="ours over healthy"
        ),
        pytest.param(HealthStatus.UNHEALTHY, None, True, HealthStatus.DRAINING, "asked for", id="draining over all"),
        pytest.param(HealthStatus.HEALTHY, None, False, HealthStatus.HEALTHY, "no check", id="stated healthy"),
    ],
)
def test_what_a_registry_says_of_an_instances_health_counts(
    stated: HealthStatus, ours: HealthStatus | None, draining: bool, status: HealthStatus, why: str
) -> None:
    event = PutInstance(
        instance=instance("web", "a", draining=draining, health_check=None if ours is None else CHECK),
        registry="consul",
        verdict=None if ours is None else verdict(ours),
        stated=verdict(stated, reason="disk"),
    )
    (decision,) = planned(event).decisions
    assert (decision.offered, decision.status) == (True, status)
    assert why in decision.reasons[0]
