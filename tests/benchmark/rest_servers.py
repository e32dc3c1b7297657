"""The registries that are compared over HTTP: ours as users start it, and a Consul agent at its best.

Both hold the same fleet under the same names before anything is measured. Ours writes its journal to the disk before
it answers; Consul's `-dev` agent keeps everything in memory.
"""

import json
import re
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmark.processes import PATIENCE_S, ServerFailed, answers, failed, post, quiet, running
from benchmark.watchers import Watch
from benchmark.wrk import Request
from harness import free_port
from servers.binaries import CONSUL

_BATCH = 1_000
_WAIT_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Say how many services there are, and how many instances of each."""

    services: int
    endpoints: int

    def __str__(self) -> str:
        return f"{self.services:,} × {self.endpoints:,}"

    def all(self) -> Iterator[tuple[int, int]]:
        """Return the numbers of every service and endpoint."""
        return ((service, endpoint) for service in range(self.services) for endpoint in range(self.endpoints))


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Say where a server runs, and what a client of it asks."""

    pid: int
    port: int
    read: Request
    register: Request
    watches: Mapping[str, Watch]
    """How its users watch a service, by name."""


class Start(Protocol):
    """Start a server that holds a fleet; the folder is for its data and its log."""

    def __call__(self, fleet: Fleet, folder: Path) -> AbstractContextManager[Served]: ...


@contextmanager
def ours(fleet: Fleet, folder: Path) -> Iterator[Served]:
    """Run `controlplane serve` with the memory registry and its journal.

    Raises ServerFailed.
    """
    port = free_port()
    environ = {
        "SERVICE_PORT": str(port),
        "XDS_PORT": str(free_port()),
        "DATA_DIR": str(folder / "data"),
        "LOG_LEVEL": "WARNING",
        "LOG_FORMAT": "json",
    }
    with running([sys.executable, "-m", "controlplane", "serve"], environ, folder / "ours.log") as (process, log):
        answers(f"http://127.0.0.1:{port}/readyz", process, log)
        operations = [{"op": "register", "instance": _instance(*where)} for where in fleet.all()]
        for start in range(0, len(operations), _BATCH):
            post(f"http://127.0.0.1:{port}/api/v1/instances:batch", {"operations": operations[start : start + _BATCH]})
        quiet(process, log)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/services/svc-0", timeout=PATIENCE_S) as answer:
            etag = answer.headers["ETag"]
        yield Served(
            pid=process.pid,
            port=port,
            read=Request(method="GET", path="/api/v1/services/svc-{s}"),
            register=Request(method="POST", path="/api/v1/services", body=_unquoted(_instance("{s}", "{e}", "{v}"))),
            watches={
                "long poll": Watch(first=_long_poll(etag), again=lambda head: _long_poll(_header("ETag", head))),
                "event stream": Watch(first=_get("/api/v1/events?service=svc-0"), again=None),
            },
        )


@contextmanager
def consul(fleet: Fleet, folder: Path) -> Iterator[Served]:
    """Run a Consul agent and say how it is asked.

    Raises ServerFailed and BinaryMissing.
    """
    health = "/v1/health/service/svc-{s}?passing"
    path = f"{health.replace('{s}', '0')}&wait={_WAIT_S}s"
    with consul_agent(fleet, folder) as (pid, port):
        yield Served(
            pid=pid,
            port=port,
            read=Request(method="GET", path=health),
            register=Request(
                method="PUT", path="/v1/agent/service/register", body=_unquoted(_service("{s}", "{e}", "{v}"))
            ),
            watches={
                "blocking query": Watch(
                    first=_get(f"{path}&index=1"),
                    again=lambda head: _get(f"{path}&index={_header('X-Consul-Index', head)}"),
                )
            },
        )


@contextmanager
def consul_agent(fleet: Fleet, folder: Path) -> Iterator[tuple[int, int]]:
    """Run a Consul agent with `-dev`, the fleet in its configuration: registering 10,000 would take a minute.

    Gives its process and its port. Raises ServerFailed and BinaryMissing.
    """
    port = free_port()
    config = folder / "consul.json"
    config.write_text(
        json.dumps(
            {
                "services": [{key.lower(): value for key, value in _service(*where).items()} for where in fleet.all()],
                "ports": {"http": port, "dns": -1, "grpc": -1, "serf_wan": -1}
                | {name: free_port() for name in ("serf_lan", "server")},
                "limits": {"http_max_conns_per_client": 10_000},
                "disable_update_check": True,
            }
        )
    )
    command = [str(CONSUL.path()), "agent", "-dev", "-bind", "127.0.0.1", "-client", "127.0.0.1"]
    command += ["-log-level", "warn", "-config-file", str(config)]
    with running(command, {}, folder / "consul.log") as (process, log):
        deadline = time.monotonic() + PATIENCE_S
        while not _holds(port, fleet):
            if time.monotonic() > deadline or process.poll() is not None:
                raise failed("Consul did not take its fleet in", process, log)
            time.sleep(0.2)
        quiet(process, log)
        yield process.pid, port


def _holds(port: int, fleet: Fleet) -> bool:
    last = f"http://127.0.0.1:{port}/v1/health/service/svc-{fleet.services - 1}?passing"
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/catalog/services", timeout=PATIENCE_S) as answer:
            names = json.load(answer)
        with urllib.request.urlopen(last, timeout=PATIENCE_S) as answer:
            return len(names) > fleet.services and len(json.load(answer)) == fleet.endpoints  # it names itself, too
    except OSError:
        return False


def _instance(service: int | str, endpoint: int | str, port: int | str = 8080) -> dict[str, object]:
    return {
        "name": f"svc-{service}",
        "id": f"e{endpoint}",
        "host": f"10.0.{endpoint}.1",
        "port": port,
        "tags": ["api", "v1"],
        "metadata": {"version": "1.0.0"},
    }


def _service(service: int | str, endpoint: int | str, port: int | str = 8080) -> dict[str, object]:
    return {
        "Name": f"svc-{service}",
        "ID": f"svc-{service}/e{endpoint}",
        "Address": f"10.0.{endpoint}.1",
        "Port": port,
        "Tags": ["api", "v1"],
        "Meta": {"version": "1.0.0"},
    }


def _unquoted(template: dict[str, object]) -> str:
    """Spell a body whose port is filled in later: a number."""
    return json.dumps(template).replace('"{v}"', "{v}")


def _get(path: str, *headers: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", "")).encode()


def _long_poll(etag: str) -> bytes:
    return _get("/api/v1/services/svc-0", f"If-None-Match: {etag}", f"Prefer: wait={_WAIT_S}")


def _header(name: str, head: bytes) -> str:
    found = re.search(rf"\r\n{name}: *([^\r]+)".encode(), head, re.IGNORECASE)
    if found is None:
        raise ServerFailed(f"an answer has no {name}: {head[:300]!r}")
    return found[1].decode()
