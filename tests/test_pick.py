"""Which instance a caller gets who has no proxy, and how that is shared out."""

import random
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from builders import catalog, key, put, verdict
from hypothesis import given
from hypothesis import strategies as st

from controlplane.catalog import Catalog, Entry, Service
from controlplane.model import (
    DeleteInstance,
    Event,
    HealthCheck,
    HealthStatus,
    Judged,
    PutInstance,
    PutPolicy,
    Resolved,
    ServiceName,
)
from controlplane.pick import FORGET_S, HAND_OUT_LIFE_S, Pick, Picker
from controlplane.policy import Policy, Strategy

pytestmark = pytest.mark.unit

WEB = ServiceName("web")
CHECKED = HealthCheck()
PORTS = {id: port for port, id in enumerate("abcdefghijklmnopqrstuvwxyz", start=1)}


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def picker(clock: Clock) -> Picker:
    return Picker(random=random.Random(7), clock=clock)


def member(id: str, **changes: Any) -> PutInstance:
    return put("web", id, **{"port": PORTS.get(id, 1), **changes})


def judged(id: str, status: HealthStatus, *, passed: bool = True, score: int = 100) -> PutInstance:
    return member(id, health_check=CHECKED, verdict=verdict(status, passed=passed, score=score))


def web(*events: Event) -> Service:
    return catalog(*events).services[WEB]


def weighted(**weights: int) -> Service:
    return web(*(member(id, weight=weight) for id, weight in weights.items()))


def everyone(_: Entry) -> bool:
    return True


def choose(picker: Picker, service: Service, **how: Any) -> Pick | None:
    """Pick one, all having an address."""
    return picker.pick(service, **{"offered": everyone, **how})


def ids(picker: Picker, service: Service, count: int, strategy: Strategy | None = None, **how: str) -> str:
    """Pick `count` times and return the ids, one letter each."""
    picks = [choose(picker, service, strategy=strategy, **how) for _ in range(count)]
    return "".join(pick.entry.instance.id for pick in picks if pick is not None)


class TestCandidates:
    @pytest.mark.parametrize("strategy", Strategy)
    @pytest.mark.parametrize(
        ("events", "able"),
        [
            pytest.param([member("a"), member("b")], "ab", id="what is not checked can serve"),
            pytest.param(
                [judged("a", HealthStatus.HEALTHY), judged("b", HealthStatus.UNHEALTHY)], "a", id="the unhealthy cannot"
            ),
            pytest.param([member("a"), judged("b", HealthStatus.TIMEOUT)], "a", id="who timed out cannot"),
            pytest.param([member("a"), judged("b", HealthStatus.UNKNOWN)], "a", id="the unknown cannot"),
            pytest.param([member("a"), member("b", draining=True)], "a", id="the draining cannot"),
            pytest.param([member("a"), member("b", health_check=CHECKED)], "a", id="who awaits its first check cannot"),
            pytest.param(
                [member("a"), judged("b", HealthStatus.HEALTHY, passed=False)], "a", id="who has never passed cannot"
            ),
            pytest.param(
                [judged("a", HealthStatus.HEALTHY), judged("b", HealthStatus.DEGRADED)],
                "a",
                id="the degraded do not while a healthy one is there",
            ),
            pytest.param(
                [judged("a", HealthStatus.DEGRADED), judged("b", HealthStatus.UNHEALTHY)],
                "a",
                id="the degraded do where no healthy one is there",
            ),
            pytest.param([member("a", draining=True)], "", id="where nobody can, nobody is picked"),
            pytest.param(
                [judged("a", HealthStatus.DEGRADED, passed=False)], "", id="degraded without ever passing cannot"
            ),
        ],
    )
    def test_who_can_serve(self, picker: Picker, strategy: Strategy, events: list[Event], able: str) -> None:
        service = web(*events)
        picked = {id for n in range(60) for id in ids(picker, service, 1, strategy, key=f"key {n}")}

        assert picked == set(able)

    def test_a_service_without_instances_has_nobody(self, picker: Picker) -> None:
        assert choose(picker, web(PutPolicy(service=WEB, policy=Policy(), registry="memory"))) is None

    def test_that_a_degraded_one_serves_is_said(self, picker: Picker) -> None:
        pick = choose(picker, web(judged("a", HealthStatus.DEGRADED)))
        assert pick is not None
        assert pick.reason.endswith("no instance is healthy, so a degraded one serves")

    def test_a_change_of_health_counts_at_once(self, picker: Picker) -> None:
        before = catalog(judged("a", HealthStatus.HEALTHY), judged("b", HealthStatus.HEALTHY))
        assert set(ids(picker, before.services[WEB], 10)) == {"a", "b"}

        after, _ = before.apply(Judged(key=key("web", "a"), verdict=verdict(HealthStatus.UNHEALTHY)))
        assert set(ids(picker, after.services[WEB], 10)) == {"b"}

    @pytest.mark.parametrize("strategy", Strategy)
    def test_a_host_that_has_not_been_resolved_cannot_until_it_is(self, picker: Picker, strategy: Strategy) -> None:
        now = catalog(member("a"), member("b", host="b.internal"))

        def picked() -> set[str]:
            service, keys = now.services[WEB], [f"key {n}" for n in range(60)]
            picks = [picker.pick(service, offered=addressed, strategy=strategy, key=key) for key in keys]
            return {pick.entry.instance.id for pick in picks if pick is not None}

        def addressed(entry: Entry) -> bool:
            return now.address_of(entry.instance) is not None

        assert picked() == {"a"}
        now, _ = now.apply(Resolved(host="b.internal", addresses=("10.0.0.9",)))
        assert picked() == {"a", "b"}
        now, _ = now.apply(Resolved(host="b.internal", error="no such name"))
        assert picked() == {"a"}


