"""The journal on disk: its format, and the blocking operations on it; `journal` calls them from threads.

One line per record: eight hex digits of CRC-32, a space, the record as JSON. The first line says which format
this is. A crash can tear the last line only, which was never answered for, so that is cut off; a bad line
anywhere else means that the disk or a person changed the file, and then nobody but a person can tell what was
lost. An undamaged line whose values are not valid any more, since a rule has become tighter, is set aside in a
file of its own: one old registration must not keep all the others from being served. No event loop here, no rules
about instances.
"""

import fcntl
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from controlplane.registry.state import Record, State

FORMAT = 1
_CHUNK_BYTES = 1 << 16

_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="op")])

WriteCall = Callable[[int, bytes], int]
SyncCall = Callable[[int], None]


class JournalError(Exception):
    """Report that the journal cannot be opened; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewritten:
    """Hold a complete new journal that has not taken the old one's place yet."""

    fd: int
    lines: int
    size_bytes: int


def encode(value: Any) -> bytes:
    """Spell a record, or the header, as a line."""
    body = orjson.dumps(value)
    return b"%08x %b\n" % (zlib.crc32(body), body)


def _body(line: bytes) -> bytes | None:
    """Return the JSON of a line without its newline; None where the checksum does not fit."""
    checksum, _, body = line.partition(b" ")
    return body if checksum == b"%08x" % zlib.crc32(body) else None


HEADER = encode({"journal": "service-discovery", "format": FORMAT})


