"""One event, one change: what the catalog becomes, what it reports, and when it reports nothing."""

import pytest
from builders import catalog, instance, key, put, verdict
from hypothesis import given
from hypothesis import strategies as st

from controlplane.catalog import Catalog, Scope
from controlplane.model import (
    DeleteInstance,
    DeletePolicy,
    Event,
    GraceOver,
    HealthStatus,
    Judged,
    PutInstance,
    PutPolicy,
    Resolved,
    ServiceName,
    Synced,
)
from controlplane.policy import Policy, Strategy

pytestmark = pytest.mark.unit

WEB = ServiceName("web")
CHECK = {"type": "http"}


def delete(service: str, id: str) -> DeleteInstance:
    return DeleteInstance(key=key(service, id), registry="memory")


@pytest.mark.parametrize(
    ("before", "event", "scope"),
    [
        pytest.param([], put("web", "a"), Scope.CLUSTERS, id="a first instance makes a cluster"),
        pytest.param([put("web", "b", port=2)], put("web", "a"), Scope.ENDPOINTS, id="a further one does not"),
        pytest.param([put("web", "a")], put("web", "a", weight=9), Scope.ENDPOINTS, id="a new weight is an endpoint's"),
        pytest.param(
            [put("web", "a", metadata={"n": 1})],
            put("web", "a", metadata={"n": True}),
            Scope.ENDPOINTS,
            id="true in the place of 1 is a change, though Python calls them equal",
        ),
        pytest.param([put("web", "a")], delete("web", "a"), Scope.ENDPOINTS, id="the last one leaves the cluster"),
        pytest.param(
            [put("web", "a"), delete("web", "a")], put("web", "a"), Scope.ENDPOINTS, id="back within the grace period"
        ),
        pytest.param(
            [put("web", "a", health_check=CHECK)],
            Judged(key=key("web", "a"), verdict=verdict()),
            Scope.ENDPOINTS,
            id="a verdict is an endpoint's",
        ),
        pytest.param(
            [put("web", "a")],
            PutPolicy(service=WEB, policy=Policy(strategy=Strategy.RANDOM), registry="memory"),
            Scope.CLUSTERS,
            id="a policy changes the cluster",
        ),
        pytest.param(
            [put("web", "a", host="api.internal")],
            Resolved(host="api.internal", addresses=("10.0.0.9",)),
            Scope.ENDPOINTS,
            id="a resolved name is an endpoint's",
        ),
    ],
)
def test_a_change_reaches_as_far_as_it_must(before: list[Event], event: Event, scope: Scope) -> None:
    _, change = catalog(*before).apply(event)

    assert change is not None
    assert (change.scope, change.services) == (scope, (WEB,))


@pytest.mark.parametrize(
    ("before", "event"),
    [
        pytest.param([put("web", "a")], put("web", "a"), id="the same instance again"),
        pytest.param([], delete("web", "a"), id="an unknown instance goes"),
        pytest.param(
            [put("web", "a", health_check=CHECK), Judged(key=key("web", "a"), verdict=verdict())],
            Judged(key=key("web", "a"), verdict=verdict()),
            id="the same verdict again",
        ),
        pytest.param([], Judged(key=key("web", "a"), verdict=verdict()), id="a verdict about an unknown instance"),
        pytest.param([], DeletePolicy(service=WEB, registry="memory"), id="an unknown policy goes"),
        pytest.param([], Synced(registry="memory"), id="a registry says again that it is in sync"),
        pytest.param([put("web", "a")], GraceOver(service=WEB, emptied_at=1), id="grace of a service that lives"),
    ],
)
def test_no_change_is_no_work(before: list[Event], event: Event) -> None:
    start = catalog(*before)

    after, change = start.apply(event)

    assert change is None
    assert after is start


def test_a_service_without_instances_stays_until_its_grace_is_over() -> None:
    emptied, change = catalog(put("web", "a")).apply(delete("web", "a"))
    assert change is not None
    assert change.emptied == WEB
    assert emptied.services[WEB].has_cluster

    gone, change = emptied.apply(GraceOver(service=WEB, emptied_at=change.revision))

    assert WEB not in gone.services
    assert change is not None
    assert change.scope is Scope.CLUSTERS


def test_an_older_grace_timer_does_not_end_a_younger_grace() -> None:
    first, change = catalog(put("web", "a")).apply(delete("web", "a"))
    assert change is not None
    back, _ = first.apply(put("web", "a"))
    again, _ = back.apply(delete("web", "a"))

    after, late = again.apply(GraceOver(service=WEB, emptied_at=change.revision))

    assert late is None
    assert after.services[WEB].has_cluster


def test_a_policy_keeps_a_service_known_but_not_its_cluster() -> None:
    policy = PutPolicy(service=WEB, policy=Policy(strategy=Strategy.RANDOM), registry="memory")
    emptied, change = catalog(put("web", "a"), policy).apply(delete("web", "a"))
    assert change is not None

    after, _ = emptied.apply(GraceOver(service=WEB, emptied_at=change.revision))

    assert not after.services[WEB].has_cluster
    after, _ = after.apply(DeletePolicy(service=WEB, registry="memory"))
    assert WEB not in after.services


