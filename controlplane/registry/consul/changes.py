"""Which services and verdicts the control planes have written, as keys that the others watch.

Consul tells that something about some service changed, and not which one. So each write of a control plane leaves, in
the same transaction, the names of what it touched in one of its own few slots; a key's index says whether it is new.
One who finds all slots of another new may have missed some, and has to look at everything.
"""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote, unquote

import orjson

SLOTS = 64

_RELEASE = "release-"


class What(StrEnum):
    """Name what a change can be about."""

    SERVICE = "service"
    DOCUMENT = "document"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Touched:
    """Hold one thing that was written: a service's name, a document's path, or the id of a hold that is let go."""

    what: What
    name: str
    index: int


class Changes:
    """Spell the changes of one control plane, `member`."""

    def __init__(self, prefix: str, member: str) -> None:
        self.prefix = prefix
        self.folder = f"{prefix}changes/"
        self.own = f"{self.folder}{member}/"
        self._serial = 0

    def operation(self, what: What, names: Iterable[str]) -> dict[str, Any]:
        """Return the operation that goes into a transaction which touches `names`."""
        self._serial += 1  # goes into the value, too: Consul takes setting the same value for no change
        said = [self._serial, *([what, name] for name in names)]
        return set_key(f"{self.own}{self._serial % SLOTS}", orjson.dumps(said))

    def release_key(self, hold: str) -> str:
        """Return the key that tells the others of a release. It has no slot: none may be overwritten."""
        return f"{self.own}{_RELEASE}{quote(hold, safe='')}"

    def read(self, found: Iterable[Mapping[str, Any]], since: int) -> tuple[list[Touched], bool]:
        """Return what was touched since an index, here and elsewhere, and whether some of it may have been overwritten.

        One's own writes are among it: one that was given up in the middle may have been carried out all the same.
        """
        touched: list[Touched] = []
        fresh: dict[str, int] = {}
        for each in found:
            member, _, slot = each["Key"].removeprefix(self.folder).partition("/")
            index = each["ModifyIndex"]
            if index <= since or not slot:
                continue
            if slot.startswith(_RELEASE):
                touched.append(Touched(What.RELEASE, unquote(slot.removeprefix(_RELEASE)), index))
                continue
            fresh[member] = fresh.get(member, 0) + 1
            try:
                said = [Touched(What(what), str(name), index) for what, name in orjson.loads(each["Value"] or b"")[1:]]
            except (ValueError, TypeError, KeyError):
                return touched, True  # not ours, or of another version: whatever it says, look at everything
            touched += said
        return touched, any(count >= SLOTS for count in fresh.values())


def set_key(key: str, value: bytes) -> dict[str, Any]:
    """Return the operation that sets a key."""
    return {"KV": {"Verb": "set", "Key": key, "Value": base64.b64encode(value).decode()}}


def index_of(results: Iterable[Mapping[str, Any]]) -> int:
    """Return the index at which a transaction with a change in it took place."""
    return max(int(each["KV"]["ModifyIndex"]) for each in results if "KV" in each)
