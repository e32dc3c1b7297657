"""What this process knows of the instances in etcd, from the watch and from its own writes, whichever is newer. Pure.

Writes are decided by it and settled by etcd: a write names the revision that it saw, and is refused where that is
not the newest.
"""

from collections.abc import Collection
from dataclasses import dataclass

from controlplane.model import Instance, InstanceKey

Address = tuple[str, str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Hold what etcd has under an instance's key.

    `instance` is None where the value was never one that can be read; `readable`: it is as the value says. `lease` is
    0 where there is none. `judged`: there is a verdict.
    """

    instance: Instance | None
    lease: int
    revision: int
    readable: bool = True
    judged: bool = False


class View:
    """Hold the newest known state of each key, and who has which address."""

    def __init__(self) -> None:
        self._stored: dict[InstanceKey, Stored] = {}
        self._owners: dict[Address, str] = {}
        self._gone: dict[InstanceKey, int] = {}

    def get(self, key: InstanceKey) -> Stored | None:
        """Return what is known of a key, None where it does not exist."""
        return self._stored.get(key)

    def owner(self, instance: Instance) -> str | None:
        """Return the id of the instance that has this one's address in its service, be it itself."""
        return self._owners.get(address_of(instance))

    def put(self, key: InstanceKey, stored: Stored) -> None:
        """Take what a key holds; what is older than what is known already is passed over."""
        known = self._stored.get(key)
        if stored.revision < max(self._gone.get(key, 0), known.revision if known else 0):
            return
        self._gone.pop(key, None)
        self._forget(key)
        self._stored[key] = stored
        if stored.instance is not None:
            self._owners.setdefault(address_of(stored.instance), stored.instance.id)

    def delete(self, key: InstanceKey, revision: int, *, own: bool = False) -> None:
        """Take a deletion; one of our `own` is remembered until the watch has told it, lest older news undo it."""
        known = self._stored.get(key)
        if known is None or known.revision < revision:
            self._forget(key)
            if own:
                self._gone[key] = revision
        if not own and self._gone.get(key, revision) <= revision:
            self._gone.pop(key, None)

    def keep(self, keys: Collection[InstanceKey], revision: int) -> None:
        """Forget all keys but these, which are all that there were at `revision`, and what was written here since."""
        for key in [key for key, stored in self._stored.items() if key not in keys and stored.revision <= revision]:
            self._forget(key)
        self._gone = {key: at for key, at in self._gone.items() if at > revision}

    def _forget(self, key: InstanceKey) -> None:
        known = self._stored.pop(key, None)
        if known is not None and known.instance is not None:
            address = address_of(known.instance)
            if self._owners.get(address) == known.instance.id:
                del self._owners[address]


def address_of(instance: Instance) -> Address:
    """Return what only one instance of a service may have."""
    return instance.name, instance.host, instance.port
