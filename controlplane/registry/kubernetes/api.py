"""The calls to the Kubernetes API that the registry makes, with what can go wrong with them.

The official client gives configuration, TLS and credentials; the JSON is read here, as plain dictionaries.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from random import Random
from typing import Any, Self

import aiohttp
import orjson
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.rest import RESTResponse

from controlplane.registry.kubernetes.access import Access, AccessError
from controlplane.registry.kubernetes.objects import Object

PAGE = 500
"""How many objects one answer of a listing holds."""

REQUEST_TIMEOUT_S = 4.0
"""How long a small request may take: a write is refused within five seconds where the server hangs."""

PAGE_TIMEOUT_S = 20.0

ACCESS_TIMEOUT_S = 10.0
"""How long reading the configuration may take, in which a plugin may have to ask for a token."""

WATCH_S = 300.0
"""How long the server is asked to keep one watch, the half of it to the whole, so that they do not end in step."""

SILENCE_S = 150.0
"""After how long without a byte a watch is opened anew: bookmarks come once a minute.

That is for one lost connection; a server that hangs is noticed by `probe`.
"""

_SAID_MAX = 300

_BODY_MAX = 16_384


class ApiFailure(Exception):
    """Report that a call to the API failed; the message is for a person and never holds a secret."""


class Unreachable(ApiFailure):
    """Report that the API server does not answer, or that it is not known how to reach it."""


class Refused(ApiFailure):
    """Report that the API server answered with an error; `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Gone(Refused):
    """Report that what was asked for is too old: list again (410)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """Name the objects of one kind, in one namespace or (empty) in all, by labels where there is a `selector`.

    `bare`: only their metadata is wanted.
    """

    group: str
    plural: str
    namespace: str = ""
    selector: str = ""
    bare: bool = False

    @property
    def path(self) -> str:
        """Return where the API serves them."""
        base = f"/apis/{self.group}" if "/" in self.group else f"/api/{self.group}"
        return f"{base}/namespaces/{self.namespace}/{self.plural}" if self.namespace else f"{base}/{self.plural}"

    def __str__(self) -> str:
        return f"{self.plural} in namespace {self.namespace}" if self.namespace else self.plural


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Hold everything of a collection, and the version from which to watch it."""

    items: list[Object]
    version: str


class Api:
    """Call the API with the access that is configured; `async with` closes its connections."""

    def __init__(self, access: Access, random: Random) -> None:
        self._access = access
        self._random = random
        self._client: ApiClient | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.renew()

    async def renew(self) -> None:
        """Drop the connections and read the configuration again at the next call."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def probe(self, patience_s: float) -> None:
        """Ask the server for a sign of life. Raises ApiFailure where it gives none, or says that it is not well."""
        try:
            await self._call("GET", "/readyz", "ask whether it is ready", limit=patience_s)
        except Refused as refused:
            # Without the right to ask, which clusters may withhold, the refusal is the sign of life.
            if refused.status not in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
                raise

    async def list(self, what: Collection) -> Listing:
        """Return all objects of a collection, page by page. Raises ApiFailure."""
        items: list[Object] = []
        query = {"limit": str(PAGE), **_selected(what)}
        while True:
            accept = "as=PartialObjectMetadataList" if what.bare else ""
            answer = await self._call(
                "GET", what.path, f"list {what}", query=query, accept=accept, limit=PAGE_TIMEOUT_S
            )
            page = answer.get("items") or ()
            if not all(map(_is_object, page)):
                raise _strange(f"list {what}")
            items += page
            metadata = answer.get("metadata") or {}
            if not (more := metadata.get("continue")):
                return Listing(items=items, version=str(metadata.get("resourceVersion", "")))
            query = {**query, "continue": more}

    async def watch(self, what: Collection, version: str) -> AsyncGenerator[tuple[str, Object], None]:
        """Yield what happens to a collection after `version`, with the word for it, until the server ends the watch.

        A connection that breaks, or is silent for too long, ends it as well: go on from the last version. Bookmarks
        are yielded for their version. Raises Gone where that is too old, ApiFailure where no watch begins.
        """
        doing = f"watch {what}"
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(round(WATCH_S * (0.5 + self._random.random() / 2))),
            **_selected(what),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE_S)
        accept = "as=PartialObjectMetadata" if what.bare else ""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                answer = await self._send("GET", what.path, doing, query=query, accept=accept, timeout=timeout)
        except TimeoutError as error:
            raise _unreachable(doing, error) from None
        response = answer.response
        try:
            if answer.status != HTTPStatus.OK:
                raise _refusal(answer.status, await _said(response), doing)
            with suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
                async for line in response.content:
                    if not line.endswith(b"\n"):
                        return  # the connection broke in the middle of it
                    word, thing = _event(line, doing)
                    if word == "ERROR":
                        raise _refusal(thing.get("code", 0), str(thing.get("message", "")), doing)
                    yield word, thing
        finally:
            response.close()

    async def get(self, what: Collection, name: str) -> Object:
        """Return one object. Raises ApiFailure."""
        found: Object = await self._call("GET", f"{what.path}/{name}", f"get {what}")
        return found

    async def create(self, what: Collection, thing: Object) -> Object:
        """Create an object and return it as it was stored. Raises ApiFailure; Refused with 409 where it exists."""
        stored: Object = await self._call("POST", what.path, f"create {what}", body=thing)
        return stored

    async def replace(self, what: Collection, name: str, thing: Object) -> Object:
        """Replace an object, if it still has the resourceVersion that is given. Raises ApiFailure; 409 where not."""
        stored: Object = await self._call("PUT", f"{what.path}/{name}", f"update {what}", body=thing)
        return stored

    async def delete(self, what: Collection, name: str) -> bool:
        """Delete an object; return whether there was one. Raises ApiFailure."""
        try:
            await self._call("DELETE", f"{what.path}/{name}", f"delete {what}")
        except Refused as refused:
            if refused.status == HTTPStatus.NOT_FOUND:
                return False
            raise
        return True

    async def _call(
        self,
        method: str,
        path: str,
        doing: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        accept: str = "",
        limit: float = REQUEST_TIMEOUT_S,
    ) -> Any:
        timeout = aiohttp.ClientTimeout(total=limit)
        answer = await self._send(method, path, doing, query=query, body=body, accept=accept, timeout=timeout)
        try:
            if answer.status >= HTTPStatus.BAD_REQUEST:
                raise _refusal(answer.status, await _said(answer.response), doing)
            text = await answer.response.read()
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise _unreachable(doing, error) from None
        finally:
            answer.response.release()
        try:
            return orjson.loads(text) if text.startswith(b"{") else {}
        except orjson.JSONDecodeError:
            raise _strange(doing) from None

    async def _send(
        self,
        method: str,
        path: str,
        doing: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        accept: str = "",
        timeout: aiohttp.ClientTimeout,
    ) -> RESTResponse:
        wanted = f"application/json;{accept};g=meta.k8s.io;v=v1" if accept else "application/json"

        async def once(client: ApiClient) -> RESTResponse:
            call = await client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": wanted},
                body=body,
                auth_settings=["BearerToken"],
            )
            _, url, headers, sent, _ = call
            answered: RESTResponse = await client.rest_client.request(
                method, url, headers=headers, body=sent, _request_timeout=timeout
            )
            return answered

        try:
            client = await self._connected()
            used = dict(client.configuration.api_key)
            answer = await once(client)
            if answer.status == HTTPStatus.UNAUTHORIZED and await self._has_other_token(client, used):
                answer.response.release()
                answer = await once(client)
        except AccessError as error:
            raise Unreachable(str(error)) from None
        except (aiohttp.ClientError, OSError, TimeoutError, ssl.SSLError) as error:
            raise _unreachable(doing, error) from None
        return answer

    async def _connected(self) -> ApiClient:
        async with self._opening:  # several call at once, and a plugin of a kubeconfig may be slow
            if self._client is None:
                self._client = ApiClient(await self._configuration())
                self._client.user_agent = "service-discovery"
            return self._client

    async def _has_other_token(self, client: ApiClient, used: Mapping[str, str]) -> bool:
        """Give the client the token that is configured now; tell whether it is another one than was used.

        Those of a kubeconfig's plugin live for minutes: that one has run out is no reason to lose the registry.
        """
        async with self._opening:
            if client.configuration.api_key == used:  # else another call was faster
                fresh = await self._configuration()
                client.configuration.api_key = fresh.api_key
                client.configuration.refresh_api_key_hook = fresh.refresh_api_key_hook
            return bool(client.configuration.api_key != used)

    async def _configuration(self) -> Configuration:
        async with asyncio.timeout(ACCESS_TIMEOUT_S):
            return await self._access.configuration()


def _selected(what: Collection) -> dict[str, str]:
    return {"labelSelector": what.selector} if what.selector else {}


async def _said(response: aiohttp.ClientResponse) -> str:
    text = b""
    with suppress(aiohttp.ClientError, TimeoutError, ConnectionError, orjson.JSONDecodeError):
        text = (await response.read())[:_BODY_MAX]
        status = orjson.loads(text)
        if isinstance(status, dict) and "message" in status:
            return str(status["message"])
    return text.decode(errors="replace")


def _event(line: bytes, doing: str) -> tuple[str, dict[str, Any]]:
    """Return the word and the object of a watch's line. Raises Unreachable for what is none."""
    try:
        event = orjson.loads(line)
        word, thing = event["type"], event["object"]
        good = isinstance(thing, dict) if word == "ERROR" else bool(thing["metadata"]["resourceVersion"])
    except (orjson.JSONDecodeError, LookupError, TypeError):
        good = False
    if not good:
        raise _strange(doing)
    return word, thing


def _is_object(thing: Any) -> bool:
    return isinstance(thing, dict) and isinstance(thing.get("metadata"), dict) and "name" in thing["metadata"]


def _strange(doing: str) -> Unreachable:
    return Unreachable(
        f"cannot {doing}: the answer is not Kubernetes' JSON; is the server of KUBECONFIG right, is a proxy between?"
    )


def _refusal(status: int, said: str, doing: str) -> Refused:
    said = " ".join(said.split())[:_SAID_MAX]
    if status == HTTPStatus.GONE:
        return Gone(status, f"cannot {doing}: {said}")
    if status == HTTPStatus.UNAUTHORIZED:
        return Refused(
            status,
            f"cannot {doing}: the API server does not accept our credentials (401 {said}); "
            "renew those of KUBECONFIG, or the service account's token",
        )
    if status == HTTPStatus.FORBIDDEN:
        return Refused(status, f"may not {doing} (403 {said}); grant what k8s/rbac.yaml does")
    return Refused(status, f"cannot {doing}: {status} {said}")


def _unreachable(doing: str, error: Exception) -> Unreachable:
    said = "no answer in time" if isinstance(error, TimeoutError) else " ".join(str(error).split())[:_SAID_MAX]
    return Unreachable(f"cannot {doing}: {said or type(error).__name__}")
