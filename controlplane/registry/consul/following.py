"""Following every service of a Consul without a request for each: see docs/decisions/0016-consul.md.

One query wakes when anything about any service changes, two when a check's state does. Which service it was: the one
whose own query wakes (the most recently changed `WATCHED_MAX` have one), the one that a control plane has noted
(`changes`), the one whose check it is; and where none of these explains a wake, all others are asked for their index.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from controlplane.registry.consul.changes import Changes, What
from controlplane.registry.consul.client import Client
from controlplane.registry.consul.mirror import usable_name
from controlplane.registry.consul.rows import read_rows
from controlplane.registry.consul.telling import Teller
from controlplane.registry.consul.transport import Unreachable

WATCHED_MAX = 50
"""How many services have a query of their own. With what else is open, three control planes behind one address stay
below the 200 connections that Consul takes of it."""

_STATES = ("critical", "warning")
"""The states of checks that are followed: a check that is in neither is passing."""

_WORKERS = 8
_GRACE_S = 0.02
"""How long a wake may go unexplained: the notes of other control planes take that long."""

_DOUBT_S = 10.0
"""How soon all services are asked after a wake behind whose explanation another change may hide."""

_SERVERS = "consul"
"""The service that Consul's servers are: always there, and of no interest but for who may see it."""

_MAY_NOT_READ_NODES = "the token may no longer read nodes (node:read); nothing is believed to be gone"


class Resync(Exception):
    """Report that what is followed cannot be believed any more, so that everything has to be listed again."""


