"""What the embedded registry tells, beyond what every registry must."""

import asyncio

import pytest
from builders import instance, key
from registry.harness import Told, VirtualClock

from controlplane.model import DeleteInstance, Missing, Release
from controlplane.registry.memory import MemoryRegistry

pytestmark = pytest.mark.unit


async def test_leases_that_end_together_are_one_loss_and_a_deletion_is_none() -> None:
    clock = VirtualClock()
    registry = MemoryRegistry(journal=None, clock=clock, call_later=clock.call_later)
    told = Told(registry)
    task = asyncio.create_task(registry.run(told.emit))
    await told.listing()
    for port, id_ in enumerate("abcd", start=1):
        await registry.put(instance("web", id_, port=port, ttl=10))
        await told.next()
    await registry.put(instance("web", "kept", port=9))
    await told.next()

    await clock.advance(10.0)
    assert await told.next() == Missing(
        keys=tuple(key("web", id_) for id_ in "abcd"), registry="memory", reason="ttl expired"
    )
    await registry.delete(key("web", "kept"))
    assert await told.next() == DeleteInstance(key=key("web", "kept"), registry="memory")
    task.cancel()
    await asyncio.wait([task])


async def test_a_release_is_told_to_the_one_control_plane_that_there_is() -> None:
    registry = MemoryRegistry(journal=None)
    told = Told(registry)
    task = asyncio.create_task(registry.run(told.emit))
    await told.listing()
    await registry.release("web")
    assert await told.next() == Release(hold="web", registry="memory")
    task.cancel()
    await asyncio.wait([task])
