"""Who checks what, where several control planes share a registry."""

from collections import Counter

import pytest
from builders import key

from controlplane.shares import Shares

pytestmark = pytest.mark.unit

KEYS = [key(f"service-{number % 50}", f"i{number}") for number in range(3_000)]


def owners(members: list[str]) -> dict[object, str]:
    """Return who says that it checks each instance, and make sure that it is one alone."""
    taken = {}
    for member in members:
        shares = Shares(member, waits=True)
        shares.set(members)
        for each in KEYS:
            if shares.mine(each):
                assert each not in taken, f"{each} is checked twice"
                taken[each] = member
    assert len(taken) == len(KEYS), "some are checked by nobody"
    return taken


def test_alone_everything_is_ours() -> None:
    assert all(Shares("a").mine(each) for each in KEYS)


def test_where_others_are_at_work_nothing_is_ours_until_we_know_them() -> None:
    shares = Shares("a", waits=True)
    assert not any(shares.mine(each) for each in KEYS)
    assert shares.set(()), "that there is nobody else is news"
    assert all(shares.mine(each) for each in KEYS)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_each_instance_is_checked_by_exactly_one_and_the_work_is_shared_evenly(count: int) -> None:
    shared = Counter(owners([f"host-{number}-0123abcd" for number in range(count)]).values())
    even = len(KEYS) / count
    assert all(0.8 * even < each < 1.2 * even for each in shared.values()), shared


def test_when_a_member_goes_only_what_it_checked_changes_hands_and_goes_to_all_the_others() -> None:
    before, after = owners(["a", "b", "c", "d"]), owners(["a", "b", "c"])
    moved = {each for each in KEYS if before[each] != after[each]}
    assert moved == {each for each in KEYS if before[each] == "d"}
    assert {after[each] for each in moved} == {"a", "b", "c"}


def test_the_order_in_which_members_are_named_means_nothing() -> None:
    first, second = Shares("b"), Shares("b")
    first.set(["a", "b", "c"])
    second.set(["c", "a", "a"])
    assert first.members == second.members == ("a", "b", "c")
    assert [first.mine(each) for each in KEYS] == [second.mine(each) for each in KEYS]


def test_members_that_are_the_same_as_before_are_no_change() -> None:
    shares = Shares("a")
    assert shares.set(["a", "b"])
    assert not shares.set(["b", "a"])
    assert not shares.set(["b"]), "one that does not list itself yet is a member all the same"
    assert shares.set([])
