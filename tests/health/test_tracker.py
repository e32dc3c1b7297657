"""What a series of outcomes makes of an instance."""

import pytest
from builders import verdict
from hypothesis import given
from hypothesis import strategies as st

from controlplane.health import Outcome, OutcomeKind
from controlplane.health.tracker import Tracker
from controlplane.model import HealthStatus, Verdict

pytestmark = pytest.mark.unit

UP = {HealthStatus.HEALTHY, HealthStatus.DEGRADED}
KINDS = {
    "p": OutcomeKind.PASS,
    "d": OutcomeKind.DEGRADED,
    "f": OutcomeKind.FAIL,
    "t": OutcomeKind.TIMEOUT,
    "u": OutcomeKind.UNKNOWN,
}
WORDS = {
    "p": "HTTP 200",
    "d": "HTTP 429",
    "f": "HTTP 503\nsorry",
    "t": "no answer within 10 s",
    "u": "too many open files",
}


def outcome(letter: str, latency_s: float = 0.001) -> Outcome:
    return Outcome(kind=KINDS[letter], output=WORDS[letter], latency_s=latency_s)


def tracker(healthy: int = 2, unhealthy: int = 3, restored: Verdict | None = None) -> Tracker:
    return Tracker(healthy_threshold=healthy, unhealthy_threshold=unhealthy, timeout_s=10, verdict=restored)


def after(outcomes: str, **options: object) -> Verdict:
    """Observe the outcomes at seconds 1, 2, 3 … and return the verdict in force."""
    tracked = tracker(**options)  # type: ignore[arg-type]
    for second, letter in enumerate(outcomes, 1):
        tracked.observe(outcome(letter), second)
    assert tracked.verdict is not None
    return tracked.verdict


HEALTHY, DEGRADED, UNHEALTHY, TIMEOUT = (
    HealthStatus.HEALTHY,
    HealthStatus.DEGRADED,
    HealthStatus.UNHEALTHY,
    HealthStatus.TIMEOUT,
)


@pytest.mark.parametrize(
    ("outcomes", "options", "status", "since", "reason"),
    [
        pytest.param("p", {}, HEALTHY, 1, "HTTP 200, first check", id="the first pass makes healthy at once"),
        pytest.param("d", {}, DEGRADED, 1, "HTTP 429, first check", id="the first degraded answer counts at once"),
        pytest.param("f", {}, UNHEALTHY, 1, "HTTP 503, first check", id="the first failure makes unhealthy at once"),
        pytest.param("t", {}, TIMEOUT, 1, "no answer within 10 s, first check", id="the first timeout is one at once"),
        pytest.param("u", {}, UNHEALTHY, 1, "too many open files, first check", id="never checkable is not healthy"),
        pytest.param("pff", {}, HEALTHY, 1, "HTTP 200, first check", id="two failures of three change nothing"),
        pytest.param("pfff", {}, UNHEALTHY, 4, "HTTP 503, 3 of 3", id="the third failure in a row takes it down"),
        pytest.param("pfft", {}, TIMEOUT, 4, "no answer within 10 s, 3 of 3", id="the last failure gives the status"),
        pytest.param("pffpff", {}, HEALTHY, 1, "HTTP 200, first check", id="a pass between starts the count anew"),
        pytest.param("pffuf", {}, UNHEALTHY, 5, "HTTP 503, 3 of 3", id="what could not be checked counts for nothing"),
        pytest.param("puuuu", {}, HEALTHY, 1, "HTTP 200, first check", id="a checker's own trouble takes nobody down"),
        pytest.param("fp", {}, UNHEALTHY, 1, "HTTP 503, first check", id="one pass of two does not bring it back"),
        pytest.param("fpp", {}, HEALTHY, 3, "HTTP 200, 2 of 2", id="the second pass in a row brings it back"),
        pytest.param("fpd", {}, DEGRADED, 3, "HTTP 429, 2 of 2", id="a degraded answer brings it back, degraded"),
        pytest.param("fpfp", {}, UNHEALTHY, 1, "HTTP 503, first check", id="a failure between starts anew, too"),
        pytest.param("pd", {}, DEGRADED, 2, "HTTP 429", id="degraded follows the last answer"),
        pytest.param("pdp", {}, HEALTHY, 3, "HTTP 200", id="and so does its end"),
        pytest.param("ft", {}, TIMEOUT, 2, "no answer within 10 s", id="the kind of failure follows the last one"),
        pytest.param("pf", {"unhealthy": 1}, UNHEALTHY, 2, "HTTP 503, 1 of 1", id="threshold 1: the first failure"),
        pytest.param("fp", {"healthy": 1}, HEALTHY, 2, "HTTP 200, 1 of 1", id="threshold 1: the first pass"),
        pytest.param("ff", {"restored": verdict()}, HEALTHY, 1000, "HTTP 200", id="restored healthy needs all three"),
        pytest.param("fff", {"restored": verdict()}, UNHEALTHY, 3, "HTTP 503, 3 of 3", id="restored healthy, down"),
        pytest.param(
            "p", {"restored": verdict(TIMEOUT)}, TIMEOUT, 1000, "HTTP 200", id="restored down needs both passes"
        ),
        pytest.param("pp", {"restored": verdict(UNHEALTHY)}, HEALTHY, 2, "HTTP 200, 2 of 2", id="restored down, up"),
        pytest.param(
            "f", {"restored": verdict(HealthStatus.UNKNOWN)}, UNHEALTHY, 1, "HTTP 503, first check",
            id="a restored verdict that says nothing decides nothing",
        ),
    ],
)  # fmt: skip
def test_status_since_and_reason(
    outcomes: str, options: dict[str, object], status: HealthStatus, since: float, reason: str
) -> None:
    judged = after(outcomes, **options)
    assert (judged.status, judged.since, judged.reason) == (status, since, reason)


