"""Measure our REST API beside a Consul agent, in turn on one machine: `make bench-rest`.

    reads           GET of one service after the other
    registrations   of instances that are there already, each time with another port: every one is a change
    watchers        from a change to 1,000 clients that wait for it

Figures are printed, never asserted. Both servers hold the same fleet, the client is the same (`wrk`, and one of our own
for the watchers), and a run with a refused request or a lost change fails: it is reported and does not stop the others;
the exit status is then 1.
"""

import argparse
import resource
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmark import rest_servers
from benchmark.command_line import say, several
from benchmark.comparison import rounded, table
from benchmark.machine import FOREIGN, Foreign
from benchmark.processes import ServerFailed
from benchmark.rest_servers import Fleet, Served, Start
from benchmark.watchers import spread
from benchmark.wrk import LoadFailed, load
from servers.binaries import BinaryMissing

_CONNECTIONS = 16
_SMALL = Fleet(services=1_000, endpoints=1)
_LARGE = Fleet(services=1_000, endpoints=10)
_SERVERS: Mapping[str, Start] = {"ours": rest_servers.ours, "consul": rest_servers.consul}
_HEAD = ("what", "fleet", "ours", "consul", "ours ÷ consul")
_LEGEND = (
    "Medians. In brackets: what the ratio is to be. `*`: other processes used the machine in at least one of the runs, "
    "so the figure is not clean."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """Say what a ratio is to be: at least so much, or at most."""

    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"

    def reached(self, ratio: float) -> bool:
        """Tell whether a ratio is what it is to be."""
        return ratio >= self.at_least if self.at_least is not None else ratio <= (self.at_most or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Hold one measured number, and the share of the machine that other processes used meanwhile."""

    value: float
    foreign: float

    @property
    def disturbed(self) -> bool:
        """Tell whether others used so much that the number is not clean."""
        return self.foreign > FOREIGN


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Name a line of the table: a figure of a fleet, and what our share of the peer's is to be, if anything."""

    what: str
    fleet: Fleet
    aim: Aim | None = None


Figures = dict[Line, Figure]
"""What one run of a row measured."""


def reads(served: Served, fleet: Fleet, asked: argparse.Namespace) -> Figures:
    """Ask for services."""
    foreign = Foreign(served.pid)
    rate = load(
        f"http://127.0.0.1:{served.port}",
        served.read,
        services=fleet.services,
        endpoints=fleet.endpoints,
        version=0,
        connections=_CONNECTIONS,
        seconds=asked.seconds,
    )
    aim = Aim(at_least=1.0 if fleet.endpoints == 1 else 5.0)
    what = f"reads of a {fleet.endpoints}-instance service"
    return {
        Line(what=f"{what}, per second", fleet=fleet, aim=aim): _figure(rate.per_second, foreign),
        Line(what=f"{what}, p99 in ms", fleet=fleet): _figure(rate.p99_ms, foreign),
    }


def registrations(served: Served, fleet: Fleet, asked: argparse.Namespace) -> Figures:
    """Register what is there already, with other ports."""
    foreign = Foreign(served.pid)
    rate = load(
        f"http://127.0.0.1:{served.port}",
        served.register,
        services=fleet.services,
        endpoints=fleet.endpoints,
        version=9_000,
        connections=_CONNECTIONS,
        seconds=asked.seconds,
    )
    aim = Aim(at_least=3.0 if fleet.endpoints == 1 else 10.0)
    what = f"registrations at {fleet.services * fleet.endpoints:,} instances"
    return {
        Line(what=f"{what}, per second", fleet=fleet, aim=aim): _figure(rate.per_second, foreign),
        Line(what=f"{what}, p99 in ms", fleet=fleet): _figure(rate.p99_ms, foreign),
    }


def watchers(served: Served, fleet: Fleet, asked: argparse.Namespace) -> Figures:
    """Change one instance while clients wait for it, in each of the ways in which a server lets them wait."""
    figures: Figures = {}
    for name, watch in served.watches.items():
        foreign = Foreign(served.pid)
        found = spread(served.port, watch, served.register, watchers=asked.watchers, changes=asked.changes)
        # Consul has one way to wait: each of ours stands beside that one.
        for ours in ("long poll", "event stream") if name == "blocking query" else (name,):
            what = f"change → {asked.watchers:,} watchers by {ours}"
            for which, value in (("p50", found.half_ms), ("last", found.last_ms)):
                line = Line(what=f"{what}, {which} in ms", fleet=fleet, aim=Aim(at_most=0.5))
                figures[line] = _figure(value, foreign)
    return figures


def _figure(value: float, foreign: Foreign) -> Figure:
    return Figure(value=value, foreign=foreign.share)


Row = Callable[[Served, Fleet, argparse.Namespace], Figures]
_ROWS: Mapping[str, tuple[Row, tuple[Fleet, ...]]] = {
    "reads": (reads, (_SMALL, _LARGE)),
    "watchers": (watchers, (_SMALL,)),
    "registrations": (registrations, (_SMALL, _LARGE)),
}


def measure(asked: argparse.Namespace) -> tuple[dict[Line, dict[str, list[Figure]]], list[str]]:
    """Run the servers in turn, round after round; return the figures by line and server, and what failed."""
    found: dict[Line, dict[str, list[Figure]]] = defaultdict(lambda: defaultdict(list))
    failures: list[str] = []
    for _ in range(asked.rounds):
        for fleet in (_SMALL, _LARGE):
            rows = [name for name in _ROWS if name in asked.rows and fleet in _ROWS[name][1]]
            for server in asked.servers if rows else ():
                with tempfile.TemporaryDirectory(prefix="bench-rest-") as folder:
                    try:
                        with _SERVERS[server](fleet, Path(folder)) as served:
                            for name in rows:
                                for line, figure in _ROWS[name][0](served, fleet, asked).items():
                                    found[line][server].append(figure)
                                    say(
                                        f"{server}: {line.what}: {rounded(figure.value)} "
                                        f"(others used {100 * figure.foreign:.0f} % of the machine)"
                                    )
                    except (ServerFailed, LoadFailed, BinaryMissing) as failure:
                        failures.append(f"{server}, {fleet}: {failure}")
                        say(f"failed: {failures[-1]}")
    return found, failures


def lines(found: Mapping[Line, Mapping[str, Sequence[Figure]]]) -> list[list[str]]:
    """Return a line of cells, as `_HEAD` names them, for each figure."""
    cells = []
    for line, by_server in found.items():
        values = {server: median(each.value for each in runs) for server, runs in by_server.items()}
        marks = {server: any(each.disturbed for each in runs) for server, runs in by_server.items()}
        shown = [_shown(values[name], disturbed=marks[name]) if name in values else "–" for name in _SERVERS]
        ratio = "–"
        if values.keys() >= _SERVERS.keys():
            share = values["ours"] / values["consul"]
            ratio = _shown(share, disturbed=any(marks.values()))
            if line.aim is not None:
                ratio += f" ({line.aim})" if line.aim.reached(share) else f" ({line.aim}: missed)"
        cells.append([line.what, str(line.fleet), *shown, ratio])
    return cells


def _shown(value: float, *, disturbed: bool) -> str:
    return rounded(value) + (" *" if disturbed else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for and print one table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=several(_ROWS), default=list(_ROWS), help=",".join(_ROWS))
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run; medians are printed")
    parser.add_argument("--servers", type=several(_SERVERS), default=list(_SERVERS), help=",".join(_SERVERS))
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a load lasts")
    parser.add_argument("--watchers", type=int, default=1_000, help="how many clients wait for a change")
    parser.add_argument("--changes", type=int, default=12, help="how many changes they wait for in each run")
    asked = parser.parse_args(arguments)
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    found, failures = measure(asked)
    print(f"{table(_HEAD, lines(found))}\n\n{_LEGEND}")
    for failure in failures:
        print(f"failed: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