class JournalFile:
    """Hold the journal of one folder, locked against other processes.

    `lines` and `size_bytes` count what is known to be on disk, `refused` the lines that this start or an earlier
    one set aside and that nobody has taken away yet. `write` and `fsync` are the system's, except in
    tests of a failing disk.

    Raises JournalError where the folder cannot be used or is in use.
    """

    def __init__(self, folder: Path, *, write: WriteCall = os.write, fsync: SyncCall = os.fsync) -> None:
        self.path = folder / "memory.journal"
        self.lines = 0
        self.size_bytes = 0
        self.refused = 0
        self._folder = folder
        self._refused_path = folder / "journal.refused"
        self._to_set_aside: list[bytes] = []
        self._new_path = folder / "memory.journal.new"
        self._write = write
        self._fsync = fsync
        self._fd = -1
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = os.open(folder / "memory.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalError(f"DATA_DIR {folder} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._lock_fd, 32, 0).decode(errors="replace").strip()
            os.close(self._lock_fd)
            raise JournalError(
                f"DATA_DIR {folder} is in use by another process (pid {holder or 'unknown'}); "
                "stop that one, or give this one a folder of its own"
            ) from error
        except OSError as error:
            os.close(self._lock_fd)
            raise JournalError(
                f"DATA_DIR {folder} cannot be locked: {error.strerror}; use a folder on a file system that has locks"
            ) from error
        with suppress(OSError):  # the lock holds without the pid, which is a hint for people, and the disk may be full
            os.ftruncate(self._lock_fd, 0)
            os.pwrite(self._lock_fd, b"%d\n" % os.getpid(), 0)

    def read(self) -> tuple[State, tuple[str, ...]]:
        """Return the state that the lines lead to, and remarks on those that were cut off or are to be set aside.

        Raises JournalError, naming the line, for anything that neither a crash nor a tighter rule can explain.
        """
        state = State()
        try:
            self._new_path.unlink(missing_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.fchmod(self._fd, 0o600)
            data = self.path.read_bytes()
            aside = self._read_set_aside().splitlines()
        except OSError as error:
            raise JournalError(f"{self.path} cannot be opened: {error.strerror}") from error
        *lines, torn = data.split(b"\n")
        if lines:
            self._check_header(lines[0])
        elif torn:
            raise JournalError(
                f"{self.path} is not a journal: it has no complete first line; move it away to start empty"
            )
        faults: list[str] = []
        for number, line in enumerate(lines[1:], start=2):
            body = _body(line)
            if body is not None:
                decoded = self._decode(number, body)
                if isinstance(decoded, str):
                    faults.append(decoded)
                    if line not in aside:  # it is there where a start got no further than that
                        aside.append(line)
                        self._to_set_aside.append(line)
                else:
                    state.apply(decoded)
            elif number == len(lines) and not torn:
                torn = line
            else:
                raise JournalError(
                    f"{self.path} is damaged: line {number} of {len(lines)} does not fit its checksum, though lines "
                    "follow that were written later. Restore the file from a copy; or, to go on without that one "
                    "write, remove the line"
                )
        remarks = []
        if torn:
            remarks.append(
                f"{self.path}: cut off a torn last line of {len(torn)} bytes, whose write was never confirmed"
            )
        if faults:
            remarks.append(
                f"{self.path}: {len(faults)} of {len(lines)} lines are not valid in this version and were left out; "
                f"{self._refused_path} keeps them. The first: {faults[0]}"
            )
        self.lines = len(lines)
        self.size_bytes = len(data)
        self.refused = len(aside)
        return state, tuple(remarks)

    def append(self, data: bytes, lines: int) -> None:
        """Add lines and wait until they are on disk.

        Raises OSError; what was written in part has then been cut off again, unless the disk refused that too:
        write the file anew before appending to it.
        """
        try:
            self._write_all(self._fd, data)
            self._fsync(self._fd)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._fd, self.size_bytes)
                self._fsync(self._fd)
            raise
        self.lines += lines
        self.size_bytes += len(data)

    def rewrite(self, state: State) -> Rewritten:
        """Write a new journal that leads to `state` beside the old one. Raises OSError, leaving no trace.

        The new one lacks the lines that `read` left out, so these are brought to safety first.
        """
        self._set_aside()
        self._new_path.unlink(missing_ok=True)
        fd = os.open(self._new_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        lines, size_bytes = 1, 0
        buffer = bytearray(HEADER)
        try:
            for record in state.records():
                buffer += encode(record)
                lines += 1
                if len(buffer) >= _CHUNK_BYTES:
                    self._write_all(fd, bytes(buffer))
                    size_bytes += len(buffer)
                    buffer.clear()
            self._write_all(fd, bytes(buffer))
            self._fsync(fd)
        except OSError:
            self._drop(fd)
            raise
        return Rewritten(fd=fd, lines=lines, size_bytes=size_bytes + len(buffer))

    def swap(self, new: Rewritten, tail: bytes, tail_lines: int) -> None:
        """Complete a new journal with the lines that came meanwhile, and let it take the old one's place.

        Raises OSError, whichever of the two files is then the journal.
        """
        try:
            self._write_all(new.fd, tail)
            self._fsync(new.fd)
            self._new_path.rename(self.path)
        except OSError:
            self._drop(new.fd)
            raise
        os.close(self._fd)
        self._fd = new.fd
        self.lines = new.lines + tail_lines
        self.size_bytes = new.size_bytes + len(tail)
        self._sync_folder()

    def discard(self, new: Rewritten) -> None:
        """Drop a new journal that is not wanted any more."""
        self._drop(new.fd)

    def close(self) -> None:
        """Close the journal and let other processes have the folder."""
        if self._fd >= 0:
            os.close(self._fd)
        os.close(self._lock_fd)

    def _check_header(self, line: bytes) -> None:
        body = _body(line)
        header = orjson.loads(body) if body is not None else None
        if not isinstance(header, dict) or header.get("journal") != "service-discovery":
            raise JournalError(f"{self.path} is not a journal: line 1 is not its header; move it away to start empty")
        if header.get("format") != FORMAT:
            raise JournalError(
                f"{self.path} has format {header.get('format')}, this version reads {FORMAT}; "
                "start the version that wrote it"
            )

    def _decode(self, number: int, body: bytes) -> Record | str:
        """Return the record of a line, or why its values are not valid.

        What this version does not know at all, an operation or a field, is an error, not a fault of one line: a later
        version wrote it, and its lines would go by the thousand.
        """
        try:
            return _RECORD.validate_json(body)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False)
            unknown = [fault for fault in faults if not fault["loc"] or fault["type"] == "unexpected_keyword_argument"]
            fault = (unknown or faults)[0]
            where = ".".join(str(part) for part in fault["loc"])
            if not unknown:
                return f"line {number}: {where}: {fault['msg']}"
            raise JournalError(
                f"{self.path}, line {number}: {where}: {fault['msg']}. The line is undamaged, so another version "
                "wrote it; start that version"
            ) from None

    def _read_set_aside(self) -> bytes:
        try:
            return self._refused_path.read_bytes()
        except FileNotFoundError:
            return b""

    def _set_aside(self) -> None:
        if not self._to_set_aside:
            return
        fd = os.open(self._refused_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            try:
                self._write_all(fd, b"".join(line + b"\n" for line in self._to_set_aside))
                self._fsync(fd)
            except OSError:
                os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)
        self._sync_folder()
        self._to_set_aside = []

    def _sync_folder(self) -> None:
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._fsync(fd)
        finally:
            os.close(fd)

    def _write_all(self, fd: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._write(fd, bytes(view)) :]

    def _drop(self, fd: int) -> None:
        os.close(fd)
        self._new_path.unlink(missing_ok=True)
