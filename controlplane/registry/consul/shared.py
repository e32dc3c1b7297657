"""What control planes share in Consul besides instances: policies, raw resources, verdicts and releases, as keys.

Policies and resources are watched as they are, so that a person may edit them with `consul kv`. Verdicts are many and
only control planes write them, so they are read once and then by what the others note (`changes`).
"""

import asyncio
from collections.abc import Awaitable, Callable

from controlplane.model import InstanceKey, RegistryEvent, Release
from controlplane.registry import RegistryUnavailable
from controlplane.registry.consul.changes import Changes, What, set_key
from controlplane.registry.consul.client import Client
from controlplane.registry.consul.transport import Uncertain, Unreachable
from controlplane.registry.documents import Document, Kind, Unreadable, event_of, parse_path, path_of

_WATCHED = (Kind.POLICY, Kind.RESOURCE)
_WRITE_TIMEOUT_S = 4.5

_AGAIN_S = 0.1
"""How soon a write is repeated that was broken off."""


class Shared:
    """Keep documents in step with Consul, and write them."""

    def __init__(
        self,
        registry: str,
        client: Client,
        changes: Changes,
        tell: Callable[[list[RegistryEvent]], None],
    ) -> None:
        self._registry = registry
        self._client = client
        self._changes = changes
        self._prefix = changes.prefix
        self._tell = tell
        self._known: dict[str, bytes] = {}
        self._indexes: dict[Kind, int] = {}
        self._remarks: dict[str, str] = {}
        self._touched: dict[tuple[What, str], None] = {}
        self._work = asyncio.Event()

    def remarks(self) -> dict[str, str]:
        """Return what cannot be used, by its key, and why."""
        return self._remarks

    async def catch_up(self) -> None:
        """Read everything, and tell what differs from what was told."""
        for kind in _WATCHED:
            index, found = await self._client.folder(f"{self._prefix}{kind}/")
            self._indexes[kind] = index
            self._take(kind, {each["Key"]: each["Value"] or b"" for each in found})
        _, found = await self._client.keys(f"{self._prefix}{Kind.VERDICT}/")
        self._take(Kind.VERDICT, {each["Key"]: each["Value"] or b"" for each in found})

    async def follow(self) -> None:
        """Tell what changes, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for kind in _WATCHED:
                group.create_task(self._follow(kind))
            group.create_task(self._follow_touched())

    def touched(self, what: What, name: str) -> None:
        """Take that a control plane has written a document or let go a hold."""
        self._touched[what, name] = None
        self._work.set()

    async def put(self, document: Document) -> bool:
        """Store a document; return whether it is new. The watch tells of it. Raises RegistryUnavailable."""
        key = self._prefix + document.path
        new: bool | None = None

        async def write() -> bool:
            nonlocal new
            while True:
                index, body = await self._client.key(key)
                new = body is None if new is None or body not in (None, document.body) else new
                if body == document.body or await self._client.write(key, document.body, cas=index):
                    return new

        return await self._bounded(write)

    async def delete(self, kind: Kind, *name: str) -> bool:
        """Remove a document; return whether there was one. Raises RegistryUnavailable."""
        key = self._prefix + path_of(kind, *name)
        there = False

        async def erase() -> bool:
            nonlocal there
            _, body = await self._client.key(key)
            if body is not None:
                there = True
                await self._client.erase(key)
            return there

        return await self._bounded(erase)

    async def record(self, document: Document) -> None:
        """Store a verdict, and note it for the others. Raises RegistryUnavailable."""
        if self._known.get(self._prefix + document.path) == document.body:
            return
        change = self._changes.operation(What.DOCUMENT, [document.path])

        async def write() -> bool:
            await self._client.transact([set_key(self._prefix + document.path, document.body), change])
            return True

        await self._bounded(write)

    async def forget(self, key: InstanceKey) -> None:
        """Drop a verdict, and note it for the others. Raises RegistryUnavailable."""
        path = path_of(Kind.VERDICT, key.service, key.id)
        change = self._changes.operation(What.DOCUMENT, [path])

        async def erase() -> bool:
            await self._client.transact([{"KV": {"Verb": "delete", "Key": self._prefix + path}}, change])
            return True

        await self._bounded(erase)

    async def release(self, hold: str) -> None:
        """Tell all, oneself among them, of a hold that is let go. Raises RegistryUnavailable."""

        async def write() -> bool:
            return await self._client.write(self._changes.release_key(hold), b"[]")

        await self._bounded(write)

    async def _bounded(self, write: Callable[[], Awaitable[bool]]) -> bool:
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                while True:
                    try:
                        return await write()
                    except Uncertain:  # doing it again is harmless
                        await asyncio.sleep(_AGAIN_S)
        except TimeoutError:
            raise RegistryUnavailable(f"Consul did not answer within {_WRITE_TIMEOUT_S} s") from None
        except Unreachable as error:
            raise RegistryUnavailable(f"Consul cannot take writes now: {error}") from None

    async def _follow(self, kind: Kind) -> None:
        index = self._indexes[kind]
        while True:
            newer, found = await self._client.keys(f"{self._prefix}{kind}/", index)
            if newer != index:
                index = newer if newer > index else 0
                self._take(kind, {each["Key"]: each["Value"] or b"" for each in found})

    async def _follow_touched(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._touched:
                what, name = next(iter(self._touched))
                if what is What.RELEASE:
                    self._tell([Release(hold=name, registry=self._registry)])
                else:
                    _, body = await self._client.key(self._prefix + name)
                    self._change(self._prefix + name, body)
                self._touched.pop((what, name), None)

    def _take(self, kind: Kind, found: dict[str, bytes]) -> None:
        folder = f"{self._prefix}{kind}/"
        bodies = {key: body for key, body in found.items() if not key.endswith("/")}
        for key in [key for key in self._known.keys() | self._remarks.keys() if key.startswith(folder)]:
            if key not in bodies:
                self._change(key, None)
        for key, body in sorted(bodies.items()):
            if self._known.get(key) != body:
                self._change(key, body)

    def _change(self, key: str, body: bytes | None) -> None:
        self._remarks.pop(key, None)
        if body is None and key not in self._known:
            return
        try:
            kind, name = parse_path(key.removeprefix(self._prefix))
            event = event_of(kind, name, body, self._registry)
        except Unreadable as error:
            self._remarks[key] = str(error)  # what was good of it stays, see law 15
            return
        if body is None:
            del self._known[key]
        else:
            self._known[key] = body
        if event is not None:
            self._tell([event])