class Follower:
    """Keep the mirror in step with Consul, and tell what changes.

    `touched` is told of changed documents and releases, `heard` of each sign of life. `writes`: keys may be made.
    """

    def __init__(
        self,
        client: Client,
        teller: Teller,
        changes: Changes,
        clock: Callable[[], float],
        touched: Callable[[What, str], None],
        heard: Callable[[], None],
        writes: bool,
    ) -> None:
        self._client = client
        self._teller = teller
        self._changes = changes
        self._clock = clock
        self._touched = touched
        self._heard = heard
        self._writes = writes
        self._changes_index = 0
        self._sees_servers = False
        self._checks: dict[str, tuple[int, dict[tuple[str, str], Mapping[str, Any]]]] = {}
        self._reset()

    def _reset(self) -> None:
        self._names: set[str] = set()
        self._names_index = 0
        self._explained: deque[int] = deque(maxlen=256)
        self._dirty: dict[str, bool] = {}
        self._fetching: set[str] = set()
        self._work = asyncio.Event()
        self._watching: set[str] = set()
        self._wanted: dict[str, None] = {}
        self._swept_at = self._clock()
        self._doubt = False
        self._sweep_now = asyncio.Event()

    async def catch_up(self) -> None:
        """Bring the whole mirror up to date, without telling anything."""
        self._reset()
        self._teller.mirror.begin_anew()
        folder = self._changes.folder
        index, found = await (self._client.folder(folder) if self._writes else self._client.keys(folder))
        if 0 < self._changes_index <= index:
            for each in self._changes.read(found, self._changes_index)[0]:
                if each.what is What.RELEASE:  # was let go while Consul could not be heard; the rest is listed anyway
                    self._touched(each.what, each.name)
        self._changes_index = index
        for state in _STATES:  # before the services, so that nothing happens between what they show and what follows
            index, checks = await self._client.checks(state)
            self._checks[state] = index, _by_id(checks)
        self._names_index, names = await self._client.services()
        self._look_for_servers(names)
        self._take_names(names)
        waiting = list(self._names)

        async def work() -> None:
            while waiting:
                name = waiting.pop()
                index, found = await self._client.service(name)
                if not found and self._teller.mirror.holds(name):
                    raise Unreachable(_MAY_NOT_READ_NODES)
                rows, unusable = read_rows(name, found)
                self._teller.mirror.listed(name, index, rows, unusable)
                self._explained.append(index)

        async with asyncio.TaskGroup() as group:
            for _ in range(_WORKERS):
                group.create_task(work())
        self._teller.mirror.drop_unlisted(self._names)
        self._take_names(names)
        if not self._sees_servers:
            self._teller.mirror.refuse(
                _SERVERS, "the token does not see Consul's own servers: what else it may not read is not there either"
            )

    async def follow(self) -> None:
        """Follow what changes from the listing on, until cancelled. Raises, alone or in a group, where it cannot."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_names())
            group.create_task(self._follow_changes())
            for state in _STATES:
                group.create_task(self._follow_checks(state))
            group.create_task(self._sweep())
            for _ in range(_WORKERS):
                group.create_task(self._fetch())
            self._group = group
            for name in sorted(self._names)[:WATCHED_MAX]:
                self._watch(name)
            await asyncio.Event().wait()

    async def _follow_names(self) -> None:
        while True:
            index, names = await self._client.services(self._names_index)
            self._heard()
            if index < self._names_index:
                raise Resync("its index went backwards: it was restored from an older state")
            if index == self._names_index:
                continue
            last, self._names_index = self._names_index, index
            self._look_for_servers(names)
            before = set(self._names)
            self._take_names(names)
            for name in before ^ self._names:
                self._mark(name)
            if len(self._names) > len(self._watching):
                await self._explain(last, index)

    def _look_for_servers(self, names: Iterable[str]) -> None:
        """Mind the right to read: a token without it gets an empty listing, and no error."""
        sees = _SERVERS in names
        if self._sees_servers and not sees:
            raise Unreachable("the token may no longer read services (service:read); nothing is believed to be gone")
        self._sees_servers = sees

    def _take_names(self, names: Iterable[str]) -> None:
        usable = {name for name in names if usable_name(name)}
        for name in set(names) - usable:
            self._teller.mirror.refuse(name, "the service's name is no lower-case DNS name; it is left out")
        self._names = usable - {_SERVERS}

    async def _explain(self, before: int, index: int) -> None:
        """Find out whether what woke the query between two indexes is known, and have all services asked if not."""
        for _ in range(2):
            if index in self._explained:
                # what is in between may be writes to keys, or a service's change that hides behind the last one
                if not all(each in self._explained for each in range(max(before + 1, index - 64), index)):
                    self._doubt = True
                return
            await asyncio.sleep(_GRACE_S)
            if not (self._dirty or self._fetching or index in self._explained):
                break
        self._sweep_now.set()

    async def _follow_changes(self) -> None:
        index = self._changes_index
        while True:
            index, found = await self._client.keys(self._changes.folder, index)
            if index < self._changes_index:
                raise Resync("the index of its keys went backwards: it was restored from an older state")
            touched, missed = self._changes.read(found, self._changes_index)
            self._changes_index = index
            for each in touched:
                self._explained.append(each.index)
                if each.what is not What.SERVICE:
                    self._touched(each.what, each.name)
                elif not self._teller.mirror.knows(each.name, each.index) and each.name not in self._watching:
                    self._mark(each.name)
            if missed:
                self._sweep_now.set()

    async def _follow_checks(self, state: str) -> None:
        index, known = self._checks[state]
        while True:
            newer, found = await self._client.checks(state, index)
            if newer == index:
                continue
            index = newer
            now = _by_id(found)
            for each in now.keys() ^ known.keys():
                check = now.get(each) or known[each]
                if check["ServiceName"]:
                    self._mark_unwatched([check["ServiceName"]])
                else:
                    node = check["Node"]
                    self._mark_unwatched({row.instance.name for row in self._teller.mirror.rows() if row.node == node})
            known = now

    def _mark_unwatched(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._watching and name in self._names:
                self._mark(name)

    def _mark(self, name: str, *, promote: bool = False) -> None:
        """Have a service fetched; `promote`: and then watched, because nobody but its own query tells of it."""
        if usable_name(name) and name != _SERVERS:
            self._dirty[name] = promote or self._dirty.get(name, False)
            self._work.set()

    async def _fetch(self) -> None:
        """Ask for services that have changed, one request at a time for each."""
        while True:
            name = next((each for each in self._dirty if each not in self._fetching), None)
            if name is None:
                self._work.clear()
                await self._work.wait()
                continue
            promote = self._dirty.pop(name)
            self._fetching.add(name)
            try:
                await self._take(name, *await self._client.service(name))
            finally:
                self._fetching.discard(name)
                self._work.set()
            if promote or len(self._watching) < WATCHED_MAX:
                self._watch(name)

    def _watch(self, name: str) -> None:
        """Give a service a query of its own; where there is none left, as soon as one has brought nothing."""
        if name in self._watching or name not in self._names:
            return
        if len(self._watching) < WATCHED_MAX:
            self._watching.add(name)
            self._group.create_task(self._follow_service(name))
        else:
            self._wanted.pop(name, None)
            self._wanted[name] = None
            if len(self._wanted) > WATCHED_MAX:
                del self._wanted[next(iter(self._wanted))]

    async def _follow_service(self, name: str) -> None:
        """Follow one service. No query is broken off for another: Consul would keep its connection till the end."""
        index = self._teller.mirror.index(name)
        while name in self._names:
            newer, found = await self._client.service(name, index)
            self._heard()
            if newer != index:
                index = newer if newer > index else 0
                await self._take(name, newer, found)
            elif self._wanted:
                break
        self._watching.discard(name)
        if self._wanted:
            self._watch(self._wanted.popitem()[0])

    async def _take(self, name: str, index: int, found: list[dict[str, Any]]) -> None:
        mirror = self._teller.mirror
        rows, unusable = read_rows(name, found)
        doubted = not found and mirror.holds(name) and not await self._may_see(name)
        self._explained.append(index)
        self._teller.listed(mirror.listed(name, index, rows, unusable), doubted=doubted)

    async def _may_see(self, name: str) -> bool:
        """Tell whether a service without instances has none: without the right to see them, Consul lists none either.

        The names need the right to read services only, the instances that to read nodes as well.
        """
        _, names = await self._client.services()
        if name in names:
            # either a new instance has come meanwhile, or there are some that we must not see
            _, found = await self._client.service(name)
            if not found:
                raise Unreachable(_MAY_NOT_READ_NODES)
            self._mark(name)
        return self._sees_servers and _SERVERS in names

    async def _sweep(self) -> None:
        """Ask all services without a query of their own for their index, when a change cannot be told otherwise."""
        while True:
            wait = max(self._swept_at + _DOUBT_S - self._clock(), 0) if self._doubt else _DOUBT_S
            try:
                async with asyncio.timeout(wait):
                    await self._sweep_now.wait()
            except TimeoutError:
                if not self._doubt:
                    continue
            self._sweep_now.clear()
            self._doubt = False
            # the last is asked first: what has changed lately is likely to have changed again
            waiting = [name for name in dict.fromkeys([*self._names, *self._wanted]) if name not in self._watching]

            async def ask(waiting: list[str] = waiting) -> None:
                while waiting:
                    name = waiting.pop()
                    if await self._client.service_index(name) != self._teller.mirror.index(name):
                        self._mark(name, promote=True)

            async with asyncio.TaskGroup() as group:
                for _ in range(_WORKERS):
                    group.create_task(ask())
            self._swept_at = self._clock()


def _by_id(found: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(check["Node"], check["CheckID"]): check for check in found}
