"""Registrations in Consul's catalog: each write one transaction, resting on what was read, and told at once.

The same part does what time demands: leases that end, removals that are due, and what has been shown as expired for
long enough. Every control plane tries; the index that a transaction rests on lets one of them succeed.
"""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar

from controlplane.model import Instance, InstanceKey, same_instance
from controlplane.registry import AddressTaken, Conflict, ReadOnly, RegistryUnavailable, UnknownInstance
from controlplane.registry.consul.changes import Changes, What, index_of
from controlplane.registry.consul.client import Client, NodeMissing, Stale
from controlplane.registry.consul.rows import (
    REGISTER_NODE,
    Row,
    confirm_operations,
    delete_operations,
    expire_operations,
    put_operations,
    read_rows,
    row_of,
)
from controlplane.registry.consul.telling import Teller
from controlplane.registry.consul.transport import Refused, Uncertain, Unreachable
from controlplane.registry.documents import Kind, path_of
from controlplane.registry.leases import Deadlines

_TRIES = 8
"""How often a write is repeated that others got ahead of."""

_WRITE_TIMEOUT_S = 4.5

_WRITES_MAX = 16
"""How many writes are under way at once: each holds a connection."""

_BATCH = 60
"""How many leases end in one transaction; Consul takes 64 operations."""

_AGAIN_S = 30.0
"""How soon is tried again what Consul will not do, such as for want of a right to one service."""

_LONGEST_NAP_S = 60.0
_SHORTEST_NAP_S = 0.05

KeyT = TypeVar("KeyT", bound=Hashable)
T = TypeVar("T")


