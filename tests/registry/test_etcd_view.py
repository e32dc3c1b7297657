"""What a process knows of etcd's instances, from the watch and from its own writes."""

from collections.abc import Callable

import pytest
from builders import instance

from controlplane.model import Instance
from controlplane.registry.etcd.view import Stored, View

pytestmark = pytest.mark.unit

A = instance("web", "a", host="10.0.0.1", weight=1)
HEAVY = instance("web", "a", host="10.0.0.1", weight=2)
MOVED = instance("web", "a", host="10.0.0.9")


def at(revision: int, stored: Instance = A) -> Stored:
    return Stored(instance=stored, lease=0, revision=revision)


@pytest.mark.parametrize(
    ("steps", "held"),
    [
        pytest.param([lambda v: v.put(A.key, at(5))], A, id="what is put is held"),
        pytest.param(
            [lambda v: v.put(A.key, at(6, HEAVY)), lambda v: v.put(A.key, at(5))],
            HEAVY,
            id="older news of a put do not undo our own",
        ),
        pytest.param(
            [lambda v: v.put(A.key, at(5)), lambda v: v.delete(A.key, 6, own=True), lambda v: v.put(A.key, at(5))],
            None,
            id="older news of a put do not undo our deletion",
        ),
        pytest.param(
            [lambda v: v.delete(A.key, 6, own=True), lambda v: v.delete(A.key, 6), lambda v: v.put(A.key, at(7))],
            A,
            id="a put behind our deletion counts",
        ),
        pytest.param(
            [lambda v: v.put(A.key, at(7)), lambda v: v.delete(A.key, 6)],
            A,
            id="older news of a deletion do not undo our put",
        ),
        pytest.param(
            [lambda v: v.put(A.key, at(7)), lambda v: v.delete(A.key, 8)], None, id="a deletion by others counts"
        ),
        pytest.param(
            [lambda v: v.put(A.key, at(5)), lambda v: v.keep([], 6)], None, id="what a listing does not hold is gone"
        ),
        pytest.param(
            [lambda v: v.put(A.key, at(7)), lambda v: v.keep([], 6)],
            A,
            id="but for what was written here since",
        ),
    ],
)
def test_the_newest_word_counts(steps: list[Callable[[View], None]], held: Instance | None) -> None:
    view = View()
    for step in steps:
        step(view)
    stored = view.get(A.key)
    assert (None if stored is None else stored.instance) == held
    assert view.owner(A) == (None if held is None else "a")


def test_an_address_is_free_when_its_owner_has_moved() -> None:
    view = View()
    view.put(A.key, at(5))
    view.put(A.key, at(6, MOVED))
    assert view.owner(A) is None
    assert view.owner(MOVED) == "a"
