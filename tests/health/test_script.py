"""Script checks with real scripts: what is run, what is refused, and that nothing of it stays behind."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from builders import instance

from controlplane.health import OUTPUT_LIMIT_BYTES, Outcome, OutcomeKind
from controlplane.health.script import ScriptProbe, script_problem
from controlplane.model import CheckType, HealthCheck

pytestmark = pytest.mark.integration

PASS, DEGRADED, FAIL, TIMEOUT = OutcomeKind.PASS, OutcomeKind.DEGRADED, OutcomeKind.FAIL, OutcomeKind.TIMEOUT
PATIENCE_S = 20.0


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    folder = tmp_path / "scripts"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def no_child_stays_behind() -> Iterator[None]:
    """Fail where a test leaves a child of this process, running or unreaped."""
    before = children()
    yield
    assert children() <= before


def children() -> set[int]:
    """Return the processes whose parent this process is, zombies included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(stat.parent.name))
    return found


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def write(folder: Path, text: str, name: str = "check.sh", mode: int = 0o755) -> Path:
    script = folder / name
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(mode)
    return script


async def run(scripts: Path | None, *argv: str, timeout_s: float = PATIENCE_S) -> Outcome:
    check = HealthCheck(type=CheckType.SCRIPT, script=argv or ("check.sh",))
    checked = instance(id="web-1", host="10.0.0.9", port=8080, health_check=check)
    return await ScriptProbe(scripts)(checked, "10.0.0.9", timeout_s)


