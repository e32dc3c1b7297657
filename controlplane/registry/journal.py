"""The journal of the memory registry: many writers, one fsync.

Group commit: what is accepted while the disk is busy goes out together as soon as it is free, in one write and
one fsync, in a thread. Order of lines = order of acceptance. Compaction writes the live state into a new file
beside, while lines keep going to the old one; those that came meanwhile are added before the new file takes its
place. Everything of the event loop is here, everything of the disk in `journal_file`; what a record means is
`state`'s business.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from controlplane.registry import RegistryUnavailable
from controlplane.registry.journal_file import (
    JournalError,
    JournalFile,
    Rewritten,
    SyncCall,
    WriteCall,
    encode,
)
from controlplane.registry.state import Record, State

__all__ = ["Journal", "JournalError", "Write"]

MAX_PENDING = 10_000
"""How many writes may wait for the disk; more are refused, so that a stuck disk costs bounded memory."""

COMPACT_FACTOR = 4
COMPACT_LINES = 1_000
"""Compact when there are more lines than this, and more than COMPACT_FACTOR times those that are needed."""


@dataclass(frozen=True, slots=True)
class Write:
    """Hold an accepted write until it is durable. No record = wait for those before; no `done` = nobody waits."""

    record: Record | None
    done: asyncio.Future[None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Hold what the journal asks of the one who owns the state; all are called in the event loop.

    `stored` and `refused` get the writes in the order of acceptance, each write once. `refused` gets all that
    wait, for those behind a failed write may rest on it. `snapshot` returns a copy of the durable state, `size`
    the number of records that it takes.
    """

    stored: Callable[[Sequence[Write]], None]
    refused: Callable[[Sequence[Write], BaseException], None]
    snapshot: Callable[[], State]
    size: Callable[[], int]


