"""Which items of the conformance list are held by a test, where, and why an item has none here.

Test names carry the ids: `test_s_05_…` holds S-05. Sections Q (CSDS), J (REST and files) and K (gRPC clients) are
held by their own suites, Y (load reports) and H (health discovery) are not served in full yet.
"""

from collections.abc import Mapping
from types import MappingProxyType


def _section(letter: str, *numbers: int) -> frozenset[str]:
    return frozenset(f"{letter}-{number:02}" for number in numbers)


REQUIRED: frozenset[str] = frozenset().union(
    _section("T", *range(1, 16)),
    _section("N", *range(1, 7)),
    _section("S", *range(1, 14)),
    _section("W", *range(1, 13)),
    _section("G", *range(1, 10)),
    _section("D", *range(1, 16)),
    _section("R", *range(1, 14)),
    _section("O", *range(1, 11)),
    _section("P", *range(1, 9)),
    _section("C", *range(1, 18)),
    _section("L", *range(1, 5)),
    _section("X", *range(1, 7)),
    _section("V", *range(1, 9)),
    _section("E", *range(1, 4)),
    _section("F", *range(1, 7)),
)
"""Every item of the sections that this suite is about."""

_SERVER = "tests/xds/test_server.py"
_LIFE = "tests/xds/test_life_of_streams.py"
ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "T-09": f"{_SERVER}::test_t_09_keepalive_pings_of_a_client_are_tolerated",
        "T-10": f"{_LIFE}::test_t_10_a_client_behind_a_dead_connection_is_noticed_and_forgotten",
        "R-11": "tests/xds/test_bad_clients.py"
        "::test_r_11_three_hundred_clients_that_come_at_once_are_all_served_and_starve_nobody",
        "R-12": f"{_LIFE}::test_r_12_a_stream_ends_well_at_its_age_and_the_next_one_is_on_another_connection",
        "R-13": f"{_SERVER}::test_t_12_r_13_draining_ends_streams_that_were_answered_and_refuses_new_ones",
        "F-03": f"{_SERVER}::test_f_03_forty_thousand_names_in_one_request_are_taken",
        "F-04": f"{_SERVER}::test_f_04_a_client_that_reads_nothing_costs_a_bounded_amount_and_nobody_else",
        "F-05": f"{_SERVER}::test_f_05_a_thousand_streams_share_one_connection",
        "F-06": "tests/xds/test_wire.py::test_equal_responses_are_assembled_once_and_differ_by_nonce_only",
    }
)
"""Items that another suite holds: the test that does."""

WITHOUT: Mapping[str, str] = MappingProxyType(
    {
        "N-06": "this version has no transport identity: no TLS on its ports",
        "R-10": "the only registry is in this process and cannot be lost",
        "C-13": "no server-side listeners are served to gRPC",
        "C-15": "versions of Envoy are held by the end-to-end suite, against real ones",
        "L-02": "no TTL is ever set, so there is no heartbeat (L-01)",
        "L-03": "no TTL is ever set, so there is none to switch off (L-01)",
        "L-04": "no TTL is ever set, so there is nothing to exclude (L-01)",
        "X-05": "none of our names is an xdstp name",
        "V-08": "LEDS is not offered (T-01)",
        "E-01": "errors as data are not sent (E-03)",
        "E-02": "errors as data are not sent (E-03)",
    }
)
"""Items without a test: why."""
