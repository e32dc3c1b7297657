"""Spoilt conversations with every stream of the server: only the guilty stream ends, with a status, and nothing stays.

`make fuzz` has a million requests and a new seed each time; a failure prints the seed and the number of the stream,
and the same two find it again.
"""

import asyncio
import gc
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import grpc
import pytest
from envoy_data_plane.envoy.config.core.v3 import Node as NodeMessage
from envoy_data_plane.envoy.service.discovery.v3 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from tests.xds.client import method
from tests.xds.fuzz.corpus import STREAMS, Corpus, snapshots
from tests.xds.fuzz.in_process import Call, InProcess, in_process
from tests.xds.fuzz.mutations import spoilt
from xds.cache import SnapshotCache
from xds.server import XdsServer
from xds.status import Status
from xds.types import CLUSTER, Snapshot

pytestmark = pytest.mark.integration

_ALLOWED = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}
_STREAMS_PER_CORPUS = 5_000
_GROWTH_BYTES = 48 * 1024 * 1024  # what the pools of names and responses may remember; a leak has no such bound
PATIENCE_S = 30.0
GROUP = "all"
_SLOWEST_S = 2.0


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


class WellBehaved(Call):
    """Be a client that asks for all clusters, acknowledges what it gets, and knows what it holds."""

    def __init__(self) -> None:
        self._say: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._told = asyncio.Event()
        self.held: dict[str, str] = {}
        super().__init__(self._requests())
        self._say.put_nowait(bytes(DeltaDiscoveryRequest(type_url=CLUSTER, node=NodeMessage(id="well"))))

    async def _requests(self) -> AsyncIterator[bytes]:
        while (request := await self._say.get()) is not None:
            yield request

    async def write(self, data: bytes) -> None:
        response = DeltaDiscoveryResponse.parse(data)
        self.held |= {resource.name: resource.version for resource in response.resources}
        for name in response.removed_resources:
            self.held.pop(name, None)
        self._say.put_nowait(bytes(DeltaDiscoveryRequest(type_url=CLUSTER, response_nonce=response.nonce)))
        self._told.set()

    async def holds(self, state: Snapshot) -> None:
        """Wait until the client holds the clusters of a state."""
        wanted = {name: resource.version for name, resource in state.of_type(CLUSTER).items()}
        async with asyncio.timeout(PATIENCE_S):
            while self.held != wanted:
                self._told.clear()
                await self._told.wait()

    def leave(self) -> None:
        self._say.put_nowait(None)


class Fuzz:
    """Run one spoilt stream after another."""

    def __init__(self, seed: int, transport: InProcess, cache: SnapshotCache) -> None:
        self._seed = seed
        self._transport = transport
        self._cache = cache
        self._states = snapshots()
        self._state = 0
        self.requests = 0
        self.streams = 0
        self.codes: Counter[grpc.StatusCode] = Counter()
        self.slowest_s = 0.0
        self.publish(0)

    async def stream(self) -> None:
        """Run the next stream to its end."""
        if self.streams % _STREAMS_PER_CORPUS == 0:
            self._corpus = Corpus(Random(f"{self._seed}/corpus/{self.streams}"), self._states)
        self.streams += 1
        rng = Random(f"{self._seed}/{self.streams}")
        method = rng.choice(STREAMS)
        requests = spoilt(rng, self._corpus, method, self._corpus.conversation(rng, method, self._state))
        story = f"seed {self._seed}, stream {self.streams}, {method.path}"

        async def say() -> AsyncIterator[bytes]:
            for request in requests:
                self.requests += 1
                yield request
                for _ in range(rng.choice((0, 1, 3))):
                    await asyncio.sleep(0)
                if rng.random() < 0.05:
                    self.publish(rng.randrange(len(self._states)))

        call = Call(say())
        start = time.process_time()  # the machine may be busy with other things
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._transport.run(method.path, call)
        except Exception as error:
            raise AssertionError(f"{story}: {[request.hex()[:400] for request in requests]}") from error
        self.slowest_s = max(self.slowest_s, time.process_time() - start)
        self.codes[call.code] += 1

        assert call.code in _ALLOWED, f"{story}: {call.code} {call.detail}"
        assert call.code is grpc.StatusCode.OK or call.detail, story

    @property
    def served(self) -> Snapshot:
        return self._states[self._state]

    def publish(self, state: int) -> None:
        self._state = state
        self._cache.set(GROUP, self.served)

    def publish_another(self) -> None:
        self.publish((self._state + 3) % len(self._states))


async def test_spoilt_requests_end_their_own_stream_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fuzz_requests: int, fuzz_seed: int
) -> None:
    cache, status, raised = SnapshotCache(), Status(clock=time.time), []
    server = XdsServer(
        cache,
        group_of=lambda _: GROUP,
        ready=lambda: True,
        identifier="fuzz",
        on_event=status.on_event,
        requests_per_s=1e9,
    )
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: raised.append(context))
    transport = await in_process(server, monkeypatch)
    fuzz, well = Fuzz(fuzz_seed, transport, cache), WellBehaved()
    behaving = asyncio.ensure_future(transport.run(method("", delta=True), well))
    await well.holds(fuzz.served)
    tasks, warm_bytes, start, waits = len(asyncio.all_tasks()), 0, time.perf_counter(), []
    while fuzz.requests < fuzz_requests:
        await fuzz.stream()
        if fuzz.streams % 25 == 0:
            fuzz.publish_another()
            changed = time.perf_counter()
            await well.holds(fuzz.served)
            waits.append(time.perf_counter() - changed)
        if not warm_bytes and fuzz.requests >= fuzz_requests // 3:
            warm_bytes = resident_bytes()
    grown_bytes = resident_bytes() - warm_bytes
    took_s = time.perf_counter() - start
    waits.sort()
    print(
        f"\nseed {fuzz_seed}: {fuzz.requests} requests on {fuzz.streams} streams in {took_s:.1f} s;",
        ", ".join(f"{count} {code.name}" for code, count in fuzz.codes.most_common()) + ";",
        f"slowest stream {fuzz.slowest_s * 1000:.0f} ms; a change took {waits[len(waits) // 2] * 1000:.1f} ms,",
        f"at most {waits[-1] * 1000:.1f} ms; grown by {grown_bytes / 2**20:.1f} MiB since warm",
    )

    assert raised == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert [info.node.id for info in server.streams()] == ["well"]
    assert len(status) == 1
    assert cache.watched() == (GROUP,)
    assert len(asyncio.all_tasks()) == tasks
    assert min(fuzz.codes[code] for code in _ALLOWED) > fuzz.streams / 20, (
        "mutations that all pass, or all fail, find nothing"
    )
    assert grown_bytes < _GROWTH_BYTES
    assert fuzz.slowest_s < _SLOWEST_S
    well.leave()
    await behaving
