"""A raw xDS client for tests: spells requests with the generated messages, reads with a deadline.

    async with XdsClient(port) as client:
        cds = await client.ads(delta=True)
        await cds.subscribe(CLUSTER)
        response = await cds.expect(CLUSTER)
        await cds.ack(response)
        await cds.expect_quiet()

It follows no protocol by itself: what a test does not say, the client does not do.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from envoy_data_plane.envoy.config.core.v3 import Node as NodeMessage
from envoy_data_plane.envoy.service.discovery.v3 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from envoy_data_plane.google.rpc import Status as RpcStatus

from xds.types import CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, RUNTIME, SCOPED_ROUTE, SECRET, VIRTUAL_HOST

PATIENCE_S = 5.0  # an upper bound, never a wait that a passing test pays
QUIET_S = 0.1
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
_SERVICES = {  # type -> package, service, what a method serves
    CLUSTER: ("cluster", "Cluster", "Clusters"),
    ENDPOINT: ("endpoint", "Endpoint", "Endpoints"),
    LISTENER: ("listener", "Listener", "Listeners"),
    ROUTE: ("route", "Route", "Routes"),
    SCOPED_ROUTE: ("route", "ScopedRoutes", "ScopedRoutes"),
    VIRTUAL_HOST: ("route", "VirtualHost", "VirtualHosts"),
    SECRET: ("secret", "Secret", "Secrets"),
    RUNTIME: ("runtime", "Runtime", "Runtime"),
    EXTENSION: ("extension", "ExtensionConfig", "ExtensionConfigs"),
}


def method(type_url: str, *, delta: bool) -> str:
    """Return the path of a type's own service, or of ADS for an empty type."""
    verb = "Delta" if delta else "Stream"
    if not type_url:
        return f"/envoy.service.discovery.v3.AggregatedDiscoveryService/{verb}AggregatedResources"
    package, service, served = _SERVICES[type_url]
    return f"/envoy.service.{package}.v3.{service}DiscoveryService/{verb}{served}"


Response = DiscoveryResponse | DeltaDiscoveryResponse


def versions(response: Response) -> dict[str, str]:
    """Return what a Delta response carries: name -> version."""
    assert isinstance(response, DeltaDiscoveryResponse)
    return {resource.name: resource.version for resource in response.resources}


class XdsStream:
    """One open stream. The node goes with the first request only, as Envoy is told to do."""

    def __init__(self, call: Any, *, delta: bool, node: NodeMessage | None) -> None:
        self.call = call
        self.delta = delta
        self._node = node
        self._accepted: dict[str, str] = {}
        self._names: dict[str, list[str]] = {}
        self._last: dict[str, Response] = {}
        self._reading: asyncio.Task[Any] | None = None

    async def send_raw(self, data: bytes) -> None:
        await self.call.write(data)

    async def send(self, request: DiscoveryRequest | DeltaDiscoveryRequest) -> None:
        """Send a request as it is, with the node if it is the first."""
        if self._node is not None:
            request.node, self._node = self._node, None
        await self.call.write(bytes(request))

    async def subscribe(
        self,
        type_url: str,
        names: Iterable[str] = (),
        *,
        unsubscribe: Iterable[str] = (),
        initial: Mapping[str, str] | None = None,
    ) -> None:
        """Ask for names: the whole list in SotW, an edit in Delta."""
        if self.delta:
            await self.send(
                DeltaDiscoveryRequest(
                    type_url=type_url,
                    resource_names_subscribe=list(names),
                    resource_names_unsubscribe=list(unsubscribe),
                    initial_resource_versions=dict(initial or {}),
                )
            )
            return
        self._names[type_url] = list(names)
        last = self._last.get(type_url)
        await self.send(
            DiscoveryRequest(
                type_url=type_url,
                resource_names=list(names),
                version_info=self._accepted.get(type_url, ""),
                response_nonce=last.nonce if last is not None else "",
            )
        )

    async def ack(self, response: Response) -> None:
        await self._reply(response, None)

    async def nack(self, response: Response, message: str = "no", code: int = 13) -> None:
        await self._reply(response, RpcStatus(code=code, message=message))

    async def _reply(self, response: Response, error: RpcStatus | None) -> None:
        url, nonce = response.type_url, response.nonce
        if isinstance(response, DeltaDiscoveryResponse):
            await self.send(DeltaDiscoveryRequest(type_url=url, response_nonce=nonce, error_detail=error))
            return
        if error is None:
            self._accepted[url] = response.version_info
        await self.send(
            DiscoveryRequest(
                type_url=url,
                resource_names=self._names.get(url, []),
                version_info=self._accepted.get(url, ""),
                response_nonce=nonce,
                error_detail=error,
            )
        )

    async def next(self, within_s: float = PATIENCE_S) -> Response:
        """Read the next response."""
        response = await self.maybe(within_s)
        if response is None:
            raise TimeoutError(f"no response within {within_s} s")
        return response

    async def maybe(self, within_s: float = QUIET_S) -> Response | None:
        """Read the next response if there is one soon."""
        data = await self._read(within_s)
        if data is None:
            return None
        if data is grpc.aio.EOF:
            raise EOFError(f"the stream ended: {await self.call.code()}, {await self.call.details()}")
        response: Response = (DeltaDiscoveryResponse if self.delta else DiscoveryResponse).parse(data)
        self._last[response.type_url] = response
        return response

    async def expect(self, type_url: str) -> Response:
        """Read the next response, which must be of this type."""
        response = await self.next()

        assert response.type_url == type_url
        return response

    async def expect_quiet(self, for_s: float = QUIET_S) -> None:
        """See that nothing comes."""
        data = await self._read(for_s)

        assert data is None, f"expected quiet, got {data!r}"

    async def _read(self, within_s: float) -> Any:
        """Read with a deadline but do not cancel the read: cancelling it would cancel the call."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self.call.read())
        done, _ = await asyncio.wait({self._reading}, timeout=within_s)
        if not done:
            return None
        reading, self._reading = self._reading, None
        return reading.result()

    async def expect_end(self) -> tuple[grpc.StatusCode, str]:
        """Read to the end; return the status and its detail."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.call.code(), await self.call.details()

    async def half_close(self) -> None:
        await self.call.done_writing()


class XdsClient:
    """One connection. Node `id` may be overridden per stream."""

    def __init__(
        self, port: int, *, node_id: str = "node-1", host: str = "127.0.0.1", options: Iterable[Any] = ()
    ) -> None:
        # Every client its own connection: without a local pool grpc shares one between equal channels. Of an option
        # that is given twice grpc takes the first.
        own = ("grpc.use_local_subchannel_pool", 1)
        self._channel = grpc.aio.insecure_channel(f"{host}:{port}", options=(*options, own, *_OPTIONS))
        self._node_id = node_id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    def open(self, type_url: str = "", *, delta: bool = False, node: NodeMessage | None = None) -> XdsStream:
        """Open a stream of a type's own service, or of ADS."""
        call = self.call(method(type_url, delta=delta))
        return XdsStream(call, delta=delta, node=node or NodeMessage(id=self._node_id, cluster="test"))

    def call(self, path: str) -> Any:
        """Call a method by its path, raw bytes in and out."""
        return self._channel.stream_stream(path)()

    def ads(self, *, delta: bool = False, node: NodeMessage | None = None) -> XdsStream:
        return self.open(delta=delta, node=node)


@asynccontextmanager
async def connected(port: int, *, node_id: str = "node-1") -> AsyncIterator[XdsClient]:
    async with XdsClient(port, node_id=node_id) as client:
        yield client
