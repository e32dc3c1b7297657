"""What the server reports, for tests that wait for it."""

import asyncio
from collections.abc import Callable
from typing import Any

from xds.protocol import Event
from xds.server import StreamInfo


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
