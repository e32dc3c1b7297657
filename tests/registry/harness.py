"""What the registry contract needs of a registry under test, and how a test listens to one."""

import asyncio
import heapq
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace

from controlplane.model import (
    DeletePolicy,
    HealthStatus,
    Instance,
    InstanceKey,
    Members,
    PutInstance,
    PutPolicy,
    Recorded,
    RegistryEvent,
    ServiceName,
    Synced,
    Verdict,
    target_of,
)
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


async def _time_is_real(seconds: float) -> None:
    raise AssertionError(f"this registry's time cannot be advanced by {seconds} s; ask for `timed`")


class Told:
    """Take a registry's events and hand them out one by one, in order.

    Who else is there (`Members`) and what was judged (`Recorded`) is no news about instances: it is kept beside.
    """

    def __init__(self, registry: WritableRegistry) -> None:
        self.registry = registry
        self.members: frozenset[str] = frozenset()
        self._events: asyncio.Queue[RegistryEvent] = asyncio.Queue()
        self._recorded: dict[InstanceKey, Recorded] = {}
        self._moved = asyncio.Event()

    def emit(self, event: RegistryEvent) -> None:
        match event:
            case Members(ids=ids):
                self.members = ids
            case Recorded(key=key):
                self._recorded[key] = event
            case PutInstance(instance=instance, verdict=Verdict() as verdict):
                self._recorded[instance.key] = Recorded(
                    key=instance.key, target=target_of(instance), verdict=verdict, registry=event.registry
                )
                self._events.put_nowait(event)
            case PutInstance(stated=Verdict(status=HealthStatus.HEALTHY)):
                self._events.put_nowait(replace(event, stated=None))  # no news: it is what counts where none is stated
            case _:
                self._events.put_nowait(event)
        self._moved.set()

    async def next(self) -> RegistryEvent:
        return await asyncio.wait_for(self._events.get(), PATIENCE_S)

    async def until(self, met: Callable[[], bool]) -> None:
        """Wait until what has been told meets a condition."""
        async with asyncio.timeout(PATIENCE_S):
            while not met():
                self._moved.clear()
                await self._moved.wait()

    async def listing(self) -> list[RegistryEvent]:
        """Return what comes before Synced."""
        events = []
        while not isinstance(event := await self.next(), Synced):
            events.append(event)
        return events

    def verdict_of(self, instance: Instance) -> Verdict | None:
        """Return the verdict that speaks of an instance, of all that was told."""
        recorded = self._recorded.get(instance.key)
        return recorded.verdict if recorded is not None and recorded.target == target_of(instance) else None

    async def silence(self) -> None:
        """Make sure that nothing is on its way: events come in order, so a marker would come behind it."""
        await self.registry.put_policy(MARKER, Policy(timeout=1.0))
        assert await self.next() == PutPolicy(
            service=MARKER, policy=Policy(timeout=1.0), registry=self.registry.name
        ), "nothing was to happen"
        await self.registry.delete_policy(MARKER)
        assert await self.next() == DeletePolicy(service=MARKER, registry=self.registry.name)


async def _put(registry: WritableRegistry, instance: Instance) -> None:
    await registry.put(instance)


async def _delete(registry: WritableRegistry, instance: Instance) -> None:
    await registry.delete(instance.key)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Hold a registry under test: each `open` is a process start over the same storage.

    `put` and `delete` are how instances come and go there; where the registry takes no registrations, the test's
    own way into the backend. `advance` lets time pass, where time is virtual. `shared`: several control planes keep
    their common state there, so a verdict is told by `Recorded` and not with its instance.
    """

    open: Callable[[], AbstractAsyncContextManager[WritableRegistry]]
    put: Callable[[WritableRegistry, Instance], Awaitable[None]] = _put
    delete: Callable[[WritableRegistry, Instance], Awaitable[None]] = _delete
    advance: Callable[[float], Awaitable[None]] = _time_is_real
    shared: bool = False

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

    def listed(self, registry: WritableRegistry, instance: Instance, verdict: Verdict) -> PutInstance:
        """Return the event by which a listing tells of an instance that has been judged."""
        return PutInstance(instance=instance, registry=registry.name, verdict=None if self.shared else verdict)
