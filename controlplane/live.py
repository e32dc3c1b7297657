"""The newest catalog, and who wants to hear when it changes.

The one place where the catalog moves. Listeners are called at once, in order, and must not block; waiters
are woken by service, so that a watch on one service does not spin on changes of another.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from controlplane.catalog import Catalog, Change
from controlplane.model import Event, GraceOver, ServiceName

Listener = Callable[[Change], None]
CallLater = Callable[[float, Callable[[], object]], object]

GRACE_S = 30.0
"""How long a service's cluster stays after its last instance has gone (contract, section 4)."""

HISTORY = 4_096
"""How many changes a watcher may have missed before it gets the full state again."""


class LiveCatalog:
    """Hold the newest catalog and wake those who wait for changes.

    `epoch` names this process start: revisions are `<epoch>.<n>` outside, never reused across starts.
    """

    def __init__(
        self,
        *,
        epoch: str,
        checks_enabled: bool = True,
        ranking: tuple[str, ...] = (),
        call_later: CallLater | None = None,
    ) -> None:
        self.epoch = epoch
        self.current = Catalog(checks_enabled=checks_enabled, ranking=ranking)
        self.history: deque[Change] = deque(maxlen=HISTORY)
        self._listeners: list[Listener] = []
        self._waiters: dict[ServiceName | None, set[asyncio.Future[None]]] = {}
        self._call_later = call_later

    @property
    def revision(self) -> str:
        """Return the newest revision as the outside sees it."""
        return self.label(self.current.revision)

    def label(self, revision: int) -> str:
        """Spell a revision for the outside."""
        return f"{self.epoch}.{revision}"

    @property
    def watchers(self) -> int:
        """Return how many waiters there are."""
        return sum(len(waiters) for waiters in self._waiters.values())

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` with every change from now on, after the catalog has moved."""
        self._listeners.append(listener)

    def apply(self, event: Event) -> Change | None:
        """Apply an event, tell everyone, and return what changed."""
        self.current, change = self.current.apply(event)
        if change is None:
            return None
        self.history.append(change)
        if change.emptied is not None:
            over = GraceOver(service=change.emptied, emptied_at=change.revision)
            later = self._call_later or asyncio.get_running_loop().call_later
            later(GRACE_S, lambda: self.apply(over))
        for listener in self._listeners:
            listener(change)
        for key in (*change.services, None):
            for waiter in self._waiters.pop(key, ()):
                if not waiter.done():
                    waiter.set_result(None)
        return change

    def forget(self, host: str) -> None:
        """Drop what a name stood for, when its last instance has gone: it must be looked up before it is offered."""
        self.current = self.current.forgetting(host)

    async def wait(self, service: ServiceName | None = None) -> None:
        """Return after the next change of `service`, or of anything where None. Bound it with a timeout."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(service, set())
        waiters.add(waiter)
        try:
            await waiter
        finally:
            waiters.discard(waiter)
            if not waiters and self._waiters.get(service) is waiters:
                del self._waiters[service]
