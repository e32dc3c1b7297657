"""The arithmetic of the REST benchmark; what it measures is printed, never asserted."""

import pytest
from benchmark.rest_servers import Fleet
from benchmark.rest_side_by_side import Aim, Figure, Line, lines
from benchmark.wrk import Request

pytestmark = pytest.mark.unit

FLEET = Fleet(services=1_000, endpoints=1)
READS = Line(what="reads", fleet=FLEET, aim=Aim(at_least=1.0))
WATCHERS = Line(what="watchers", fleet=FLEET, aim=Aim(at_most=0.5))


def clean(*values: float) -> list[Figure]:
    return [Figure(value=value, foreign=0.0) for value in values]


def test_the_ratio_is_of_medians_and_says_what_it_is_to_be() -> None:
    found = {
        READS: {"ours": clean(10, 30, 20), "consul": clean(10)},
        WATCHERS: {"ours": clean(60), "consul": clean(100)},
    }

    assert lines(found) == [
        ["reads", "1,000 × 1", "20", "10", "2 (≥ 1)"],
        ["watchers", "1,000 × 1", "60", "100", "0.6 (≤ 0.5: missed)"],
    ]


def test_a_figure_taken_beside_other_work_is_marked_and_so_is_its_ratio() -> None:
    found = {READS: {"ours": [Figure(value=20, foreign=0.3)], "consul": clean(10)}}

    assert lines(found) == [["reads", "1,000 × 1", "20 *", "10", "2 * (≥ 1)"]]


def test_without_the_peer_there_is_no_ratio() -> None:
    assert lines({READS: {"ours": clean(20)}}) == [["reads", "1,000 × 1", "20", "–", "–"]]


def test_a_request_names_the_service_the_endpoint_and_the_version() -> None:
    request = Request(method="PUT", path="/{s}/{e}", body='{"port": {v}}')

    assert request.filled(7, 2, 9_001) == Request(method="PUT", path="/7/2", body='{"port": 9001}')
