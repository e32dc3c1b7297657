"""Which control planes share the cluster: a Lease each, renewed by its owner, judged by everyone's own clock.

The times in a Lease are for people. Whether a member is alive is decided by when its Lease was seen to change, so
that machines whose clocks differ agree well enough (contract of `Sharing`).
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from controlplane.model import Members, RegistryEvent
from controlplane.registry import Sharing
from controlplane.registry.documents import Kind, path_of
from controlplane.registry.kubernetes.api import Api, Collection, Refused
from controlplane.registry.kubernetes.commons import labels, object_name
from controlplane.registry.kubernetes.objects import Object, name_of

SWEPT_AFTER = 10
"""After how many times its life the Lease of a member that is gone is deleted."""


class Membership:
    """Keep our own Lease, and tell who else has one that lives. `clock` is monotonic, `wall_clock` since the epoch."""

    def __init__(
        self,
        *,
        api: Api,
        leases: Collection,
        sharing: Sharing,
        registry: str,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._api = api
        self._leases = leases
        self._sharing = sharing
        self._registry = registry
        self._clock = clock
        self._wall_clock = wall_clock
        self._name = object_name(path_of(Kind.MEMBER, sharing.member))
        self._version: str | None = None
        self._heard: dict[str, tuple[str, str, float]] = {}
        self._told: frozenset[str] | None = None

    def list(self, things: Iterable[Object]) -> None:
        """Take all Leases: each may live a full life from now on, for nobody could be heard before."""
        self._heard = {}
        self._told = None
        for thing in things:
            self.changed(thing, gone=False)

    def changed(self, thing: Object, gone: bool) -> None:
        """Take a Lease as it is now, or that it is gone."""
        name = name_of(thing).name
        if gone:
            self._heard.pop(name, None)
            return
        spec = thing.get("spec") or {}
        member, renewed = str(spec.get("holderIdentity", "")), str(spec.get("renewTime", ""))
        known = self._heard.get(name)
        if member and (known is None or known[1] != renewed):
            self._heard[name] = member, renewed, self._clock()

    def events(self) -> Iterator[RegistryEvent]:
        """Tell who lives, where that has changed since it was told, or was listed."""
        alive_since = self._clock() - self._sharing.ttl_s
        alive = {member for member, _, heard in self._heard.values() if heard > alive_since}
        ids = frozenset({*alive, self._sharing.member})
        if ids != self._told:
            self._told = ids
            yield Members(ids=ids, registry=self._registry)

    def next_end_s(self) -> float:
        """Return in how many seconds the next of those who live will not, unless it is heard."""
        now = self._clock()
        ends = [heard + self._sharing.ttl_s - now for _, _, heard in self._heard.values()]
        return min((end for end in ends if end > 0), default=self._sharing.ttl_s)

    async def keep(self) -> None:
        """Renew our Lease three times in its life, and delete those of the long dead. Raises ApiFailure."""
        while True:
            await asyncio.sleep(self._sharing.ttl_s / 3)
            await self.renew()
            long_ago = self._clock() - SWEPT_AFTER * self._sharing.ttl_s
            for name in [each for each, (_, _, heard) in self._heard.items() if heard < long_ago]:
                if name != self._name:
                    await self._api.delete(self._leases, name)

    async def renew(self) -> None:
        """Make or renew our Lease. Raises ApiFailure."""
        try:
            await self._write()
        except Refused as refused:
            if refused.status not in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND):
                raise
            self._version = await self._stored_version()
            await self._write()

    async def withdraw(self) -> None:
        """Delete our Lease, so that the others know at once. Raises ApiFailure."""
        if self._version is not None:
            self._version = None
            await self._api.delete(self._leases, self._name)

    async def _write(self) -> None:
        thing = self._lease()
        if self._version is None:
            stored = await self._api.create(self._leases, thing)
        else:
            stored = await self._api.replace(self._leases, self._name, thing)
        self._version = str(stored["metadata"]["resourceVersion"])

    async def _stored_version(self) -> str | None:
        try:
            stored = await self._api.get(self._leases, self._name)
        except Refused as refused:
            if refused.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        return str(stored["metadata"]["resourceVersion"])

    def _lease(self) -> dict[str, Any]:
        metadata: dict[str, Any] = {"name": self._name, "labels": labels(Kind.MEMBER)}
        if self._version is not None:
            metadata["resourceVersion"] = self._version
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": self._sharing.member,
                "leaseDurationSeconds": math.ceil(self._sharing.ttl_s),
                "renewTime": datetime.fromtimestamp(self._wall_clock(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            },
        }
