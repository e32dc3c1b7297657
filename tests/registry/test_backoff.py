"""How long to wait before a registry is tried again."""

from random import Random

import pytest

from controlplane.registry.backoff import CEILING_S, FIRST_S, Backoff

pytestmark = pytest.mark.unit


def test_the_waits_grow_up_to_a_ceiling_and_stay_there() -> None:
    backoff = Backoff(Random(1))
    for step in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0):
        assert step / 2 <= backoff.next_s() <= step


def test_what_worked_once_is_tried_again_soon() -> None:
    backoff = Backoff(Random(1))
    while backoff.next_s() < CEILING_S / 2:
        pass
    backoff.reset()
    assert backoff.next_s() <= FIRST_S


def test_two_control_planes_do_not_come_back_in_step() -> None:
    first, second = Backoff(Random(1)), Backoff(Random(2))
    assert [first.next_s() for _ in range(5)] != [second.next_s() for _ in range(5)]
