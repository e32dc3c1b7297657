"""Requests to Consul: py-consul's API over a transport of our own.

What goes wrong is `Unreachable`, whose words hold neither the token nor what was stored.
"""

import ssl
from collections.abc import Sequence
from typing import Any

import orjson
from consul.base import Consul
from consul.exceptions import ACLPermissionDenied, ConsulException

from controlplane.registry import Attention
from controlplane.registry.consul.transport import Refused, Transport, Unreachable, short


class Stale(Exception):
    """Report that a transaction was rolled back: something it rests on has changed."""


class NodeMissing(Stale):
    """Report that a transaction was rolled back because the node that it registers on is not there (any more)."""


class _Api(Consul):  # type: ignore[misc]  # py-consul has no types
    def __init__(self, transport: Transport, token: str | None, datacenter: str | None) -> None:
        self._transport = transport
        super().__init__(host="unused", port=1, scheme=transport.scheme, verify=True, dc=datacenter)
        self.token = token  # py-consul would prefer CONSUL_HTTP_TOKEN, which is not one of our settings

    def http_connect(self, *_: Any, **__: Any) -> Transport:
        return self._transport


class Client:
    """Ask one of several Consul servers. `async with` opens and closes the connections.

    `hosts` are `host` or `host:port`; `context` is for https and holds authority and client certificate.
    """

    def __init__(
        self,
        *,
        hosts: Sequence[str],
        port: int,
        scheme: str,
        token: str | None,
        datacenter: str | None,
        context: ssl.SSLContext | None,
        attention: Attention,
    ) -> None:
        self._transport = Transport([_with_port(host, port) for host in hosts], scheme, context, attention)
        self._wait_ms = max(round(attention.probe_s * 1000 * 16 / 17), 1)  # Consul adds up to a sixteenth
        self._api = _Api(self._transport, token, datacenter)
        self._datacenter = datacenter

    async def __aenter__(self) -> "Client":
        await self._transport.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.close()

    @property
    def server(self) -> str:
        """Return the URL of the server that is asked now."""
        return self._transport.server

    def turn(self, server: str) -> None:
        """Use the next server from now on, unless another than `server` is in use already."""
        self._transport.turn(server)

    async def services(self, index: int = 0) -> tuple[int, dict[str, list[str]]]:
        """Return the names of all services, with their tags; with an index, when anything about services changed."""
        found = await self._ask(self._api.catalog.services(index=index or None, wait=self._wait(index)))
        return _index(found), found[1] or {}

    async def service(self, name: str, index: int = 0) -> tuple[int, list[dict[str, Any]]]:
        """Return a service's instances with their checks; with an index, when one of them changed."""
        found = await self._ask(self._api.health.service(name, index=index or None, wait=self._wait(index)))
        return _index(found), found[1] or []

    async def service_index(self, name: str) -> int:
        """Return the index of a service's last change, without its instances: a filter lets none of them through."""
        return _index(await self._ask(self._api.health.service(name, filter_expr='Service.ID == ""')))

    async def checks(self, state: str, index: int = 0) -> tuple[int, list[dict[str, Any]]]:
        """Return the checks that are in a state; with an index, when one came or went."""
        found = await self._ask(self._api.health.state(state, index=index or None, wait=self._wait(index)))
        return _index(found), found[1] or []

    async def keys(self, prefix: str, index: int = 0) -> tuple[int, list[dict[str, Any]]]:
        """Return the keys under a prefix, values as bytes; with an index, when one of them changed."""
        asked = self._api.kv.get(prefix, recurse=True, index=index or None, wait=self._wait(index))
        found = await self._ask(asked)
        return _index(found), found[1] or []

    async def folder(self, prefix: str) -> tuple[int, list[dict[str, Any]]]:
        """Return the keys under a prefix, of which there is one at least: the folder itself, as Consul's UI makes it.

        A query that waits for a change below no key at all wakes at every write to any of Consul's keys.
        """
        index, found = await self.keys(prefix)
        if not found:
            await self.write(prefix, b"")
            index, found = await self.keys(prefix)
        return index, found

    async def key(self, key: str) -> tuple[int, bytes | None]:
        """Return a key's ModifyIndex and value; 0 and None where it does not exist."""
        _, found = await self._ask(self._api.kv.get(key))
        return (0, None) if found is None else (int(found["ModifyIndex"]), found["Value"] or b"")

    async def write(self, key: str, value: bytes, *, cas: int | None = None, session: str | None = None) -> bool:
        """Write a key; return False where `cas` is not its index, or another `session` holds it."""
        return bool(await self._ask(self._api.kv.put(key, value, cas=cas, acquire=session)))

    async def erase(self, key: str, *, recurse: bool = False) -> None:
        """Delete a key, or all keys under a prefix."""
        await self._ask(self._api.kv.delete(key, recurse=recurse or None))

    async def begin_session(self, name: str, ttl_s: int) -> str:
        """Begin a session that deletes what it holds when it is not renewed; return its id.

        It is bound to no check of a node: it has to live as long as this process, not as an agent.
        """
        began = self._api.session.create(name=name, checks=[], lock_delay=0, behavior="delete", ttl=ttl_s)
        return str(await self._ask(began))

    async def renew_session(self, session: str) -> bool:
        """Renew a session; return False where it has ended."""
        try:
            return bool(await self._ask(self._api.session.renew(session)))
        except Unreachable as error:
            if "404" in str(error) or "not found" in str(error).lower():
                return False
            raise

    async def end_session(self, session: str) -> None:
        """End a session, and delete what it holds."""
        await self._ask(self._api.session.destroy(session))

    async def transact(self, operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Carry out up to 64 operations, all or none; return what they say. Raises Stale, NodeMissing."""

        def told(response: Any) -> list[dict[str, Any]]:
            if response.code == 200:
                return orjson.loads(response.body)["Results"] or []
            if response.code == 409:
                said = "; ".join(fault["What"] for fault in orjson.loads(response.body)["Errors"])
                if "stale" in said:
                    raise Stale(said)
                if "missing node" in said.lower() or "no node" in said.lower() or "node does not exist" in said:
                    raise NodeMissing(said)
                if "doesn't exist" in said:
                    raise Stale(said)
                raise Refused(f"{self._transport.server} refused: {said[:200]}")
            if response.code == 403:
                raise ACLPermissionDenied(response.body)
            raise ConsulException(f"{response.code} {response.body}")

        params = [("dc", self._datacenter)] if self._datacenter else []
        sent = self._transport.put(
            told, "/v1/txn", params, orjson.dumps(operations), headers=self._api.prepare_headers()
        )
        done: list[dict[str, Any]] = await self._ask(sent)
        return done

    def _wait(self, index: int) -> str | None:
        return f"{self._wait_ms}ms" if index else None

    async def _ask(self, asked: Any) -> Any:
        try:
            return await asked
        except ACLPermissionDenied as error:
            remedy = "refuses the token (CONSUL_TOKEN)" if self._api.token else "demands a token (set CONSUL_TOKEN)"
            raise Refused(f"{self._transport.server} {remedy}: {short(error)}") from None
        except ConsulException as error:
            # one with a cause would show what was answered, keys among it
            if isinstance(error.__cause__, Exception) or str(error).startswith("Missing index header"):
                raise Unreachable(_not_consul(self._transport.server)) from None
            raise Unreachable(f"{self._transport.server} answered: {short(error)}") from None
        except (ValueError, TypeError, LookupError, AttributeError):
            raise Unreachable(_not_consul(self._transport.server)) from None


def tls_context(ca_file: str | None, cert_file: str | None, key_file: str | None) -> ssl.SSLContext:
    """Return what https needs: one's own authority alone where it is named, and a client certificate.

    Raises ValueError where a file cannot be read or does not hold what it should.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ValueError(f"CONSUL_CA_FILE={ca_file} cannot be used: {error}") from None
    if cert_file is not None:
        try:
            context.load_cert_chain(cert_file, key_file)
        except OSError as error:
            files = f"CONSUL_CERT_FILE={cert_file} and CONSUL_KEY_FILE={key_file}"
            raise ValueError(f"{files} cannot be used: {error}") from None
    return context


def _with_port(host: str, port: int) -> str:
    host = host.strip()
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"  # an IPv6 address without a port
    return host if host.rpartition("]")[2].count(":") else f"{host}:{port}"


def _index(found: Any) -> int:
    return max(int(found[0]), 1)  # 0 would not wait, and so ask again and again


def _not_consul(server: str) -> str:
    return f"{server} answered with something that is not Consul's JSON: is CONSUL_HOST right, is a proxy between?"
