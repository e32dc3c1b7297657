"""When things are due, with time as an argument."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.registry.leases import Deadlines

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("steps", "now", "due"),
    [
        pytest.param([], 1e9, [], id="nobody is due where nobody has a deadline"),
        pytest.param([("a", 10)], 9.999, [], id="a moment before its deadline a key is not due"),
        pytest.param([("a", 10)], 10, ["a"], id="at its deadline it is"),
        pytest.param([("b", 10), ("a", 5)], 20, ["a", "b"], id="the earliest comes first"),
        pytest.param([("b", 10), ("a", 10)], 20, ["b", "a"], id="of equal deadlines the one set first comes first"),
        pytest.param([("a", 10), ("a", 30)], 20, [], id="a renewed key is not due at its old deadline"),
        pytest.param([("a", 10), ("a", 30)], 30, ["a"], id="but at its new one"),
        pytest.param([("a", 30), ("a", 10)], 20, ["a"], id="a deadline can be moved forward"),
        pytest.param([("a", 10), ("a", 30), ("a", 20)], 20, ["a"], id="later, then earlier: the last word counts"),
        pytest.param([("a", 10), ("a", None)], 20, [], id="a discarded key is never due"),
        pytest.param([("a", 10), ("a", None), ("a", 10)], 20, ["a"], id="set again after a discard, it is due once"),
        pytest.param([("a", None)], 20, [], id="discarding an unknown key is fine"),
    ],
)
def test_due(steps: list[tuple[str, float | None]], now: float, due: list[str]) -> None:
    deadlines: Deadlines[str] = Deadlines()
    for name, at in steps:
        if at is None:
            deadlines.discard(name)
        else:
            deadlines.set(name, at)

    assert deadlines.pop_due(now) == due
    assert deadlines.pop_due(now) == []


KEYS = st.integers(0, 5)
STEP = st.one_of(
    st.tuples(st.just("set"), KEYS, st.integers(0, 30)),
    st.tuples(st.just("discard"), KEYS, st.just(0)),
    st.tuples(st.just("pop"), st.just(0), st.integers(0, 30)),
)


@given(st.lists(STEP, max_size=200))
def test_any_sequence_agrees_with_a_plain_dict(steps: list[tuple[str, int, int]]) -> None:
    deadlines: Deadlines[int] = Deadlines()
    plain: dict[int, int] = {}
    for what, name, time in steps:
        if what == "set":
            deadlines.set(name, time)
            plain[name] = time
        elif what == "discard":
            deadlines.discard(name)
            plain.pop(name, None)
        else:
            due = deadlines.pop_due(time)
            assert sorted(due) == sorted(each for each, at in plain.items() if at <= time)
            assert [plain[each] for each in due] == sorted(plain[each] for each in due)
            for each in due:
                del plain[each]
        assert len(deadlines) == len(plain)
        assert all(deadlines.at(each) == plain.get(each) for each in range(6))
        following = deadlines.next()
        assert (following is None) == (not plain), "there is a next look while anything is held, and only then"
        assert following is None or following <= min(plain.values()), "nobody is overslept"


def test_endless_renewal_and_replacement_take_no_memory() -> None:
    deadlines: Deadlines[int] = Deadlines()
    for n in range(20_000):
        deadlines.set(n % 10, 1_000_000 - n)
        if n % 7 == 0:
            deadlines.discard(n % 10)

    assert len(deadlines._heap) < 200
