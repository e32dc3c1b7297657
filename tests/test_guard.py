"""The mass-loss guard: what is too much, what is held, and how it ends; time is an argument."""

import pytest
from builders import instance, key, put, verdict
from hypothesis import given
from hypothesis import strategies as st

from controlplane.catalog import Catalog
from controlplane.guard import EVERYTHING, Decision, Guard, Limits
from controlplane.model import (
    DeleteInstance,
    HealthStatus,
    Held,
    InstanceKey,
    Missing,
    PutInstance,
    Synced,
    Verdict,
)

pytestmark = pytest.mark.unit

WALL = 1_700_000_000.0


class World:
    """Keep a guard and the catalog that does what it decides; `now` is the time in seconds."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.guard = Guard(limits or Limits())
        self.catalog, _ = Catalog().apply(Synced(registry="memory"))
        self.now = 0.0

    def has(self, service: str, *ids: str) -> None:
        for port, id_ in enumerate(ids, start=1):
            self.puts(put(service, id_, port=port))

    def puts(self, event: PutInstance) -> Decision:
        self.catalog, _ = self.catalog.apply(event)
        return self.guard.settled(event.instance.key)

    def deletes(self, service: str, id_: str) -> Decision:
        self.catalog, _ = self.catalog.apply(DeleteInstance(key=key(service, id_), registry="memory"))
        return self.guard.settled(key(service, id_))

    def loses(self, service: str, *ids: str, hold: str = "") -> Decision:
        return self.misses(*(key(service, id_) for id_ in ids), hold=hold)

    def misses(self, *keys: InstanceKey, hold: str = "") -> Decision:
        event = Missing(keys=keys, registry="memory", reason="ttl expired", hold=hold)
        return self.does(self.guard.missing(event, self.catalog, now=self.now, wall=WALL + self.now))

    def does(self, decision: Decision) -> Decision:
        for event in decision.events:
            self.catalog, _ = self.catalog.apply(event)
        return decision

    def offered(self, service: str = "web") -> dict[str, str]:
        """Return the instances of a service, with the hold that keeps each."""
        known = self.catalog.services.get(key(service, "").service)
        return {} if known is None else {entry.instance.id: entry.held for entry in known.sorted_entries()}


def ids(count: int, start: int = 0) -> list[str]:
    return [f"i{number:04}" for number in range(start, start + count)]


@pytest.mark.parametrize(
    ("there", "lost", "held"),
    [
        pytest.param(1, 1, False, id="the only instance is let go"),
        pytest.param(3, 3, False, id="all of three are let go: too few to speak of shares"),
        pytest.param(4, 2, False, id="exactly half of four are let go"),
        pytest.param(4, 3, True, id="three of four are held"),
        pytest.param(4, 4, True, id="all of four are held"),
        pytest.param(5, 2, False, id="two of five are let go"),
        pytest.param(5, 3, True, id="three of five are held"),
        pytest.param(38, 19, False, id="half of many are let go while they are fewer than twenty"),
    ],
)
@pytest.mark.parametrize("together", [True, False], ids=["together", "one by one"])
def test_more_than_half_of_a_service_is_held(there: int, lost: int, held: bool, together: bool) -> None:
    world = World()
    world.has("web", *ids(there))
    for each in [ids(lost)] if together else [[id_] for id_ in ids(lost)]:
        world.loses("web", *each)

    kept = {id_: "web" if id_ in ids(lost) else "" for id_ in ids(there)}
    assert world.offered() == (kept if held else dict.fromkeys(ids(there)[lost:], ""))
    assert bool(world.guard.holds()) is held


@pytest.mark.parametrize(
    ("services", "lost", "held"),
    [
        pytest.param(95, 19, False, id="a fifth of everything, nineteen, is let go"),
        pytest.param(60, 19, False, id="nearly a third is let go while it is fewer than twenty"),
        pytest.param(60, 20, True, id="twenty of sixty are held"),
        pytest.param(100, 20, False, id="exactly a fifth is let go"),
        pytest.param(99, 20, True, id="a little more than a fifth is held"),
        pytest.param(20, 20, True, id="all of twenty services with one instance each are held"),
    ],
)
@pytest.mark.parametrize("together", [True, False], ids=["together", "one by one"])
def test_more_than_a_fifth_of_everything_is_held(services: int, lost: int, held: bool, together: bool) -> None:
    world = World()
    names = [f"s{number}" for number in range(services)]
    for name in names:
        world.has(name, "a")
    gone = [key(name, "a") for name in names[:lost]]
    for keys in [gone] if together else [[one] for one in gone]:
        world.misses(*keys)

    assert [world.offered(name) for name in names[:lost]] == [{"a": EVERYTHING} if held else {}] * lost
    assert all(world.offered(name) == {"a": ""} for name in names[lost:])
    assert [hold.id for hold in world.guard.holds()] == ([EVERYTHING] if held else [])


def test_losses_that_are_further_apart_than_the_window_are_not_added_up() -> None:
    world = World()
    world.has("web", *ids(8))
    world.loses("web", *ids(4))
    world.now = 10.1
    world.loses("web", *ids(2, start=4))
    assert world.offered() == dict.fromkeys(ids(2, start=6), "")


def test_losses_within_the_window_are_added_up_and_those_let_go_come_back_with_their_health() -> None:
    world = World()
    world.has("web", *ids(3))
    sick = verdict(HealthStatus.UNHEALTHY)
    stated = Verdict(status=HealthStatus.DEGRADED, passed=True, since=1.0, reason="disk")
    known = PutInstance(instance=instance("web", "x", port=99), registry="memory", verdict=sick, stated=stated)
    world.puts(known)
    world.loses("web", "x")
    assert "x" not in world.offered()
    world.now = 10.0
    world.loses("web", *ids(2))

    assert world.offered() == {"i0000": "web", "i0001": "web", "i0002": "", "x": "web"}
    entry = world.catalog.entry(key("web", "x"))
    assert entry is not None
    assert (entry.instance, entry.verdict, entry.stated) == (known.instance, sick, stated)


def test_a_hold_says_since_when_until_when_why_and_over_which() -> None:
    world = World(Limits(hold_s=60))
    world.has("web", *ids(4))
    world.now = 5.0
    decision = world.loses("web", *ids(3))

    (hold,) = world.guard.holds()
    assert (hold.id, hold.since, hold.until) == ("web", WALL + 5, WALL + 65)
    assert hold.reason == "3 of 4 instances of web were lost within 10 s"
    assert hold.keys == {key("web", id_) for id_ in ids(3)}
    (notice,) = decision.held
    assert (notice.id, notice.instances, notice.keys) == ("web", 3, tuple(key("web", id_) for id_ in ids(3)))


def test_while_a_service_is_held_whatever_else_it_loses_is_held_too() -> None:
    world = World()
    world.has("web", *ids(10))
    world.loses("web", *ids(6))
    world.now = 300.0
    decision = world.loses("web", "i0006")

    assert world.offered() == {id_: "web" if id_ <= "i0006" else "" for id_ in ids(10)}
    (notice,) = decision.held
    assert (notice.instances, notice.keys) == (7, (key("web", "i0006"),))
    (hold,) = world.guard.holds()
    assert hold.since == WALL, "a hold that grows does not last longer"


def test_what_is_held_already_is_not_lost_again() -> None:
    world = World()
    world.has("web", *ids(4))
    world.loses("web", *ids(4))
    before = world.catalog
    assert world.loses("web", *ids(4)) == Decision()
    assert world.catalog is before


def test_an_instance_that_nobody_knows_is_no_loss() -> None:
    assert World().loses("web", "ghost") == Decision()


def test_one_service_that_is_held_does_not_hold_another() -> None:
    world = World()
    world.has("web", *ids(4))
    world.has("db", *ids(4))
    world.misses(*(key("web", id_) for id_ in ids(3)), key("db", "i0000"))
    assert set(world.offered("db")) == set(ids(3, start=1))
    assert world.offered() == {"i0000": "web", "i0001": "web", "i0002": "web", "i0003": ""}


def test_a_rolling_replacement_under_new_ids_is_not_a_loss() -> None:
    world = World()
    world.has("web", *ids(10))
    for number, old in enumerate(ids(10)):
        world.puts(put("web", f"new{number}", port=100 + number))
        world.loses("web", old)
    assert world.offered() == {f"new{number}": "" for number in range(10)}
    assert world.guard.holds() == ()


def test_an_instance_that_comes_back_is_held_no_more_and_the_last_one_ends_the_hold() -> None:
    world = World()
    world.has("web", *ids(4))
    world.loses("web", *ids(3))
    assert world.puts(put("web", "i0000", port=1)) == Decision()
    assert world.offered() == {"i0000": "", "i0001": "web", "i0002": "web", "i0003": ""}
    world.puts(put("web", "i0001", port=2))
    (ended,) = world.puts(put("web", "i0002", port=3)).ended
    assert (ended.id, ended.keys) == ("web", (key("web", "i0002"),))
    assert world.guard.holds() == ()
    assert world.guard.next_due() is None


def test_an_instance_that_was_let_go_and_came_back_counts_no_more() -> None:
    world = World()
    world.has("web", *ids(4))
    world.loses("web", "i0000", "i0001")
    world.puts(put("web", "i0000", port=1))
    world.loses("web", "i0002")
    assert world.offered() == {"i0000": "", "i0003": ""}


def test_a_deletion_that_is_trusted_takes_even_what_is_held() -> None:
    world = World()
    world.has("web", *ids(4))
    world.loses("web", *ids(4))
    world.deletes("web", "i0000")
    assert set(world.offered()) == set(ids(3, start=1))
    assert key("web", "i0000") not in world.guard.holds()[0].keys


def test_a_deletion_that_is_trusted_is_not_counted_as_a_loss() -> None:
    world = World()
    world.has("web", *ids(8))
    for id_ in ids(4):
        world.deletes("web", id_)
    world.loses("web", *ids(2, start=4))
    assert world.offered() == dict.fromkeys(ids(2, start=6), "")


def test_a_hold_ends_when_its_time_is_over() -> None:
    world = World(Limits(hold_s=60))
    world.has("web", *ids(4))
    world.now = 5.0
    world.loses("web", *ids(3))
    assert world.guard.next_due() == 65.0
    assert world.does(world.guard.due(64.9, world.catalog)) == Decision()

    decision = world.does(world.guard.due(65.0, world.catalog))
    assert world.offered() == {"i0003": ""}
    assert {event.reason for event in decision.events if isinstance(event, DeleteInstance)} == {"ttl expired"}
    assert [(notice.id, notice.instances) for notice in decision.ended] == [("web", 3)]
    assert world.guard.holds() == ()


def test_a_person_lets_a_hold_go() -> None:
    world = World()
    world.has("web", *ids(4))
    world.loses("web", *ids(3))
    decision = world.does(world.guard.release("web", world.catalog))
    assert world.offered() == {"i0003": ""}
    assert [(notice.id, notice.instances) for notice in decision.ended] == [("web", 3)]
    assert world.guard.release("web", world.catalog) == Decision()


def test_a_person_lets_one_held_instance_go() -> None:
    world = World()
    world.has("web", *ids(4))
    world.loses("web", *ids(3))
    assert world.does(world.guard.release("web/i0001", world.catalog)).ended == ()
    assert world.offered() == {"i0000": "web", "i0002": "web", "i0003": ""}
    assert world.does(world.guard.release("web/i0003", world.catalog)) == Decision(), "that one is not held"


def test_what_one_control_plane_lets_go_is_gone_at_another_that_holds_it_under_another_id() -> None:
    by_service, at_once = World(), World()
    services = ["a", "b", "c"]
    for world in (by_service, at_once):
        for service in services:
            world.has(service, *ids(10))
    for service in services:
        by_service.now += 20
        by_service.loses(service, *ids(6))
    at_once.misses(*(key(service, id_) for service in services for id_ in [*ids(6), "i0006"]))
    assert [hold.id for hold in by_service.guard.holds()] == services
    assert [hold.id for hold in at_once.guard.holds()] == [EVERYTHING]

    for world in (by_service, at_once):
        world.does(world.guard.release("a", world.catalog))
    for world in (by_service, at_once):
        assert not any(world.offered("a").values())
        assert any(world.offered("b").values())
    ended = [
        notice
        for world in (by_service, at_once)
        for notice in world.does(world.guard.release(EVERYTHING, world.catalog)).ended
    ]
    assert [(notice.id, notice.instances) for notice in ended] == [("b", 6), ("c", 6), (EVERYTHING, 14)]
    for world in (by_service, at_once):
        assert not any(held for service in services for held in world.offered(service).values())
        assert world.guard.holds() == ()


def test_what_was_released_is_not_what_counts_for_the_next_hold() -> None:
    world = World()
    world.has("web", *ids(8))
    world.loses("web", *ids(5))
    world.does(world.guard.release("web", world.catalog))
    world.has("web", *ids(4, start=5))
    world.loses("web", "i0005")
    assert "i0005" not in world.offered()


def test_without_time_to_hold_everything_is_let_go_at_once() -> None:
    world = World(Limits(hold_s=0))
    world.has("web", *ids(40))
    world.loses("web", *ids(40))
    assert world.offered() == {}
    assert world.guard.holds() == ()


def test_what_a_former_process_held_is_held_however_little_it_is() -> None:
    world = World(Limits(hold_s=60))
    world.has("web", *ids(10))
    world.loses("web", "i0000", hold="web")
    assert world.offered() == {"i0000": "web", **dict.fromkeys(ids(9, start=1), "")}
    assert world.guard.holds()[0].reason == "they were held before the restart"
    world.does(world.guard.due(60.0, world.catalog))
    assert "i0000" not in world.offered()


def test_both_holds_can_last_and_end_by_themselves() -> None:
    world = World()
    world.has("web", *ids(4))
    for number in range(30):
        world.has(f"s{number}", "a")
    world.loses("web", *ids(3))
    world.misses(*(key(f"s{number}", "a") for number in range(20)))
    assert [hold.id for hold in world.guard.holds()] == [EVERYTHING, "web"]

    for number in range(20):
        world.does(world.guard.release(f"s{number}", world.catalog))
    assert world.offered()["i0000"] == "web"
    assert world.offered("s0") == {}
    assert [hold.id for hold in world.guard.holds()] == ["web"]


def test_what_is_told_is_in_order_whatever_order_the_losses_came_in() -> None:
    world = World()
    world.has("web", *ids(4))
    world.loses("web", "i0002")
    decision = world.loses("web", "i0001", "i0000")
    held = [event for event in decision.events if isinstance(event, Held)]
    assert held == [Held(keys=tuple(key("web", id_) for id_ in ids(3)), hold="web")]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "delete", "lose", "lose", "lose", "lose all of it", "wait", "release", "due"]),
        st.sampled_from(["web", "db", "api"]),
        st.integers(0, 5),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_the_catalog_and_the_guard_agree_on_what_is_held(steps: list[tuple[str, str, int]]) -> None:
    world = World(Limits(hold_s=60, total_minimum=5))
    for service in ("web", "db", "api"):
        world.has(service, *ids(6))
    for what, service, number in steps:
        id_ = ids(1, start=number)[0]
        match what:
            case "put":
                world.puts(put(service, id_, port=1 + number))
            case "delete":
                world.deletes(service, id_)
            case "lose":
                world.loses(service, id_)
            case "lose all of it":
                world.loses(service, *ids(6))
            case "wait":
                world.now += 4.0
            case "release":
                world.does(world.guard.release([service, EVERYTHING, f"{service}/{id_}"][number % 3], world.catalog))
            case _:
                world.now += 20.0
                world.does(world.guard.due(world.now, world.catalog))
        held = {(entry.instance.key, entry.held) for entry in world.catalog.entries() if entry.held}
        assert held == {(each, hold.id) for hold in world.guard.holds() for each in hold.keys}
        assert all(hold.keys for hold in world.guard.holds()), "a hold over nothing has ended"
        assert (world.guard.next_due() is None) == (not held)
    world.does(world.guard.due(world.now + 60, world.catalog))
    assert world.guard.holds() == ()

    # Nothing of what was is left to count: a fresh service is judged by itself.
    world.now += 100
    world.has("fresh", *ids(4))
    world.loses("fresh", *ids(2))
    assert world.offered("fresh") == dict.fromkeys(ids(2, start=2), "")
