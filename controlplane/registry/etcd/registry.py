"""The registry in etcd: what is written there, and that what is due there gets done.

Implements WritableRegistry. Each write is one transaction that names the revisions it relies on, so replicas cannot
undo each other's; what it relies on is known from the watch, or read again where that was behind.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from random import Random
from types import TracebackType
from typing import Any, Self
from weakref import WeakValueDictionary

from controlplane.model import (
    Instance,
    InstanceKey,
    RawResource,
    ResourceKey,
    ServiceName,
    Verdict,
    same_instance,
    same_target,
)
from controlplane.policy import Policy
from controlplane.registry import (
    AddressTaken,
    Attention,
    Conflict,
    Emit,
    RegistryUnavailable,
    Sharing,
    UnknownInstance,
)
from controlplane.registry.documents import (
    Document,
    Kind,
    instance_body,
    policy_document,
    removal_document,
    resource_document,
    verdict_document,
)
from controlplane.registry.etcd import operations as op
from controlplane.registry.etcd.client import EtcdClient
from controlplane.registry.etcd.connection import Credentials, Failed, LeaseGone
from controlplane.registry.etcd.feed import Feed
from controlplane.registry.etcd.following import Following
from controlplane.registry.etcd.housekeeping import Housekeeping
from controlplane.registry.etcd.keys import Keys
from controlplane.registry.etcd.view import Address, Stored, address_of

REGISTRY = "etcd"

_TRIES = 8
"""How often a write is tried again because another control plane was faster."""

_RELEASE_TTL_S = 60.0
"""How long a release lies in etcd: long enough for every control plane that is alive to hear of it."""


class EtcdRegistry:
    """Keep instances, and the common state of the control planes that share them, in etcd. Implements WritableRegistry.

    Use as an async context manager: on leaving it, this control plane's membership ends. `sharing` None: instances
    are followed and nothing is written. An instance's `ttl` is a lease of etcd, which counts whole seconds, rounds up
    and grants no less than 1.5 election timeouts: 2 s with etcd's own settings. `clock` is in seconds of any origin,
    `wall_clock` in seconds since the epoch.
    """

    name = REGISTRY

    def __init__(
        self,
        *,
        endpoints: Sequence[str],
        prefix: str,
        credentials: Credentials,
        sharing: Sharing | None,
        attention: Attention | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        random: Random,
    ) -> None:
        self._wall_clock = wall_clock
        self._keys = Keys(prefix)
        rescheduled = asyncio.Event()
        self._feed = Feed(
            registry=REGISTRY,
            keys=self._keys,
            member=sharing.member if sharing else None,
            rescheduled=rescheduled.set,
        )
        self._client = EtcdClient(endpoints, credentials)
        self._following = Following(
            self._client,
            self._feed,
            self._keys,
            registry=REGISTRY,
            shared=sharing is not None,
            attention=attention or Attention(),
            clock=clock,
            random=random,
        )
        self._locks: WeakValueDictionary[Address, asyncio.Lock] = WeakValueDictionary()
        self._housekeeping: Housekeeping | None = None
        if sharing is not None:
            self._housekeeping = Housekeeping(
                self._client,
                self._feed,
                self._keys,
                sharing=sharing,
                connected=self._following.connected,
                rescheduled=rescheduled,
                wall_clock=wall_clock,
                random=random,
            )
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._open.enter_async_context(self._client)
        if self._housekeeping is not None:
            self._open.push_async_callback(self._housekeeping.leave)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    @property
    def remarks(self) -> Mapping[str, str]:
        """Return what in etcd cannot be used, by its key, and why."""
        return self._feed.remarks

    def age_s(self) -> float:
        """Return how many seconds ago etcd was last heard; see Registry."""
        return self._following.age_s()

    async def run(self, emit: Emit) -> None:
        """Follow etcd, keep our membership, and remove what was drained, until cancelled; see Registry."""
        async with asyncio.TaskGroup() as tasks:
            if self._housekeeping is not None:
                tasks.create_task(self._housekeeping.stay_listed())
                tasks.create_task(self._housekeeping.remove_due())
            tasks.create_task(self._following.run(emit))

    async def put(self, instance: Instance, *, expected: Instance | None = None) -> bool:
        """Store an instance, under a lease where it has a `ttl`; see WritableRegistry."""
        key = instance.key
        async with self._address(instance):
            owner = self._feed.view.owner(instance)
            if owner is not None and owner != instance.id:
                raise AddressTaken(instance, owner)
            with self._writing():
                stored = self._known(key)
                if expected is not None and not _is(stored, expected):
                    stored = await self._read(key)
                for _ in range(_TRIES):
                    if expected is not None and (stored is None or stored.instance is None):
                        raise _unknown(key)
                    if expected is not None and not _is(stored, expected):
                        break
                    done, current = await self._store(instance, stored)
                    if done:
                        return stored is None or stored.instance is None
                    stored = current
        raise Conflict(f"instance {key} has changed since it was read; read it again and repeat")

    async def _store(self, instance: Instance, stored: Stored | None) -> tuple[bool, Stored | None]:
        """Write an instance over what is stored; where that was not so any more, return what is."""
        key = instance.key
        place = self._keys.instance(key)
        verdict = self._keys.document(Kind.VERDICT, key.service, key.id)
        lease = await self._lease(instance, stored)
        compare = [op.unchanged(place, stored.revision if stored else 0)]
        success = []
        if stored is None or not stored.readable or stored.lease != lease or not _is(stored, instance):
            success.append(op.put(place, instance_body(instance), lease))
            if stored is not None and stored.judged and stored.instance is not None:
                if not same_target(stored.instance, instance):
                    success.append(op.delete(verdict))
                elif lease != stored.lease:
                    compare.append(op.exists(verdict))
                    success.append(op.lay_under(verdict, lease))
        if stored is not None and stored.instance is not None and stored.instance.draining and not instance.draining:
            success.append(op.delete(self._keys.document(Kind.REMOVAL, key.service, key.id)))
        try:
            answer = await self._client.txn(compare, success, [op.get(place), op.get(verdict)])
        except LeaseGone:  # between its grant or renewal and now
            return False, await self._read(key)
        if not answer.succeeded:
            return False, self._answered(key, answer.responses)
        if success:
            self._feed.view.put(key, Stored(instance=instance, lease=lease, revision=answer.header.revision))
        return True, None

    async def _lease(self, instance: Instance, stored: Stored | None) -> int:
        """Return the lease, fresh, under which an instance is to lie; 0 for none.

        One whose `ttl` stays keeps its lease, be it somebody else's: whoever keeps that alive goes on.
        """
        kept = stored is not None and stored.instance is not None and stored.instance.ttl == instance.ttl
        if stored is not None and kept and stored.lease and await self._client.keep_alive(stored.lease) > 0:
            return stored.lease
        return 0 if instance.ttl is None else await self._client.grant(instance.ttl)

    async def delete(self, key: InstanceKey) -> bool:
        """Remove an instance, with its verdict and a removal that is pending; see WritableRegistry."""
        place = self._keys.instance(key)
        with self._writing():
            answer = await self._client.txn([op.exists(place)], op.deregister(self._keys, key))
        if answer.succeeded:
            self._feed.view.delete(key, answer.header.revision, own=True)
        return bool(answer.succeeded)

    async def drain(self, key: InstanceKey, delay_s: float) -> None:
        """Mark an instance draining, and write down when it is to go; see WritableRegistry.

        Whichever control plane is alive then removes it.
        """
        if not (math.isfinite(delay_s) and delay_s >= 0):
            raise ValueError(f"delay_s must be a number of seconds, at least 0, and is {delay_s}")
        removal = removal_document(key, self._wall_clock() + delay_s)
        place = self._keys.instance(key)
        with self._writing():
            stored = self._known(key) or await self._read(key)
            for _ in range(_TRIES):
                if stored is None or stored.instance is None:
                    raise _unknown(key)
                drained = replace(stored.instance, draining=True)
                answer = await self._client.txn(
                    [op.unchanged(place, stored.revision)],
                    [op.rewrite(place, instance_body(drained)), op.put(self._at(removal), removal.body)],
                    [op.get(place)],
                )
                if answer.succeeded:
                    self._feed.view.put(
                        key, Stored(instance=drained, lease=stored.lease, revision=answer.header.revision)
                    )
                    return
                stored = self._answered(key, answer.responses)
        raise Conflict(f"instance {key} is changed by others all the time; try again")

    async def heartbeat(self, key: InstanceKey) -> float | None:
        """Renew an instance's lease, whoever made it; see WritableRegistry."""
        with self._writing():
            stored = self._known(key) or await self._read(key)
            for _ in range(_TRIES):
                if stored is None or stored.instance is None:
                    break
                if not stored.lease and stored.instance.ttl is None:
                    return None
                if not stored.lease:  # somebody wrote it without: from now on its `ttl` is kept
                    await self.put(stored.instance, expected=stored.instance)
                elif (left_s := await self._client.keep_alive(stored.lease)) > 0:
                    return left_s
                stored = await self._read(key)
        raise _unknown(key)

    async def record(self, key: InstanceKey, verdict: Verdict, of: Instance) -> None:
        """Keep a verdict, under the lease of its instance, with which it goes; see WritableRegistry."""
        document = verdict_document(verdict, of)
        place = self._keys.instance(key)
        with self._writing():
            stored = self._known(key)
            for _ in range(_TRIES):
                if stored is not None and (stored.instance is None or not same_target(of, stored.instance)):
                    return
                if self._feed.verdict(key) == document.body:
                    return
                try:
                    answer = await self._client.txn(
                        [op.unchanged(place, stored.revision if stored else 0)],
                        [op.put(self._at(document), document.body, stored.lease if stored else 0)],
                        [op.get(place)],
                    )
                except LeaseGone:
                    return
                if answer.succeeded:
                    return
                stored = self._answered(key, answer.responses)

    async def forget(self, key: InstanceKey) -> None:
        """Drop a verdict; see WritableRegistry."""
        with self._writing():
            await self._client.txn([], [op.delete(self._keys.document(Kind.VERDICT, key.service, key.id))])

    async def release(self, hold: str) -> None:
        """Tell every control plane what the guard is to let go; see WritableRegistry."""
        with self._writing():
            lease = await self._client.grant(_RELEASE_TTL_S)
            await self._client.txn([], [op.put(self._keys.document(Kind.RELEASE, hold), b"{}", lease)])

    async def put_policy(self, service: ServiceName, policy: Policy) -> bool:
        """Store a service's policy; see WritableRegistry."""
        return await self._put(policy_document(service, policy))

    async def delete_policy(self, service: ServiceName) -> bool:
        """Remove a service's policy; see WritableRegistry."""
        return await self._delete(Kind.POLICY, service)

    async def put_resource(self, resource: RawResource) -> bool:
        """Store a raw resource; see WritableRegistry."""
        return await self._put(resource_document(resource))

    async def delete_resource(self, key: ResourceKey) -> bool:
        """Remove a raw resource; see WritableRegistry."""
        return await self._delete(Kind.RESOURCE, key.type_url, key.name)

    async def _put(self, document: Document) -> bool:
        place = self._at(document)
        with self._writing():
            answer = await self._client.txn([op.exists(place)], written := [op.put(place, document.body)], written)
        return not answer.succeeded

    async def _delete(self, kind: Kind, *name: str) -> bool:
        place = self._keys.document(kind, *name)
        with self._writing():
            answer = await self._client.txn([op.exists(place)], [op.delete(place)])
        return bool(answer.succeeded)

    def _at(self, document: Document) -> bytes:
        return self._keys.document(document.kind, *document.name)

    def _known(self, key: InstanceKey) -> Stored | None:
        """Return what is known of a key without asking."""
        stored = self._feed.view.get(key)
        return None if stored is None else replace(stored, judged=self._feed.verdict(key) is not None)

    async def _read(self, key: InstanceKey) -> Stored | None:
        """Ask for what a key holds."""
        verdict = self._keys.document(Kind.VERDICT, key.service, key.id)
        answer = await self._client.txn([], [op.get(self._keys.instance(key)), op.get(verdict)])
        return self._answered(key, answer.responses)

    def _answered(self, key: InstanceKey, responses: Sequence[Any]) -> Stored | None:
        """Return what etcd answers that a key holds, and whether there is a verdict."""
        kvs, *verdicts = (response.response_range.kvs for response in responses)
        return replace(self._feed.stored(key, kvs[0]), judged=any(verdicts)) if kvs else None

    @asynccontextmanager
    async def _address(self, instance: Instance) -> AsyncIterator[None]:
        """Let one after another decide who has an address."""
        address = address_of(instance)
        lock = self._locks.get(address)
        if lock is None:
            lock = self._locks[address] = asyncio.Lock()
        async with lock:
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Failed as error:
            raise RegistryUnavailable(str(error)) from error


def _is(stored: Stored | None, instance: Instance) -> bool:
    return stored is not None and stored.instance is not None and same_instance(stored.instance, instance)


def _unknown(key: InstanceKey) -> UnknownInstance:
    return UnknownInstance(f"the registry holds no instance {key}")
