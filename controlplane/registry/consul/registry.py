"""The registry in Consul: its parts put together, and the loop that connects, lists, follows, and begins again."""

import asyncio
import math
import ssl
from collections.abc import Callable, Mapping
from itertools import chain, islice
from random import Random

from controlplane.model import (
    Instance,
    InstanceKey,
    Lost,
    RawResource,
    ResourceKey,
    ServiceName,
    Synced,
    Verdict,
    same_target,
)
from controlplane.policy import Policy
from controlplane.registry import REMARKS_MAX, Attention, Emit, ReadOnly, Sharing
from controlplane.registry.backoff import Backoff
from controlplane.registry.consul.changes import Changes, What
from controlplane.registry.consul.client import Client
from controlplane.registry.consul.following import Follower, Resync
from controlplane.registry.consul.members import Membership
from controlplane.registry.consul.shared import Shared
from controlplane.registry.consul.telling import Teller
from controlplane.registry.consul.transport import ATTENTION, Unreachable
from controlplane.registry.consul.writing import Writer
from controlplane.registry.documents import Kind, policy_document, resource_document, verdict_document

REGISTRY = "consul"

STEADY_S = 10.0
"""How long Consul must have been followed for the next try to come without back-off."""


class ConsulRegistry:
    """Keep instances in Consul's catalog and the common state in its keys. Implements WritableRegistry.

    Use it as `async with`: that opens the connections and, on leaving, withdraws this control plane at once.
    `host` is a host, or several by comma, each perhaps with a port of its own: when one fails, the next is used.
    `context` is what https needs, see `tls_context`. `prefix` is where the common state lies in Consul's keys.
    `sharing` None: only instances are read and written, and what time demands is left to those who share.
    `attention` bounds how long a query waits for a change. `clock` is monotonic, `wall_clock` since the epoch, both in
    seconds.
    """

    name = REGISTRY

    def __init__(
        self,
        *,
        host: str,
        port: int,
        scheme: str = "http",
        token: str | None = None,
        datacenter: str | None = None,
        context: ssl.SSLContext | None = None,
        prefix: str = "service-discovery/",
        sharing: Sharing | None,
        attention: Attention = ATTENTION,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        random: Random,
    ) -> None:
        self._clock = clock
        self._random = random
        self._client = Client(
            hosts=host.split(","),
            port=port,
            scheme=scheme,
            token=token,
            datacenter=datacenter,
            context=context,
            attention=attention,
        )
        member = sharing.member if sharing is not None else f"alone-{random.getrandbits(64):016x}"
        self._changes = Changes(prefix, member)
        self._teller = Teller(REGISTRY, clock, wall_clock)
        self._shared: Shared | None = None
        self._membership: Membership | None = None
        if sharing is not None:
            self._shared = Shared(REGISTRY, self._client, self._changes, self._teller.tell)
            self._membership = Membership(
                REGISTRY, sharing, self._client, self._changes, clock, self._teller.tell, self._teller.renew
            )
        self._writer = Writer(self._client, self._teller, self._changes, clock, wall_clock, self._renewed)
        self._follower = Follower(
            self._client, self._teller, self._changes, clock, self._touched, self._heard, writes=sharing is not None
        )
        self._heard_at = clock()

    async def __aenter__(self) -> "ConsulRegistry":
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            if self._membership is not None:
                await self._membership.leave()
        finally:
            await self._client.__aexit__()

    @property
    def remarks(self) -> Mapping[str, str]:
        """Return what cannot be used; see Registry."""
        documents = {} if self._shared is None else self._shared.remarks()
        return dict(islice(chain(self._teller.mirror.remarks(), documents.items()), REMARKS_MAX))

    def age_s(self) -> float:
        """Return how long Consul has not answered; it does at least every few seconds. See Registry."""
        return self._clock() - self._heard_at

    async def run(self, emit: Emit) -> None:
        """Emit what Consul holds, then every change, until cancelled; see Registry."""
        backoff = Backoff(self._random)
        lost = False
        try:
            while True:
                server = self._client.server
                steady_at = math.inf
                try:
                    await self._list(emit)
                    steady_at = self._clock() + STEADY_S
                    lost = False
                    await self._follow()
                except (Unreachable, Resync, ExceptionGroup) as error:
                    self._writer.live = False
                    reason = _reason(error)
                    self._teller.listen(None)
                    if not lost:
                        emit(Lost(registry=REGISTRY, reason=reason))
                        lost = True
                    self._client.turn(server)
                    if self._clock() >= steady_at:
                        backoff.reset()
                    await asyncio.sleep(backoff.next_s())
        finally:
            self._writer.live = False
            self._teller.listen(None)

    async def _list(self, emit: Emit) -> None:
        """List everything, in the order in which it is to be told: what instances are judged by comes before them."""
        await self._follower.catch_up()
        self._teller.listen(emit)
        if self._shared is not None:
            await self._shared.catch_up()
        await self._teller.relist()
        if self._membership is not None:
            await self._membership.catch_up()
        self._writer.live = True
        self._heard()
        emit(Synced(registry=REGISTRY))

    async def _follow(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follower.follow())
            if self._shared is not None:
                group.create_task(self._shared.follow())
                group.create_task(self._writer.keep_time())
            if self._membership is not None:
                group.create_task(self._membership.follow())

    async def put(self, instance: Instance, *, expected: Instance | None = None) -> bool:
        """Store an instance; see WritableRegistry. Raises ReadOnly where an agent has registered it."""
        return await self._writer.put(instance, expected)

    async def delete(self, key: InstanceKey) -> bool:
        """Remove an instance; see WritableRegistry. Raises ReadOnly where an agent has registered it."""
        return await self._writer.delete(key)

    async def drain(self, key: InstanceKey, delay_s: float) -> None:
        """Mark an instance draining and remove it later, whoever is alive then; see WritableRegistry."""
        await self._writer.drain(key, delay_s)

    async def heartbeat(self, key: InstanceKey) -> float | None:
        """Renew a lease; see WritableRegistry."""
        return await self._writer.heartbeat(key)

    async def record(self, key: InstanceKey, verdict: Verdict, of: Instance) -> None:
        """Keep a verdict; see WritableRegistry."""
        row = self._teller.mirror.get(key)
        if row is None or same_target(of, row.instance):
            await self._documents().record(verdict_document(verdict, of))

    async def forget(self, key: InstanceKey) -> None:
        """Drop a verdict; see WritableRegistry."""
        await self._documents().forget(key)

    async def release(self, hold: str) -> None:
        """Let go a hold everywhere; see WritableRegistry."""
        await self._documents().release(hold)

    async def put_policy(self, service: ServiceName, policy: Policy) -> bool:
        """Store a service's policy; see WritableRegistry."""
        return await self._documents().put(policy_document(service, policy))

    async def delete_policy(self, service: ServiceName) -> bool:
        """Remove a service's policy; see WritableRegistry."""
        return await self._documents().delete(Kind.POLICY, service)

    async def put_resource(self, resource: RawResource) -> bool:
        """Store a raw resource; see WritableRegistry."""
        return await self._documents().put(resource_document(resource))

    async def delete_resource(self, key: ResourceKey) -> bool:
        """Remove a raw resource; see WritableRegistry."""
        return await self._documents().delete(Kind.RESOURCE, key.type_url, key.name)

    def _documents(self) -> Shared:
        if self._shared is None:
            raise ReadOnly("Consul is not the registry that takes writes here: it is not the first of REGISTRY_TYPE")
        return self._shared

    def _renewed(self, key: InstanceKey, ttl: float) -> None:
        if self._membership is not None:
            self._membership.renewed(key, ttl)

    def _touched(self, what: What, name: str) -> None:
        if self._shared is not None:
            self._shared.touched(what, name)

    def _heard(self) -> None:
        self._heard_at = self._clock()


def _reason(error: BaseException) -> str:
    """Return the words of what ended the following. Raises it where it is none of what Consul may do."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, Unreachable | Resync):
        return str(error)
    raise error