class TestStrategy:
    @pytest.mark.parametrize("strategy", Strategy)
    def test_the_one_asked_for_is_used_and_named(self, picker: Picker, strategy: Strategy) -> None:
        pick = choose(picker, weighted(a=1), strategy=strategy)
        assert pick is not None
        assert pick.strategy is strategy
        assert pick.reason

    @pytest.mark.parametrize(
        ("events", "strategy"),
        [
            pytest.param([], Strategy.WEIGHTED_ROUND_ROBIN, id="without a policy, weighted_round_robin"),
            pytest.param(
                [PutPolicy(service=WEB, policy=Policy(strategy=Strategy.RANDOM), registry="memory")],
                Strategy.RANDOM,
                id="else the service's own",
            ),
        ],
    )
    def test_without_a_wish_the_service_decides(self, picker: Picker, events: list[Event], strategy: Strategy) -> None:
        pick = choose(picker, web(member("a"), *events))
        assert pick is not None
        assert pick.strategy is strategy


class TestRoundRobin:
    def test_all_take_turns_in_the_order_of_ids_whatever_their_weight(self, picker: Picker) -> None:
        assert ids(picker, weighted(c=1, a=100, b=5), 7, Strategy.ROUND_ROBIN) == "abcabca"

    def test_changes_of_the_catalog_do_not_start_the_round_again(self, picker: Picker) -> None:
        now = catalog(member("a"), member("b"), member("c"), member("d"))
        assert ids(picker, now.services[WEB], 2, Strategy.ROUND_ROBIN) == "ab"
        now, _ = now.apply(DeleteInstance(key=key("web", "b"), registry="memory"))
        assert ids(picker, now.services[WEB], 1, Strategy.ROUND_ROBIN) == "c"
        now, _ = now.apply(member("b"))
        assert ids(picker, now.services[WEB], 3, Strategy.ROUND_ROBIN) == "dab"

    def test_services_have_rounds_of_their_own(self, picker: Picker) -> None:
        both = catalog(member("a"), member("b"), put("api", "a", port=1), put("api", "b", port=2))
        assert ids(picker, both.services[WEB], 1, Strategy.ROUND_ROBIN) == "a"
        assert ids(picker, both.services[ServiceName("api")], 1, Strategy.ROUND_ROBIN) == "a"


