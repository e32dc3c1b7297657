"""Regular expressions are judged as RE2 would, by the means of Python."""

import pytest
from envoy_data_plane.envoy.type.matcher.v3 import RegexMatcher

from controlplane.raw.lint import faults
from controlplane.raw.reading import Part

pytestmark = pytest.mark.unit


def refused(regex: str) -> bool:
    return bool(faults([Part((), RegexMatcher(regex=regex))]))


@pytest.mark.parametrize(
    "regex",
    [
        pytest.param(r"/a/[^/]+(\?.*)?", id="plain"),
        pytest.param(r"\*+\++", id="a quantifier behind a sign that is escaped"),
        pytest.param(r"[\w.*+-]+@[]+]+", id="signs in a class"),
        pytest.param(r"\\\\1", id="a backslash and a digit"),
        pytest.param(
            r"\pL\p{Greek}\P{^Lu}\x{10FFFF}\z", id="Unicode classes, long code points and the end of the text"
        ),
        pytest.param(r"[[:alpha:]_]+[[:^space:]]", id="POSIX classes"),
        pytest.param(r"/a(?i)b(?s-i:c)(?U)d", id="flags in the middle"),
        pytest.param(r"\Q(?=a)++\E", id="a quotation"),
        pytest.param(r"(?<word>a)(?P<other>b)", id="named groups in both spellings"),
    ],
)
def test_what_re2_takes_is_accepted(regex: str) -> None:
    assert not refused(regex)


@pytest.mark.parametrize(
    "regex", [r"(?=a)", r"(?<!a)b", r"(a)\1", r"a++", r"a{2}+", r"(?>a)", r"(?#a)", r"(a", r"a**", "", r"\\\1"]
)
def test_what_re2_refuses_is_refused(regex: str) -> None:
    assert refused(regex)
