"""A server as a process of its own that is measured from outside: started, waited for, asked what it used, stopped."""

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PATIENCE_S = 60.0
"""How long a server may take to start, to take its fleet in, or to stop."""
_QUIET_S = 0.5
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ServerFailed(Exception):
    """Report a server that did not start or did not take its fleet in; the message has the end of its log."""


@contextmanager
def running(
    command: list[str], environ: Mapping[str, str], log: Path
) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    inherited = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**inherited, **environ}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield process, log
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def post(url: str, body: object) -> None:
    request = urllib.request.Request(
        url, method="POST", data=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            answer.read()
    except OSError as error:
        raise ServerFailed(f"POST {url}: {error}") from error


def answers(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until a GET is answered with 200."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=1.0) as answer:
                answer.read()
                return
        except OSError:  # not listening yet, or a status that says: not yet
            time.sleep(0.05)
        if process.poll() is not None:
            break
    raise failed(f"{url} did not answer", process, log)


def quiet(process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the process has used next to no CPU for a while: then the fleet is in, whichever server it is."""
    deadline = time.monotonic() + PATIENCE_S
    before = cpu_s(process.pid)
    while time.monotonic() < deadline:
        time.sleep(_QUIET_S)
        now = cpu_s(process.pid)
        if now - before <= 0.04 * _QUIET_S:
            return
        before = now
    raise failed(f"still busy after {PATIENCE_S:g} s", process, log)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def failed(what: str, process: "subprocess.Popen[bytes]", log: Path) -> ServerFailed:
    end = "" if process.poll() is None else f"; it ended with status {process.returncode}"
    return ServerFailed(f"{what}{end}; the end of its log: {log.read_text()[-500:]!r}")
