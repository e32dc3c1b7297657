"""Check by running a program: exit 0 passes, 1 means degraded, anything else fails.

Never a shell, and only executables that really live inside HEALTH_CHECK_SCRIPTS_DIR once symbolic links are
followed: whoever may register an instance may choose among the operator's scripts, and nothing more. The
arguments are the registrant's, so scripts must treat them as data. A program runs in a session of its own, which
is killed as a whole when the check ends; a process that leaves that session on purpose (setsid) is out of reach.
"""

import asyncio
import contextlib
import os
import signal
import time
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Callable, Iterator
from pathlib import Path

from controlplane.health import OUTPUT_LIMIT_BYTES, Outcome, OutcomeKind
from controlplane.health.attempt import Answer, attempt, readable
from controlplane.model import CheckType, HealthCheck, Instance

DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
_READ_BYTES = 65_536
_REAP_TIMEOUT_S = 2.0


class ScriptRefused(Exception):
    """Report that a script will not be run; the text says why."""


def script_problem(check: HealthCheck, scripts_dir: Path | None) -> str | None:
    """Say why a check's script would be refused, so that a registration can be; None where nothing is wrong."""
    if check.type is not CheckType.SCRIPT:
        return None
    try:
        _locate(check, scripts_dir)
    except ScriptRefused as refusal:
        return str(refusal)
    return None


def _locate(check: HealthCheck, scripts_dir: Path | None) -> Path:
    """Return the real path of a check's executable. Raises ScriptRefused."""
    if scripts_dir is None:
        raise ScriptRefused("script checks are refused: HEALTH_CHECK_SCRIPTS_DIR is not set")
    if not check.script:
        raise ScriptRefused("script checks are refused: no `script` is given")
    if any("\0" in argument for argument in check.script):
        raise ScriptRefused("script refused: an argument holds a NUL character")
    name = check.script[0]
    try:
        folder = scripts_dir.resolve(strict=True)
    except (OSError, RuntimeError):
        raise ScriptRefused("script checks are refused: HEALTH_CHECK_SCRIPTS_DIR does not exist") from None
    try:
        executable = (folder / name).resolve()
        # Outside the folder nothing is said of a file, not even whether it exists.
        if not executable.is_relative_to(folder):
            raise ScriptRefused(f"script refused: {name!r} is outside HEALTH_CHECK_SCRIPTS_DIR")
        if not executable.is_file():
            raise ScriptRefused(f"script refused: there is no file {name!r} in HEALTH_CHECK_SCRIPTS_DIR")
    except (OSError, RuntimeError):  # RuntimeError: a loop of symbolic links, before Python 3.13
        raise ScriptRefused("script refused: its name leads nowhere, by its length or a loop of links") from None
    if not os.access(executable, os.X_OK):
        raise ScriptRefused(f"script refused: {name!r} is not executable")
    return executable


class ScriptProbe:
    """Run the instance's script. `path` is the PATH it is given: nothing of our own environment is."""

    def __init__(
        self, scripts_dir: Path | None, *, path: str = DEFAULT_PATH, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._scripts_dir = scripts_dir
        self._clock = clock
        self._path = path

    async def __call__(self, instance: Instance, address: str, timeout_s: float) -> Outcome:
        """Judge the instance by its script's exit code; the first 4 KiB of what it prints go with the outcome."""
        return await attempt(self._run(instance), timeout_s, self._clock)

    async def _run(self, instance: Instance) -> Answer:
        check = instance.health_check or HealthCheck()
        try:
            executable = _locate(check, self._scripts_dir)
        except ScriptRefused as refusal:
            return OutcomeKind.FAIL, str(refusal)
        environment = {
            "PATH": self._path,
            "INSTANCE_ID": instance.id,
            "SERVICE_NAME": instance.name,
            "INSTANCE_HOST": instance.host,
            "INSTANCE_PORT": str(instance.port),
        }
        with _Printed() as printed:
            with printed.writer() as writer:
                process = await asyncio.create_subprocess_exec(
                    executable,
                    *check.script[1:],
                    stdin=DEVNULL,
                    stdout=writer,
                    stderr=STDOUT,
                    env=environment,
                    cwd=executable.parent,
                    start_new_session=True,
                )
            try:
                code = await process.wait()
            finally:
                await _end(process)
            return _judge(code, printed.text())


async def _end(process: Process) -> None:
    """Kill what is left of a script's session, and wait until the script is reaped.

    The wait is bounded for a process that hangs in the kernel; asyncio's child watcher reaps it later.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REAP_TIMEOUT_S):
            await process.wait()


def _judge(code: int, text: str) -> Answer:
    match code:
        case 0:
            kind = OutcomeKind.PASS
        case 1:
            kind = OutcomeKind.DEGRADED
        case _:
            kind = OutcomeKind.FAIL
    ended = f"exit {code}" if code >= 0 else f"killed by signal {-code}"
    return kind, f"{ended}: {text}" if text else ended


class _Printed:
    """Collect the beginning of what a process prints, and swallow the rest so that it never blocks.

    A pipe of our own instead of asyncio's: a descendant that keeps it open must not keep `Process.wait` waiting.
    """

    def __init__(self) -> None:
        self._kept = bytearray()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> "_Printed":
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self._loop.add_reader(self._read_fd, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._read_fd)
        os.close(self._read_fd)

    @contextlib.contextmanager
    def writer(self) -> Iterator[int]:
        """Lend the end to write to, for as long as a process is being started."""
        try:
            yield self._write_fd
        finally:
            os.close(self._write_fd)

    def text(self) -> str:
        """Return what was printed, with what still lies in the pipe."""
        while len(self._kept) < OUTPUT_LIMIT_BYTES and self._read():
            pass
        return readable(bytes(self._kept))

    def _read(self) -> bool:
        try:
            data = os.read(self._read_fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._read_fd)
            return False
        self._kept += data[: OUTPUT_LIMIT_BYTES - len(self._kept)]
        return True
