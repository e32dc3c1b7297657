"""When a client acknowledged what, and what it said of what it refused: the little that is kept of the past.

Bounded by construction, and cheap where it is fed: an acknowledgement costs the same whatever it acknowledges.
"""

import re
from array import array
from collections.abc import Callable, Collection
from dataclasses import dataclass

from xds.types import SECRET

_MAX_MESSAGE = 8192
_MAX_CHANGES = 256  # names whose time of change is remembered, per type and stream
_SURPLUS = 32  # how many more may be remembered for a while: rows are cut now and then, not every time
_QUOTED_SECRET = re.compile(r"inline_(?:string|bytes)|PRIVATE KEY|password", re.IGNORECASE)
_QUOTED_KEY = re.compile(r"private_key|-----BEGIN")  # what other types may hold; "private key" is Envoy's prose


def safe_words(type_url: str, message: str) -> str:
    """Return what a client said, bounded, and without the part that may quote a secret.

    Envoy quotes a message that breaks one of its rules in full, and with it whatever was inline.
    """
    quoted = (_QUOTED_SECRET if type_url == SECRET else _QUOTED_KEY).search(message)
    if quoted is not None:
        return f"{message[: quoted.start()][:_MAX_MESSAGE]}[the rest is withheld: it may quote a secret]"
    return message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]}[cut after {_MAX_MESSAGE} characters]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Keep a client's NACK, in its own words (`safe_words`). Times are wall-clock seconds.

    `version` is the response's, of which the resources' own may differ; `revision` the change that led to it.
    `since` is when this content of a resource was first refused.
    """

    code: int
    message: str
    version: str
    names: tuple[str, ...]
    revision: str
    at: float
    since: float


class Changes:
    """Remember when names were last acknowledged: the newest exactly, all others by a bound.

    Each type of each stream has one that fills up within minutes: two flat rows, side by side, take a quarter of what
    an object for each acknowledgement does.
    """

    __slots__ = ("_names", "_older", "_times")

    def __init__(self) -> None:
        self._names: list[str] = []
        self._times = array("d")
        self._older: float | None = None

    def add(self, at: float, names: Collection[str]) -> None:
        """Note an acknowledgement; looks at none of the names where there are many."""
        if len(names) > _MAX_CHANGES:
            self._names.clear()
            self._times = array("d")
            self._older = at
            return
        for name in names:
            self._names.append(name)
            self._times.append(at)
        surplus = len(self._names) - _MAX_CHANGES
        if surplus > _SURPLUS:
            self._older = self._times[surplus - 1]
            del self._names[:surplus], self._times[:surplus]

    def at(self) -> Callable[[str], float | None]:
        """Return a look-up of the time by name."""
        times = dict(zip(self._names, self._times, strict=True))
        return lambda name: times.get(name, self._older)


@dataclass(frozen=True, slots=True)
class Refused:
    """Remember which content of a resource was refused, and how."""

    version: str
    refusal: Refusal
