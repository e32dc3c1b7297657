"""Client status (CSDS): what every connected client was sent, holds and refused, for Envoy's and gRPC's own tools.

The same picture as `/proxies`, spelled as envoy/service/status/v3/csds.proto says. Messages are read with the
generated classes and written by hand, because an answer about a thousand clients holds a million resources; their
bytes are those that the clients were sent. Work is done in slices, so that no stream waits for a curious operator.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from envoy_data_plane.envoy.config.core.v3 import Locality
from envoy_data_plane.envoy.config.core.v3 import Node as NodeMessage
from envoy_data_plane.envoy.service.status.v3 import ClientStatusRequest, ConfigStatus
from envoy_data_plane.google import protobuf

from xds.encode import Encoder, frame, varint
from xds.matching import MatcherError, any_node
from xds.standing import State
from xds.status import ProxyStatus, ResourceStatus, Status
from xds.types import SECRET, Node, Resource

SERVICE = "envoy.service.status.v3.ClientStatusDiscoveryService"
MAX_ANSWER_BYTES = 32 * 1024 * 1024  # a tool takes 4 MiB by default; building one takes two or three times as much
MAX_REQUEST_BYTES = 64 * 1024
MAX_CONCURRENT = 4

_PRIVATE = b"PRIVATE KEY"  # as PEM spells it, in whatever type of resource it stands inline
_SLICE = 100  # resources that are written in one go: about a millisecond
_STATUS = {  # the whole field config_status
    State.NOT_SENT: b"\x30" + varint(ConfigStatus.NOT_SENT),
    State.STALE: b"\x30" + varint(ConfigStatus.STALE),
    State.SYNCED: b"\x30" + varint(ConfigStatus.SYNCED),
    State.ERROR: b"\x30" + varint(ConfigStatus.ERROR),
}

Context = Any  # grpc.aio.ServicerContext: grpcio ships no types


class _Refusal(Exception):
    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class _Writer:
    """Write the resources of one answer; what a thousand clients were told alike is spelled once."""

    def __init__(self, *, contents: bool) -> None:
        self._contents = contents
        # The key holds a resource's identity; the value keeps it alive, so that it stays its own.
        self._ready: dict[tuple[str, int], tuple[Resource, bytes]] = {}
        self._times: dict[float, bytes] = {}

    def resource(self, resource: ResourceStatus) -> bytes:
        """Write a GenericXdsConfig.

        It shows what the client was told last. Where that was refused, csds.proto wants the refused content here,
        and what the client said of it in `error_state`. A removal shows what is to be removed.
        """
        standing, refusal = resource.standing, resource.refusal
        shown = standing.sent if standing.state is State.ERROR else standing.sent or standing.held
        if shown is None:
            known = _text(1, resource.type_url) + _text(2, standing.name) + _text(3, standing.version)
        else:
            known = self._known(resource.type_url, shown)
        updated = b"" if resource.updated_at is None else self._updated(resource.updated_at)
        if refusal is None:
            return known + updated + _STATUS[standing.state]
        error = frame(2, _timestamp(refusal.at)) + _text(3, refusal.message) + _text(4, standing.version)
        return known + updated + _STATUS[standing.state] + frame(8, error)

    def _known(self, type_url: str, shown: Resource) -> bytes:
        if (ready := self._ready.get((type_url, id(shown)))) is not None:
            return ready[1]
        body = _text(1, type_url) + _text(2, shown.name) + _text(3, shown.version)
        # Keys stay here; the version says which.
        if self._contents and type_url != SECRET and shown.body and _PRIVATE not in shown.body:
            body += frame(4, _text(1, type_url) + frame(2, shown.body))
        self._ready[type_url, id(shown)] = shown, body
        return body

    def _updated(self, at: float) -> bytes:
        if (ready := self._times.get(at)) is None:
            ready = self._times[at] = frame(5, _timestamp(at))
        return ready


class ClientStatus:
    """Answer ClientStatusDiscoveryService from the per-proxy picture.

    `FetchClientStatus` and `StreamClientStatus` give the same answer; the stream gives exactly one per request and
    pushes nothing (Q-01). An answer cannot be split, and gRPC clients take 4 MiB unless told otherwise: whoever asks
    about many nodes sets `exclude_resource_contents` or raises its limit (F-01). Who asks for more than fits is
    refused, rather than have the fleet's whole configuration built at once.

    Args:
        status: the picture.
        max_answer_bytes: what an answer may have; a larger one is refused with the remedy.
    """

    def __init__(self, status: Status, *, max_answer_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._status = status
        self._max_answer_bytes = max_answer_bytes
        self._encoder = Encoder()
        self._answering = 0
        self._stopped = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the service, to be added to a gRPC server."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "FetchClientStatus": grpc.unary_unary_rpc_method_handler(self._fetch),
                "StreamClientStatus": grpc.stream_stream_rpc_method_handler(self._stream),
            },
        )

    def stop(self) -> None:
        """End all streams, so that the server need not wait for them."""
        self._stopped.set()

    async def _fetch(self, data: bytes, context: Context) -> bytes:
        try:
            return await self._answer(data)
        except _Refusal as refusal:
            await context.abort(refusal.code, refusal.detail)
            raise AssertionError("abort raises") from refusal

    async def _stream(self, requests: AsyncIterator[bytes], context: Context) -> None:
        async def answer_each() -> None:
            async for data in requests:
                await context.write(await self._answer(data))

        answering = asyncio.ensure_future(answer_each())
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait({answering, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        except _Refusal as refusal:
            await context.abort(refusal.code, refusal.detail)
        finally:
            for task in (answering, stopped):
                task.cancel()
            await asyncio.gather(answering, stopped, return_exceptions=True)

    async def _answer(self, data: bytes) -> bytes:
        request = _read(data)
        try:
            matches = any_node(request.node_matchers)
        except MatcherError as error:
            raise _Refusal(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        if self._answering >= MAX_CONCURRENT:
            detail = f"{MAX_CONCURRENT} status requests are being answered already; try again"
            raise _Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, detail)
        self._answering += 1
        try:
            configs: list[bytes] = []
            size = 0
            writer = _Writer(contents=not request.exclude_resource_contents)
            for node in self._status.nodes():
                await asyncio.sleep(0)
                # Looked up node by node: the picture of thousands, made in one go, would hold up every stream.
                if matches(node) and (proxy := self._status.proxy(node.id)) is not None:
                    room = self._max_answer_bytes - size
                    configs.append(await self._config(proxy, room, writer))
                    size += len(configs[-1])
            return b"".join(configs)
        finally:
            self._answering -= 1

    async def _config(self, proxy: ProxyStatus, room: int, writer: _Writer) -> bytes:
        """Write a ClientConfig, as the field of the response that it is."""
        parts = [frame(1, self._encoder.encode(_node(proxy.node)))]
        size = len(parts[0])
        written = 0
        for type_url in proxy.types:
            for resource in self._status.resources(proxy.node.id, type_url):
                parts.append(frame(3, writer.resource(resource)))
                size += len(parts[-1])
                if size > room:
                    detail = (
                        f"the answer has more than {self._max_answer_bytes} bytes: "
                        "ask for fewer nodes by node_matchers, or set exclude_resource_contents"
                    )
                    raise _Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, detail)
                written += 1
                if written % _SLICE == 0:
                    await asyncio.sleep(0)
        return b"".join((b"\x0a", varint(size), *parts))


def _read(data: bytes) -> ClientStatusRequest:
    if len(data) > MAX_REQUEST_BYTES:
        detail = f"the request has {len(data)} bytes; at most {MAX_REQUEST_BYTES} are read"
        raise _Refusal(grpc.StatusCode.INVALID_ARGUMENT, detail)
    try:
        return ClientStatusRequest.parse(data)
    # What the generated reader raises for bytes that are no message of its type.
    except (ValueError, LookupError, EOFError, TypeError, ArithmeticError, AttributeError, RecursionError) as error:
        detail = f"the request is no ClientStatusRequest: {type(error).__name__}"
        raise _Refusal(grpc.StatusCode.INVALID_ARGUMENT, detail) from error


def _node(node: Node) -> NodeMessage:
    """Spell a node as it told itself; extensions and features of its build were never read."""
    place = Locality(region=node.region, zone=node.zone, sub_zone=node.sub_zone)
    return NodeMessage(
        id=node.id,
        cluster=node.cluster,
        metadata=protobuf.Struct.from_dict(dict(node.metadata)) if node.metadata else None,
        locality=place if node.region or node.zone or node.sub_zone else None,
        user_agent_name=node.user_agent_name,
        user_agent_version=node.user_agent_version or None,
        client_features=sorted(node.client_features),
    )


def _text(number: int, value: str) -> bytes:
    return frame(number, value.encode()) if value else b""


def _timestamp(at: float) -> bytes:
    seconds, nanos = int(at), int(at % 1 * 1e6) * 1000
    return b"\x08" + varint(seconds) + (b"\x10" + varint(nanos) if nanos else b"")
