"""A server with a small snapshot, on a port of its own, and what a test needs to listen to it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.xds.client import XdsStream
from xds.cache import SnapshotCache
from xds.protocol import Event
from xds.server import StreamInfo, XdsServer
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource, ResourceSet, Snapshot

GROUP = "all"
BOTH = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])


def snapshot(*, size: int = 1, **clusters: str) -> Snapshot:
    """Build clusters `name=version`, each with an assignment of its own; one listener and its routes."""
    made = [
        Resource.of(name, f"{name}={version}".encode() * size, refs=[(ENDPOINT, name)])
        for name, version in clusters.items()
    ]
    assignments = [Resource.of(one.name, one.name.encode(), parent_version=one.version) for one in made]
    return Snapshot(
        {
            CLUSTER: ResourceSet(made),
            ENDPOINT: ResourceSet(assignments),
            LISTENER: ResourceSet([Resource.of("a", b"listener", refs=[(ROUTE, "a")])]),
            ROUTE: ResourceSet([Resource.of("a", b"routes")]),
        },
        "-".join(clusters.values()),
    )


class Heard:
    """Collect the server's events, and wait until some of them are as a test wants them."""

    def __init__(self) -> None:
        self.events: list[tuple[StreamInfo, Event]] = []
        self._news = asyncio.Event()

    def __call__(self, info: StreamInfo, event: Event) -> None:
        self.events.append((info, event))
        self._news.set()

    def of(self, kind: type[Event], node_id: str | None = None) -> list[Any]:
        return [e for info, e in self.events if isinstance(e, kind) and node_id in (None, info.node.id)]

    async def until(self, true: Callable[[], bool], within_s: float = 5.0) -> None:
        async with asyncio.timeout(within_s):
            while not true():
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def serving(cache: SnapshotCache | None = None, **options: Any) -> AsyncIterator[tuple[XdsServer, int]]:
    settings: dict[str, Any] = {"group_of": lambda _: GROUP, "ready": lambda: True, "identifier": "cp-1"}
    if cache is None:
        cache = SnapshotCache()
        cache.set(GROUP, snapshot(a="1"))
    server = XdsServer(cache, **(settings | options))
    try:
        yield server, await server.start("127.0.0.1", 0)
    finally:
        await server.stop(0.0)


async def is_served(stream: XdsStream) -> None:
    await stream.subscribe(CLUSTER)
    await stream.ack(await stream.expect(CLUSTER))
