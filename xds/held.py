"""What a client holds of one type, as far as it has acknowledged it: a shared set, and where this client differs.

A thousand clients that are in step hold the same thousand resources. So each keeps a reference to the snapshot's
own `ResourceSet` and a small dictionary of differences, empty for a client that is in step: what a client costs
does not grow with what it holds.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from collections.abc import Set as AbstractSet

from xds.types import EMPTY, Resource, ResourceSet


class Held(MutableMapping[str, Resource]):
    """Map names to the resources that a client holds: those of a base that it wants, but for its differences.

    `wants` says whether the client asks for a name; what it does not ask for, it does not hold.
    """

    __slots__ = ("_base", "_differs", "_wants")

    def __init__(self, wants: Callable[[str], bool]) -> None:
        self._wants = wants
        self._base = EMPTY
        self._differs: dict[str, Resource | None] = {}  # None: not held, whatever the base says

    def get(self, name: str, default: Resource | None = None) -> Resource | None:  # type: ignore[override]
        """Return what is held of a name."""
        found = self._differs[name] if name in self._differs else self._from_base(name)
        return default if found is None else found

    def _from_base(self, name: str) -> Resource | None:
        found = self._base.get(name)
        return found if found is not None and self._wants(name) else None

    def __getitem__(self, name: str) -> Resource:
        if (found := self.get(name)) is None:
            raise KeyError(name)
        return found

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __setitem__(self, name: str, resource: Resource) -> None:
        self._differs[name] = resource

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self.drop(name)

    def __iter__(self) -> Iterator[str]:
        yield from (name for name, found in self._differs.items() if found is not None)
        yield from (name for name in self._base if name not in self._differs and self._wants(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None

    @property
    def at_most(self) -> int:
        """Return a bound of how many names are held, without counting them."""
        return len(self._base) + len(self._differs)

    @property
    def untouched(self) -> bool:
        """Say whether nothing has ever been held, or nothing is left of it."""
        return not self._base and not self._differs

    def referred(self, among: AbstractSet[tuple[str, str]]) -> set[tuple[str, str]]:
        """Return what the resources held refer to; looks at the shared ones only if any of them could."""
        found = {ref for one in self._differs.values() if one is not None for ref in one.refs & among}
        if not among.isdisjoint(self._base.refs):
            shared = (self._base[name] for name in self._base if name not in self._differs and self._wants(name))
            found.update(ref for one in shared for ref in one.refs & among)
        return found

    def drop(self, name: str) -> None:
        """Hold nothing of a name, whether or not it was held."""
        if name in self._base:
            self._differs[name] = None
        else:
            self._differs.pop(name, None)

    def forget(self, name: str) -> None:
        """Forget what this client held of a name by itself; for a name that it does not want any more."""
        self._differs.pop(name, None)

    def narrow(self) -> None:
        """Hold of the base only what the client wants now, whatever it may want from now on."""
        for name in self._base:
            if name not in self._differs and not self._wants(name):
                self._differs[name] = None

    def take(self, changes: Mapping[str, Resource | None]) -> None:
        """Hold what an acknowledged response told."""
        if type(changes) is ResourceSet and self.untouched:
            self._base = changes
            return
        for name, resource in changes.items():
            if resource is None:
                self.drop(name)
            elif self._wants(name):
                self._differs[name] = resource

    def rebase(self, base: ResourceSet) -> None:
        """Refer to a set that says the same of every name that the client wants, but for what already differs."""
        if base is self._base:
            return
        if self._differs:
            self._differs = {name: one for name, one in self._differs.items() if not _same(one, base.get(name))}
        self._base = base


def _same(one: Resource | None, other: Resource | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.version == other.version and one.body is other.body
