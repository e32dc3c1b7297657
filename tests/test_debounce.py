"""When publications happen; time is an argument."""

import pytest

from controlplane.debounce import Debounce

pytestmark = pytest.mark.unit


def test_a_change_after_calm_is_due_at_once() -> None:
    debounce = Debounce(quiet_s=1, ceiling_s=10)
    assert debounce.due() is None

    debounce.touch(100)

    assert debounce.due() == 100


def test_a_change_soon_after_a_publication_waits_for_quiet() -> None:
    debounce = Debounce(quiet_s=1, ceiling_s=10)
    debounce.published(100)
    debounce.touch(100.5)

    assert debounce.due() == 101.5
    debounce.touch(101.2)
    assert debounce.due() == 102.2


def test_a_steady_stream_cannot_starve_publication() -> None:
    debounce = Debounce(quiet_s=1, ceiling_s=3)
    debounce.published(100)
    for tenth in range(1, 100):
        debounce.touch(100 + tenth / 10)

    assert debounce.due() == pytest.approx(103.1)


def test_after_a_publication_nothing_is_due() -> None:
    debounce = Debounce(quiet_s=1, ceiling_s=3)
    debounce.touch(100)
    debounce.published(100)

    assert debounce.due() is None
