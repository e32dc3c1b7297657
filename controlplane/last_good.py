"""The last known good state on disk: what a control plane boots from while its registries are down.

One file in DATA_DIR, replaced as a whole: a header with a checksum, then the catalog as one JSON line per object.
It holds what was in force (instances with their verdicts, policies, raw resources, what names stood for) and not
the encoded snapshots: the same catalog gives the same bytes (law 3), and REST answers come from it too. The file's
modification time says when its content was last known to be true.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter

from controlplane.catalog import Catalog, Change, Scope
from controlplane.live import LiveCatalog
from controlplane.model import Held, InstanceKey, PutAliases, PutInstance, PutPolicy, PutResource, Resolved
from controlplane.remembered import LastGood, Saved

FORMAT = 1
NAME = "last-known-good"

WRITE_EVERY_S = 2.0
"""How far the file may lag behind the catalog."""

CONFIRM_EVERY_S = 10.0

_KINDS: dict[str, TypeAdapter[Any]] = {
    "instance": TypeAdapter(PutInstance),
    "policy": TypeAdapter(PutPolicy),
    "aliases": TypeAdapter(PutAliases),
    "resource": TypeAdapter(PutResource),
    "name": TypeAdapter(Resolved),
}


class NotGood(Exception):
    """Report that the file cannot be used; the message says why."""


class LastGoodFile:
    """Read and replace the file of one folder. Blocks: 10,000 instances take about 100 ms."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._new = folder / f"{NAME}.new"

    def read(self) -> LastGood | None:
        """Return what the file holds; None where there is no file.

        Raises NotGood for a file that cannot be read, is damaged, or is of another format.
        """
        try:
            data = self.path.read_bytes()
            confirmed_at = self.path.stat().st_mtime
        except FileNotFoundError:
            return None
        except OSError as error:
            raise NotGood(f"{self.path} cannot be read: {error.strerror}") from error
        head, _, body = data.partition(b"\n")
        try:
            header = orjson.loads(head)
            kind, checksum = header["format"], header["sha256"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise NotGood(f"{self.path} is not what it should be: its first line is no header") from None
        if kind != FORMAT:
            raise NotGood(f"{self.path} has format {kind!r}, and this version knows {FORMAT}")
        if hashlib.sha256(body).hexdigest() != checksum:
            raise NotGood(f"{self.path} is damaged: its checksum does not fit")
        events: list[Saved] = []
        held: dict[InstanceKey, str] = {}
        try:
            for line in body.splitlines():
                record = orjson.loads(line)
                event = _KINDS[record["kind"]].validate_python(record["value"])
                events.append(event)
                if record["held"]:
                    held[event.instance.key] = record["held"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NotGood(f"{self.path} holds what this version does not take: {error}") from None
        return LastGood(confirmed_at=confirmed_at, events=tuple(events), held=held)

    def write(self, catalog: Catalog) -> None:
        """Put the catalog in the file's place, durably. Raises OSError; the old file stays then."""
        body = b"".join(_lines(catalog))
        header = orjson.dumps({"format": FORMAT, "sha256": hashlib.sha256(body).hexdigest()})
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:  # noqa: PTH123 - a descriptor, for the mode
            file.write(header + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        self._new.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def confirm(self) -> None:
        """Note that what the file holds is true now. Raises OSError."""
        os.utime(self.path)


def _lines(catalog: Catalog) -> Iterator[bytes]:
    def line(kind: str, value: Saved, held: str = "") -> bytes:
        return orjson.dumps({"kind": kind, "held": held, "value": value}, option=orjson.OPT_APPEND_NEWLINE)

    for host in sorted(catalog.resolutions):
        if (resolved := catalog.resolutions[host]).addresses:
            yield line("name", resolved)
    for entry in catalog.raw.values():
        yield line("resource", PutResource(resource=entry.resource, registry=entry.registry))
    for service in catalog.services.values():
        if service.own_policy is not None:
            policy = PutPolicy(service=service.name, policy=service.own_policy, registry=service.policy_registry)
            yield line("policy", policy)
        if service.aliases:
            aliases = PutAliases(service=service.name, aliases=service.aliases, registry=service.aliases_registry)
            yield line("aliases", aliases)
        for each in service.entries.values():
            event = PutInstance(
                instance=each.instance, registry=each.registry, verdict=each.verdict, stated=each.stated
            )
            yield line("instance", event, each.held)


class LastGoodKeeper:
    """Keep the file up to date with the catalog, while what is in force is what the registries hold.

    That is once `ready`, which is when proxies are served, and while each of `registries` can be heard: those that
    are required. One that is optional and silent does not keep the rest from being remembered.
    """

    def __init__(
        self,
        file: LastGoodFile,
        live: LiveCatalog,
        *,
        registries: frozenset[str],
        ready: Callable[[], bool],
        write_every_s: float = WRITE_EVERY_S,
    ) -> None:
        self._file = file
        self._live = live
        self._registries = registries
        self._ready = ready
        self._write_every_s = write_every_s
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._written = False
        self.fault = ""
        live.subscribe(self._on_change)

    def _on_change(self, change: Change) -> None:
        if change.scope is not Scope.READINESS:
            self._wake.set()
        if isinstance(change.event, Held):  # no registry has those any more
            self._hurry.set()

    async def run(self) -> None:
        """Write until cancelled, then once more if there is news."""
        try:
            while True:
                await self._step()
                if await _happens(self._wake, CONFIRM_EVERY_S):
                    await _happens(self._hurry, self._write_every_s)  # what comes close together is written once
        finally:
            if self._wake.is_set():
                await self._step()

    async def _step(self) -> None:
        self._hurry.clear()
        catalog = self._live.current
        if not self._ready() or not self._registries <= catalog.synced or not self._registries.isdisjoint(catalog.lost):
            return
        job = self._file.confirm
        if self._wake.is_set() or not self._written:
            self._wake.clear()
            job = partial(self._file.write, catalog)
        try:
            writing = asyncio.ensure_future(asyncio.to_thread(job))
            try:
                await asyncio.shield(writing)
            finally:
                await asyncio.wait(
                    [writing]
                )  # a thread goes on whoever is cancelled, and the next write must not meet it
            self._written = True
            self.fault = ""
        except OSError as error:
            self._wake.set()
            self.fault = f"{self._file.path} cannot be written: {error.strerror or error}"


async def _happens(event: asyncio.Event, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            return await event.wait()
    except TimeoutError:
        return False
