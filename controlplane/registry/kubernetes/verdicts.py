"""Verdicts on their way into ConfigMaps: many at once, so that a thousand instances cost sixteen writes.

Only the newest verdict of each instance waits, so a cluster that is slow or away costs bounded memory.
"""

import asyncio
from http import HTTPStatus

from controlplane.registry.documents import Unreadable
from controlplane.registry.kubernetes.api import Api, ApiFailure, Collection, Refused
from controlplane.registry.kubernetes.commons import Commons, entries_of, shard, shard_name
from controlplane.registry.kubernetes.remarks import Remarks

PACE_S = 1.0
"""How far apart the writes of one shard are."""

_TRIES = 5
"""How often one write is tried that other control planes keep overtaking."""

_PLACE = "verdicts"


class VerdictShards:
    """Write verdicts in the background, by path of their document."""

    def __init__(self, api: Api, maps: Collection, commons: Commons, remarks: Remarks) -> None:
        self._api = api
        self._maps = maps
        self._commons = commons
        self._remarks = remarks
        self._waiting: dict[str, dict[str, bytes | None]] = {}
        self._wake = asyncio.Event()

    def set(self, path: str, body: bytes | None) -> None:
        """Note a verdict, or (None) that there is none any more; it replaces an older one that still waits."""
        self._waiting.setdefault(shard_name(path), {})[path] = body
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled; what waited for the last run is written first."""
        if self._waiting:
            self._wake.set()
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()
            await asyncio.sleep(PACE_S)

    async def flush(self) -> None:
        """Write what waits; what cannot be written waits on, with a remark that says why."""
        for name in list(self._waiting):
            try:
                await self._write(name)
            except ApiFailure as failure:
                self._remarks.set(_PLACE, [str(failure)])
                self._wake.set()
            else:
                self._remarks.set(_PLACE, ())

    async def _write(self, name: str) -> None:
        version, held = self._commons.held(name)
        for attempt in range(1, _TRIES + 1):
            waiting = dict(self._waiting[name])
            entries = {path: body for path, body in {**held, **waiting}.items() if body is not None}
            try:
                if entries != held:
                    await self._put(name, entries, version)
            except Refused as refused:
                if refused.status not in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND) or attempt == _TRIES:
                    raise
                version, held = await self._read(name)
            else:
                self._written(name, waiting)
                return

    async def _put(self, name: str, entries: dict[str, bytes], version: str | None) -> None:
        if version is None:
            await self._api.create(self._maps, shard(name, entries, None))
        else:
            await self._api.replace(self._maps, name, shard(name, entries, version))

    async def _read(self, name: str) -> tuple[str | None, dict[str, bytes]]:
        try:
            thing = await self._api.get(self._maps, name)
        except Refused as refused:
            if refused.status == HTTPStatus.NOT_FOUND:
                return None, {}
            raise
        version = str(thing["metadata"]["resourceVersion"])
        try:
            return version, entries_of(thing)
        except Unreadable:  # somebody wrote into it: what checks find out next makes it good again
            return version, {}

    def _written(self, name: str, written: dict[str, bytes | None]) -> None:
        now = self._waiting[name]
        for path, body in written.items():
            if path in now and now[path] == body:
                del now[path]
        if not now:
            del self._waiting[name]
