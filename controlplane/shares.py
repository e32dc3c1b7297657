"""Which of several control planes checks which instance: rendezvous hashing over those that are alive.

Pure. Every control plane works it out for itself and comes to the same result; when one joins or leaves, only what
it checks changes hands.
"""

from collections.abc import Iterable
from hashlib import blake2b

from controlplane.model import InstanceKey


class Shares:
    """Tell what this control plane is to check. `member` is its own id; alone, and until told otherwise, it is all.

    With `waits`, it is nothing until the members are known for the first time: others are at work already.
    """

    def __init__(self, member: str, *, waits: bool = False) -> None:
        self._member = member
        self._others: tuple[str, ...] = ()
        self._known = not waits

    @property
    def members(self) -> tuple[str, ...]:
        """Return the ids of all that share the work, this one's among them."""
        return tuple(sorted((*self._others, self._member)))

    def set(self, members: Iterable[str]) -> bool:
        """Take the members that are alive; return whether anything has changed."""
        others = tuple(sorted(set(members) - {self._member}))
        changed = others != self._others or not self._known
        self._others, self._known = others, True
        return changed

    def mine(self, key: InstanceKey) -> bool:
        """Tell whether this control plane is the one that checks an instance."""
        if not self._known:
            return False
        if not self._others:
            return True
        ours = _score(self._member, key)
        return all(ours > _score(other, key) for other in self._others)


def _score(member: str, key: InstanceKey) -> bytes:
    return blake2b(f"{member}\0{key.service}\0{key.id}".encode(), digest_size=8).digest()