@pytest.mark.parametrize(
    ("outcomes", "options", "passed"),
    [
        pytest.param("p", {}, True, id="a pass"),
        pytest.param("d", {}, True, id="a degraded pass"),
        pytest.param("ftu", {}, False, id="failures only"),
        pytest.param("fp", {}, True, id="a pass that does not reach the threshold"),
        pytest.param("fpfff", {}, True, id="passed once, down again"),
        pytest.param("fff", {"restored": verdict()}, True, id="passed before the restart"),
        pytest.param("f", {"restored": verdict(UNHEALTHY, passed=False)}, False, id="never passed, restart included"),
        pytest.param("f", {"restored": verdict(HealthStatus.UNKNOWN)}, True, id="passed before, status unknown"),
    ],
)
def test_passed_says_whether_any_check_ever_has(outcomes: str, options: dict[str, object], passed: bool) -> None:
    assert after(outcomes, **options).passed is passed


def test_only_changes_are_returned() -> None:
    tracked = tracker(unhealthy=3)
    returned = [tracked.observe(outcome("p"), second) for second in range(100)]
    assert [judged is not None for judged in returned] == [True] + [False] * 99


def test_jitter_of_latency_changes_no_verdict() -> None:
    tracked = tracker()
    tracked.observe(outcome("p", 0.3), 0)
    jitter = (0.2, 0.35, 0.5, 0.28, 0.9, 0.15)
    assert [tracked.observe(outcome("p", jitter[i % 6]), i) for i in range(600)] == [None] * 600


def test_a_lasting_slowdown_lowers_the_score_and_its_end_raises_it() -> None:
    tracked = tracker()
    tracked.observe(outcome("p"), 0)
    assert tracked.score == 100
    for second in range(30):
        tracked.observe(outcome("p", 9.0), second)
    assert tracked.verdict is not None
    assert (tracked.score, tracked.verdict.score, tracked.verdict.status) == (51, 50, HEALTHY)
    for second in range(30):
        tracked.observe(outcome("p", 0.01), second)
    assert (tracked.score, tracked.verdict.score, tracked.verdict.since) == (100, 100, 0)


@pytest.mark.parametrize(
    ("outcomes", "fine", "coarse"),
    [
        pytest.param("p", 100, 100, id="one pass"),
        pytest.param("f", 0, 0, id="one failure"),
        pytest.param("d", 50, 50, id="degraded is worth half"),
        pytest.param("pfff", 50, 50, id="three failures halve it: the half-life"),
        pytest.param(
            "pfffppp", 75, 70, id="three passes make up half of the loss, the verdict following a step behind"
        ),
        pytest.param("f" + "p" * 40, 100, 100, id="in the end everything is forgiven"),
        pytest.param("p" + "f" * 40, 0, 0, id="and everything is lost"),
    ],
)
def test_score(outcomes: str, fine: int, coarse: int) -> None:
    tracked = tracker()
    for letter in outcomes:
        tracked.observe(outcome(letter), 0)
    assert tracked.verdict is not None
    assert (tracked.score, tracked.verdict.score) == (fine, coarse)


def test_a_restored_score_is_where_the_series_goes_on() -> None:
    tracked = tracker(restored=verdict(score=70))
    assert tracked.score == 70
    assert tracked.observe(outcome("p"), 1) is None
    assert tracked.score == 76


def test_thresholds_changed_on_the_way_hold_from_the_next_outcome() -> None:
    tracked = tracker(unhealthy=5)
    for letter in "pff":
        tracked.observe(outcome(letter), 0)
    tracked.configure(healthy_threshold=1, unhealthy_threshold=3, timeout_s=10)
    judged = tracked.observe(outcome("f"), 9)
    assert judged is not None
    assert (judged.status, judged.reason) == (UNHEALTHY, "HTTP 503, 3 of 3")


@given(
    outcomes=st.text(alphabet="pdftu", min_size=1, max_size=60),
    healthy=st.integers(1, 4),
    unhealthy=st.integers(1, 4),
    restored=st.sampled_from([None, HEALTHY, DEGRADED, UNHEALTHY, TIMEOUT]),
)
def test_nothing_flips_before_its_threshold(
    outcomes: str, healthy: int, unhealthy: int, restored: HealthStatus | None
) -> None:
    tracked = tracker(healthy, unhealthy, None if restored is None else verdict(restored))
    told: list[str] = []  # the outcomes that say something
    for second, letter in enumerate(outcomes):
        before = tracked.verdict
        judged = tracked.observe(outcome(letter), second)
        if letter != "u":
            told.append(letter)
        assert judged is None or judged == tracked.verdict != before
        if before is None or tracked.verdict is None:
            continue
        was_up, is_up = before.status in UP, tracked.verdict.status in UP
        recent = "".join(told)
        if was_up and not is_up:
            assert len(recent) >= unhealthy
            assert set(recent[-unhealthy:]) <= {"f", "t"}
        elif is_up and not was_up:
            assert len(recent) >= healthy
            assert set(recent[-healthy:]) <= {"p", "d"}
        if is_up and len(recent) >= unhealthy:  # nor later than it
            assert not set(recent[-unhealthy:]) <= {"f", "t"}
        assert tracked.verdict.score in range(0, 101, 10)
