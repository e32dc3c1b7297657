"""The servers that are measured: ours as users start it, and go-control-plane in the two modes that its users run.

All hold the same fleet under the same names, are alone on free ports, and end with the block that started them.
"""

import json
import lzma
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness import free_port

PATIENCE_S = 60.0
"""How long a server may take to start, to take its fleet in, or to stop."""
_BATCH = 1_000
_QUIET_S = 0.5
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

_ADDRESS = "10.{{mod (div .Svc 250) 250}}.{{mod .Svc 250}}.{{mod .Ep 250}}"


class ServerFailed(Exception):
    """Report a server that did not start or did not take its fleet in; the message has the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Say how large the fleet is, and how many streams watch it."""

    services: int
    endpoints: int
    streams: int

    @classmethod
    def parse(cls, text: str) -> "Row":
        """Read `SERVICESxENDPOINTSxSTREAMS`.

        Raises ValueError.
        """
        sizes = text.split("x")
        if len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
            raise ValueError(f"{text!r} is not SERVICESxENDPOINTSxSTREAMS; write for example 1000x10x100")
        services, endpoints, streams = map(int, sizes)
        return cls(services=services, endpoints=endpoints, streams=streams)

    def __str__(self) -> str:
        return f"{self.services:,} × {self.endpoints:,}, {self.streams:,}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Say where a running server is, and how xdsbench changes one endpoint of it and knows the change again."""

    pid: int
    xds: str
    change: tuple[str, ...]


Start = Callable[[Row, Path], AbstractContextManager[Server]]
"""Start a server for a row; the folder is for its log."""


@contextmanager
def ours(row: Row, folder: Path) -> Iterator[Server]:
    """Run `controlplane serve` with the memory registry and no journal: the peer keeps nothing on disk either.

    Raises ServerFailed.
    """
    rest, xds = free_port(), free_port()
    environ = {"SERVICE_PORT": str(rest), "XDS_PORT": str(xds), "LOG_LEVEL": "WARNING", "LOG_FORMAT": "json"}
    with _running([sys.executable, "-m", "controlplane", "serve"], environ, folder / "ours.log") as (process, log):
        _answers(f"http://127.0.0.1:{rest}/readyz", process, log)
        api = f"http://127.0.0.1:{rest}/api/v1"
        for operations in _batches(row):
            _post(f"{api}/instances:batch", {"operations": operations})
        _quiet(process, log)
        yield Server(
            pid=process.pid,
            xds=f"127.0.0.1:{xds}",
            change=(
                *("-trigger-method", "PATCH", "-trigger-header", "content-type: application/merge-patch+json"),
                *("-trigger-url", f"{api}/services/svc-{{{{.Svc}}}}/instances/e{{{{.Ep}}}}"),
                *("-trigger-body", '{"weight": {{.V}}}', "-vbase", "2", "-vmod", "100"),
                *("-want-addr", _ADDRESS, "-want-weight", "{{.V}}"),
            ),
        )


@contextmanager
def _peer(mode: str, binary: Path, row: Row, folder: Path) -> Iterator[Server]:
    http, xds = free_port(), free_port()
    command = [
        *(str(binary), "-mode", mode, "-s", str(row.services), "-e", str(row.endpoints)),
        *("-grpc", f"127.0.0.1:{xds}", "-http", f"127.0.0.1:{http}"),
    ]
    with _running(command, {}, folder / f"{mode}.log") as (process, log):
        _answers(f"http://127.0.0.1:{http}/gc", process, log)
        _quiet(process, log)
        weight = "{{add 1 (mod .V 100)}}"
        bump = f"http://127.0.0.1:{http}/bump?service={{{{.Svc}}}}&ep={{{{.Ep}}}}&port={{{{.V}}}}&weight={weight}"
        want = ("-want-addr", _ADDRESS, "-want-port", "{{.V}}", "-want-weight", weight)
        yield Server(pid=process.pid, xds=f"127.0.0.1:{xds}", change=("-trigger-url", bump, *want))


def known(bench: Path, folder: Path) -> Mapping[str, Start]:
    """Return how to start each server, by name; the peer's binary is unpacked into the folder.

    Raises FileNotFoundError.
    """
    packed = max((bench / "peer").glob("go-control-plane-*.xz"), default=None)
    if packed is None or not (bench / "xdsbench/xdsbench").exists():
        raise FileNotFoundError(
            f"{bench} has no peer/go-control-plane-*.xz or no xdsbench/xdsbench; name it by BENCH_DIR"
        )
    binary = folder / "go-control-plane"
    with lzma.open(packed) as compressed:
        binary.write_bytes(compressed.read())
    binary.chmod(0o755)
    return {"ours": ours, **{mode: partial(_peer, mode, binary) for mode in ("snapshot", "linear")}}


@contextmanager
def _running(
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


def _batches(row: Row) -> Iterator[list[object]]:
    operations: list[object] = [
        {
            "op": "register",
            "instance": {
                "name": f"svc-{service}",
                "id": f"e{endpoint}",
                "host": f"10.{service // 250 % 250}.{service % 250}.{endpoint % 250}",
                "port": 8000 + endpoint // 250,
            },
        }
        for service in range(row.services)
        for endpoint in range(row.endpoints)
    ]
    for start in range(0, len(operations), _BATCH):
        yield operations[start : start + _BATCH]


def _post(url: str, body: object) -> None:
    request = urllib.request.Request(
        url, method="POST", data=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            answer.read()
    except OSError as error:
        raise ServerFailed(f"POST {url}: {error}") from error


def _answers(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
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
    raise _failed(f"{url} did not answer", process, log)


def _quiet(process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the process has used next to no CPU for a while: then the fleet is in, whichever server it is."""
    deadline = time.monotonic() + PATIENCE_S
    before = _cpu_s(process.pid)
    while time.monotonic() < deadline:
        time.sleep(_QUIET_S)
        now = _cpu_s(process.pid)
        if now - before <= 0.04 * _QUIET_S:
            return
        before = now
    raise _failed(f"still busy after {PATIENCE_S:g} s", process, log)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _failed(what: str, process: "subprocess.Popen[bytes]", log: Path) -> ServerFailed:
    end = "" if process.poll() is None else f"; it ended with status {process.returncode}"
    return ServerFailed(f"{what}{end}; the end of its log: {log.read_text()[-500:]!r}")