class TestWeightedRoundRobin:
    @pytest.mark.parametrize(
        ("weights", "round_"),
        [
            pytest.param({"a": 1, "b": 1}, "ab", id="equal weights alternate"),
            pytest.param({"a": 5, "b": 1, "c": 1}, "aaabcaa", id="five to one to one, without a burst of five"),
            pytest.param({"a": 2, "b": 1}, "aba", id="two to one"),
            pytest.param({"a": 3, "b": 3, "c": 3}, "abc", id="only the ratio counts"),
        ],
    )
    def test_rounds(self, picker: Picker, weights: dict[str, int], round_: str) -> None:
        service = weighted(**weights)
        assert ids(picker, service, 3 * len(round_), Strategy.WEIGHTED_ROUND_ROBIN) == 3 * round_

    @given(st.lists(st.integers(1, 1000), min_size=1, max_size=8))
    def test_each_round_gives_exactly_the_weights_and_never_strays_far(self, weights: list[int]) -> None:
        picker = Picker(random=random.Random(1), clock=Clock())
        names = dict(zip("abcdefgh", weights, strict=False))
        total = sum(weights)
        picked = ids(picker, weighted(**names), total, Strategy.WEIGHTED_ROUND_ROBIN)

        assert Counter(picked) == names
        for id, weight in names.items():
            at = [n for n, each in enumerate(picked) if each == id]
            gap = max((after - before for before, after in pairwise(at)), default=0)
            assert gap <= total / weight + len(weights), "turns are spread evenly"

    def test_a_newcomer_gets_its_share_but_no_burst(self, picker: Picker) -> None:
        now = catalog(member("a"), member("b"))
        ids(picker, now.services[WEB], 1_000, Strategy.WEIGHTED_ROUND_ROBIN)
        now, _ = now.apply(member("c"))
        picked = ids(picker, now.services[WEB], 9, Strategy.WEIGHTED_ROUND_ROBIN)

        assert Counter(picked) == {"a": 3, "b": 3, "c": 3}
        assert "cc" not in picked

    def test_one_that_was_away_does_not_catch_up(self, picker: Picker) -> None:
        now = catalog(judged("a", HealthStatus.HEALTHY), judged("b", HealthStatus.HEALTHY))
        ids(picker, now.services[WEB], 1, Strategy.WEIGHTED_ROUND_ROBIN)
        now, _ = now.apply(Judged(key=key("web", "b"), verdict=verdict(HealthStatus.TIMEOUT)))
        assert set(ids(picker, now.services[WEB], 500, Strategy.WEIGHTED_ROUND_ROBIN)) == {"a"}
        now, _ = now.apply(Judged(key=key("web", "b"), verdict=verdict()))

        assert "bb" not in ids(picker, now.services[WEB], 100, Strategy.WEIGHTED_ROUND_ROBIN)

    def test_a_changed_weight_counts_from_the_next_round(self, picker: Picker) -> None:
        now = catalog(member("a"), member("b"))
        ids(picker, now.services[WEB], 11, Strategy.WEIGHTED_ROUND_ROBIN)
        now, _ = now.apply(member("b", weight=3))
        picked = Counter(ids(picker, now.services[WEB], 400, Strategy.WEIGHTED_ROUND_ROBIN))

        assert abs(picked["b"] - 300) <= 1

    def test_frequent_changes_elsewhere_in_the_service_do_not_skew_the_turns(self, picker: Picker) -> None:
        now = catalog(member("a", weight=3), member("b", weight=1), member("z", draining=True))
        picked: Counter[str] = Counter()
        for n in range(400):
            now, _ = now.apply(member("z", draining=True, tags=[f"t{n}"]))
            picked.update(ids(picker, now.services[WEB], 1, Strategy.WEIGHTED_ROUND_ROBIN))

        assert picked == {"a": 300, "b": 100}


class TestHealthBased:
    def test_turns_follow_the_health_score_not_the_weight(self, picker: Picker) -> None:
        service = web(
            member("a", weight=1000, health_check=CHECKED, verdict=verdict(score=25)),
            judged("b", HealthStatus.HEALTHY, score=75),
        )
        picked = ids(picker, service, 100, Strategy.HEALTH_BASED)

        assert Counter(picked) == {"a": 25, "b": 75}
        assert "aa" not in picked

    def test_a_score_of_nothing_still_gets_a_turn_now_and_then(self, picker: Picker) -> None:
        service = web(judged("a", HealthStatus.HEALTHY, score=0), judged("b", HealthStatus.HEALTHY, score=99))
        assert Counter(ids(picker, service, 100, Strategy.HEALTH_BASED)) == {"a": 1, "b": 99}


