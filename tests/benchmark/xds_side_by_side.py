"""Measure our xDS server beside go-control-plane, in turn on one machine: `make bench-xds`.

    rows       one change at a time: the table of ratios
    burst      1,000 changes in a second over 1,000 streams
    knee       one change a second over more and more streams
    reconnect  5,000 streams that connect at once

Figures are printed, never asserted. Every change is verified by the client: it counts for a stream once the changed
endpoint has really arrived there. A run that fails is reported and does not stop the others; the exit status is then 1.
"""

import argparse
import resource
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmark import comparison
from benchmark.command_line import say, several
from benchmark.comparison import rounded, table
from benchmark.processes import ServerFailed
from benchmark.servers import Row, Start, known
from benchmark.xdsbench import Figures, RunFailed, run

_PROTOCOLS = ("delta", "sotw")
_KNEE_CHANGES_PER_S = 1.0
_KNEE_CHANGES = 20


class Bench:
    """Run loads against servers, each on a process of its own, and remember what failed."""

    def __init__(self, bench: Path, folder: Path) -> None:
        self._bench = bench
        self._folder = folder
        self._known: Mapping[str, Start] = known(bench, folder)
        self.failures: list[str] = []

    def once(self, name: str, row: Row, protocol: str, load: tuple[str, ...]) -> list[Figures]:
        """Start a server, put the load on it, stop it; return its figures, or nothing where the run failed."""
        what = f"{name}, {row} streams, {protocol}"
        try:
            with self._known[name](row, self._folder) as server:
                found = run(self._bench, server, row, protocol, load, self._folder)
        except (ServerFailed, RunFailed) as failure:
            self.failures.append(f"{what}: {failure}")
            say(f"{what}: FAILED: {failure}")
            return []
        to_all, cpu = rounded(found.changes.to_all.p50), rounded(found.changes.cpu_ms)
        sync, peak = rounded(found.sync.all_s), rounded(found.peak_rss_mib)
        say(f"{what}: to all p50 {to_all} ms, CPU {cpu} ms/change, sync {sync} s, peak {peak} MiB{_mark([found])}")
        return [found]

    def rounds(
        self, names: Sequence[str], row: Row, protocol: str, load: tuple[str, ...], rounds: int
    ) -> dict[str, list[Figures]]:
        """Run the servers in turn, round after round, so that what drifts meets all of them alike."""
        runs: dict[str, list[Figures]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                runs[name] += self.once(name, row, protocol, load)
        return runs


def rows(bench: Bench, asked: argparse.Namespace) -> str:
    """Compare row by row."""
    lines: list[list[str]] = []
    for row in asked.rows or comparison.ROWS:
        changes = asked.changes or (40 if row.streams <= 100 else 12)
        for protocol in asked.protocols:
            runs = bench.rounds(asked.servers, row, protocol, ("-triggers", str(changes)), asked.rounds)
            lines += comparison.compare(row, protocol, runs)
    return f"{table(comparison.HEAD, lines)}\n\n{comparison.LEGEND}"


def burst(bench: Bench, asked: argparse.Namespace) -> str:
    """Change every service once, all within a second; the run fails where a stream misses one."""
    sizes = asked.rows or [Row(services=1_000, endpoints=10, streams=1_000)]

    def load(row: Row) -> tuple[str, ...]:
        return ("-rate", str(row.services), "-triggers", str(asked.changes or row.services), "-http-concurrency", "64")

    columns: Mapping[str, Callable[[Figures], float]] = {
        "changes": lambda run: run.changes.count,
        "until the last was everywhere, s": lambda run: run.changes.wall_s,
        "responses per stream": lambda run: run.changes.responses,
        "each p50, ms": lambda run: run.changes.each.p50,
        "each p99, ms": lambda run: run.changes.each.p99,
        "to all max, ms": lambda run: run.changes.to_all.max,
        "server CPU per change, ms": lambda run: run.changes.cpu_ms,
        "peak RSS, MiB": lambda run: run.peak_rss_mib,
    }
    return _plain(bench, asked, sizes, load, columns)


def knee(bench: Bench, asked: argparse.Namespace) -> str:
    """Hold more and more streams while one endpoint changes each second."""
    sizes = asked.rows or [Row(services=1_000, endpoints=10, streams=streams) for streams in (1_000, 3_000, 5_000)]

    def load(_: Row) -> tuple[str, ...]:
        return ("-rate", str(_KNEE_CHANGES_PER_S), "-triggers", str(asked.changes or _KNEE_CHANGES))

    columns: Mapping[str, Callable[[Figures], float]] = {
        "to all p50, ms": lambda run: run.changes.to_all.p50,
        "to all p99, ms": lambda run: run.changes.to_all.p99,
        "each p50, ms": lambda run: run.changes.each.p50,
        "each p99, ms": lambda run: run.changes.each.p99,
        "server CPU, % of a core": lambda run: 100 * run.changes.cpu_share,
        "initial sync of all, s": lambda run: run.sync.all_s,
        "peak RSS, MiB": lambda run: run.peak_rss_mib,
    }
    return _plain(bench, asked, sizes, load, columns)


def reconnect(bench: Bench, asked: argparse.Namespace) -> str:
    """Let all streams connect at once, as after a restart; they bring no versions along, which is the dearer case."""
    sizes = asked.rows or [Row(services=100, endpoints=10, streams=5_000)]
    columns: Mapping[str, Callable[[Figures], float]] = {
        "all connected, s": lambda run: run.sync.connected.max / 1000,
        "first response p50, s": lambda run: run.sync.first_response.p50 / 1000,
        "first response max, s": lambda run: run.sync.first_response.max / 1000,
        "complete p50, s": lambda run: run.sync.complete.p50 / 1000,
        "all complete, s": lambda run: run.sync.all_s,
        "server CPU, s": lambda run: run.sync.cpu_s,
        "peak RSS, MiB": lambda run: run.peak_rss_mib,
    }
    return _plain(bench, asked, sizes, lambda _: ("-triggers", "0"), columns)


def _plain(
    bench: Bench,
    asked: argparse.Namespace,
    sizes: Iterable[Row],
    load: Callable[[Row], tuple[str, ...]],
    columns: Mapping[str, Callable[[Figures], float]],
) -> str:
    lines = []
    for row in sizes:
        for protocol in asked.protocols:
            for name, runs in bench.rounds(asked.servers, row, protocol, load(row), asked.rounds).items():
                cells = [rounded(median(map(take, runs))) if runs else "failed" for take in columns.values()]
                lines.append([str(row), protocol, f"{name}{_mark(runs)}", *cells])
    return f"{table(('services × endpoints, streams', 'protocol', 'server', *columns), lines)}\n\n{comparison.LEGEND}"


def _mark(runs: Iterable[Figures]) -> str:
    return " *" if any(each.disturbed for each in runs) else ""


_MODES = {"rows": rows, "burst": burst, "knee": knee, "reconnect": reconnect}


def _rows(text: str) -> list[Row]:
    try:
        return [Row.parse(each) for each in text.replace(",", " ").split()]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for and print one table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=_MODES, nargs="?", default="rows")
    parser.add_argument("--bench-dir", type=Path, required=True, help="the folder with xdsbench and peer")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run; medians are printed")
    parser.add_argument("--rows", type=_rows, default=[], help="SERVICESxENDPOINTSxSTREAMS, several by comma or space")
    parser.add_argument("--protocols", type=several(_PROTOCOLS), default=list(_PROTOCOLS), help="delta,sotw")
    parser.add_argument("--servers", type=several(("ours", *comparison.PEERS)), help="ours,snapshot,linear")
    parser.add_argument("--changes", type=int, help="how many changes are made in each run")
    asked = parser.parse_args(arguments)
    asked.servers = asked.servers or ["ours", *(comparison.PEERS if asked.mode == "rows" else ())]
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    with tempfile.TemporaryDirectory(prefix="bench-xds-") as folder:
        try:
            bench = Bench(asked.bench_dir.resolve(), Path(folder))
        except FileNotFoundError as missing:
            parser.error(str(missing))
        print(_MODES[asked.mode](bench, asked))
    for failure in bench.failures:
        print(f"failed: {failure}")
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
