"""Measure the control plane on each registry, its real server holding 1,000 × 10 instances: `make bench-registries`.

    start     from the start of the process until it is ready
    change    from the start of a write to the registry until its endpoint is on the wire of a delta ADS client
    idle      what the process uses while nothing happens, with that client connected

Figures are printed, never asserted. A registry whose server this machine lacks is reported as failed, and so is a lost
change; the others are measured all the same, and the exit status is then 1.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import aiohttp
import uvloop
from benchmark.command_line import say, several
from benchmark.comparison import rounded, table
from benchmark.machine import FOREIGN, Foreign
from benchmark.processes import PATIENCE_S, ServerFailed, cpu_s, failed, running
from benchmark.rest_servers import Fleet
from benchmark.truths import TRUTHS, Truth
from envoy_data_plane.envoy.service.discovery.v3 import DeltaDiscoveryResponse
from harness import free_port
from servers.binaries import BinaryMissing
from servers.process import ServerFailed as TruthFailed

from tests.xds.client import XdsClient, XdsStream
from xds.types import CLUSTER, ENDPOINT

_HEAD = ("registry", "start → ready, s", "write → EDS p50, ms", "p99, ms", "CPU idle, % of a core", "RSS, MB")
_LEGEND = (
    "Medians of all rounds. In brackets: what the figure is to be at most. `*`: other processes used the machine in at "
    "least one of the runs, so the figure is not clean."
)
_CHANGE_MS = {"memory": 10.0, "etcd": 10.0, "consul": 30.0, "kubernetes": 20.0}
_IDLE_PERCENT = 2.0
_RSS_MB = {"kubernetes": 200.0}
_MOST_RSS_MB = 150.0
_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Hold what one round measured; `foreign` is the share of the machine that others used."""

    ready_s: float
    changes_ms: tuple[float, ...]
    idle_percent: float
    rss_mb: float
    foreign: float