class TestRandom:
    def test_all_are_alike_whatever_their_weight(self, picker: Picker) -> None:
        picked = Counter(ids(picker, weighted(a=1000, b=1, c=1), 3_000, Strategy.RANDOM))
        assert all(abs(count - 1_000) < 120 for count in picked.values()), picked

    def test_the_source_of_chance_is_the_one_given(self) -> None:
        service = weighted(a=1, b=1, c=1)
        runs = [ids(Picker(random=random.Random(3), clock=Clock()), service, 50, Strategy.RANDOM) for _ in range(2)]
        assert runs[0] == runs[1]


class TestLeastConnections:
    def test_hand_outs_are_shared_by_weight(self, picker: Picker) -> None:
        picked = ids(picker, weighted(a=1, b=3), 400, Strategy.LEAST_CONNECTIONS)
        assert abs(Counter(picked)["b"] - 300) <= 2

    def test_who_was_handed_out_lately_waits_until_that_has_faded(self, picker: Picker, clock: Clock) -> None:
        alone = catalog(judged("a", HealthStatus.HEALTHY), judged("b", HealthStatus.TIMEOUT))
        ids(picker, alone.services[WEB], 100, Strategy.LEAST_CONNECTIONS)
        clock.now += 3 * HAND_OUT_LIFE_S
        both, _ = alone.apply(Judged(key=key("web", "b"), verdict=verdict()))
        picked = ids(picker, both.services[WEB], 40, Strategy.LEAST_CONNECTIONS)

        assert Counter(picked) == {"a": 20, "b": 20}, "who comes back is not flooded"

    def test_old_hand_outs_fade(self, picker: Picker, clock: Clock) -> None:
        service = weighted(a=1, b=1)
        assert ids(picker, service, 1, Strategy.LEAST_CONNECTIONS) == "a"
        clock.now += 2 * HAND_OUT_LIFE_S
        assert ids(picker, service, 1, Strategy.LEAST_CONNECTIONS) == "b"
        assert ids(picker, service, 1, Strategy.LEAST_CONNECTIONS) == "a", "its old one weighs less than b's fresh one"

    @pytest.mark.parametrize("pause_s", [1.0, 1_900.0, 2_100.0, 1e9], ids="after {} s".format)
    def test_no_pause_is_too_long(self, picker: Picker, clock: Clock, pause_s: float) -> None:
        service = weighted(a=1, b=1)
        picked = ""
        for _ in range(50):
            clock.now += pause_s
            picked += ids(picker, service, 2, Strategy.LEAST_CONNECTIONS)
        assert Counter(picked) == {"a": 50, "b": 50}

    def test_a_newcomer_is_not_flooded(self, picker: Picker) -> None:
        now = catalog(member("a"), member("b"))
        ids(picker, now.services[WEB], 1_000, Strategy.LEAST_CONNECTIONS)
        now, _ = now.apply(member("c"))
        picked = ids(picker, now.services[WEB], 30, Strategy.LEAST_CONNECTIONS)

        assert Counter(picked) == {"a": 10, "b": 10, "c": 10}

    def test_that_connections_are_not_known_is_said(self, picker: Picker) -> None:
        pick = choose(picker, weighted(a=1), strategy=Strategy.LEAST_CONNECTIONS)
        assert pick is not None
        assert "hand-outs" in pick.reason
        assert "no proxy reports" in pick.reason


def mapping(service: Service, keys: int = 4_000) -> list[str]:
    """Return who has each of many keys, asked of a fresh picker."""
    picker = Picker(random=random.Random(), clock=Clock())
    return [ids(picker, service, 1, Strategy.CONSISTENT_HASH, key=f"user-{n}") for n in range(keys)]


