"""What the registry contract needs of a registry under test, and how a test listens to one."""

import asyncio
import heapq
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from controlplane.model import DeletePolicy, PutPolicy, RegistryEvent, ServiceName, Synced
from controlplane.policy import Policy
from controlplane.registry import WritableRegistry

PATIENCE_S = 20.0
"""How long a test waits for an event that must come; a bound on failure, never on success."""

MARKER = ServiceName("marker")


class _Timer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class VirtualClock:
    """Be a clock, and the `call_later` that goes with it; time passes only when told to."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = 0

    def __call__(self) -> float:
        return self.now

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> _Timer:
        self._order += 1
        timer = _Timer(callback)
        heapq.heappush(self._timers, (self.now + delay_s, self._order, timer))
        return timer

    async def advance(self, seconds: float) -> None:
        """Let time pass, ringing each timer at its moment, with turns of the loop for those who wake."""
        end = self.now + seconds
        await _turns()
        while self._timers and self._timers[0][0] <= end:
            at, _, timer = heapq.heappop(self._timers)
            self.now = max(self.now, at)
            if timer.callback is not None:
                timer.callback()
                await _turns()
        self.now = end


async def _turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Told:
    """Take a registry's events and hand them out one by one, in order."""

    def __init__(self, registry: WritableRegistry) -> None:
        self.registry = registry
        self._events: asyncio.Queue[RegistryEvent] = asyncio.Queue()

    def emit(self, event: RegistryEvent) -> None:
        self._events.put_nowait(event)

    async def next(self) -> RegistryEvent:
        return await asyncio.wait_for(self._events.get(), PATIENCE_S)

    async def listing(self) -> list[RegistryEvent]:
        """Return what comes before Synced."""
        events = []
        while not isinstance(event := await self.next(), Synced):
            events.append(event)
        return events

    async def silence(self) -> None:
        """Make sure that nothing is on its way: events come in order, so a marker would come behind it."""
        await self.registry.put_policy(MARKER, Policy(timeout=1.0))
        assert await self.next() == PutPolicy(
            service=MARKER, policy=Policy(timeout=1.0), registry=self.registry.name
        ), "nothing was to happen"
        await self.registry.delete_policy(MARKER)
        assert await self.next() == DeletePolicy(service=MARKER, registry=self.registry.name)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Hold a registry under test: each `open` is a process start over the same storage."""

    open: Callable[[], AbstractAsyncContextManager[WritableRegistry]]
    advance: Callable[[float], Awaitable[None]]

    @asynccontextmanager
    async def listing(self) -> AsyncIterator[tuple[WritableRegistry, Told]]:
        """Open and run the registry; its first listing has not been read."""
        async with self.open() as registry:
            told = Told(registry)
            task = asyncio.create_task(registry.run(told.emit))
            try:
                yield registry, told
            finally:
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled(), "run ends by cancellation only"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[WritableRegistry, Told]]:
        """Open and run the registry, past its first listing."""
        async with self.listing() as (registry, told):
            await told.listing()
            yield registry, told
