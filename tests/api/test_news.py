"""What watchers are told of a change is spelled once, and never that of another change."""

import pytest

from controlplane.api.news import SharedNews
from controlplane.model import ServiceName

pytestmark = pytest.mark.unit

WEB = frozenset({ServiceName("web")})


class Spelling:
    """Spell, and count how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> list[bytes]:
        self.times += 1
        return [b"news %d" % self.times]


def test_all_who_knew_the_same_are_told_the_same_spelled_once() -> None:
    news, spell = SharedNews(), Spelling()

    assert [list(news.told(8, 7, WEB, spell)) for _ in range(3)] == [[b"news 1"]] * 3


@pytest.mark.parametrize(
    ("revision", "since", "only"),
    [
        pytest.param(9, 7, WEB, id="a later change"),
        pytest.param(8, 6, WEB, id="a watcher that knew less"),
        pytest.param(8, 7, frozenset(), id="a watcher of everything"),
    ],
)
def test_other_news_are_spelled_anew(revision: int, since: int, only: frozenset[ServiceName]) -> None:
    news, spell = SharedNews(), Spelling()
    news.told(8, 7, WEB, spell)

    assert list(news.told(revision, since, only, spell)) == [b"news 2"]


def test_the_news_of_one_far_behind_are_not_kept() -> None:
    news, spell = SharedNews(), Spelling()

    for _ in range(2):
        list(news.told(1_000, 7, WEB, spell))

    assert spell.times == 2
