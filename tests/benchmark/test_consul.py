"""What following a real Consul costs: time to be in sync, from a change to its event, CPU when idle, connections.

pytest -m benchmark tests/benchmark/test_consul.py -s
"""

import asyncio
import random
import resource
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from registry.consul import consul_registry
from servers.consul import ConsulServer

from controlplane.model import Instance, PutInstance, RegistryEvent, Synced
from controlplane.registry.consul import ConsulRegistry

pytestmark = [pytest.mark.benchmark, pytest.mark.consul]

INSTANCES = 10
CHANGES = 60
IDLE_S = 10.0


def few_connections() -> aiohttp.ClientSession:
    """Return a client that leaves the 200 connections which Consul takes of an address to those who are measured."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=8))


class Heard:
    """Note when the event of an instance with a port came."""

    def __init__(self) -> None:
        self.synced = asyncio.Event()
        self._at: dict[tuple[str, int], asyncio.Future[float]] = {}

    def emit(self, event: RegistryEvent) -> None:
        match event:
            case Synced():
                self.synced.set()
            case PutInstance(instance=instance):
                waiting = self._at.pop((instance.name, instance.port), None)
                if waiting is not None:
                    waiting.set_result(time.perf_counter())

    def expect(self, service: str, port: int) -> asyncio.Future[float]:
        return self._at.setdefault((service, port), asyncio.get_running_loop().create_future())


@asynccontextmanager
async def following(registry: ConsulRegistry) -> AsyncIterator[Heard]:
    async with registry:
        heard = Heard()
        task = asyncio.create_task(registry.run(heard.emit))
        await asyncio.wait_for(heard.synced.wait(), 60)
        yield heard
        task.cancel()
        await asyncio.wait([task])


def figures(taken_s: list[float]) -> str:
    ordered = sorted(taken_s)
    p99 = ordered[int(len(ordered) * 0.99)]
    return f"p50 {statistics.median(ordered) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("services", [10, 100, 1000])
async def test_following(services: int, tmp_path: Path) -> None:
    async with ConsulServer(tmp_path) as server, few_connections() as session:

        async def foreign(n: int, id: int, port: int) -> None:
            service = {"Service": f"s{n}", "ID": f"s{n}-{id}", "Address": "10.0.0.1", "Port": port}
            body = {"Node": f"node-{id}", "Address": "10.0.0.1", "Service": service}
            async with session.put(f"{server.endpoint}/v1/catalog/register", json=body) as answer:
                assert answer.status == 200

        for id in range(INSTANCES):
            for at in range(0, services, 50):
                await asyncio.gather(*(foreign(n, id, 80) for n in range(at, min(at + 50, services))))
        began = time.perf_counter()
        one, two = consul_registry(server, member="one"), consul_registry(server, member="two")
        async with following(one) as at_one:
            print(f"\n{services} services x {INSTANCES}: in sync after {time.perf_counter() - began:.2f} s")
            chance = random.Random(1)

            async def own(n: int, port: int) -> None:
                await one.put(Instance(name=f"s{n}", id="own", host="10.0.0.9", port=port))

            async def measure(
                write: Callable[[int, int], Awaitable[None]], heard: Heard, first_port: int
            ) -> list[float]:
                taken = []
                for count in range(CHANGES):
                    n, port = chance.randrange(services), first_port + count
                    told = heard.expect(f"s{n}", port)
                    start = time.perf_counter()
                    await write(n, port)
                    taken.append(await asyncio.wait_for(told, 60) - start)
                    await asyncio.sleep(0.05)  # a change for itself, as most are
                return taken

            async with following(two) as at_two:
                print(f"  own write, told by the writer:  {figures(await measure(own, at_one, 1000))}")
                print(f"  own write, told by another:     {figures(await measure(own, at_two, 2000))}")
            print(
                "  foreign write, told:            "
                f"{figures(await measure(lambda n, port: foreign(n, 0, port), at_one, 3000))}"
            )
            await asyncio.sleep(1)
            before = resource.getrusage(resource.RUSAGE_SELF)
            await asyncio.sleep(IDLE_S)
            after = resource.getrusage(resource.RUSAGE_SELF)
            used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
            print(f"  idle: {used / IDLE_S:.2%} of a core; connections open: {connections(server.port)}")


def connections(port: int) -> int:
    """Return how many connections to a port of this machine are open, as its kernel lists them (Linux)."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(1 for line in lines if line.split()[2].endswith(f":{port:04X}") and line.split()[3] == "01")
