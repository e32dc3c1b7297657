"""What Consul holds, service by service, as far as it is known here: from listings, and from one's own writes.

Pure. A listing tells of the whole service as it was at an index; an own write of one instance at the index of its
transaction. Answers overtake each other, so what is older never replaces what is newer.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from controlplane.model import SERVICE_NAME, Instance, InstanceKey
from controlplane.registry.consul.rows import Row, Unusable


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Say what a listing changed: the rows that are new or other than they were, and those that are no more."""

    put: tuple[Row, ...] = ()
    gone: tuple[Row, ...] = ()


@dataclass(slots=True)
class _Service:
    rows: dict[InstanceKey, Row] = field(default_factory=dict)
    index: int = 0
    written: dict[InstanceKey, int] = field(default_factory=dict)


class Mirror:
    """Hold the rows of every service."""

    def __init__(self) -> None:
        self._services: dict[str, _Service] = {}
        self._remarks: dict[str, dict[str, str]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._services

    def names(self) -> list[str]:
        """Return the names of the services that are known here."""
        return list(self._services)

    def index(self, name: str) -> int:
        """Return the index of the newest listing of a service; 0 for none."""
        service = self._services.get(name)
        return 0 if service is None else service.index

    def knows(self, name: str, index: int) -> bool:
        """Tell whether what happened to a service at an index is known here, by a listing or as one's own write."""
        service = self._services.get(name)
        return service is not None and (index <= service.index or index in service.written.values())

    def get(self, key: InstanceKey) -> Row | None:
        """Return an instance's row, be it expired."""
        service = self._services.get(key.service)
        return None if service is None else service.rows.get(key)

    def holds(self, name: str) -> bool:
        """Tell whether a service has instances."""
        service = self._services.get(name)
        return service is not None and bool(service.rows)

    def rows(self) -> Iterator[Row]:
        """Iterate over all rows."""
        for service in self._services.values():
            yield from service.rows.values()

    def remarks(self) -> Iterator[tuple[str, str]]:
        """Iterate over what cannot be used: its place in Consul, and why."""
        for remarks in self._remarks.values():
            yield from remarks.items()

    def owner(self, instance: Instance) -> str | None:
        """Return the id of another instance of the service that has the same address, ours or an agent's."""
        service = self._services.get(instance.name)
        for row in () if service is None else service.rows.values():
            other = row.instance
            taken = (other.host, other.port) == (instance.host, instance.port) and not row.expired
            if taken and other.id != instance.id:
                return other.id
        return None

    def listed(self, name: str, index: int, rows: Iterable[Row], unusable: Iterable[Unusable]) -> Difference:
        """Take a whole service as it was at `index`; return what is different now.

        An instance that was good and is unusable now stays as it was last (law 15).
        """
        service = self._services.setdefault(name, _Service())
        if index < service.index:
            return Difference()
        service.index = index
        listing = {row.key: row for row in rows}
        self._remark(name, unusable)
        for each in unusable:
            if each.key is not None and each.key not in listing and each.key in service.rows:
                listing[each.key] = service.rows[each.key]
        put = []
        for key, row in listing.items():
            if service.written.get(key, 0) <= index and service.rows.get(key) != row:
                service.rows[key] = row
                put.append(row)
        gone = [row for key, row in service.rows.items() if key not in listing and service.written.get(key, 0) <= index]
        for row in gone:
            del service.rows[row.key]
        service.written = {key: at for key, at in service.written.items() if at > index}
        return Difference(put=tuple(put), gone=tuple(gone))

    def wrote(self, row: Row, index: int) -> None:
        """Take what was written here, at the index of the transaction."""
        service = self._services.setdefault(row.instance.name, _Service())
        service.rows[row.key] = replace(row, index=max(row.index, index))
        service.written[row.key] = index

    def removed(self, key: InstanceKey, index: int) -> None:
        """Take that an instance was removed here, at the index of the transaction."""
        service = self._services.setdefault(key.service, _Service())
        service.rows.pop(key, None)
        service.written[key] = index

    def begin_anew(self) -> None:
        """Believe the next listings whatever their index: the servers may have been set back."""
        for service in self._services.values():
            service.index = 0
            service.written = {}

    def drop_unlisted(self, names: Iterable[str]) -> None:
        """Forget the services that a whole new listing does not have, except what was written meanwhile."""
        for name in set(self._services) - set(names):
            if not self._services[name].written:
                del self._services[name]
        for name in set(self._remarks) - set(names):
            del self._remarks[name]

    def refuse(self, name: str, why: str) -> None:
        """Remark that a service cannot be used at all."""
        self._remarks[name] = {name: why}

    def _remark(self, name: str, unusable: Iterable[Unusable]) -> None:
        remarks = {f"{name} on {each.place}": each.why for each in unusable}
        if remarks:
            self._remarks[name] = remarks
        else:
            self._remarks.pop(name, None)


def usable_name(name: str) -> bool:
    """Tell whether a service of Consul's can be one here."""
    return len(name) <= 253 and SERVICE_NAME.fullmatch(name) is not None
