"""What becomes of DNS names, and of their answers when DNS fails."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from virtual_time import run_virtual

from controlplane.model import Resolved
from controlplane.resolver import Resolver, system_resolve

HOST = "web.internal"


class Bench:
    """A resolver on virtual time against a name server that answers as told."""

    def __init__(self, **options: Any) -> None:
        self.time = asyncio.get_running_loop().time
        self.asked: list[tuple[float, str]] = []
        self.emitted: list[Resolved] = []
        self.answer: tuple[str, ...] | Exception = ("10.0.0.1",)
        self.takes_s = 0.0
        self.slow: set[str] = set()
        self.at_once = 0
        self.most_at_once = 0
        self.resolver = Resolver(emit=self.emitted.append, resolve=self.resolve, clock=self.time, **options)

    async def resolve(self, host: str) -> tuple[str, ...]:
        self.asked.append((self.time(), host))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(70 if host in self.slow else self.takes_s)
        finally:
            self.at_once -= 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def on_bench(scenario: Callable[[Bench], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        bench = Bench(**options)
        running = asyncio.create_task(bench.resolver.run())
        try:
            await scenario(bench)
        finally:
            running.cancel()
            await asyncio.wait([running])
        assert bench.at_once == 0, "a question outlived the resolver"

    run_virtual(main())


@pytest.mark.unit
def test_a_name_is_resolved_at_once_and_every_interval_and_told_only_when_it_changes() -> None:
    async def scenario(bench: Bench) -> None:
        bench.resolver.watch(HOST)
        bench.resolver.watch(HOST)
        await asyncio.sleep(100)
        assert [at for at, _ in bench.asked] == [0, 30, 60, 90]
        assert bench.emitted == [Resolved(host=HOST, addresses=("10.0.0.1",))]
        bench.answer = ("10.0.0.2",)
        await asyncio.sleep(30)
        assert bench.emitted[1:] == [Resolved(host=HOST, addresses=("10.0.0.2",))]

    on_bench(scenario)


@pytest.mark.unit
def test_the_order_of_the_answers_is_no_change() -> None:
    async def scenario(bench: Bench) -> None:
        bench.answer = ("10.0.0.2", "10.0.0.1", "10.0.0.2")
        bench.resolver.watch(HOST)
        await asyncio.sleep(1)
        bench.answer = ("10.0.0.1", "10.0.0.2")
        await asyncio.sleep(100)
        assert bench.emitted == [Resolved(host=HOST, addresses=("10.0.0.1", "10.0.0.2"))]

    on_bench(scenario)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("answer", "takes_s", "error"),
    [
        pytest.param(socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), 0, "Temporary failure", id="DNS is down"),
        pytest.param(RuntimeError("broken"), 0, "broken", id="anything else goes wrong"),
        pytest.param(KeyError(), 0, "KeyError", id="something goes wrong without words"),
        pytest.param((), 0, "the name has no addresses", id="the answer is empty"),
        pytest.param(("10.0.0.9",), 60, "no answer within 5 s", id="there is no answer in time"),
    ],
)
def test_the_last_good_answer_is_kept_and_the_trouble_said_once_when(
    answer: tuple[str, ...] | Exception, takes_s: float, error: str
) -> None:
    async def scenario(bench: Bench) -> None:
        bench.resolver.watch(HOST)
        bench.resolver.watch("other.internal")
        await bench.resolver.first_round()
        bench.emitted.clear()
        bench.answer, bench.takes_s = answer, takes_s
        bench.resolver.forget("other.internal")
        bench.resolver.watch("new.internal")
        await asyncio.sleep(200)
        assert sorted(bench.emitted, key=lambda resolved: resolved.host) == [
            Resolved(host="new.internal", addresses=(), error=error),
            Resolved(host=HOST, addresses=("10.0.0.1",), error=error),
        ]
        bench.answer, bench.takes_s = ("10.0.0.1",), 0
        await asyncio.sleep(90)  # what hangs is waited for, and asked again an interval later
        assert Resolved(host=HOST, addresses=("10.0.0.1",)) in bench.emitted
        assert Resolved(host="new.internal", addresses=("10.0.0.1",)) in bench.emitted

    on_bench(scenario)


@pytest.mark.unit
def test_the_first_round_ends_with_the_last_answer_or_failure() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.resolver.first_round()
        bench.takes_s = 60
        bench.resolver.watch(HOST)
        bench.resolver.watch("gone.internal")
        assert bench.resolver.pending() == 2
        bench.resolver.forget("gone.internal")
        assert bench.resolver.pending() == 1
        await bench.resolver.first_round()
        assert (bench.time(), bench.resolver.pending(), len(bench.emitted)) == (5, 0, 1)

    on_bench(scenario)


@pytest.mark.unit
def test_forgotten_names_are_neither_asked_nor_told() -> None:
    async def scenario(bench: Bench) -> None:
        bench.takes_s = 2
        bench.resolver.watch(HOST)
        await asyncio.sleep(1)
        bench.resolver.forget(HOST)
        bench.resolver.forget("never seen")
        await asyncio.sleep(100)
        assert (len(bench.asked), bench.emitted) == (1, [])

    on_bench(scenario)


@pytest.mark.unit
def test_a_name_that_returns_is_resolved_and_told_anew() -> None:
    async def scenario(bench: Bench) -> None:
        bench.resolver.watch(HOST)
        await asyncio.sleep(1)
        bench.resolver.forget(HOST)
        bench.resolver.watch(HOST)
        await asyncio.sleep(1)
        assert bench.emitted == [Resolved(host=HOST, addresses=("10.0.0.1",))] * 2
        await asyncio.sleep(30)
        assert len(bench.asked) == 3

    on_bench(scenario)


@pytest.mark.unit
def test_no_more_names_than_the_bound_are_asked_at_once() -> None:
    async def scenario(bench: Bench) -> None:
        bench.takes_s = 1
        for n in range(20):
            bench.resolver.watch(f"web-{n}.internal")
        await bench.resolver.first_round()
        assert (bench.most_at_once, bench.time(), len(bench.emitted)) == (4, 5, 20)

    on_bench(scenario, concurrency=4)


@pytest.mark.unit
def test_a_name_whose_look_up_hangs_is_not_asked_a_second_time_meanwhile() -> None:
    async def scenario(bench: Bench) -> None:
        bench.takes_s = 70
        bench.resolver.watch(HOST)
        await asyncio.sleep(40)
        bench.resolver.forget(HOST)
        bench.resolver.watch(HOST)
        await asyncio.sleep(29)
        assert bench.asked == [(0, HOST)]
        assert {resolved.error for resolved in bench.emitted} == {"no answer within 5 s"}
        bench.takes_s = 0
        await asyncio.sleep(60)
        assert bench.emitted[-1] == Resolved(host=HOST, addresses=("10.0.0.1",))

    on_bench(scenario)


@pytest.mark.unit
def test_however_many_names_hang_others_are_resolved_in_time() -> None:
    async def scenario(bench: Bench) -> None:
        bench.resolver.watch(HOST)
        await asyncio.sleep(1)
        bench.slow = {f"slow-{n}.internal" for n in range(8)}
        for host in bench.slow:
            bench.resolver.watch(host)
        await asyncio.sleep(299)
        assert [at for at, host in bench.asked if host == HOST] == list(range(0, 300, 30)), "a name that answers"
        bench.resolver.watch("new.internal")
        await asyncio.sleep(1)
        assert bench.emitted[-1] == Resolved(host="new.internal", addresses=("10.0.0.1",)), "a new name"
        await asyncio.sleep(1000)
        assert bench.most_at_once <= 6

    on_bench(scenario, concurrency=2)


@pytest.mark.unit
def test_the_first_round_does_not_wait_for_names_to_hang_one_after_another() -> None:
    async def scenario(bench: Bench) -> None:
        bench.takes_s = 3600
        for n in range(100):
            bench.resolver.watch(f"web-{n}.internal")
        await bench.resolver.first_round()
        assert (bench.time(), len(bench.emitted)) == (30, 100)

    on_bench(scenario)


@pytest.mark.unit
def test_names_watched_before_the_start_are_resolved_at_the_start() -> None:
    async def main() -> None:
        bench = Bench()
        bench.resolver.watch(HOST)
        running = asyncio.create_task(bench.resolver.run())
        await bench.resolver.first_round()
        running.cancel()
        await asyncio.wait([running])
        assert bench.emitted == [Resolved(host=HOST, addresses=("10.0.0.1",))]

    run_virtual(main())


@pytest.mark.unit
@pytest.mark.parametrize(
    ("found", "addresses"),
    [
        pytest.param(["10.0.0.2", "10.0.0.1", "10.0.0.2"], ("10.0.0.1", "10.0.0.2"), id="sorted, each once"),
        pytest.param(["2001:db8::1", "10.0.0.1"], ("10.0.0.1", "2001:db8::1"), id="both families"),
        pytest.param(["fe80::1%eth0"], (), id="without those that hold on one interface only"),
    ],
)
async def test_the_system_resolver_returns_addresses(
    found: list[str], addresses: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(host: str, port: object, **_: object) -> list[tuple[object, ...]]:
        assert host == HOST
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, 0)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert await system_resolve(HOST) == addresses


HANGING = """
import asyncio, socket, threading

hangs = threading.Event()

def getaddrinfo(*_, **__):
    hangs.set()
    threading.Event().wait()

async def main():
    import time
    from controlplane.resolver import Resolver, system_resolve

    resolver = Resolver(emit=print, resolve=system_resolve, clock=time.monotonic)
    for n in range(100):
        resolver.watch(f"web-{n}.internal")
    running = asyncio.create_task(resolver.run())
    while not hangs.is_set():
        await asyncio.sleep(0.01)
    print("look-ups:", threading.active_count() - 1)
    running.cancel()
    await asyncio.wait([running])

socket.getaddrinfo = getaddrinfo
import uvloop
uvloop.run(main())
"""


@pytest.mark.integration
def test_a_look_up_that_hangs_does_not_hold_up_the_end_of_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=20, check=False)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "look-ups: 8\n", "")


@pytest.mark.integration
async def test_the_system_knows_localhost() -> None:
    addresses = await system_resolve("localhost")
    assert set(addresses) <= {"127.0.0.1", "::1"}
    assert addresses
