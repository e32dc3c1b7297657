"""What a client holds, told as a shared set and its differences: always the same as a dictionary of its own."""

import random

import pytest

from xds.held import Held
from xds.types import Resource, ResourceSet

pytestmark = pytest.mark.unit

NAMES = "abcdef"


def resource(name: str, version: int) -> Resource:
    return Resource.of(name, f"{name}{version}".encode())


def test_a_client_in_step_keeps_nothing_of_its_own() -> None:
    wanted = set(NAMES)
    held = Held(wanted.__contains__)
    first = ResourceSet(resource(name, 1) for name in NAMES)
    held.take(first)
    second = first.replacing([resource("a", 2)])
    held.take({"a": second["a"]})
    held.rebase(second)

    assert dict(held) == dict(second)
    assert held.at_most == len(NAMES)


def test_what_is_not_wanted_is_not_held_and_does_not_come_back_by_itself() -> None:
    wanted = {"a", "b"}
    held = Held(wanted.__contains__)
    held.take(ResourceSet(resource(name, 1) for name in NAMES))

    assert set(held) == {"a", "b"}
    held.narrow()
    wanted |= {"c"}
    assert set(held) == {"a", "b"}


@pytest.mark.parametrize("seed", range(40))
def test_it_says_what_a_dictionary_would_say(seed: int) -> None:
    rng = random.Random(seed)
    wanted: set[str] = set(NAMES)
    held, plain = Held(wanted.__contains__), dict[str, Resource]()
    for step in range(60):
        name = rng.choice(NAMES)
        match rng.randrange(6):
            case 0 if name in wanted:
                held[name] = plain[name] = resource(name, rng.randrange(3))
            case 1:
                held.drop(name)
                plain.pop(name, None)
            case 2:
                changes = {one: resource(one, step) if rng.random() < 0.7 else None for one in rng.sample(NAMES, 3)}
                held.take(changes)
                for one, found in changes.items():
                    if found is None:
                        plain.pop(one, None)
                    elif one in wanted:
                        plain[one] = found
            case 3:  # everybody is in step with a set that says the same
                held.rebase(ResourceSet(plain.values()))
            case 4 if name in wanted:
                wanted.discard(name)
                held.forget(name)
                plain.pop(name, None)
            case 4 | 5:
                if name not in wanted:
                    held.drop(name)
                    wanted.add(name)
        assert dict(held) == plain
        assert len(held) == len(plain)
        assert bool(held) == bool(plain)
        assert all((one in held) == (one in plain) for one in NAMES)


@pytest.mark.parametrize("seed", range(20))
def test_a_set_knows_what_set_it_apart_from_the_one_it_was_made_of(seed: int) -> None:
    rng = random.Random(seed)
    before = ResourceSet(resource(name, 0) for name in "abcd")
    changed = [resource(name, rng.randrange(2)) for name in rng.sample(NAMES, 3)]
    after = before.replacing(changed, rng.sample([n for n in NAMES if n not in {one.name for one in changed}], 2))
    compared = {name for name in NAMES if before.get(name) != after.get(name)}

    assert after.differing_from(before) == compared
    assert before.differing_from(after) == compared, "found out by comparing"
    assert ResourceSet(after.values()).differing_from(before) == compared


def test_equal_lists_of_names_get_the_same_selection() -> None:
    whole = ResourceSet(resource(name, 0) for name in "abcd")
    one, other = whole.selected(frozenset("ab")), whole.selected(frozenset("ba"))

    assert one is other
    assert one is not None
    assert set(one) == {"a", "b"}
    assert whole.selected(frozenset("ax")) is None