@pytest.mark.parametrize(
    ("event", "judged", "status"),
    [
        (put("web", "a"), None, HealthStatus.HEALTHY),
        (put("web", "a", health_check=CHECK), None, HealthStatus.UNKNOWN),
        (put("web", "a", health_check={"enabled": False}), None, HealthStatus.HEALTHY),
        (put("web", "a", health_check=CHECK), HealthStatus.TIMEOUT, HealthStatus.TIMEOUT),
        (put("web", "a", health_check=CHECK, draining=True), HealthStatus.UNHEALTHY, HealthStatus.DRAINING),
    ],
    ids=[
        "without a check an instance is healthy",
        "unjudged is unknown",
        "a check that is off is no check",
        "the verdict counts",
        "draining wins",
    ],
)
def test_status(event: Event, judged: HealthStatus | None, status: HealthStatus) -> None:
    state = catalog(event)
    if judged is not None:
        state, _ = state.apply(Judged(key=key("web", "a"), verdict=verdict(judged)))

    entry = state.entry(key("web", "a"))

    assert entry is not None
    assert entry.status is status


def test_checks_that_are_off_make_everything_healthy() -> None:
    entry = catalog(put("web", "a", health_check=CHECK), checks_enabled=False).entry(key("web", "a"))

    assert entry is not None
    assert entry.status is HealthStatus.HEALTHY


def test_a_verdict_survives_a_new_weight_but_not_a_new_port() -> None:
    judged, _ = catalog(put("web", "a", health_check=CHECK)).apply(Judged(key=key("web", "a"), verdict=verdict()))

    reweighted, _ = judged.apply(put("web", "a", health_check=CHECK, weight=5))
    moved, _ = judged.apply(put("web", "a", health_check=CHECK, port=9))

    assert reweighted.services[WEB].entries[key("web", "a").id].status is HealthStatus.HEALTHY
    assert moved.services[WEB].entries[key("web", "a").id].status is HealthStatus.UNKNOWN


def test_only_the_changed_service_gets_a_new_revision() -> None:
    before = catalog(put("web", "a"), put("api", "a"))

    after, change = before.apply(put("web", "a", weight=2))

    assert change is not None
    assert after.services[WEB].revision == after.revision == change.revision == before.revision + 1
    assert after.services[ServiceName("api")] is before.services[ServiceName("api")]


def test_a_name_with_several_addresses_stands_for_the_same_one_on_every_replica() -> None:
    one = catalog(Resolved(host="api.internal", addresses=("::1", "10.0.0.2", "10.0.0.1")))
    two = catalog(Resolved(host="api.internal", addresses=("10.0.0.1", "10.0.0.2", "::1")))

    api = instance(host="api.internal")

    assert one.address_of(api) == two.address_of(api) == "10.0.0.1"
    assert Catalog().address_of(api) is None


EVENTS = st.sampled_from(
    [
        event
        for service in ("web", "api")
        for id, port in (("a", 1), ("b", 2))
        for event in (
            put(service, id, port=port),
            put(service, id, port=port, weight=3),
            put(service, id, port=port, health_check=CHECK),
            delete(service, id),
            Judged(key=key(service, id), verdict=verdict(HealthStatus.UNHEALTHY)),
            GraceOver(service=ServiceName(service), emptied_at=2),
            PutPolicy(service=ServiceName(service), policy=Policy(strategy=Strategy.RANDOM), registry="memory"),
            DeletePolicy(service=ServiceName(service), registry="memory"),
        )
    ]
)


@given(st.lists(EVENTS, max_size=30))
def test_every_event_moves_the_revision_by_one_or_changes_nothing(events: list[Event]) -> None:
    state = Catalog()
    for event in events:
        before = state
        state, change = state.apply(event)
        if change is None:
            assert state is before
        else:
            assert state.revision == change.revision == before.revision + 1
            assert state != before
        for name, service in state.services.items():
            assert service.name == name
            assert service.entries or service.own_policy is not None or service.emptied_at is not None


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["a", "b", "c"]), st.sampled_from(["x", "y"]))))
def test_the_size_is_the_number_of_instances(steps: list[tuple[bool, str, str]]) -> None:
    catalog_ = Catalog()
    for there, service, id_ in steps:
        event = put(service, id_) if there else DeleteInstance(key=key(service, id_), registry="memory")
        catalog_, _ = catalog_.apply(event)
        assert catalog_.size == len(list(catalog_.entries()))


@pytest.mark.parametrize("checks_enabled", [True, False])
def test_a_verdict_that_the_registry_states_counts_whether_checks_of_ours_are_on_or_not(checks_enabled: bool) -> None:
    stated = PutInstance(instance=instance(id="a"), registry="consul", stated=verdict(HealthStatus.UNHEALTHY))
    after = catalog(stated, checks_enabled=checks_enabled)
    entry = after.entry(key("web", "a"))
    assert entry is not None
    assert entry.status is HealthStatus.UNHEALTHY

    again, _ = after.apply(PutInstance(instance=instance(id="a"), registry="consul"))

    entry = again.entry(key("web", "a"))
    assert entry is not None
    assert (entry.status, entry.stated) == (HealthStatus.HEALTHY, None), "it stands as long as the registry says so"
