"""Every file in `tests/transcripts` is a conversation that happened or must not; a bug report becomes a file.

The notation is explained in `tests/xds/transcript.py`.
"""

from pathlib import Path

import pytest

from tests.xds.transcript import Replay

pytestmark = pytest.mark.unit

FILES = sorted((Path(__file__).parents[1] / "transcripts").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    Replay().run(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("= sotw\n= offer CDS a@1\n> CDS []", "at the end, unexpected: < CDS"),
        ("= sotw\n= offer CDS a@1\n> CDS []\n< CDS [a@2] nonce=1", "it was: < CDS"),
        ("= sotw\n= offer CDS a@1\n> CDS []\n> CDS []", "unexpected: < CDS"),
        ("= sotw\n< CDS [] nonce=1", "nothing was said"),
        ("= sotw\n> CDS []\n! Acked", "the events were"),
    ],
)
def test_a_transcript_that_is_wrong_fails(text: str, fault: str) -> None:
    with pytest.raises(AssertionError, match=fault):
        Replay().run(text)
