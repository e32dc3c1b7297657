"""The journal: what a crash, a failing disk, a second process or a person can do to it, and what is left then."""

import asyncio
import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from builders import instance, key, verdict
from hypothesis import given, settings
from hypothesis import strategies as st
from registry.harness import PATIENCE_S, VirtualClock

from controlplane.model import HealthCheck, HealthStatus, ServiceName
from controlplane.policy import Policy
from controlplane.registry import RegistryError, RegistryUnavailable
from controlplane.registry.journal import COMPACT_LINES, MAX_PENDING, Journal, JournalError
from controlplane.registry.journal_file import encode
from controlplane.registry.memory import MemoryRegistry
from controlplane.registry.state import Put, State

pytestmark = pytest.mark.unit

A = instance("web", "a", host="10.0.0.1", health_check=HealthCheck())
B = instance("web", "b", host="10.0.0.2")
WEB = ServiceName("web")


@asynccontextmanager
async def opened(folder: Path, **disk: Callable[..., int | None]) -> AsyncIterator[tuple[MemoryRegistry, Journal]]:
    async with Journal.open(folder, **disk) as journal:
        yield MemoryRegistry(journal=journal), journal


async def state_of(folder: Path) -> State:
    async with Journal.open(folder) as journal:
        return journal.state


def journal_path(folder: Path) -> Path:
    return folder / "memory.journal"


