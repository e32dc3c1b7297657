"""What the DNS names of instances stand for: resolved at once, then every interval, the last good answer kept.

Only addresses reach proxies, so a name is resolved here, once for all replicas of its instances. A failing DNS
server changes no answer (law 1); it is only said, in `Resolved.error`. Which of several addresses is used is the
catalog's decision.

A look-up cannot be called off, and may hang for a minute. So each is followed to its end, never doubled, and holds
one of a bounded number of slots; new names, names that answer and names that came late have slots of their own, so
that slow names can neither take the place of others nor pile up.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from controlplane.model import Resolved


@dataclass(frozen=True, slots=True, kw_only=True)
class _LookUp:
    """Hold a look-up under way and when it is late."""

    answer: asyncio.Task[tuple[tuple[str, ...], str]]
    late_at: float


class Resolver:
    """Keep the watched names resolved and emit what changes.

    `resolve` returns a name's addresses or raises; it is cancelled only when the resolver ends. `clock` is monotonic
    seconds and advances with the event loop's time. `emit` is called on the loop's thread and may call back.
    `concurrency` holds three times: for names that are new, that answer, and that came late the last time.
    """

    def __init__(
        self,
        *,
        emit: Callable[[Resolved], None],
        resolve: Callable[[str], Awaitable[tuple[str, ...]]],
        clock: Callable[[], float],
        interval_s: float = 30.0,
        timeout_s: float = 5.0,
        concurrency: int = 8,
    ) -> None:
        self._emit = emit
        self._resolve = resolve
        self._clock = clock
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._new = asyncio.Semaphore(concurrency)
        self._answering = asyncio.Semaphore(concurrency)
        self._late = asyncio.Semaphore(concurrency)
        self._lanes: dict[str, asyncio.Semaphore] = {}
        self._under_way: dict[str, _LookUp] = {}
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
        self._lanes.pop(host, None)
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
        self._tasks[host] = group.create_task(self._follow(host, group))

    async def _follow(self, host: str, group: asyncio.TaskGroup) -> None:
        me = asyncio.current_task()
        while True:
            started = self._clock()
            addresses, error = await self._ask(host, group)
            if self._tasks.get(host) is not me:  # forgotten by somebody whom the answer overtook
                return
            old = self._answers[host]
            new = Resolved(host=host, addresses=addresses or (old.addresses if old else ()), error=error)
            self._answers[host] = new
            self._answered(host)
            if new != old:
                self._emit(new)
            await asyncio.sleep(max(0.0, started + self._interval_s - self._clock()))

    async def _ask(self, host: str, group: asyncio.TaskGroup) -> tuple[tuple[str, ...], str]:
        """Return a name's addresses, or none and what went wrong; joins a look-up that is under way."""
        look_up = self._under_way.get(host)
        if look_up is None:
            lane = self._lanes.get(host, self._new)
            try:
                async with asyncio.timeout(self._interval_s):
                    await lane.acquire()
            except TimeoutError:  # the slots hang: the first round, and with it proxies, must not wait for them
                return (), self._no_answer()
            look_up = self._look_up(host, lane, group)
        await asyncio.wait([look_up.answer], timeout=max(0.0, look_up.late_at - self._clock()))
        return look_up.answer.result() if look_up.answer.done() else ((), self._no_answer())

    def _look_up(self, host: str, lane: asyncio.Semaphore, group: asyncio.TaskGroup) -> _LookUp:
        late_at = self._clock() + self._timeout_s
        look_up = _LookUp(answer=group.create_task(self._answer(host, late_at)), late_at=late_at)
        self._under_way[host] = look_up

        def ended(_: object) -> None:
            del self._under_way[host]
            lane.release()

        look_up.answer.add_done_callback(ended)
        return look_up

    async def _answer(self, host: str, late_at: float) -> tuple[tuple[str, ...], str]:
        """Return a name's addresses, or none and what went wrong, whatever it was, however long it takes."""
        addresses: tuple[str, ...] = ()
        error = ""
        try:
            addresses = tuple(sorted(set(await self._resolve(host))))
        except Exception as fault:
            error = getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
        late = self._clock() >= late_at
        if host in self._answers:
            self._lanes[host] = self._late if late else self._answering
        if late:
            return (), self._no_answer()
        return addresses, error or ("" if addresses else "the name has no addresses")

    def _no_answer(self) -> str:
        return f"no answer within {self._timeout_s:g} s"

    def _answered(self, host: str) -> None:
        self._pending.discard(host)
        if not self._pending:
            self._settled.set()


async def system_resolve(host: str) -> tuple[str, ...]:
    """Return the IPv4 and IPv6 addresses of `host`, as this machine resolves names, sorted.

    Link-local addresses that hold only with an interface's name are left out: they mean nothing to a proxy.

    Each call has a thread of its own, which a cancelled call leaves behind until the system gives up. The loop's
    executor would not do: uvloop looks names up in four threads shared with all file access, and threads of
    an executor hold up the end of the process. The caller bounds how many there are.

    Raises OSError (socket.gaierror), UnicodeError for what cannot be a name.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[tuple[Any, ...]]] = loop.create_future()

    def settle(found: list[tuple[Any, ...]], error: Exception | None) -> None:
        if answer.done():  # cancelled meanwhile
            return
        if error is None:
            answer.set_result(found)
        else:
            answer.set_exception(error)

    def look_up() -> None:
        found: list[tuple[Any, ...]] = []
        fault: Exception | None = None
        try:
            found = list(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        except Exception as error:
            fault = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, found, fault)

    threading.Thread(target=look_up, name=f"dns {host}", daemon=True).start()
    addresses = {str(address[0]) for *_, address in await answer}
    return tuple(sorted(address for address in addresses if "%" not in address))
