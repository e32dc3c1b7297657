"""How the registries' figures are told; what they are is printed, never asserted."""

from dataclasses import replace

import pytest
from benchmark.registries import Figures, line

pytestmark = pytest.mark.unit

CLEAN = Figures(ready_s=1.5, changes_ms=(2.0, 4.0, 6.0), idle_percent=0.5, rss_mb=120, foreign=0.0)


def test_a_line_says_what_each_figure_is_to_be() -> None:
    assert line("etcd", [CLEAN]) == ["etcd", "1.5", "4 (≤ 10)", "7.92 (≤ 10)", "0.5 (≤ 2)", "120 (≤ 150)"]


def test_a_figure_that_misses_its_aim_says_so() -> None:
    slow = replace(CLEAN, changes_ms=(40.0, 40.0), idle_percent=3, rss_mb=180)

    assert line("consul", [slow])[2:] == [
        "40 (≤ 30: missed)",
        "40 (≤ 30: missed)",
        "3 (≤ 2: missed)",
        "180 (≤ 150: missed)",
    ]
    assert line("kubernetes", [slow])[5] == "180 (≤ 200)"


def test_figures_taken_beside_other_work_are_marked() -> None:
    assert line("memory", [CLEAN, replace(CLEAN, foreign=0.5)])[1] == "1.5 *"
