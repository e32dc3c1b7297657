"""Follow etcd: one listing at a revision, then one watch from there on, and over again when it is lost.

After a short loss the watch goes on where it was, so what happened meanwhile is told as if it had been heard. That
takes the same store: one that was emptied has another identity, and is listed anew, as after a compaction.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import grpc
import grpc.aio
from aetcd import rpc

from controlplane.model import Lost, Synced
from controlplane.registry import Attention, Emit
from controlplane.registry.backoff import Backoff
from controlplane.registry.etcd import operations as op
from controlplane.registry.etcd.client import EtcdClient
from controlplane.registry.etcd.connection import Compacted, Failed, failure
from controlplane.registry.etcd.feed import Feed
from controlplane.registry.etcd.keys import IDENTITY, RESUMED, Keys

_RESUME_S = 60.0
"""For how long after the last sign of life a watch may go on where it was. Behind that, more can have happened to a
store, such as a restored backup, than its identity and revision tell."""

_PAGE = 500
"""How many keys one answer of a listing holds."""

_SLICE = 50
"""How many events of the watch go out before others get a turn of the event loop: a few milliseconds."""


class Following:
    """Keep a feed current and emit what it tells. `shared`: follow the common state, too, and may write to it."""

    def __init__(
        self,
        client: EtcdClient,
        feed: Feed,
        keys: Keys,
        *,
        registry: str,
        shared: bool,
        attention: Attention,
        clock: Callable[[], float],
        random: Random,
    ) -> None:
        self._attention = attention
        self._client = client
        self._feed = feed
        self._keys = keys
        self._registry = registry
        self._shared = shared
        self._clock = clock
        self._random = random
        self._backoff = Backoff(random)
        self._heard = clock()
        self._revision = 0
        self._synced = False
        self._said_lost = False
        self.connected = asyncio.Event()

    def age_s(self) -> float:
        """Return how long ago etcd was last heard, or (never) how long it has been tried."""
        return self._clock() - self._heard

    async def run(self, emit: Emit) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self._follow(emit)
            except Compacted:
                self._revision = 0  # the next round lists
                continue
            except Failed as error:
                self._synced = False
                if not self._said_lost:
                    self._said_lost = True
                    emit(Lost(registry=self._registry, reason=str(error)))
            await asyncio.sleep(self._backoff.next_s())

    async def _follow(self, emit: Emit) -> None:
        goal = await self._resume()
        if goal is None:
            goal = await self._list(emit)
        member = self._client.endpoint
        call = self._client.watch()
        probe = asyncio.create_task(_probe(call, self._attention.probe_s))
        try:
            await call.write(self._create())
            async for answer in _answers(call, self._attention.probe_s + self._attention.patience_s):
                await self._heard_of(answer, emit)
                if not self.connected.is_set() and self._revision >= goal:
                    self._in_sync(emit)
            raise Failed(f"etcd {member} ended the watch")
        except TimeoutError:
            self._client.move_on()
            raise Failed(f"etcd {member} does not answer any more") from None
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self._client.move_on()
            raise failure(member, error) from error
        finally:
            self.connected.clear()
            call.cancel()
            probe.cancel()
            await asyncio.wait([probe])

    async def _resume(self) -> int | None:
        """Return the revision up to which a watch that goes on has to come to be in sync; None: list everything."""
        identity = self._feed.identity
        if not self._shared or identity is None or not self._revision or self.age_s() > _RESUME_S:
            return None
        answer = await self._client.txn(
            [op.holds(self._keys.at(IDENTITY), identity)], [op.put(self._keys.at(RESUMED), b"")]
        )
        revision = int(answer.header.revision)
        return revision if answer.succeeded and revision > self._revision else None

    async def _list(self, emit: Emit) -> int:
        if self._shared:
            identity = self._keys.at(IDENTITY)
            fresh = f"{self._random.getrandbits(128):032x}".encode()
            await self._client.txn([op.unchanged(identity, 0)], [op.put(identity, fresh)])
        start, end = self._keys.span(shared=self._shared)
        kvs: list[Any] = []
        revision = 0
        more = True
        while more:
            page = await self._client.range(start, end, limit=_PAGE, revision=revision)
            revision = revision or int(page.header.revision)
            kvs += page.kvs
            more = page.more
            if more:
                start = page.kvs[-1].key + b"\0"
        for told in self._feed.listing(kvs, revision):
            for event in told:
                emit(event)
            await asyncio.sleep(0)
        self._revision = revision
        return revision

    def _create(self) -> rpc.WatchRequest:
        start, end = self._keys.span(shared=self._shared)
        return rpc.WatchRequest(
            create_request=rpc.WatchCreateRequest(
                key=start, range_end=end, start_revision=self._revision + 1, prev_kv=True
            )
        )

    def _in_sync(self, emit: Emit) -> None:
        self._heard = self._clock()
        self._said_lost = False
        if not self._synced:
            self._synced = True
            emit(Synced(registry=self._registry))
        self.connected.set()

    async def _heard_of(self, answer: rpc.WatchResponse, emit: Emit) -> None:
        if answer.canceled:
            if answer.compact_revision:
                raise Compacted(f"etcd has forgotten what happened before revision {answer.compact_revision}")
            raise Failed(f"etcd {self._client.endpoint} refuses the watch: {answer.cancel_reason}")
        if answer.events:
            for count, event in enumerate(self._feed.changes(answer.events), start=1):
                emit(event)
                if count % _SLICE == 0:
                    await asyncio.sleep(0)
            self._revision = int(answer.events[-1].kv.mod_revision)
        if not answer.created:
            self._backoff.reset()  # what lasts longer than its first answer works
        self._heard = self._clock()


async def _answers(call: Any, silence_s: float) -> AsyncIterator[rpc.WatchResponse]:
    """Return what a watch hears. Raises TimeoutError where there is no sign of life."""
    while True:
        async with asyncio.timeout(silence_s):
            answer = await call.read()
        if answer is grpc.aio.EOF:
            return
        yield answer


async def _probe(call: Any, probe_s: float) -> None:
    """Ask for a sign of life now and then. Ends with the call, which tells its reader why."""
    try:
        while True:
            await asyncio.sleep(probe_s)
            await call.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
    except (asyncio.InvalidStateError, grpc.aio.AioRpcError):  # gRPC's two ways to say that the call has ended
        return