class Lifeline:
    """A FIFO whose readers learn when the last process that holds it open for writing has died."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    async def readable(self) -> bytes:
        """Wait for the next words written into it; none means that all its writers are gone."""
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        loop.add_reader(self._fd, arrived.set)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await arrived.wait()
        finally:
            loop.remove_reader(self._fd)
        return os.read(self._fd, 1000)

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
async def lifeline(tmp_path: Path) -> AsyncIterator[Lifeline]:
    line = Lifeline(tmp_path / "lifeline")
    yield line
    line.close()


@pytest.mark.parametrize(
    ("text", "kind", "output"),
    [
        pytest.param("exit 0", PASS, "exit 0", id="0 passes"),
        pytest.param("echo nearly full; exit 1", DEGRADED, "exit 1: nearly full", id="1 is degraded"),
        pytest.param("echo full >&2; exit 2", FAIL, "exit 2: full", id="2 fails, stderr is kept"),
        pytest.param("exit 127", FAIL, "exit 127", id="anything else fails"),
        pytest.param("kill -9 $$", FAIL, "killed by signal 9", id="death by a signal fails"),
        pytest.param("printf 'a\\033[31m\\nb\\n'", PASS, "exit 0: a\ufffd[31m\nb", id="control characters are defused"),
        pytest.param("cat; echo end", PASS, "exit 0: end", id="stdin is empty"),
        pytest.param('echo "$1|$2"', PASS, "exit 0: $(id)|a b; *", id="arguments are data"),
    ],
)
async def test_the_exit_code_decides(text: str, kind: OutcomeKind, output: str, scripts: Path) -> None:
    write(scripts, text)
    outcome = await run(scripts, "check.sh", "$(id)", "a b; *")
    assert (outcome.kind, outcome.output) == (kind, output)


async def test_a_script_sees_its_instance_and_nothing_of_our_environment(
    scripts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSUL_TOKEN", "secret")
    write(scripts, "/usr/bin/env | grep -v -e ^_= -e ^PWD= -e ^SHLVL= -e ^OLDPWD= | sort")
    outcome = await run(scripts)
    assert outcome.output.removeprefix("exit 0: ").splitlines() == [
        "INSTANCE_HOST=10.0.0.9",
        "INSTANCE_ID=web-1",
        "INSTANCE_PORT=8080",
        "PATH=/usr/local/bin:/usr/bin:/bin",
        "SERVICE_NAME=web",
    ]


async def test_a_large_output_is_cut_and_blocks_nobody(scripts: Path) -> None:
    write(scripts, "head -c 20000000 /dev/zero | tr '\\0' x; exit 2")
    outcome = await run(scripts)
    assert outcome.output == "exit 2: " + "x" * OUTPUT_LIMIT_BYTES


async def test_a_script_that_prints_for_ever_ends_at_its_deadline(scripts: Path) -> None:
    write(scripts, "while :; do echo yes yes yes; done")
    outcome = await run(scripts, timeout_s=0.3)
    assert (outcome.kind, outcome.output) == (TIMEOUT, "no answer within 0.3 s")
    assert outcome.latency_s < PATIENCE_S


async def test_at_the_deadline_grandchildren_die_too(
    scripts: Path, lifeline: Lifeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(scripts, f"(trap '' TERM HUP; echo alive; sleep 1000; :) > {lifeline.path} &\nsleep 1000")
    asked = asyncio.create_task(run(scripts, timeout_s=500))
    assert await lifeline.readable() == b"alive\n"
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + 501)
    assert (await asked).kind is TIMEOUT
    assert await lifeline.readable() == b""


async def test_a_grandchild_left_behind_is_not_waited_for_and_dies(scripts: Path, lifeline: Lifeline) -> None:
    write(scripts, f"exec 3> {lifeline.path}\nsleep 1000 &\necho ok")
    outcome = await run(scripts)  # the grandchild has stdout and the lifeline open
    assert (outcome.kind, outcome.output) == (PASS, "exit 0: ok")
    assert await lifeline.readable() == b""


async def test_cancellation_kills_the_script(scripts: Path, lifeline: Lifeline) -> None:
    write(scripts, f"exec > {lifeline.path}\necho alive\nsleep 1000")
    asked = asyncio.create_task(run(scripts))
    assert await lifeline.readable() == b"alive\n"
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert await lifeline.readable() == b""


async def test_many_checks_leave_no_file_open(scripts: Path) -> None:
    write(scripts, "exit 0")
    await run(scripts)
    before = open_files()
    outcomes = await asyncio.gather(*(run(scripts) for _ in range(20)))
    assert {outcome.kind for outcome in outcomes} == {PASS}
    assert open_files() <= before


async def test_what_the_kernel_cannot_run_fails_readably(scripts: Path) -> None:
    (scripts / "check.sh").write_text("no first line that names an interpreter")
    (scripts / "check.sh").chmod(0o755)
    outcome = await run(scripts)
    assert (outcome.kind, outcome.output) == (FAIL, "exec format error")


OUTSIDE = "is outside HEALTH_CHECK_SCRIPTS_DIR"


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        pytest.param("../outside.sh", f"script refused: '../outside.sh' {OUTSIDE}", id="a path that climbs out"),
        pytest.param("sub/../../outside.sh", f"'sub/../../outside.sh' {OUTSIDE}", id="one that climbs in and out"),
        pytest.param("/bin/true", f"'/bin/true' {OUTSIDE}", id="an absolute path elsewhere"),
        pytest.param("link.sh", f"'link.sh' {OUTSIDE}", id="a symbolic link to the outside"),
        pytest.param("linked/outside.sh", f"'linked/outside.sh' {OUTSIDE}", id="a linked folder"),
        pytest.param("../scripts-too/x.sh", f"'../scripts-too/x.sh' {OUTSIDE}", id="a folder of a similar name"),
        pytest.param("../nowhere.sh", f"'../nowhere.sh' {OUTSIDE}", id="what is not there, outside"),
        pytest.param("nowhere.sh", "there is no file 'nowhere.sh'", id="what is not there"),
        pytest.param(".", "there is no file '.'", id="the folder itself"),
        pytest.param("sub", "there is no file 'sub'", id="a folder inside"),
        pytest.param("data.sh", "'data.sh' is not executable", id="a file that is not executable"),
        pytest.param("loop.sh", "script refused: ", id="a link to itself"),
        pytest.param("a\0b", "an argument holds a NUL character", id="a NUL character"),
        pytest.param("x" * 3000, "script refused: ", id="a name that is too long"),
    ],
)
async def test_refused_at_registration_and_never_run(script: str, problem: str, scripts: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    write(tmp_path, f"touch {ran}", "outside.sh")
    (tmp_path / "scripts-too").mkdir()
    write(tmp_path / "scripts-too", f"touch {ran}", "x.sh")
    write(scripts, f"touch {ran}", "data.sh", 0o644)
    (scripts / "sub").mkdir()
    (scripts / "link.sh").symlink_to(tmp_path / "outside.sh")
    (scripts / "linked").symlink_to(tmp_path)
    (scripts / "loop.sh").symlink_to("loop.sh")
    said = script_problem(HealthCheck(type=CheckType.SCRIPT, script=(script,)), scripts)
    assert said is not None
    assert problem in said
    outcome = await run(scripts, script)
    assert (outcome.kind, outcome.output) == (FAIL, said)
    assert not ran.exists()


@pytest.mark.parametrize("script", ["good.sh", "sub/good.sh", "./sub/../good.sh", "link.sh", "ABSOLUTE"])
async def test_accepted_and_run(script: str, scripts: Path, tmp_path: Path) -> None:
    (scripts / "sub").mkdir()
    write(scripts, "echo good", "good.sh")
    write(scripts / "sub", "echo good", "good.sh")
    (scripts / "link.sh").symlink_to("sub/good.sh")
    (tmp_path / "alias").symlink_to(scripts)  # the folder itself may be a link
    script = script.replace("ABSOLUTE", str(scripts / "good.sh"))
    assert script_problem(HealthCheck(type=CheckType.SCRIPT, script=(script,)), tmp_path / "alias") is None
    assert (await run(tmp_path / "alias", script)).output == "exit 0: good"


async def test_without_a_folder_every_script_is_refused(tmp_path: Path) -> None:
    check = HealthCheck(type=CheckType.SCRIPT, script=("check.sh",))
    unset = "script checks are refused: HEALTH_CHECK_SCRIPTS_DIR is not set"
    missing = "script checks are refused: HEALTH_CHECK_SCRIPTS_DIR does not exist"
    assert script_problem(check, None) == unset
    assert script_problem(check, tmp_path / "missing") == missing
    assert script_problem(HealthCheck(type=CheckType.HTTP), None) is None
    outcome = await run(None)
    assert (outcome.kind, outcome.output) == (FAIL, unset)
