"""Calls to etcd: one after another of its members, with a deadline and a valid token.

Not a registry: it knows keys and values only. aetcd's own client takes one member, and a token that it never renews.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio
from aetcd import rpc

from controlplane.registry.etcd.connection import (
    Credentials,
    Failed,
    LeaseGone,
    Member,
    failure,
    token_refused,
)

AnswerT = TypeVar("AnswerT")

CALL_S = 4.5
"""How long a call may take in all, over however many members."""

_TRY_S = 2.0
"""How long one of several members is waited for, before the next one is asked."""

_ELECTION_PAUSE_S = 0.1
"""How long members that have no leader are given before they are asked again."""


class EtcdClient:
    """Ask the members of one etcd, the same one as long as it answers. Every method raises Failed.

    `endpoints` are `host:port`, with `http://` or `https://` before it where one likes; without, a file in the
    credentials means TLS. Use as an async context manager.
    """

    def __init__(self, endpoints: Sequence[str], credentials: Credentials) -> None:
        if not endpoints:
            raise ValueError("endpoints must name at least one member of etcd, such as localhost:2379")
        self._endpoints = tuple(endpoints)
        self._credentials = credentials
        self._members: dict[int, Member] = {}
        self._current = 0
        self._token: str | None = None
        self._renewing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        members, self._members = self._members, {}
        for member in members.values():
            await member.close()

    @property
    def endpoint(self) -> str:
        """Return the member that is asked now."""
        return self._endpoints[self._current]

    def move_on(self) -> None:
        """Ask the next member from now on."""
        self._current = (self._current + 1) % len(self._endpoints)

    async def range(
        self, key: bytes, end: bytes | None = None, *, limit: int = 0, revision: int = 0
    ) -> rpc.RangeResponse:
        """Return the keys from `key` up to `end`, or that key only, as of a revision (0: the newest)."""
        request = rpc.RangeRequest(key=key, range_end=end or b"", limit=limit, revision=revision)
        return await self._ask(lambda member, how: member.kv.Range(request, **how))

    async def txn(
        self,
        compare: Sequence[rpc.Compare],
        success: Sequence[rpc.RequestOp],
        failure: Sequence[rpc.RequestOp] = (),
    ) -> rpc.TxnResponse:
        """Do all of `success` where all of `compare` holds, else all of `failure`."""
        request = rpc.TxnRequest(compare=compare, success=success, failure=failure)
        return await self._ask(lambda member, how: member.kv.Txn(request, **how))

    async def grant(self, ttl_s: float) -> int:
        """Return a new lease. etcd counts whole seconds, and grants no less than 1.5 election timeouts (2 s)."""
        request = rpc.LeaseGrantRequest(TTL=max(math.ceil(ttl_s), 1))
        answer = await self._ask(lambda member, how: member.lease.LeaseGrant(request, **how))
        return int(answer.ID)

    async def keep_alive(self, lease: int) -> float:
        """Renew a lease; return the seconds that it lasts, 0 where it has gone."""

        return await self._ask(lambda member, how: member.renewals.renew(lease, **how))

    async def revoke(self, lease: int) -> None:
        """End a lease and what lies under it; one that has gone is fine."""
        request = rpc.LeaseRevokeRequest(ID=lease)
        with suppress(LeaseGone):
            await self._ask(lambda member, how: member.lease.LeaseRevoke(request, **how))

    def watch(self) -> Any:
        """Open a stream of watches at the member that is asked now, with the token of the calls before it.

        It ends when that member has no leader, rather than stay silent about what happens elsewhere.
        """
        return self._member().watch.Watch(metadata=(*self._metadata(), ("hasleader", "true")))

    def _member(self) -> Member:
        if self._current not in self._members:
            self._members[self._current] = Member(self.endpoint, self._credentials)
        return self._members[self._current]

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("token", self._token),) if self._token else ()

    async def _ask(self, ask: Callable[[Member, dict[str, Any]], Awaitable[AnswerT]]) -> AnswerT:
        """Ask one member after another; where they are there but have no leader, again until the time is up."""
        loop = asyncio.get_running_loop()
        end = loop.time() + CALL_S
        leaderless = False
        tries = 0
        while True:
            left_s = end - loop.time()
            member, asked = self._member(), self._current
            try:
                return await self._authorized(member, ask, left_s if len(self._endpoints) == 1 else min(left_s, _TRY_S))
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise failure(member.endpoint, error) from error
                if self._current == asked:  # else another call has found out as well
                    self.move_on()
                tries += 1
                leaderless = leaderless or (error.details() or "").startswith("etcdserver:")
                round_over = tries % len(self._endpoints) == 0
                if (round_over and not leaderless) or loop.time() + _ELECTION_PAUSE_S >= end:
                    raise failure(member.endpoint, error) from error
            except grpc.aio.UsageError as error:
                raise Failed(f"etcd {member.endpoint}: the connection is closed") from error
            if round_over:
                leaderless = False
                await asyncio.sleep(_ELECTION_PAUSE_S)

    async def _authorized(
        self, member: Member, ask: Callable[[Member, dict[str, Any]], Awaitable[AnswerT]], timeout_s: float
    ) -> AnswerT:
        if self._token is None:
            await self._renew(member, None, timeout_s)
        token = self._token
        try:
            return await ask(member, {"timeout": timeout_s, "metadata": self._metadata()})
        except grpc.aio.AioRpcError as error:
            if self._credentials.username is None or not token_refused(error):
                raise
        await self._renew(member, token, timeout_s)
        return await ask(member, {"timeout": timeout_s, "metadata": self._metadata()})

    async def _renew(self, member: Member, refused: str | None, timeout_s: float) -> None:
        """Take a new token in the place of the one refused, unless there is no user, or another call has done so."""
        if self._credentials.username is None:
            return
        async with self._renewing:
            if self._token != refused:
                return
            request = rpc.AuthenticateRequest(
                name=self._credentials.username, password=self._credentials.password or ""
            )
            try:
                answer = await member.auth.Authenticate(request, timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                if "authentication is not enabled" not in (error.details() or ""):
                    raise
                self._token = ""  # nobody is asked who they are, so nothing is amiss
            else:
                self._token = answer.token
