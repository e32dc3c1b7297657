"""An etcd registry that a test follows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

from registry.harness import Told

from controlplane.registry import Sharing
from controlplane.registry.etcd import Credentials, EtcdRegistry

NOBODY = Credentials()


def registry_at(
    *endpoints: str, prefix: str = "/services/", member: str = "one", ttl_s: float = 3.0, who: Credentials = NOBODY
) -> EtcdRegistry:
    """Make a registry that shares; each member's random numbers are its own."""
    sharing = Sharing(member=member, ttl_s=ttl_s)
    return EtcdRegistry(endpoints=endpoints, prefix=prefix, credentials=who, sharing=sharing, random=Random(member))


@asynccontextmanager
async def followed(registry: EtcdRegistry) -> AsyncIterator[tuple[EtcdRegistry, Told]]:
    """Open and run a registry; nothing of what it tells has been read."""
    async with registry:
        told = Told(registry)
        task = asyncio.create_task(registry.run(told.emit))
        try:
            yield registry, told
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled(), "run ends by cancellation only"


@asynccontextmanager
async def in_sync(
    *endpoints: str, prefix: str = "/services/", member: str = "one", ttl_s: float = 3.0, who: Credentials = NOBODY
) -> AsyncIterator[tuple[EtcdRegistry, Told]]:
    """Open and run a registry, past its first listing."""
    registry = registry_at(*endpoints, prefix=prefix, member=member, ttl_s=ttl_s, who=who)
    async with followed(registry) as (_, told):
        await told.listing()
        yield registry, told
