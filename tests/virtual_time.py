"""An event loop whose time passes only when everybody sleeps: hours of schedule in milliseconds, and no races."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _JumpingSelector(selectors.DefaultSelector):
    """Never wait: where nothing is ready, jump to the time of the next timer."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("nothing can ever happen again: everybody waits and no timer runs")
        if not ready and timeout is not None:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Run without sockets or threads, on virtual seconds that begin at 0."""

    def __init__(self) -> None:
        self._virtual = _JumpingSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


def run_virtual(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` on virtual time; `asyncio.get_running_loop().time` is the clock."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main)
