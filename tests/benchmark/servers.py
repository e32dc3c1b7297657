"""The servers that are measured: ours as users start it, and go-control-plane in the two modes that its users run.

All hold the same fleet under the same names, are alone on free ports, and end with the block that started them.
"""

import lzma
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmark.processes import answers, post, quiet, running
from harness import free_port

_BATCH = 1_000

_ADDRESS = "10.{{mod (div .Svc 250) 250}}.{{mod .Svc 250}}.{{mod .Ep 250}}"


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
    with running([sys.executable, "-m", "controlplane", "serve"], environ, folder / "ours.log") as (process, log):
        answers(f"http://127.0.0.1:{rest}/readyz", process, log)
        api = f"http://127.0.0.1:{rest}/api/v1"
        for operations in _batches(row):
            post(f"{api}/instances:batch", {"operations": operations})
        quiet(process, log)
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
    with running(command, {}, folder / f"{mode}.log") as (process, log):
        answers(f"http://127.0.0.1:{http}/gc", process, log)
        quiet(process, log)
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
