"""What a control plane does in etcd besides writing what it is told: stay listed, and remove what was drained.

Every control plane may try a removal; each is one transaction that demands what it relies on, so it happens once.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from random import Random

from controlplane.model import InstanceKey
from controlplane.registry import Sharing
from controlplane.registry.backoff import Backoff
from controlplane.registry.documents import Kind
from controlplane.registry.etcd import operations as op
from controlplane.registry.etcd.client import EtcdClient
from controlplane.registry.etcd.connection import Failed
from controlplane.registry.etcd.feed import Feed
from controlplane.registry.etcd.keys import Keys

_LEAVE_S = 2.0
"""How long etcd is given to take us off the list; after that our lease runs out."""

_AGAIN_S = 1.0
"""How soon a removal is tried again that did not go through."""

_NAP_MAX_S = 60.0
"""How long the next removal is slept for at most: the wall clock may be set meanwhile."""


class Housekeeping:
    """Keep our place among the control planes, and carry out what is due."""

    def __init__(
        self,
        client: EtcdClient,
        feed: Feed,
        keys: Keys,
        *,
        sharing: Sharing,
        connected: asyncio.Event,
        rescheduled: asyncio.Event,
        wall_clock: Callable[[], float],
        random: Random,
    ) -> None:
        self._client = client
        self._feed = feed
        self._keys = keys
        self._sharing = sharing
        self._connected = connected
        self._rescheduled = rescheduled
        self._wall_clock = wall_clock
        self._backoff = Backoff(random)
        self._lease = 0

    async def stay_listed(self) -> None:
        """Keep a lease on our id, and take another where it has run out, until cancelled."""
        while True:
            try:
                await self._renew()
            except Failed:  # the watch says so; here it is only tried again
                await asyncio.sleep(min(self._backoff.next_s(), self._sharing.ttl_s / 3))
            else:
                self._backoff.reset()
                await asyncio.sleep(self._sharing.ttl_s / 3)

    async def _renew(self) -> None:
        member = self._sharing.member
        if self._feed.lists(member) and await self._client.keep_alive(self._lease) > 0:
            return
        lease = await self._client.grant(self._sharing.ttl_s)
        await self._client.txn([], [op.put(self._keys.document(Kind.MEMBER, member), b"{}", lease)])
        self._lease = lease

    async def leave(self) -> None:
        """Take us off the list at once."""
        if self._lease:
            with suppress(Failed, TimeoutError):  # it runs out by itself
                async with asyncio.timeout(_LEAVE_S):
                    await self._client.revoke(self._lease)

    async def remove_due(self) -> None:
        """Remove instances whose time has come, until cancelled."""
        while True:
            await self._connected.wait()
            now = self._wall_clock()
            for key in self._feed.due.pop_due(now):
                try:
                    done = await self._remove(key)
                except Failed:
                    done = False
                if not done and self._feed.removal(key) is not None:
                    self._feed.due.set(key, now + _AGAIN_S)
            next_at = self._feed.due.next()
            self._rescheduled.clear()
            nap_s = _NAP_MAX_S if next_at is None else min(max(next_at - self._wall_clock(), 0), _NAP_MAX_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(nap_s):
                    await self._rescheduled.wait()

    async def _remove(self, key: InstanceKey) -> bool:
        """Remove an instance, if it still is to go; return whether the matter is settled."""
        revision = self._feed.removal(key)
        if revision is None:
            return True
        place = self._keys.instance(key)
        removal = self._keys.document(Kind.REMOVAL, key.service, key.id)
        stored = self._feed.view.get(key)
        goes = stored is not None and stored.instance is not None and stored.instance.draining
        answer = await self._client.txn(
            [op.unchanged(removal, revision), op.unchanged(place, stored.revision if stored else 0)],
            op.deregister(self._keys, key) if goes else [op.delete(removal)],
        )
        return bool(answer.succeeded)