class TestConsistentHash:
    def test_a_key_stays_with_its_instance(self, picker: Picker) -> None:
        service = weighted(a=1, b=1, c=1)
        assert len(set(ids(picker, service, 20, Strategy.CONSISTENT_HASH, key="user-7"))) == 1

    def test_the_mapping_is_the_same_in_every_process_and_for_ever(self) -> None:
        assert "".join(mapping(weighted(a=1, b=2, c=3), 24)) == "cbbabbcbccbcbccccaccbcac"

    def test_keys_are_shared_by_weight(self) -> None:
        counts = Counter(mapping(weighted(a=1, b=2, c=5)))
        assert {id: round(count / 500) for id, count in counts.items()} == {"a": 1, "b": 2, "c": 5}

    def test_who_goes_leaves_its_keys_to_all_and_no_other_key_moves(self) -> None:
        before = mapping(weighted(a=1, b=1, c=1, d=1))
        after = mapping(weighted(a=1, b=1, c=1))
        moved = Counter(now for was, now in zip(before, after, strict=True) if was != now)

        assert moved.total() == before.count("d")
        assert all(abs(count - moved.total() / 3) < 0.2 * moved.total() for count in moved.values())

    def test_who_comes_takes_its_share_and_no_other_key_moves(self) -> None:
        before = mapping(weighted(a=1, b=1, c=1))
        after = mapping(weighted(a=1, b=1, c=1, d=1))

        assert {now for was, now in zip(before, after, strict=True) if was != now} == {"d"}
        assert 0.2 < after.count("d") / len(after) < 0.3

    def test_a_heavier_weight_takes_keys_and_gives_none(self) -> None:
        before = mapping(weighted(a=1, b=1, c=1))
        after = mapping(weighted(a=1, b=1, c=2))

        assert {now for was, now in zip(before, after, strict=True) if was != now} == {"c"}
        assert 0.45 < after.count("c") / len(after) < 0.55

    @pytest.mark.parametrize(
        ("how", "says"),
        [
            pytest.param({"key": "k", "client": "10.9.9.9"}, "hash of the key", id="a key comes first"),
            pytest.param({"client": "10.9.9.9"}, "hash of the caller's address", id="else the caller's address"),
            pytest.param({"key": ""}, "hash of the key", id="an empty key is a key"),
            pytest.param({}, "always the same one", id="with neither, all get the same"),
        ],
    )
    def test_what_was_hashed_is_said(self, picker: Picker, how: dict[str, str], says: str) -> None:
        pick = choose(picker, weighted(a=1, b=1), strategy=Strategy.CONSISTENT_HASH, **how)
        assert pick is not None
        assert says in pick.reason

    def test_the_callers_address_decides_like_a_key(self, picker: Picker) -> None:
        service = weighted(a=1, b=1, c=1)
        for n in range(20):
            by_client = choose(picker, service, strategy=Strategy.CONSISTENT_HASH, client=f"10.0.0.{n}")
            by_key = choose(picker, service, strategy=Strategy.CONSISTENT_HASH, key=f"10.0.0.{n}")
            assert by_client is not None
            assert by_key is not None
            assert by_client.entry is by_key.entry


class TestMemory:
    def test_services_that_nobody_asks_for_any_more_are_forgotten(self, picker: Picker, clock: Clock) -> None:
        for n in range(100):
            events = [put(f"s{n}", "a", port=1), put(f"s{n}", "b", port=2)]
            choose(picker, catalog(*events).services[ServiceName(f"s{n}")], strategy=Strategy.ROUND_ROBIN)
        clock.now += FORGET_S - 1
        kept = catalog(put("s0", "a", port=1), put("s0", "b", port=2)).services[ServiceName("s0")]
        assert ids(picker, kept, 1, Strategy.ROUND_ROBIN) == "b"
        clock.now += 61
        assert ids(picker, kept, 1, Strategy.ROUND_ROBIN) == "a"

        assert list(picker._memories) == ["s0"]

    def test_a_service_whose_last_instance_went_is_forgotten(self, picker: Picker) -> None:
        now = catalog(member("a"), member("b"))
        ids(picker, now.services[WEB], 1, Strategy.ROUND_ROBIN)
        for id in "ab":
            now, _ = now.apply(DeleteInstance(key=key("web", id), registry="memory"))
        assert choose(picker, now.services[WEB]) is None

        assert not picker._memories

    def test_instances_that_went_are_forgotten(self, picker: Picker) -> None:
        now: Catalog = catalog(member("a"))
        for n in range(200):
            now, _ = now.apply(put("web", f"i{n}", port=100 + n))
            for strategy in Strategy:
                choose(picker, now.services[WEB], strategy=strategy)
            now, _ = now.apply(DeleteInstance(key=key("web", f"i{n}"), registry="memory"))
        for strategy in Strategy:
            choose(picker, now.services[WEB], strategy=strategy)

        memory = picker._memories[WEB]
        assert {len(turns._due) for turns in memory._turns.values()} == {1}
        assert memory._hand_outs is not None
        assert len(memory._hand_outs._counts) == 1
