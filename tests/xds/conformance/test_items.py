"""Every item of the conformance list has a test, or a reason."""

import re
from pathlib import Path

import pytest

from tests.xds.conformance.items import ELSEWHERE, REQUIRED, WITHOUT

pytestmark = pytest.mark.unit

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
_TEST = re.compile(r"^async def (test(?:_[a-z]_\d\d)+)_", re.MULTILINE)
_ID = re.compile(r"_([a-z])_(\d\d)")


def ids_in(text: str) -> set[str]:
    """Read the ids off the names of tests."""
    found = (_ID.findall(name) for name in _TEST.findall(text))
    return {f"{letter.upper()}-{number}" for each in found for letter, number in each}


HELD = {id for path in sorted(HERE.glob("test_*.py")) for id in ids_in(path.read_text())}


def test_every_item_has_a_test_or_a_reason() -> None:
    assert sorted(REQUIRED - HELD - ELSEWHERE.keys() - WITHOUT.keys()) == []


def test_no_reason_outlives_the_test_that_it_excuses() -> None:
    assert sorted(WITHOUT.keys() & HELD) == []


def test_no_test_carries_an_id_that_is_not_of_the_list() -> None:
    assert sorted(HELD - REQUIRED) == []


@pytest.mark.parametrize(("id", "where"), ELSEWHERE.items())
def test_a_test_that_is_elsewhere_exists(id: str, where: str) -> None:
    path, _, name = where.partition("::")

    assert re.search(rf"^(?:async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), (id, where)
