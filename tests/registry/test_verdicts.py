"""Verdicts on their way to the registry: which one arrives, and about what."""

import asyncio
from dataclasses import replace

import pytest
from builders import instance, verdict
from registry.harness import PATIENCE_S

from controlplane.model import HealthCheck, HealthStatus, Instance, InstanceKey, Judged, Verdict
from controlplane.registry import RegistryError, RegistryUnavailable
from controlplane.registry.memory import MemoryRegistry
from controlplane.verdicts import VerdictWriter

pytestmark = pytest.mark.unit

OLD = instance("web", "a", host="10.0.0.1", health_check=HealthCheck())
NEW = replace(OLD, host="10.0.0.2")
WELL = verdict()
SICK = verdict(HealthStatus.UNHEALTHY)


class Slow(MemoryRegistry):
    """Take verdicts once `free`, after `failures` errors; `recorded` is what was taken."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__(journal=None)
        self.failures = failures
        self.free = asyncio.Event()
        self.asked = asyncio.Event()
        self.twice = asyncio.Event()
        self.recorded: list[tuple[InstanceKey, Verdict, Instance]] = []

    async def record(self, key: InstanceKey, verdict: Verdict, of: Instance) -> None:
        self.asked.set()
        await self.free.wait()
        if self.failures:
            self.failures -= 1
            raise RegistryUnavailable("the disk is full")
        self.recorded.append((key, verdict, of))
        if len(self.recorded) == 2:
            self.twice.set()


async def test_each_verdict_goes_with_the_instance_that_was_judged() -> None:
    registry, failures = Slow(), list[RegistryError]()
    writer = VerdictWriter(registry, failures.append)
    task = asyncio.create_task(writer.run())
    writer.add(Judged(key=OLD.key, verdict=SICK), OLD)
    await asyncio.wait_for(registry.asked.wait(), PATIENCE_S)
    writer.add(Judged(key=NEW.key, verdict=WELL), NEW)
    registry.free.set()
    await asyncio.wait_for(registry.twice.wait(), PATIENCE_S)
    task.cancel()
    await asyncio.wait([task])

    assert registry.recorded == [(OLD.key, SICK, OLD), (NEW.key, WELL, NEW)]
    assert failures == []


async def test_of_those_that_wait_the_newest_is_written() -> None:
    registry = Slow()
    registry.free.set()
    writer = VerdictWriter(registry, lambda error: None)
    writer.add(Judged(key=OLD.key, verdict=SICK), OLD)
    writer.add(Judged(key=NEW.key, verdict=WELL), NEW)
    task = asyncio.create_task(writer.run())
    await asyncio.wait_for(registry.asked.wait(), PATIENCE_S)
    task.cancel()
    await asyncio.wait([task])

    assert registry.recorded == [(NEW.key, WELL, NEW)]


async def test_one_that_the_registry_refused_is_reported_and_written_on_the_way_out() -> None:
    registry, failed = Slow(failures=1), asyncio.Event()
    registry.free.set()
    writer = VerdictWriter(registry, lambda error: failed.set())
    writer.add(Judged(key=OLD.key, verdict=SICK), OLD)
    task = asyncio.create_task(writer.run())
    await asyncio.wait_for(failed.wait(), PATIENCE_S)
    task.cancel()
    await asyncio.wait([task])

    assert registry.recorded == [(OLD.key, SICK, OLD)]
