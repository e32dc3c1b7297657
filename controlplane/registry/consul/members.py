"""Who shares this Consul, and which leases each has heard renewed.

Each control plane keeps a key of its own under a session, which deletes it some time after its owner is gone, and
counts in it every third of `ttl_s`. The others go by how long ago they have seen the count move, on their own clock:
Consul takes up to twice a session's time to end it, and never less than ten seconds.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from controlplane.model import InstanceId, InstanceKey, Members, RegistryEvent, ServiceName
from controlplane.registry import Sharing
from controlplane.registry.consul.changes import Changes
from controlplane.registry.consul.client import Client
from controlplane.registry.consul.transport import Unreachable

_SHORTEST_SESSION_S = 10
_LONGEST_SESSION_S = 86_400
_FLUSH_S = 0.5
"""How long renewals are gathered before the others are told: a small part of any ttl that makes sense."""

_KEY_BYTES = 400_000
"""How much a key holds; Consul takes 512 KiB."""


class Membership:
    """Take part, and tell who else does. `sharing` None: take part in nothing."""

    def __init__(
        self,
        registry: str,
        sharing: Sharing,
        client: Client,
        changes: Changes,
        clock: Callable[[], float],
        tell: Callable[[list[RegistryEvent]], None],
        renew: Callable[[InstanceKey], float | None],
    ) -> None:
        self._registry = registry
        self._sharing = sharing
        self._client = client
        self._changes = changes
        self._clock = clock
        self._tell = tell
        self._renew = renew
        self._folder = f"{changes.prefix}members/"
        self._renewals = f"{changes.prefix}renewals/"
        self._session: str | None = None
        self._count = 0
        self._index = 0
        self._heard: dict[str, tuple[int, float]] = {}
        self._gone: set[str] = set()
        self._told: frozenset[str] = frozenset()
        self._shared_at: dict[InstanceKey, float] = {}
        self._due: dict[InstanceKey, None] = {}
        self._shared = 0
        self._work = asyncio.Event()

    async def catch_up(self) -> None:
        """Join, and tell who is there."""
        await self._beat()
        self._index, found = await self._client.keys(self._folder)
        self._heard = {}
        self._take(found)
        self._count_out(again=True)

    async def follow(self) -> None:
        """Stay a member, and tell who comes and goes, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._stay())
            group.create_task(self._follow_members())
            group.create_task(self._watch_clocks())
            group.create_task(self._follow_renewals())
            group.create_task(self._share_renewals())

    async def leave(self) -> None:
        """Stop being a member at once, and take along what was noted for the others; silent where that fails.

        The session does the same a little later.
        """
        session, self._session = self._session, None
        if session is None:
            return
        try:
            async with asyncio.timeout(2):
                await self._client.end_session(session)
                await self._clear(self._sharing.member)
        except (Unreachable, TimeoutError):
            return

    def renewed(self, key: InstanceKey, ttl: float) -> None:
        """Take that a heartbeat was heard here, or the like; the others learn of it at most three times a ttl."""
        now = self._clock()
        if len(self._told) > 1 and now - self._shared_at.get(key, -ttl) >= ttl / 3:
            self._shared_at[key] = now
            self._due[key] = None
            self._work.set()

    async def _stay(self) -> None:
        while True:
            await asyncio.sleep(self._sharing.ttl_s / 3)
            await self._beat()

    async def _beat(self) -> None:
        """Say that one is there."""
        if self._session is not None and not await self._client.renew_session(self._session):
            self._session = None
        if self._session is None:
            ttl_s = min(max(round(self._sharing.ttl_s), _SHORTEST_SESSION_S), _LONGEST_SESSION_S)
            self._session = await self._client.begin_session(f"service-discovery {self._sharing.member}", ttl_s)
        self._count += 1
        key = f"{self._folder}{self._sharing.member}"
        if not await self._client.write(key, str(self._count).encode(), session=self._session):
            # held by a session of ours that Consul has not ended yet
            await self._client.erase(key)
            await self._client.write(key, str(self._count).encode(), session=self._session)

    async def _follow_members(self) -> None:
        index = self._index
        while True:
            index, found = await self._client.keys(self._folder, index)
            self._take(found)
            self._count_out()

    def _take(self, found: Iterable[dict[str, Any]]) -> None:
        now = self._clock()
        there = {each["Key"].removeprefix(self._folder): each["ModifyIndex"] for each in found}
        self._gone = (self._gone | self._heard.keys()) - there.keys()
        self._heard = {
            member: known if (known := self._heard.get(member)) is not None and known[0] == index else (index, now)
            for member, index in there.items()
        }

    def _count_out(self, *, again: bool = False) -> None:
        limit = self._clock() - self._sharing.ttl_s
        ids = frozenset(member for member, (_, at) in self._heard.items() if at > limit) | {self._sharing.member}
        if ids != self._told or again:
            self._told = ids
            self._tell([Members(ids=ids, registry=self._registry)])

    async def _watch_clocks(self) -> None:
        while True:
            others = [at for member, (_, at) in self._heard.items() if member != self._sharing.member]
            limit = self._clock() - self._sharing.ttl_s
            waits = [at - limit for at in others if at > limit]
            await asyncio.sleep(max(min(waits, default=self._sharing.ttl_s), 0.05))
            self._count_out()
            while self._gone:
                await self._clear(self._gone.pop())

    async def _clear(self, member: str) -> None:
        """Remove what a member that is gone noted for the others."""
        await self._client.erase(f"{self._changes.folder}{member}/", recurse=True)
        await self._client.erase(f"{self._renewals}{member}/", recurse=True)

    async def _share_renewals(self) -> None:
        while True:
            await self._work.wait()
            await asyncio.sleep(_FLUSH_S)
            due = list(self._due)
            said = [[key.service, key.id] for key in due]
            per_key = max(_KEY_BYTES // 520, 1)
            for part, at in enumerate(range(0, len(said), per_key)):
                self._shared += 1  # Consul takes setting the same value for no change
                body = orjson.dumps([self._shared, *said[at : at + per_key]])
                await self._client.write(f"{self._renewals}{self._sharing.member}/{part}", body)
            for key in due:  # not before it was told: else a lease could end elsewhere that was renewed here
                del self._due[key]
            if not self._due:
                self._work.clear()
            if len(self._shared_at) > 2 * len(due) + 1_000:
                oldest = self._clock() - 86_400
                self._shared_at = {key: at for key, at in self._shared_at.items() if at > oldest}

    async def _follow_renewals(self) -> None:
        index, _ = await self._client.folder(self._renewals)
        while True:
            seen = index
            index, found = await self._client.keys(self._renewals, index)
            for each in found:
                own = each["Key"].startswith(f"{self._renewals}{self._sharing.member}/")
                if own or each["ModifyIndex"] <= seen or each["Key"].endswith("/"):
                    continue
                for key in _renewed(each["Value"] or b""):
                    self._renew(key)


def _renewed(value: bytes) -> list[InstanceKey]:
    """Read whose leases were renewed. What is not ours, or of another version, says of none: a lease then counts on."""
    try:
        return [InstanceKey(ServiceName(service), InstanceId(id_)) for service, id_ in orjson.loads(value)[1:]]
    except (ValueError, TypeError, KeyError):
        return []
