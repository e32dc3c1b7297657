"""Run the neutral load client `xdsbench` against a server, and read what it measured."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.servers import Row, Server

_LIMIT_S = 900.0
"""How long one run may take before it is given up."""
_FOREIGN = 0.08
"""The share of the machine's CPU that other processes may have used before a figure is called disturbed."""
_FOREIGN_SLACK_S = 0.03  # three ticks of the clock by which the kernel counts
_NAN = float("nan")
_NO_TIMES = {"p50_ms": _NAN, "p99_ms": _NAN, "max_ms": _NAN}
_NO_CHANGES = {
    "fired": 0,
    "wall_s": _NAN,
    "to_all": _NO_TIMES,
    "each": _NO_TIMES,
    "server_cpu_ms_per_trigger": _NAN,
    "msgs": _NAN,
    "other_cpu_s": _NAN,
}


class RunFailed(Exception):
    """Report a run whose figures would say nothing: a change was lost, a stream broke, or the client gave up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Hold times in milliseconds."""

    p50: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    """Hold what it took until every stream had everything; `*_s` from the start of the storm of connections."""

    all_s: float
    connected: Quantiles
    first_response: Quantiles
    complete: Quantiles
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Hold what changes cost: until the last stream has one, until each has it, CPU of the server, responses.

    Where none were asked for the count is 0 and everything else is not a number.
    """

    count: int
    wall_s: float
    to_all: Quantiles
    each: Quantiles
    cpu_ms: float
    """Of the server, per change."""
    responses: float
    """Per stream, for all changes together."""

    @property
    def cpu_share(self) -> float:
        """Tell how much of one core the server used."""
        return self.cpu_ms * self.count / 1000 / self.wall_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Hold what one run measured."""

    sync: Sync
    changes: Changes
    peak_rss_mib: float
    disturbed: bool
    """Other processes used the machine meanwhile: not a clean figure."""


def run(bench: Path, server: Server, row: Row, protocol: str, load: tuple[str, ...], folder: Path) -> Figures:
    """Put a load on a server and return what it took; `load` are xdsbench's flags that say what is to happen.

    Raises RunFailed.
    """
    result = folder / "xdsbench.json"
    result.unlink(missing_ok=True)
    command = [
        *(str(bench / "xdsbench/xdsbench"), "-addr", server.xds, "-pid", str(server.pid), "-pid-tree"),
        *("-proto", protocol, "-n", str(row.streams), "-sync-timeout", "300s", "-json", str(result)),
        *("-services", str(row.services), "-endpoints", str(row.endpoints)),
        *("-cluster-name", "svc-{{.Svc}}", "-want-endpoints", str(row.endpoints), *server.change, *load),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise RunFailed(f"xdsbench was not done after {_LIMIT_S:g} s") from None
    if done.returncode or not result.exists():
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RunFailed(f"xdsbench ended with status {done.returncode}: {' | '.join(said[-6:])}")
    measured = json.loads(result.read_text())
    if measured["clusters"] != row.services:
        raise RunFailed(f"the streams saw {measured['clusters']} clusters, not {row.services}")
    if errors := measured.get("triggers", {}).get("http_errors"):
        raise RunFailed(f"{errors} changes were refused by the server's HTTP side")
    return figures(measured)


def figures(measured: Mapping[str, Any]) -> Figures:
    """Read what xdsbench wrote."""
    sync, changes = measured["sync"], measured.get("triggers", _NO_CHANGES)
    return Figures(
        sync=Sync(
            all_s=sync["all_ms"] / 1000,
            connected=_quantiles(sync["connect"]),
            first_response=_quantiles(sync["first_response"]),
            complete=_quantiles(sync["complete"]),
            cpu_s=sync["server_cpu_s"],
        ),
        changes=Changes(
            count=changes["fired"],
            wall_s=changes["wall_s"],
            to_all=_quantiles(changes["to_all"]),
            each=_quantiles(changes["each"]),
            cpu_ms=changes["server_cpu_ms_per_trigger"],
            responses=changes["msgs"] * changes["fired"],
        ),
        peak_rss_mib=measured["hwm"] / 2**20,
        disturbed=_disturbed(sync["other_cpu_s"], sync["all_ms"] / 1000)
        or _disturbed(changes["other_cpu_s"], changes["wall_s"]),
    )


def _quantiles(found: Mapping[str, float]) -> Quantiles:
    return Quantiles(p50=found["p50_ms"], p99=found["p99_ms"], max=found["max_ms"])


def _disturbed(foreign_s: float, wall_s: float) -> bool:
    return foreign_s > _FOREIGN * wall_s * (os.cpu_count() or 1) + _FOREIGN_SLACK_S