class Locks(Generic[KeyT]):
    """Hold a lock for each of what is locked now, and for nothing else."""

    def __init__(self) -> None:
        self._locks: dict[KeyT, asyncio.Lock] = {}
        self._users: Counter[KeyT] = Counter()

    @asynccontextmanager
    async def of(self, key: KeyT) -> AsyncIterator[None]:
        """Hold the lock of `key`."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._users[key] += 1
        try:
            async with lock:
                yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._locks[key]


class Writer:
    """Write instances. `renewed` is told of each heartbeat that was heard here, to share it with the others."""

    def __init__(
        self,
        client: Client,
        teller: Teller,
        changes: Changes,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        renewed: Callable[[InstanceKey, float], None],
    ) -> None:
        self._client = client
        self._teller = teller
        self._changes = changes
        self._clock = clock
        self._wall_clock = wall_clock
        self._renewed = renewed
        self._addresses: Locks[tuple[str, str, int]] = Locks()
        self._turns = asyncio.Semaphore(_WRITES_MAX)
        self._answered_at = clock()
        self.live = False
        """Whether the mirror follows Consul now; where not, each write looks first."""

    async def put(self, instance: Instance, expected: Instance | None) -> bool:
        """Store an instance; see WritableRegistry."""
        key = instance.key
        new: bool | None = None

        async def attempt() -> bool:
            nonlocal new
            row = self._own(key)
            stored = None if row is None or row.expired else row
            if new is not None and stored is not None and same_instance(stored.instance, instance):
                return new  # the try that was broken off has done it
            if expected is not None:
                if stored is None:
                    raise _unknown(key)
                if not same_instance(stored.instance, expected):
                    raise Conflict(f"instance {key} has changed since it was read; read it again and repeat")
            if (owner := self._teller.mirror.owner(instance)) is not None:
                raise AddressTaken(instance, owner)
            if self.live and stored is not None and same_instance(stored.instance, instance):
                await self._confirm(stored)
                self._renew(key)
                return False
            remove_at = stored.remove_at if stored is not None and instance.draining else None
            new = stored is None
            await self._store(instance, remove_at, row)
            return new

        async with self._addresses.of((instance.name, instance.host, instance.port)):
            return await self._write(instance.name, attempt, look=False)

    async def delete(self, key: InstanceKey) -> bool:
        """Remove an instance; see WritableRegistry."""

        there = False

        async def attempt() -> bool:
            nonlocal there
            row = self._own(key)
            if row is None:
                return there  # by a try that was broken off, it may be
            there = not row.expired
            await self._remove(row, delete_operations(row))
            return there

        return await self._write(key.service, attempt)

    async def drain(self, key: InstanceKey, delay_s: float) -> None:
        """Mark an instance draining, and note in Consul when it is to be removed; see WritableRegistry."""
        if not (math.isfinite(delay_s) and delay_s >= 0):
            raise ValueError(f"delay_s must be a number of seconds, at least 0, and is {delay_s}")

        async def attempt() -> None:
            row = self._own(key)
            if row is None or row.expired:
                raise _unknown(key)
            await self._store(replace(row.instance, draining=True), self._wall_clock() + delay_s, row)

        await self._write(key.service, attempt)

    async def heartbeat(self, key: InstanceKey) -> float | None:
        """Renew a lease, in memory; see WritableRegistry."""
        if self._teller.mirror.get(key) is None and not self.live:
            await self._write(key.service, _nothing)
        row = self._teller.mirror.get(key)
        if row is None or row.expired:
            raise _unknown(key)
        return self._renew(key)

    async def keep_time(self) -> None:
        """End leases, carry out removals and clear away what expired long ago, until cancelled."""
        teller = self._teller
        while True:
            teller.due_moved.clear()
            now = self._clock()
            await self._expire(teller.leases.pop_due(now))
            for key in teller.removals.pop_due(now):
                await self._conclude(key, teller.removals, lambda row: row.remove_at is not None, unchanged=True)
            for key in teller.reaps.pop_due(now):
                await self._conclude(key, teller.reaps, lambda row: row.expired, unrevived=True)
            deadlines = [at for each in (teller.leases, teller.removals, teller.reaps) if (at := each.next())]
            nap = min((at - self._clock() for at in deadlines), default=_LONGEST_NAP_S)
            try:
                async with asyncio.timeout(min(max(nap, _SHORTEST_NAP_S), _LONGEST_NAP_S)):
                    await teller.due_moved.wait()
            except TimeoutError:
                pass
            else:
                await asyncio.sleep(_SHORTEST_NAP_S)  # many deadlines move at once

    async def _expire(self, keys: list[InstanceKey]) -> None:
        """Say in Consul that these have expired, and tell it in one event."""
        expired: list[Row] = []
        index = 0
        for at in range(0, len(keys), _BATCH):
            rows = [row for key in keys[at : at + _BATCH] if (row := self._endangered(key)) is not None]
            try:
                done, index = await self._expire_all(rows)
                expired += done
            except (Stale, Refused):
                for row in rows:
                    try:
                        done, index = await self._expire_all([row])
                        expired += done
                    except Stale:
                        await self._look(row.instance.name)
                    except Refused:
                        self._teller.leases.set(row.key, self._clock() + _AGAIN_S)
        if expired:
            self._teller.wrote(expired, index)

    def _endangered(self, key: InstanceKey) -> Row | None:
        row = self._teller.mirror.get(key)
        renewed = self._teller.leases.at(key) is not None  # while the ones before it were written
        return None if row is None or row.expired or renewed or row.instance.ttl is None else row

    async def _expire_all(self, rows: list[Row]) -> tuple[list[Row], int]:
        if not rows:
            return [], 0
        change = self._changes.operation(What.SERVICE, sorted({row.instance.name for row in rows}))
        results = await self._client.transact([*(each for row in rows for each in expire_operations(row)), change])
        index = index_of(results)
        return [replace(row, expired=True, ttl_index=index) for row in rows], index

    async def _conclude(
        self,
        key: InstanceKey,
        deadlines: Deadlines[InstanceKey],
        due: Callable[[Row], bool],
        *,
        unchanged: bool = False,
        unrevived: bool = False,
    ) -> None:
        """Remove an instance whose time has come, unless it has changed meanwhile.

        One that Consul will not remove is tried again later: for its sake the rest is not followed any less (law 15).
        """
        row = self._teller.mirror.get(key)
        if row is None or not due(row):
            return
        try:
            await self._remove(row, delete_operations(row, unchanged=unchanged, unrevived=unrevived))
        except Stale:
            await self._look(key.service)
        except Refused:
            deadlines.set(key, self._clock() + _AGAIN_S)

    async def _write(self, service: str, attempt: Callable[[], Awaitable[T]], *, look: bool = True) -> T:
        """Try a write until nobody got ahead of it.

        `look`: where Consul is not followed now, see first what it has; else a write that rests on too old a picture
        finds out, and looks then.
        """
        await self._turn()
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                if not self.live and (look or service not in self._teller.mirror):
                    await self._look(service)
                for _ in range(_TRIES):
                    try:
                        done = await attempt()
                    except (Stale, Uncertain):
                        await self._look(service)
                    else:
                        self._answered_at = self._clock()
                        return done
        except TimeoutError:
            raise RegistryUnavailable(
                f"Consul did not answer within {_WRITE_TIMEOUT_S} s; whether it was stored will be seen"
            ) from None
        except Unreachable as error:
            raise RegistryUnavailable(f"Consul cannot take writes now: {error}") from None
        finally:
            self._turns.release()
        raise RegistryUnavailable(f"others keep changing {service}; nothing was stored, try again")

    async def _turn(self) -> None:
        """Wait for one's turn, as long as there is any progress: a long queue is no silence of Consul's."""
        began = self._clock()
        while True:
            try:
                async with asyncio.timeout(_WRITE_TIMEOUT_S):
                    await self._turns.acquire()
            except TimeoutError:
                if self._clock() - max(self._answered_at, began) >= _WRITE_TIMEOUT_S:
                    raise RegistryUnavailable("Consul answers no writes now; nothing was stored") from None
            else:
                return

    async def _look(self, service: str) -> None:
        index, found = await self._client.service(service)
        rows, unusable = read_rows(service, found)
        self._teller.listed(self._teller.mirror.listed(service, index, rows, unusable))

    async def _store(self, instance: Instance, remove_at: float | None, replaced: Row | None) -> None:
        operations = put_operations(instance, remove_at, replaced)
        operations.append(self._changes.operation(What.SERVICE, [instance.name]))
        try:
            results = await self._client.transact(operations)
        except NodeMissing:
            results = await self._client.transact([REGISTER_NODE, *operations])
        index = index_of(results)
        self._teller.wrote([replace(row_of(results), index=index)], index)

    async def _remove(self, row: Row, operations: Iterable[dict[str, Any]]) -> None:
        change = self._changes.operation(What.SERVICE, [row.instance.name])
        row_name = row.key.service, row.key.id
        forget = {"KV": {"Verb": "delete", "Key": self._changes.prefix + path_of(Kind.VERDICT, *row_name)}}
        index = index_of(await self._client.transact([*operations, forget, change]))
        self._teller.removed(row, index)

    async def _confirm(self, row: Row) -> None:
        """Ask whether Consul has an instance as it is known here. Raises Stale where another has changed it since."""
        found = row_of(await self._client.transact(confirm_operations(row)))
        if (found.service_index, found.expired) != (row.service_index, row.expired):
            raise Stale(f"instance {row.key} has changed")

    def _renew(self, key: InstanceKey) -> float | None:
        ttl = self._teller.renew(key)
        if ttl is not None:
            self._renewed(key, ttl)
        return ttl

    def _own(self, key: InstanceKey) -> Row | None:
        row = self._teller.mirror.get(key)
        if row is not None and not row.own:
            raise ReadOnly(
                f"instance {key} was registered by the Consul agent of node {row.node!r}; change it there "
                "(`consul services register`, `consul maint`), or register under another id"
            )
        return row


async def _nothing() -> None:
    """Write nothing: the look that precedes each write is all that was wanted."""


def _unknown(key: InstanceKey) -> UnknownInstance:
    return UnknownInstance(f"the registry holds no instance {key}")