async def measure(name: str, fleet: Fleet, asked: argparse.Namespace) -> Figures:
    """Run a registry's server and a control plane on it, once.

    Raises ServerFailed, TruthFailed and BinaryMissing.
    """
    with tempfile.TemporaryDirectory(prefix="bench-registries-") as place:
        folder = Path(place)
        async with TRUTHS[name](fleet, folder) as truth:
            if fill := getattr(truth, "fill", None):  # what is embedded is filled through us
                async with _control_plane(name, truth, folder):
                    await fill()
            async with _control_plane(name, truth, folder) as served:
                foreign = Foreign(served.pid, *truth.pids)
                async with XdsClient(served.xds_port, node_id="bench") as client:
                    stream = client.ads(delta=True)
                    await _follow(stream, [truth.service(number) for number in range(fleet.services)])
                    changes = [await _change(stream, truth, fleet, number) for number in range(asked.changes)]
                    reading = asyncio.create_task(_acknowledge(stream))
                    before = cpu_s(served.pid)
                    await asyncio.sleep(asked.idle_seconds)
                    idle = (cpu_s(served.pid) - before) / asked.idle_seconds
                    reading.cancel()
                return Figures(
                    ready_s=served.ready_s,
                    changes_ms=tuple(changes),
                    idle_percent=100 * idle,
                    rss_mb=_rss_mb(served.pid),
                    foreign=foreign.share,
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    pid: int
    xds_port: int
    ready_s: float


@asynccontextmanager
async def _control_plane(name: str, truth: Truth, folder: Path) -> AsyncIterator[_Served]:
    xds = free_port()
    environ = {
        "REGISTRY_TYPE": name,
        "SERVICE_PORT": str(free_port()),
        "XDS_PORT": str(xds),
        "LOG_LEVEL": "WARNING",
        "LOG_FORMAT": "json",
        **truth.environ,
    }
    started = time.monotonic()
    command = [sys.executable, "-m", "controlplane", "serve"]
    with running(command, environ, folder / "controlplane.log") as (process, log):
        async with aiohttp.ClientSession(f"http://127.0.0.1:{environ['SERVICE_PORT']}") as session:
            while not await _ready(session):
                if time.monotonic() - started > PATIENCE_S or process.poll() is not None:
                    raise failed("the control plane was not ready", process, log)
                await asyncio.sleep(0.005)
        yield _Served(pid=process.pid, xds_port=xds, ready_s=time.monotonic() - started)


async def _ready(session: aiohttp.ClientSession) -> bool:
    try:
        async with session.get("/readyz") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


async def _follow(stream: XdsStream, services: Sequence[str]) -> None:
    """Take every cluster and every assignment, as Envoy does."""
    await stream.subscribe(CLUSTER)
    await _until_held(stream, CLUSTER, services)
    await stream.subscribe(ENDPOINT, services)
    await _until_held(stream, ENDPOINT, services)


async def _until_held(stream: XdsStream, type_url: str, names: Sequence[str]) -> None:
    missing = set(names)
    while missing:
        response = await stream.next(PATIENCE_S)
        await stream.ack(response)
        if response.type_url == type_url:
            missing.difference_update(resource.name for resource in response.resources)


async def _change(stream: XdsStream, truth: Truth, fleet: Fleet, number: int) -> float:
    """Write to the registry and return the milliseconds until the new address arrives."""
    await asyncio.sleep(_PAUSE_S)
    address = f"10.200.{number // 250}.{number % 250 + 1}"
    mark = b"\x12%c%b" % (len(address), address.encode())  # the field of a socket address, whole
    started = time.perf_counter()
    write = asyncio.create_task(truth.write(number * 7 % fleet.services, address))
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                data = await stream.call.read()
                at = time.perf_counter()
                if not isinstance(data, bytes):
                    raise ServerFailed(f"the stream ended: {await stream.call.code()}")
                await stream.ack(DeltaDiscoveryResponse.parse(data))
                if mark in data:
                    await write
                    return 1000 * (at - started)
    except TimeoutError:
        raise ServerFailed(f"change {number} did not arrive within {PATIENCE_S:g} s") from None
    finally:
        write.cancel()


async def _acknowledge(stream: XdsStream) -> None:
    while isinstance(data := await stream.call.read(), bytes):
        await stream.ack(DeltaDiscoveryResponse.parse(data))


def _rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6


def line(name: str, rounds: Sequence[Figures]) -> list[str]:
    """Return a line of cells, as `_HEAD` names them."""
    mark = " *" if any(each.foreign > FOREIGN for each in rounds) else ""
    changes = [taken for each in rounds for taken in each.changes_ms]
    cells: tuple[tuple[float, float | None], ...] = (
        (median(each.ready_s for each in rounds), None),
        (median(changes), _CHANGE_MS.get(name)),
        (quantiles(changes, n=100)[-1], _CHANGE_MS.get(name)),
        (median(each.idle_percent for each in rounds), _IDLE_PERCENT),
        (median(each.rss_mb for each in rounds), _RSS_MB.get(name, _MOST_RSS_MB)),
    )
    return [name, *(f"{rounded(value)}{mark}{_against(value, aim)}" for value, aim in cells)]


def _against(value: float, aim: float | None) -> str:
    if aim is None:
        return ""
    return f" (≤ {aim:g})" if value <= aim else f" (≤ {aim:g}: missed)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for and print one table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registries", type=several(TRUTHS), default=list(TRUTHS), help=",".join(TRUTHS))
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run")
    parser.add_argument("--services", type=int, default=1_000)
    parser.add_argument("--endpoints", type=int, default=10, help="of each service")
    parser.add_argument("--changes", type=int, default=200, help="how many writes are followed in each round")
    parser.add_argument("--idle-seconds", type=float, default=30.0, help="how long nothing happens")
    asked = parser.parse_args(arguments)
    fleet = Fleet(services=asked.services, endpoints=asked.endpoints)
    found: dict[str, list[Figures]] = {}
    failures = []
    for _ in range(asked.rounds):
        for name in asked.registries:
            try:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    figures = runner.run(measure(name, fleet, asked))
            except (ServerFailed, TruthFailed, BinaryMissing) as failure:
                failures.append(f"{name}: {failure}")
                say(f"failed: {failures[-1]}")
                continue
            found.setdefault(name, []).append(figures)
            say(f"{' · '.join(line(name, [figures]))} (others used {100 * figures.foreign:.0f} % of the machine)")
    print(f"{table(_HEAD, [line(name, rounds) for name, rounds in found.items()])}\n\n{_LEGEND}")
    for failure in failures:
        print(f"failed: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