class Journal:
    """Make writes durable. Use as `async with`; leaving it waits for what was accepted.

    `state` is what the folder held, `remarks` what the operator should be told of it, and `fault` why the last
    write failed, "" while all is well.
    """

    def __init__(self, file: JournalFile, state: State, remarks: tuple[str, ...], *, sound: bool) -> None:
        self.state = state
        self.remarks = remarks
        self.fault = "" if sound else remarks[-1]
        self._file = file
        self._sound = sound  # False: what the file ends with is unknown, write it anew before the next line
        self._owner: Owner | None = None
        self._queue: list[tuple[bytes, Write]] = []
        self._launching = False
        self._flight: asyncio.Future[None] | None = None
        self._compaction: asyncio.Future[Rewritten] | None = None
        self._rewritten: Rewritten | None = None
        self._tail: list[bytes] = []
        self._compact_above = COMPACT_LINES
        self._closing = False
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="journal")

    @classmethod
    def open(cls, folder: Path, *, write: WriteCall = os.write, fsync: SyncCall = os.fsync) -> Self:
        """Lock the folder, read its journal, and write it anew without what is outdated.

        Blocks, for about 50 µs a line: call it before anything is served, or in a thread. A full disk does not
        keep us from starting with what is known; writes are then refused until there is room.

        Raises JournalError where the folder is in use, or the file cannot be read or is damaged.
        """
        file = JournalFile(folder, write=write, fsync=fsync)
        try:
            state, remarks = file.read()
        except JournalError:
            file.close()
            raise
        try:
            file.swap(file.rewrite(state), b"", 0)
        except OSError as error:
            return cls(file, state, (*remarks, f"{file.path} cannot be written: {error.strerror}"), sound=False)
        return cls(file, state, remarks, sound=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing = True
        while self._queue or self._launching or self._flight is not None or self._compaction is not None:
            running = [future for future in (self._flight, self._compaction) if future is not None]
            await (asyncio.wait(running) if running else asyncio.sleep(0))
        if self._rewritten is not None:
            self._file.discard(self._rewritten)
        self._threads.shutdown()
        self._file.close()

    def attach(self, owner: Owner) -> None:
        """Name the one owner of the state, before the first write."""
        self._owner = owner

    @property
    def busy(self) -> bool:
        """Tell whether accepted writes wait for the disk."""
        return bool(self._queue) or self._flight is not None

    @property
    def refused(self) -> int:
        """Return how many writes lie set aside in the folder, valid to an earlier version but not to this one."""
        return self._file.refused

    @property
    def lines(self) -> int:
        """Return how many lines the file has."""
        return self._file.lines

    def append(self, write: Write) -> None:
        """Accept a write; `stored` or `refused` will tell of it.

        Raises RegistryUnavailable where too many wait already, or the journal is being closed.
        """
        if self._closing:
            raise RegistryUnavailable("the control plane is stopping; nothing was stored")
        if len(self._queue) >= MAX_PENDING:
            raise RegistryUnavailable(f"{MAX_PENDING} writes wait for the disk already; nothing was stored")
        self._queue.append((b"" if write.record is None else encode(write.record), write))
        self._launch_soon()

    def _launch_soon(self) -> None:
        # Not at once: all who are ready in this turn of the loop share the fsync.
        if not self._launching and self._flight is None:
            self._launching = True
            asyncio.get_running_loop().call_soon(self._launch)

    def _launch(self) -> None:
        self._launching = False
        if not self._sound and self._compaction is not None:
            return  # it holds the new file's place; its end launches again
        lines = [line for line, _ in self._queue if line]
        writes = [write for _, write in self._queue]
        if self._rewritten is not None:
            new, tail = self._rewritten, self._tail
            self._rewritten, self._tail = None, []
            job = partial(self._file.swap, new, b"".join(tail), len(tail))
            lines, writes = [], []
        elif not self._queue:
            return
        elif not self._sound:
            job = partial(self._start_anew, self._owned.snapshot(), b"".join(lines), len(lines))
        elif lines:
            job = partial(self._file.append, b"".join(lines), len(lines))
        else:
            job = partial(_nothing)
        if writes:
            self._queue = []
        self._flight = asyncio.get_running_loop().run_in_executor(self._threads, job)
        self._flight.add_done_callback(partial(self._settled, writes, lines))

    def _start_anew(self, state: State, data: bytes, lines: int) -> None:
        self._file.swap(self._file.rewrite(state), b"", 0)
        self._file.append(data, lines)

    def _settled(self, writes: list[Write], lines: list[bytes], flight: asyncio.Future[None]) -> None:
        self._flight = None
        error = flight.exception()
        if error is None:
            self._sound = True
            self.fault = ""
            if self._compaction is not None or self._rewritten is not None:
                self._tail += lines
            self._owned.stored(writes)
            self._compact_if_worthwhile()
        else:
            self._sound = False
            self.fault = f"{self._file.path} cannot be written: {error}"
            if self._rewritten is not None:
                self._file.discard(self._rewritten)
                self._rewritten = None
            if writes:  # else it was a compaction that failed, on which no write rests
                writes += [write for _, write in self._queue]
                self._queue = []
                self._owned.refused(writes, error)
        if self._queue or self._rewritten is not None:
            self._launch_soon()

    def _compact_if_worthwhile(self) -> None:
        if self._compaction is not None or self._rewritten is not None or self._closing:
            return
        if self._file.lines <= max(self._compact_above, COMPACT_FACTOR * self._owned.size()):
            return
        state = self._owned.snapshot()
        self._tail = []
        self._compaction = asyncio.get_running_loop().run_in_executor(self._threads, self._file.rewrite, state)
        self._compaction.add_done_callback(self._compacted)

    def _compacted(self, compaction: asyncio.Future[Rewritten]) -> None:
        self._compaction = None
        error = compaction.exception()
        if error is not None:
            self.fault = f"{self._file.path} cannot be compacted: {error}"
            self._compact_above = 2 * self._file.lines
        elif self._sound:
            self._rewritten = compaction.result()
            self._compact_above = COMPACT_LINES
        else:
            self._file.discard(compaction.result())
        if self._queue or self._rewritten is not None:
            self._launch_soon()

    @property
    def _owned(self) -> Owner:
        if self._owner is None:
            raise RuntimeError("the journal has no owner; attach one before writing")
        return self._owner


def _nothing() -> None:
    """Stand for a commit that holds no line: those who wait were told by the one before."""
