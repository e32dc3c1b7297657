"""Put the figures of one row side by side, with the ratios and what they are to be: pure, from figures to cells."""

from collections.abc import Callable, Mapping, Sequence
from math import isnan
from statistics import median

from benchmark.servers import Row
from benchmark.xdsbench import Figures

Runs = Mapping[str, Sequence[Figures]]
"""The runs that succeeded, by server."""

PEERS = ("snapshot", "linear")
HEAD = (
    *("services × endpoints, streams", "protocol", "figure", "ours"),
    *(cell for peer in PEERS for cell in (peer, f"ours ÷ {peer}")),
)
LEGEND = (
    "Medians. In brackets: what the ratio is to be at most. `*`: other processes used the machine in at least one of "
    "the runs, so the figure is not clean."
)

_TIME_AND_CPU = {
    Row(services=100, endpoints=10, streams=100): {
        ("snapshot", "delta"): (0.9, 0.9),
        ("snapshot", "sotw"): (0.25, 0.2),
        ("linear", "delta"): (2.0, 1.5),
        ("linear", "sotw"): (2.0, 1.5),
    },
    Row(services=1_000, endpoints=10, streams=100): {
        ("snapshot", "delta"): (0.15, 0.15),
        ("snapshot", "sotw"): (0.03, 0.03),
        ("linear", "delta"): (0.4, 0.3),
        ("linear", "sotw"): (2.5, 0.5),
    },
    Row(services=1_000, endpoints=10, streams=1_000): {
        ("snapshot", "delta"): (0.2, 0.2),
        ("snapshot", "sotw"): (0.03, 0.03),
        ("linear", "delta"): (0.5, 0.4),
        ("linear", "sotw"): (2.5, 0.35),
    },
    Row(services=10, endpoints=1_000, streams=100): {
        ("snapshot", "delta"): (0.4, 0.4),
        ("snapshot", "sotw"): (0.06, 0.06),
        ("linear", "delta"): (0.4, 0.3),
        ("linear", "sotw"): (0.4, 0.3),
    },
}
"""The rows that are held to aims: time to all streams and server CPU per change, ours ÷ theirs."""

ROWS = tuple(_TIME_AND_CPU)

_SYNC = 1.0
_MEMORY = 0.4
_MEMORY_FROM_STREAMS = 1_000
"""These two aims are against the better of the peers; memory is only reported where there are fewer streams."""

_FIGURES: Mapping[str, Callable[[Figures], float]] = {
    "to all streams p50, ms": lambda run: run.changes.to_all.p50,
    "server CPU per change, ms": lambda run: run.changes.cpu_ms,
    "initial sync of all, s": lambda run: run.sync.all_s,
    "its server CPU, s": lambda run: run.sync.cpu_s,
    "peak RSS, MiB": lambda run: run.peak_rss_mib,
}


def compare(row: Row, protocol: str, runs: Runs) -> list[list[str]]:
    """Return a line of cells, as `HEAD` names them, for each figure of a row."""
    return [[str(row), protocol, *_line(row, protocol, name, runs)] for name in _FIGURES]


def _line(row: Row, protocol: str, name: str, runs: Runs) -> list[str]:
    values = {server: median(map(_FIGURES[name], each)) for server, each in runs.items() if each}
    marks = {server: " *" if any(run.disturbed for run in each) else "" for server, each in runs.items()}
    better = min((values[peer] for peer in PEERS if peer in values), default=None)

    def cell(server: str) -> str:
        return f"{rounded(values[server])}{marks[server]}" if server in values else "–"

    cells = [name, cell("ours")]
    for peer in PEERS:
        cells.append(cell(peer))
        if "ours" not in values or not values.get(peer):
            cells.append("–")
            continue
        ratio = values["ours"] / values[peer]
        aim = _aim(row, protocol, name, peer, better=values[peer] == better)
        mark = marks["ours"] or marks[peer]
        cells.append(f"{rounded(ratio)}{_against(ratio, aim)}{mark}")
    return cells


def _aim(row: Row, protocol: str, name: str, peer: str, *, better: bool) -> float | None:
    time_and_cpu = _TIME_AND_CPU.get(row, {}).get((peer, protocol))
    match name:
        case "to all streams p50, ms" if time_and_cpu:
            return time_and_cpu[0]
        case "server CPU per change, ms" if time_and_cpu:
            return time_and_cpu[1]
        case "initial sync of all, s" if better:
            return _SYNC
        case "peak RSS, MiB" if better and row.streams >= _MEMORY_FROM_STREAMS:
            return _MEMORY
        case _:
            return None


def _against(ratio: float, aim: float | None) -> str:
    if aim is None:
        return ""
    return f" (≤ {aim:g})" if ratio <= aim else f" (≤ {aim:g}: missed)"


def rounded(value: float) -> str:
    """Write three significant digits, and a dash for what is not a number."""
    if isnan(value):
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are aligned, so that it reads well on a terminal too."""
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
    rule = ["-" * width for width in widths]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in (head, rule, *lines))
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
