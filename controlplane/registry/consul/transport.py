"""The way to Consul: one HTTP session, which turns to another server when one fails.

py-consul's own asyncio transport passes arguments that aiohttp has deprecated, trusts the system's authorities beside
the one that is named, and knows one server. So this one stands in its place. Every request has a timeout.
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import aiohttp
from consul.base import HTTPClient, Response
from yarl import URL

from controlplane.registry import Attention

REQUEST_TIMEOUT_S = 4.0
"""How long a request that does not wait may take: below the five seconds in which a write has to be refused."""

ATTENTION = Attention(probe_s=8.5, patience_s=1.5)
"""How long a query may stay unanswered, where CACHE_TTL does not ask for less. It is also how long Consul keeps the
connection of a query that was broken off."""

_TRY_S = 2.0
"""How long one of several servers is waited for to answer a question, before the next one is asked."""

_CONNECT_S = 1.5
"""How long a server may take to accept a connection: that of a machine that has died never does."""

_ELECTION_PAUSE_S = 0.1
"""How long servers that have no leader are given before they are asked again."""

_NOTHING_DONE = ("No cluster leader", "No known Consul servers", "rpc error getting client")
"""What a server answers that could not pass a request on, be it because its leader is dead: so it may be repeated."""

_BROKE_OFF = ("stream closed", "EOF", "connection reset", "broken pipe", "session shutdown", "leadership lost")
"""What a server answers whose leader died while it was at it: so nobody knows whether it was done."""

_FAILED = 500

CONNECTIONS_MAX = 80
"""How many connections are opened at most; Consul takes 200 of one address (`http_max_conns_per_client`), for all
who share it."""


class Unreachable(Exception):
    """Report that Consul did not do what was asked: it is away, hangs, has no leader, or refuses the token."""


class Refused(Unreachable):
    """Report that Consul understood what was asked and will not do it, such as for want of a right."""


class Uncertain(Unreachable):
    """Report that a write was broken off, and may have been carried out."""


class _Unconnected(Unreachable):
    """Report that no request was sent."""


class Transport(HTTPClient):  # type: ignore[misc]  # py-consul has no types
    """Send what py-consul asks for over one aiohttp session, to the server that is in use."""

    def __init__(
        self, servers: Sequence[str], scheme: str, context: ssl.SSLContext | None, attention: Attention
    ) -> None:
        super().__init__(scheme=scheme)
        self._bases = [f"{scheme}://{server}" for server in servers]
        self._at = 0
        self._session: aiohttp.ClientSession | None = None
        self._context = context
        self._query_s = attention.probe_s + attention.patience_s
        self.base_uri = self._bases[0]

    @property
    def server(self) -> str:
        return self.base_uri

    def turn(self, server: str) -> None:
        """Use the next server from now on, unless another than `server` is in use already.

        Connections to the last one close as they come free.
        """
        if server == self.base_uri:
            self._at = (self._at + 1) % len(self._bases)
            self.base_uri = self._bases[self._at]

    async def open(self) -> None:
        connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX, ssl=True if self._context is None else self._context)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _send(
        self, method: str, callback: Callable[[Any], Any], path: str, params: Any, headers: Any, data: Any = None
    ) -> Any:
        if any(name == "wait" for name, _ in params or ()):
            return callback(await self._once(method, path, params, headers, data, self._query_s))
        return callback(await self._persist(method, path, params, headers, data))

    async def _persist(self, method: str, path: str, params: Any, headers: Any, data: Any) -> Response:
        """Ask one server after another; where they are there but have no leader, again until the time is up.

        What may have been carried out is not repeated: a write would not know its own work from somebody else's.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + REQUEST_TIMEOUT_S
        asks = method == "GET" and len(self._bases) > 1
        leaderless = False
        for tries in count(1):
            server, left_s = self.server, max(end - loop.time(), 0)
            round_over = tries % len(self._bases) == 0
            try:
                response = await self._once(
                    method, path, params, headers, data, min(left_s, _TRY_S) if asks else left_s
                )
            except Unreachable as error:
                self.turn(server)
                repeatable = method == "GET" or isinstance(error, _Unconnected)
                late = loop.time() + _ELECTION_PAUSE_S >= end
                if not repeatable or late or (round_over and not leaderless):
                    raise
            else:
                if response.code != _FAILED:
                    return response
                if any(each in response.body for each in _BROKE_OFF) and method != "GET":
                    self.turn(server)
                    raise Uncertain(f"{server} answered: {response.code} {response.body[:200]}")
                if not any(each in response.body for each in (*_NOTHING_DONE, *_BROKE_OFF)):
                    return response
                self.turn(server)
                leaderless = True
                if loop.time() + _ELECTION_PAUSE_S >= end:
                    return response
            if round_over:
                leaderless = False
                await asyncio.sleep(_ELECTION_PAUSE_S)
        raise AssertionError("unreachable: the loop has no end of its own")

    async def _once(self, method: str, path: str, params: Any, headers: Any, data: Any, limit_s: float) -> Response:
        if self._session is None:
            raise Unreachable("the client is not open: use it inside `async with`")
        server = self.server
        try:
            # not aiohttp's timeout, which begins when a connection is free
            async with asyncio.timeout(limit_s):
                sent = self._session.request(
                    method,
                    URL(self.uri(path, params), encoded=True),
                    headers=headers,
                    data=data,
                    allow_redirects=False,  # the token is for this server only
                )
                async with sent as answer:
                    return Response(answer.status, answer.headers, await answer.text(encoding="utf-8"))
        except aiohttp.ConnectionTimeoutError:
            raise _Unconnected(f"{server} cannot be reached: it accepts no connection") from None
        except TimeoutError:
            raise Unreachable(f"{server} did not answer within {limit_s:.3g} s") from None
        except aiohttp.ServerDisconnectedError:
            raise Uncertain(
                f"{server} closed the connection: it stopped, or its limit of connections is reached "
                "(limits.http_max_conns_per_client)"
            ) from None
        except aiohttp.ClientConnectorError as error:
            raise _Unconnected(f"{server} cannot be reached: {short(error)}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unreachable(f"{server} cannot be reached: {short(error)}") from None

    async def get(self, callback: Any, path: str, params: Any = None, headers: Any = None, **_: Any) -> Any:
        return await self._send("GET", callback, path, params, headers)

    async def put(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return await self._send("PUT", callback, path, params, headers, data)

    async def delete(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return await self._send("DELETE", callback, path, params, headers, data)

    async def post(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return await self._send("POST", callback, path, params, headers, data)


def short(error: Exception) -> str:
    """Return the words of an error in one short line."""
    return str(error).strip().replace("\n", " ")[:200] or type(error).__name__