class Disk:
    """Be `write` and `fsync`, and fail when told to; `written` is set after a write that went well."""

    def __init__(self) -> None:
        self.failing: int | None = None
        self.short = False
        self.fsyncs = 0

    def write(self, fd: int, data: bytes) -> int:
        if self.short:
            self.short = False
            return os.write(fd, data[: len(data) // 2])
        if self.failing == errno.ENOSPC:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        if self.failing is not None:
            raise OSError(self.failing, os.strerror(self.failing))
        self.fsyncs += 1
        os.fsync(fd)


class TestCrash:
    async def test_a_last_line_torn_at_any_byte_costs_that_write_only(self, tmp_path: Path) -> None:
        whole = tmp_path / "whole"
        async with opened(whole) as (registry, _):
            await registry.put(A)
            before = journal_path(whole).read_bytes()
            await registry.put(B)
            after = journal_path(whole).read_bytes()
        assert after.startswith(before)
        torn = tmp_path / "torn"
        for length in range(len(before), len(after)):
            shutil.rmtree(torn, ignore_errors=True)
            torn.mkdir()
            journal_path(torn).write_bytes(after[:length])
            async with opened(torn) as (registry, journal):
                assert set(journal.state.instances) == {A.key}, length
                assert len(journal.remarks) == (length > len(before)), "the operator is told"
                await registry.put(B)
            assert set((await state_of(torn)).instances) == {A.key, B.key}, "what follows is not glued to the rest"

    async def test_a_last_line_with_a_flipped_bit_is_cut_off_too(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as (registry, _):
            await registry.put(A)
            await registry.put(B)
        data = bytearray(journal_path(tmp_path).read_bytes())
        data[-10] ^= 1
        journal_path(tmp_path).write_bytes(data)

        assert set((await state_of(tmp_path)).instances) == {A.key}

    async def test_a_damaged_line_in_the_middle_stops_the_start_and_is_named(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as (registry, _):
            await registry.put(A)
            await registry.put(B)
        data = journal_path(tmp_path).read_bytes().replace(b'"id":"a"', b'"id":"x"')
        journal_path(tmp_path).write_bytes(data)

        with pytest.raises(JournalError, match="line 2 of 3 does not fit its checksum"):
            Journal.open(tmp_path)
        assert journal_path(tmp_path).read_bytes() == data, "the evidence is left alone"

    async def test_damage_before_a_torn_line_is_not_taken_for_the_tear(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as (registry, _):
            await registry.put(A)
            await registry.put(B)
        data = journal_path(tmp_path).read_bytes().replace(b'"id":"b"', b'"id":"x"')
        journal_path(tmp_path).write_bytes(data + b"0123abcd {")

        with pytest.raises(JournalError, match="line 3 of 3 does not fit its checksum"):
            Journal.open(tmp_path)

    async def test_killed_between_writing_the_new_file_and_renaming_it_the_old_one_counts(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as (registry, _):
            await registry.put(A)
        (tmp_path / "memory.journal.new").write_bytes(journal_path(tmp_path).read_bytes()[:50])

        assert set((await state_of(tmp_path)).instances) == {A.key}
        assert not (tmp_path / "memory.journal.new").exists()

    async def test_at_any_moment_the_disk_holds_all_that_was_answered_for(self, tmp_path: Path) -> None:
        """Copy the folder, as a crash would leave it, right after answers, with other writes on their way."""
        live, crashed = tmp_path / "live", tmp_path / "crashed"
        answered: set[str] = set()
        async with opened(live) as (registry, _):

            async def write(n: int) -> None:
                for round_ in range(120):
                    each = instance("web", f"i{n}-{round_ % 20}", port=n * 100 + round_ % 20 + 1, weight=1 + round_)
                    await registry.put(each)
                    answered.add(each.id)

            writers = [asyncio.create_task(write(n)) for n in range(16)]
            copies = 0
            while not all(writer.done() for writer in writers):
                await asyncio.wait(writers, return_when=asyncio.FIRST_COMPLETED, timeout=0.005)
                promised = set(answered)
                shutil.rmtree(crashed, ignore_errors=True)
                crashed.mkdir()
                shutil.copy(journal_path(live), journal_path(crashed))
                held = {each.id for each in (await state_of(crashed)).instances}
                assert held >= promised
                copies += 1
        assert copies > 0


class TestFailingDisk:
    @pytest.mark.parametrize(
        "error",
        [
            pytest.param(errno.ENOSPC, id="the disk is full"),
            pytest.param(errno.EIO, id="fsync fails"),
        ],
    )
    async def test_what_the_disk_refuses_is_neither_stored_nor_told(self, tmp_path: Path, error: int) -> None:
        disk = Disk()
        live, crashed = tmp_path / "live", tmp_path / "crashed"
        events: asyncio.Queue[object] = asyncio.Queue()
        async with opened(live, write=disk.write, fsync=disk.fsync) as (registry, journal):
            task = asyncio.create_task(registry.run(events.put_nowait))
            await registry.put(A)
            disk.failing = error
            for attempt in (
                registry.put(B),
                registry.put(replace(A, weight=5)),
                registry.delete(A.key),
                registry.drain(A.key, 30.0),
                registry.put_policy(WEB, Policy()),
            ):
                with pytest.raises(RegistryUnavailable, match="nothing was stored"):
                    await attempt
            assert journal.fault
            shutil.copytree(live, crashed, ignore=shutil.ignore_patterns("*.lock"))
            disk.failing = None
            await registry.put(replace(A, weight=9), expected=A)
            assert not journal.fault
            await registry.put_policy(WEB, Policy(timeout=3.0))
            told = [await asyncio.wait_for(events.get(), PATIENCE_S) for _ in range(4)]
            task.cancel()

        assert [type(event).__name__ for event in told] == ["Synced", "PutInstance", "PutInstance", "PutPolicy"]
        assert (await state_of(live)).instances == {A.key: replace(A, weight=9)}
        assert (await state_of(crashed)).instances == {A.key: A}, "no refused write comes back"

    async def test_a_batch_written_in_part_leaves_nothing_behind(self, tmp_path: Path) -> None:
        disk = Disk()
        async with opened(tmp_path, write=disk.write, fsync=disk.fsync) as (registry, _):
            await registry.put(A)
            disk.short, disk.failing = True, errno.ENOSPC
            results = await asyncio.gather(
                *(registry.put(instance("web", f"i{n}", port=n + 1)) for n in range(20)), return_exceptions=True
            )
            assert {type(result) for result in results} == {RegistryUnavailable}
            on_disk = journal_path(tmp_path).read_bytes()

        assert on_disk.count(b"\n") == 2
        assert on_disk.endswith(b"\n")

    async def test_a_write_that_rests_on_a_refused_one_is_refused_too(self, tmp_path: Path) -> None:
        disk = Disk()
        async with opened(tmp_path, write=disk.write, fsync=disk.fsync) as (registry, _):
            disk.failing = errno.EIO
            first = asyncio.create_task(registry.put(A))
            await asyncio.sleep(0)
            results = await asyncio.gather(
                first, registry.put(A), registry.put(replace(A, weight=2), expected=A), return_exceptions=True
            )
            assert {type(result) for result in results} == {RegistryUnavailable}
            disk.failing = None
            assert await registry.put(A) is True, "nothing of it is remembered"

    async def test_a_lease_that_cannot_be_ended_is_ended_once_the_disk_is_back(self, tmp_path: Path) -> None:
        disk, clock = Disk(), VirtualClock()
        events: asyncio.Queue[object] = asyncio.Queue()
        async with Journal.open(tmp_path, write=disk.write, fsync=disk.fsync) as journal:
            registry = MemoryRegistry(journal=journal, clock=clock, call_later=clock.call_later)
            task = asyncio.create_task(registry.run(events.put_nowait))
            await registry.put(replace(A, ttl=10.0))
            await registry.put(B)
            await registry.drain(B.key, 10.0)
            disk.failing = errno.EIO
            await clock.advance(11.0)
            with pytest.raises(RegistryUnavailable):
                await registry.put_policy(WEB, Policy())
            assert events.qsize() == 4
            disk.failing = None
            await clock.advance(2.0)
            told = [await asyncio.wait_for(events.get(), PATIENCE_S) for _ in range(6)]
            task.cancel()

        assert [type(event).__name__ for event in told[-2:]] == ["Missing", "DeleteInstance"]
        assert (await state_of(tmp_path)).instances == {}

    async def test_a_verdict_that_the_disk_refuses_is_saved_with_the_next_write(self, tmp_path: Path) -> None:
        disk = Disk()
        sick = verdict(HealthStatus.UNHEALTHY)
        async with opened(tmp_path, write=disk.write, fsync=disk.fsync) as (registry, _):
            await registry.put(A)
            disk.failing = errno.EIO
            await registry.record(A.key, sick, A)
            with pytest.raises(RegistryUnavailable):
                await registry.put(B)
            disk.failing = None
            await registry.put(B)

        assert (await state_of(tmp_path)).verdicts == {A.key: sick}

    async def test_a_full_disk_does_not_keep_us_from_starting(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as (registry, _):
            await registry.put(A)
        disk = Disk()
        disk.failing = errno.ENOSPC
        async with opened(tmp_path, write=disk.write, fsync=disk.fsync) as (registry, journal):
            assert journal.state.instances == {A.key: A}
            assert "No space left" in journal.fault
            assert journal.remarks == (journal.fault,)
            with pytest.raises(RegistryUnavailable):
                await registry.put(B)
            disk.failing = None
            await registry.put(B)

        assert set((await state_of(tmp_path)).instances) == {A.key, B.key}

    async def test_a_disk_that_is_full_at_the_very_first_start_refuses_writes_until_there_is_room(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(fd: int, data: bytes, offset: int) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "pwrite", full)
        disk = Disk()
        disk.failing = errno.ENOSPC
        async with opened(tmp_path, write=disk.write, fsync=disk.fsync) as (registry, journal):
            assert "No space left" in journal.fault
            with pytest.raises(RegistryUnavailable):
                await registry.put(A)
            with pytest.raises(JournalError, match="in use by another process"):
                Journal.open(tmp_path)
            disk.failing = None
            await registry.put(A)

        assert (await state_of(tmp_path)).instances == {A.key: A}


class TestCompaction:
    async def test_under_steady_writing_the_file_stays_small_and_loses_nothing(self, tmp_path: Path) -> None:
        last: dict[str, int] = {}
        sizes = []
        async with opened(tmp_path) as (registry, journal):

            async def write(n: int) -> None:
                for weight in range(1, 401):
                    await registry.put(replace(B, id=f"i{n}", port=n + 1, weight=weight))
                    last[f"i{n}"] = weight
                    sizes.append(journal.lines)

            await asyncio.gather(*(write(n) for n in range(16)))

        assert max(sizes) < 4 * COMPACT_LINES, "6,400 writes were made"
        assert {each.id: each.weight for each in (await state_of(tmp_path)).instances.values()} == last
        assert sorted(path.name for path in tmp_path.iterdir()) == ["memory.journal", "memory.lock"]

    async def test_writes_do_not_wait_for_a_slow_compaction_and_are_in_the_new_file(self, tmp_path: Path) -> None:
        slow = False
        compacting, release = threading.Event(), threading.Event()

        def fsync(fd: int) -> None:
            if slow and Path(f"/proc/self/fd/{fd}").readlink().name.endswith(".new") and not release.is_set():
                compacting.set()
                assert release.wait(PATIENCE_S)
            os.fsync(fd)

        async with opened(tmp_path, fsync=fsync) as (registry, journal):
            slow = True
            await asyncio.gather(*(registry.put(replace(B, weight=1 + n % 1000)) for n in range(COMPACT_LINES + 10)))
            assert await asyncio.to_thread(compacting.wait, PATIENCE_S)
            for n in range(50):
                await registry.put(instance("web", f"i{n}", port=n + 1))
            assert journal.lines > COMPACT_LINES
            release.set()
            extra = 0
            while journal.lines > COMPACT_LINES:
                extra += 1
                await registry.put(instance("web", f"later{extra}", port=100 + extra))

        names = {*(f"i{n}" for n in range(50)), *(f"later{n + 1}" for n in range(extra)), "b"}
        assert {str(each.id) for each in (await state_of(tmp_path)).instances} == names

    async def test_a_compaction_that_fails_costs_no_write(self, tmp_path: Path) -> None:
        class NoRoomForTwo(Disk):
            def write(self, fd: int, data: bytes) -> int:
                if self.failing and Path(f"/proc/self/fd/{fd}").readlink().name.endswith(".new"):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return os.write(fd, data)

            def fsync(self, fd: int) -> None:
                os.fsync(fd)

        disk = NoRoomForTwo()
        async with opened(tmp_path, write=disk.write, fsync=disk.fsync) as (registry, journal):
            disk.failing = errno.ENOSPC
            for start in range(0, 3_000, 100):
                await asyncio.gather(
                    *(registry.put(replace(B, id=f"i{n}", port=n + 1, weight=1 + start // 100)) for n in range(100))
                )
            assert journal.lines > 3_000

        assert {each.weight for each in (await state_of(tmp_path)).instances.values()} == {30}

    async def test_a_start_compacts(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as (registry, _):
            for weight in range(1, 50):
                await registry.put(replace(B, weight=weight))
        await state_of(tmp_path)

        assert journal_path(tmp_path).read_bytes().count(b"\n") == 2


class TestAccess:
    async def test_only_the_owner_can_read_it(self, tmp_path: Path) -> None:
        folder = tmp_path / "new" / "data"
        async with opened(folder) as (registry, _):
            await registry.put(A)
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}

        assert modes == {"memory.journal": 0o600, "memory.lock": 0o600}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    async def test_a_second_process_on_the_folder_is_refused(self, tmp_path: Path) -> None:
        async with opened(tmp_path):
            second = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    "import sys, pathlib\n"
                    "from controlplane.registry.journal import Journal, JournalError\n"
                    "try:\n    Journal.open(pathlib.Path(sys.argv[1]))\n"
                    "except JournalError as error:\n    print(error)\n",
                    str(tmp_path),
                ],
                capture_output=True,
                text=True,
                check=True,
                timeout=30,
                cwd=Path(__file__).parents[2],
            )
        assert f"is in use by another process (pid {os.getpid()})" in second.stdout

        await state_of(tmp_path)  # free again

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(JournalError, match=r"DATA_DIR .*file/data cannot be used"):
            Journal.open(tmp_path / "file" / "data")

    def test_a_folder_that_cannot_be_locked_is_named_and_nothing_stays_open(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def no_locks(fd: int, operation: int) -> None:
            asked.append(fd)
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", no_locks)
        with pytest.raises(JournalError, match=rf"DATA_DIR {tmp_path} cannot be locked: No locks available"):
            Journal.open(tmp_path)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(asked[0])

    async def test_writes_after_the_close_are_refused(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as (registry, _):
            pass
        with pytest.raises(RegistryUnavailable, match="stopping"):
            await registry.put(A)

    async def test_leaving_waits_for_what_was_accepted(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as (registry, _):
            writer = asyncio.create_task(registry.put(A))
            await asyncio.sleep(0)
        assert writer.done()

        assert (await state_of(tmp_path)).instances == {A.key: A}

    async def test_more_than_the_bound_is_refused_at_once(self, tmp_path: Path) -> None:
        async with opened(tmp_path) as (registry, _):
            await registry.put(A)
            for n in range(MAX_PENDING):
                await registry.record(A.key, verdict(since=float(n)), A)
            with pytest.raises(RegistryUnavailable, match="wait for the disk"):
                await registry.put(B)


class TestFormat:
    @pytest.mark.parametrize(
        ("content", "says"),
        [
            pytest.param(b"notes to myself", "no complete first line", id="a file of another kind"),
            pytest.param(b"one\ntwo\n", "line 1 is not its header", id="a text file"),
            pytest.param(
                encode({"journal": "service-discovery", "format": 2}),
                "has format 2, this version reads 1",
                id="a later format",
            ),
            pytest.param(
                encode({"journal": "service-discovery", "format": 1})
                + encode({"op": "put", "instance": {"name": "web", "host": "10.0.0.1", "port": 80, "colour": "red"}}),
                r"line 2: put\.instance\.colour: .*another version wrote it",
                id="a field that this version does not know",
            ),
            pytest.param(
                encode({"journal": "service-discovery", "format": 1}) + encode({"op": "paint"}),
                "line 2: .*another version wrote it",
                id="an operation that this version does not know",
            ),
        ],
    )
    def test_what_is_not_ours_is_refused_with_what_to_do(self, tmp_path: Path, content: bytes, says: str) -> None:
        journal_path(tmp_path).write_bytes(content)
        for _ in range(2):  # and the folder is not left locked
            with pytest.raises(JournalError, match=says):
                Journal.open(tmp_path)
        assert journal_path(tmp_path).read_bytes() == content

    @pytest.mark.parametrize(
        "outdated",
        [
            pytest.param(
                {"op": "put", "instance": {"name": "web", "id": "old", "host": "10.0.0.9", "port": 0}},
                id="a value that is not allowed any more",
            ),
            pytest.param(
                {"op": "put", "instance": {"name": "web", "id": "old"}}, id="a field that has become required"
            ),
            pytest.param({"op": "policy", "service": "Web", "policy": {}}, id="a name that is not allowed any more"),
        ],
    )
    async def test_a_line_that_has_become_invalid_is_set_aside_and_the_rest_is_served(
        self, tmp_path: Path, outdated: dict[str, object]
    ) -> None:
        line = encode(outdated)
        content = encode({"journal": "service-discovery", "format": 1}) + encode(Put(instance=A)) + line
        journal_path(tmp_path).write_bytes(content + encode(Put(instance=B)))
        for start in range(3):
            async with opened(tmp_path) as (registry, journal):
                assert set(journal.state.instances) == {A.key, B.key}
                assert len(journal.remarks) == (start == 0)
                assert all("1 of 4 lines" in each and "line 3: " in each for each in journal.remarks)
                assert journal.refused == 1, "it shows until somebody has taken the file away"
                assert not journal.fault
                await registry.put(replace(B, weight=2 + start))
            assert (tmp_path / "journal.refused").read_bytes() == line
            assert stat.S_IMODE((tmp_path / "journal.refused").stat().st_mode) == 0o600
        (tmp_path / "journal.refused").unlink()
        async with opened(tmp_path) as (_, journal):
            assert journal.refused == 0

    @pytest.mark.parametrize("short", [False, True], ids=["nothing is written", "half a line is written"])
    async def test_an_invalid_line_is_not_compacted_away_while_the_disk_is_too_full_to_keep_it(
        self, tmp_path: Path, short: bool
    ) -> None:
        line = encode({"op": "put", "instance": {"name": "web", "id": "old", "host": "10.0.0.9", "port": 0}})
        content = encode({"journal": "service-discovery", "format": 1}) + line + encode(Put(instance=A))
        journal_path(tmp_path).write_bytes(content)
        disk = Disk()
        for _ in range(2):
            disk.short, disk.failing = short, errno.ENOSPC
            async with opened(tmp_path, write=disk.write, fsync=disk.fsync) as (registry, journal):
                assert set(journal.state.instances) == {A.key}
                assert journal.refused == 1
                with pytest.raises(RegistryUnavailable):
                    await registry.put(B)
            assert journal_path(tmp_path).read_bytes() == content
        async with opened(tmp_path, write=disk.write, fsync=disk.fsync) as (registry, journal):
            disk.failing = None
            await registry.put(B)

        assert set((await state_of(tmp_path)).instances) == {A.key, B.key}
        assert (tmp_path / "journal.refused").read_bytes() == line

    async def test_an_empty_file_is_an_empty_journal(self, tmp_path: Path) -> None:
        journal_path(tmp_path).touch()
        assert await state_of(tmp_path) == State()

    async def test_heartbeats_and_repetitions_write_nothing(self, tmp_path: Path) -> None:
        disk = Disk()
        leased = replace(A, ttl=30.0)
        async with opened(tmp_path, write=disk.write, fsync=disk.fsync) as (registry, journal):
            await registry.put(leased)
            await registry.record(A.key, verdict(), A)
            await registry.put_policy(WEB, Policy(timeout=1.0))
            lines, fsyncs = journal.lines, disk.fsyncs
            for _ in range(3):
                await registry.heartbeat(A.key)
                await registry.put(leased)
                await registry.record(A.key, verdict(), A)
                await registry.put_policy(WEB, Policy(timeout=1.0))
                await registry.delete(key("web", "nobody"))

            assert (journal.lines, disk.fsyncs) == (lines, fsyncs)

    async def test_nothing_is_answered_or_told_before_the_fsync_and_verdicts_do_not_wait(self, tmp_path: Path) -> None:
        entered, release = threading.Event(), threading.Event()
        slow = False

        def fsync(fd: int) -> None:
            if slow:
                entered.set()
                assert release.wait(PATIENCE_S)
            os.fsync(fd)

        events: asyncio.Queue[object] = asyncio.Queue()
        async with opened(tmp_path, fsync=fsync) as (registry, _):
            task = asyncio.create_task(registry.run(events.put_nowait))
            await registry.put(A)
            slow = True
            writer = asyncio.create_task(registry.put(B))
            repetition = asyncio.create_task(registry.put(B))
            assert await asyncio.to_thread(entered.wait, PATIENCE_S)
            await registry.record(A.key, verdict(), A)
            assert await registry.heartbeat(A.key) is None
            assert not writer.done()
            assert not repetition.done(), "it rests on a write that may still fail"
            assert events.qsize() == 2, "Synced and the first instance"
            release.set()
            assert (await writer, await repetition) == (True, False)
            task.cancel()

    async def test_writers_at_once_share_an_fsync(self, tmp_path: Path) -> None:
        disk = Disk()
        async with opened(tmp_path, write=disk.write, fsync=disk.fsync) as (registry, _):
            before = disk.fsyncs
            await asyncio.gather(*(registry.put(instance("web", f"i{n}", port=n + 1)) for n in range(100)))

            assert disk.fsyncs - before <= 2


IDS = st.sampled_from(["a", "b", "c", "d"])
OPERATION = st.one_of(
    st.tuples(st.just("put"), IDS, st.integers(1, 4)),
    st.tuples(st.just("delete"), IDS, st.just(0)),
    st.tuples(st.just("drain"), IDS, st.integers(0, 60)),
    st.tuples(st.just("record"), IDS, st.integers(0, 3)),
    st.tuples(st.just("policy"), IDS, st.integers(0, 3)),
    st.tuples(st.just("no_policy"), IDS, st.just(0)),
)


async def perform(registry: MemoryRegistry, what: str, id: str, number: int) -> None:
    try:
        match what:
            case "put":
                check = HealthCheck(http_path=f"/{number % 2}")
                await registry.put(instance("web", id, port=number, ttl=float(number), health_check=check))
            case "delete":
                await registry.delete(key("web", id))
            case "drain":
                await registry.drain(key("web", id), float(number))
            case "record":
                judged = instance(
                    "web", id, port=number + 1, health_check=HealthCheck(http_path=f"/{(number + 1) % 2}")
                )
                await registry.record(judged.key, verdict(score=number), judged)
            case "policy":
                await registry.put_policy(ServiceName(id), Policy(timeout=float(number)))
            case "no_policy":
                await registry.delete_policy(ServiceName(id))
    except RegistryError:
        pass  # an address taken or an instance unknown changes nothing, which is what is looked at


@settings(max_examples=60, deadline=None)
@given(st.lists(OPERATION, max_size=40), st.booleans())
def test_whatever_was_done_a_restart_holds_the_same(steps: list[tuple[str, str, int]], at_once: bool) -> None:
    async def scenario(folder: Path) -> None:
        async with opened(folder) as (registry, journal):
            if at_once:
                await asyncio.gather(*(perform(registry, *step) for step in steps))
            else:
                for step in steps:
                    await perform(registry, *step)
            await registry.put(instance("end", "end"))
            before = journal.state.copy()
        for _ in range(2):  # as it was written, then as the start compacted it
            assert await state_of(folder) == before

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder)))


def test_the_shortest_list_of_records_leads_to_the_same_state() -> None:
    state = State()
    state.apply(Put(instance=A))
    again = State()
    for record in state.records():
        again.apply(record)

    assert again == state
    assert state.size() == len(list(state.records()))
