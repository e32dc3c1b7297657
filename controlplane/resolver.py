"""What the DNS names of instances stand for: resolved at once, then every interval, the last good answer kept.

Only addresses reach proxies, so a name is resolved here, once for all replicas of its instances. A failing DNS
server changes no answer (law 1); it is only said, in `Resolved.error`. Which of several addresses is used is the
catalog's decision.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable

from controlplane.model import Resolved


class Resolver:
    """Keep the watched names resolved and emit what changes.

    `resolve` returns a name's addresses or raises. `clock` is monotonic seconds and advances with the event
    loop's time. `emit` is called on the loop's thread and may call back.
    """

    def __init__(
        self,
        *,
        emit: Callable[[Resolved], None],
        resolve: Callable[[str], Awaitable[tuple[str, ...]]],
        clock: Callable[[], float],
        interval_s: float = 30.0,
        timeout_s: float = 5.0,
        concurrency: int = 16,
    ) -> None:
        self._emit = emit
        self._resolve = resolve
        self._clock = clock
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(concurrency)
        self._answers: dict[str, Resolved | None] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._pending: set[str] = set()
        self._settled = asyncio.Event()
        self._settled.set()

    def watch(self, host: str) -> None:
        """Keep `host` resolved from now on. Idempotent: calls are not counted."""
        if host in self._answers:
            return
        self._answers[host] = None
        self._pending.add(host)
        self._settled.clear()
        if self._group is not None:
            self._start(host, self._group)

    def forget(self, host: str) -> None:
        """Resolve `host` no more, once nobody uses it; unknown ones are ignored."""
        if host not in self._answers:
            return
        del self._answers[host]
        self._answered(host)
        if (task := self._tasks.pop(host, None)) is not None:
            task.cancel()

    def pending(self) -> int:
        """Return how many names have had no answer yet, not even a failure."""
        return len(self._pending)

    async def first_round(self) -> None:
        """Return once every watched name has been resolved or has failed to be."""
        while self._pending:
            await self._settled.wait()

    async def run(self) -> None:
        """Resolve until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for host in self._answers:
                    self._start(host, group)
                await asyncio.get_running_loop().create_future()
        finally:
            self._group = None
            self._tasks.clear()

    def _start(self, host: str, group: asyncio.TaskGroup) -> None:
        self._tasks[host] = group.create_task(self._follow(host))

    async def _follow(self, host: str) -> None:
        me = asyncio.current_task()
        while True:
            async with self._slots:
                started = self._clock()
                addresses, error = await self._ask(host)
            if self._tasks.get(host) is not me:  # forgotten by somebody whom the answer overtook
                return
            old = self._answers[host]
            new = Resolved(host=host, addresses=addresses or (old.addresses if old else ()), error=error)
            self._answers[host] = new
            self._answered(host)
            if new != old:
                self._emit(new)
            await asyncio.sleep(max(0.0, started + self._interval_s - self._clock()))

    async def _ask(self, host: str) -> tuple[tuple[str, ...], str]:
        """Return a name's addresses, or none and what went wrong, whatever it was."""
        try:
            async with asyncio.timeout(self._timeout_s):
                addresses = tuple(sorted(set(await self._resolve(host))))
        except TimeoutError:
            return (), f"no answer within {self._timeout_s:g} s"
        except Exception as error:
            return (), getattr(error, "strerror", None) or str(error) or type(error).__name__
        return addresses, "" if addresses else "the name has no addresses"

    def _answered(self, host: str) -> None:
        self._pending.discard(host)
        if not self._pending:
            self._settled.set()


async def system_resolve(host: str) -> tuple[str, ...]:
    """Return the IPv4 and IPv6 addresses of `host`, as this machine resolves names, sorted.

    Link-local addresses that hold only with an interface's name are left out: they mean nothing to a proxy.

    Raises OSError (socket.gaierror).
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    addresses = {str(address[0]) for *_, address in found}
    return tuple(sorted(address for address in addresses if "%" not in address))
