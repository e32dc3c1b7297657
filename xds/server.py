"""The xDS server over grpc.aio: a thin driver around `xds.protocol.Stream`, raw bytes in and out.

Per stream one reader and one writer in one TaskGroup; only the writer sends. What needs time lives here: how
long an ACK holds others up, how long a send may take, the drain. What to say and when is `xds.protocol`'s, how
to spell it `xds.wire`'s, what to serve `xds.cache`'s; who is told about it is the caller's (`on_event`).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from types import MappingProxyType
from typing import Any

import grpc
import grpc.aio

from xds import wire
from xds.cache import Changes, SnapshotCache
from xds.protocol import ORDER, Event, Request, Response, Row, Sent, Stream, one_row
from xds.status import StreamInfo
from xds.types import (
    CLUSTER,
    ENDPOINT,
    EXTENSION,
    LISTENER,
    ROUTE,
    RUNTIME,
    SCOPED_ROUTE,
    SECRET,
    VIRTUAL_HOST,
    Node,
    Resource,
    Snapshot,
)

__all__ = ["MAX_REQUEST_BYTES", "StreamInfo", "XdsServer"]

# 40,000 names in one request are normal after a restart (F-03); reading one blocks all streams meanwhile, 0.2 s a MB.
MAX_REQUEST_BYTES = 16 * 1024 * 1024

_ADS = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_SERVICES: Mapping[str, tuple[str, str, str]] = MappingProxyType(  # VHDS has no SotW variant
    {
        CLUSTER: ("envoy.service.cluster.v3.ClusterDiscoveryService", "StreamClusters", "DeltaClusters"),
        ENDPOINT: ("envoy.service.endpoint.v3.EndpointDiscoveryService", "StreamEndpoints", "DeltaEndpoints"),
        LISTENER: ("envoy.service.listener.v3.ListenerDiscoveryService", "StreamListeners", "DeltaListeners"),
        ROUTE: ("envoy.service.route.v3.RouteDiscoveryService", "StreamRoutes", "DeltaRoutes"),
        SCOPED_ROUTE: (
            "envoy.service.route.v3.ScopedRoutesDiscoveryService",
            "StreamScopedRoutes",
            "DeltaScopedRoutes",
        ),
        VIRTUAL_HOST: ("envoy.service.route.v3.VirtualHostDiscoveryService", "", "DeltaVirtualHosts"),
        SECRET: ("envoy.service.secret.v3.SecretDiscoveryService", "StreamSecrets", "DeltaSecrets"),
        RUNTIME: ("envoy.service.runtime.v3.RuntimeDiscoveryService", "StreamRuntime", "DeltaRuntime"),
        EXTENSION: (
            "envoy.service.extension.v3.ExtensionConfigDiscoveryService",
            "StreamExtensionConfigs",
            "DeltaExtensionConfigs",
        ),
    }
)
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it in silence
    ("grpc.keepalive_time_ms", 30_000),  # a dead client is noticed (T-10)
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.max_ping_strikes", 0),  # and a client may ping as often as it likes (T-09)
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 1_000_000),  # relays multiplex (F-05)
)

Context = Any  # grpc.aio.ServicerContext: grpcio ships no types


class _Refusal(Exception):
    """End a stream with a status."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(slots=True)
class _Call:
    """Keep what reader and writer of one stream share."""

    context: Context
    reader: wire.RequestReader
    stream: Stream
    type_url: str
    delta: bool
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    info: StreamInfo | None = None
    unwatch: Callable[[], None] | None = None
    half_closed: bool = False
    ending: bool = False
    responded: bool = False


class XdsServer:
    """Serve the snapshots of a cache over ADS and per-type streams, SotW and Delta.

    Args:
        cache: what to serve; watched per node group.
        group_of: the cache's key for a node.
        by_name_only: whether a node is told what it names and nothing else, even where it asks for everything.
        ready: whether clients may be served at all; if not they are refused with UNAVAILABLE (R-09).
        identifier: told to clients as `control_plane.identifier` (T-14).
        on_event: hears every event of every stream; must be quick and must not raise.
        handlers: further generic gRPC handlers for the same port.
        credentials: TLS; plain text without.
        clock: monotonic seconds.
        ack_timeout_s: for how long an unanswered response holds up the types behind it (O-06).
        send_timeout_s: after which a client that reads nothing is let go (F-04).
        requests_per_s: what one stream may ask, with a burst of as many; it is slowed down, not refused (P-08).
    """

    def __init__(
        self,
        cache: SnapshotCache,
        *,
        group_of: Callable[[Node], Hashable],
        ready: Callable[[], bool],
        identifier: str,
        by_name_only: Callable[[Node], bool] = lambda _node: False,
        on_event: Callable[[StreamInfo, Event], None] = lambda _info, _event: None,
        handlers: Sequence[grpc.GenericRpcHandler] = (),
        credentials: grpc.ServerCredentials | None = None,
        clock: Callable[[], float] = time.monotonic,
        ack_timeout_s: float = 10.0,
        send_timeout_s: float = 60.0,
        requests_per_s: float = 1000.0,
        max_request_bytes: int = MAX_REQUEST_BYTES,
    ) -> None:
        self._cache = cache
        self._group_of = group_of
        self._by_name_only = by_name_only
        self._ready = ready
        self._on_event = on_event
        self._handlers = tuple(handlers)
        self._credentials = credentials
        self._clock = clock
        self._ack_timeout_s = ack_timeout_s
        self._send_timeout_s = send_timeout_s
        self._requests_per_s = requests_per_s
        self._max_request_bytes = max_request_bytes
        self._writer = wire.ResponseWriter(identifier)
        self._names_of = wire.NamesPool()
        self._ids = count(1)
        self._calls: dict[int, _Call] = {}
        self._draining = False
        self._server: Any = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port, which matters if 0 was asked for.

        Raises:
            RuntimeError: the address cannot be bound.
        """
        # The transport's own limit is wider, so that an oversized request meets our status and not its.
        limit = ("grpc.max_receive_message_length", self._max_request_bytes + 4 * 1024 * 1024)
        server = grpc.aio.server(options=(*_OPTIONS, limit))
        server.add_generic_rpc_handlers((*self._services(), *self._handlers))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if self._credentials is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, self._credentials)
        if bound == 0:
            raise RuntimeError(f"cannot listen on {address}: is the port in use?")
        await server.start()
        self._server = server
        return int(bound)

    async def stop(self, drain_s: float = 0.0) -> None:
        """Take no more streams and end those that are open, evenly over `drain_s` (R-13).

        A stream ends between two responses, and not before it has had one (T-12). Snapshots that are published
        from now on reach nobody: sources that shut down must not look like deletions.
        """
        if self._server is None:
            return
        server, self._server = self._server, None
        self._draining = True
        for call in self._calls.values():
            self._stop_watching(call)
        stopping = asyncio.ensure_future(server.stop(drain_s + 1.0))
        try:
            open_now = tuple(self._calls.values())
            start = self._clock()
            for number, call in enumerate(open_now):
                if (pause := start + number * drain_s / len(open_now) - self._clock()) > 0:
                    await asyncio.sleep(pause)
                call.ending = True
                call.wake.set()
        finally:
            await stopping

    def streams(self) -> tuple[StreamInfo, ...]:
        """List the streams that have told who they are."""
        return tuple(call.info for call in self._calls.values() if call.info is not None)

    # The services

    def _services(self) -> list[grpc.GenericRpcHandler]:
        ads = {
            "StreamAggregatedResources": self._method("", ORDER, delta=False),
            "DeltaAggregatedResources": self._method("", ORDER, delta=True),
        }
        services = [grpc.method_handlers_generic_handler(_ADS, ads)]
        for type_url, (service, sotw, delta) in _SERVICES.items():
            methods = {delta: self._method(type_url, one_row(type_url), delta=True)}
            if sotw:
                methods[sotw] = self._method(type_url, one_row(type_url), delta=False)
            services.append(grpc.method_handlers_generic_handler(service, methods))
        return services

    def _method(self, type_url: str, rows: Sequence[Row], *, delta: bool) -> grpc.RpcMethodHandler:
        async def serve(requests: AsyncIterator[bytes], context: Context) -> None:
            await self._serve(requests, context, type_url, rows, delta=delta)

        return grpc.stream_stream_rpc_method_handler(serve)

    async def _serve(
        self, requests: AsyncIterator[bytes], context: Context, type_url: str, rows: Sequence[Row], *, delta: bool
    ) -> None:
        """Run one stream until either side has enough; leave nothing behind."""
        call = _Call(
            context=context,
            reader=wire.RequestReader(delta=delta, names_of=self._names_of),
            stream=Stream(delta=delta, rows=rows),
            type_url=type_url,
            delta=delta,
        )
        key = next(self._ids)
        refusal: _Refusal | None = None
        self._calls[key] = call
        try:
            self._admit()
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read(key, call, requests))
                tasks.create_task(self._write(call, reading))
        except* _Refusal as group:
            refusal = _first(group)
        finally:
            del self._calls[key]
            self._stop_watching(call)
            self._tell(call, call.stream.close())
        if refusal is not None:
            await context.abort(refusal.code, refusal.detail)

    def _admit(self) -> None:
        if self._draining:
            raise _Refusal(grpc.StatusCode.UNAVAILABLE, "the control plane is shutting down; try another replica")
        if not self._ready():
            detail = "the control plane is not ready: it does not know its services yet; try again"
            raise _Refusal(grpc.StatusCode.UNAVAILABLE, detail)

    # The reader

    async def _read(self, key: int, call: _Call, requests: AsyncIterator[bytes]) -> None:
        rate = self._requests_per_s
        allowance, last = rate, self._clock()
        async for data in requests:
            now = self._clock()
            allowance, last = min(rate, allowance + (now - last) * rate) - 1, now
            if allowance < 0:
                await asyncio.sleep(-allowance / rate)
            request = self._understand(key, call, data)
            self._tell(call, call.stream.receive(request))
            call.wake.set()
        call.half_closed = True
        call.wake.set()

    def _understand(self, key: int, call: _Call, data: bytes) -> Request:
        if len(data) > self._max_request_bytes:
            raise _invalid(f"the request has {len(data)} bytes; at most {self._max_request_bytes} are read")
        try:
            request = call.reader.read(data)
        except wire.WireError as error:
            raise _invalid(f"the request cannot be read: {error}") from error
        if call.info is None:
            self._greet(key, call)
        if request.type_url == "":
            if not call.type_url:
                raise _invalid("type_url is missing; on an aggregated stream every request has one")
            return _with_type(request, call.type_url)
        if call.type_url and request.type_url != call.type_url:
            raise _invalid(f"this service serves {call.type_url}, not {request.type_url}")
        return request

    def _greet(self, key: int, call: _Call) -> None:
        node = call.reader.node
        if node is None or not node.id:
            raise _invalid("the first request of a stream must carry a node with an id")
        stream = call.stream
        stream.by_name_only = self._by_name_only(node)

        def held(type_url: str) -> Mapping[str, Resource]:
            subscription = stream.subscriptions.get(type_url)
            return MappingProxyType(subscription.held if subscription is not None else {})

        def settled(type_url: str) -> bool:
            subscription = stream.subscriptions.get(type_url)
            return subscription is None or subscription.settled

        call.info = StreamInfo(
            id=key,
            node=node,
            group=self._group_of(node),
            peer=call.context.peer(),
            delta=call.delta,
            type_url=call.type_url,
            held=held,
            settled=settled,
        )

        def watcher(snapshot: Snapshot, changes: Changes | None) -> None:
            if stream.offer(snapshot, changes, self._clock()):
                call.wake.set()

        if not self._draining:
            call.unwatch = self._cache.watch(call.info.group, watcher)

    # The writer

    async def _write(self, call: _Call, reading: asyncio.Task[None]) -> None:
        """Send whatever may be sent, and wait for a reason to look again."""
        deadlines: dict[str, tuple[str, float]] = {}  # type -> nonce, until when it may hold others up
        while True:
            call.wake.clear()
            for response in call.stream.responses():
                await self._send(call, response)
                if call.ending or call.half_closed:
                    break
            if call.half_closed or (call.ending and call.responded):
                break
            if call.ending:
                raise _Refusal(grpc.StatusCode.UNAVAILABLE, "the control plane is shutting down; it had no answer yet")
            await self._wait(call, deadlines)
        reading.cancel()

    async def _send(self, call: _Call, response: Response) -> None:
        sent = Sent(
            type_url=response.type_url,
            version=response.version,
            nonce=response.nonce,
            revision=response.revision,
            resources=len(response.resources),
            removed=len(response.removed),
        )
        # Told first: a client near by has acknowledged before the write returns, and an ACK must not come before.
        self._tell(call, [sent])
        try:
            async with asyncio.timeout(self._send_timeout_s):
                await call.context.write(self._writer.write(response))
        except TimeoutError as error:
            detail = f"nothing was read for {self._send_timeout_s:g} s"
            raise _Refusal(grpc.StatusCode.UNAVAILABLE, detail) from error
        except grpc.aio.InternalError:
            call.half_closed = True  # the client went while we were writing: nothing is left to say
        call.responded = True

    async def _wait(self, call: _Call, deadlines: dict[str, tuple[str, float]]) -> None:
        """Wait to be woken, or until an answer has been awaited for long enough."""
        waiting = call.stream.unanswered()
        if not waiting:
            deadlines.clear()
            await call.wake.wait()
            return
        now = self._clock()
        for type_url, nonce in waiting.items():
            if deadlines.get(type_url, ("", 0.0))[0] != nonce:
                deadlines[type_url] = nonce, now + self._ack_timeout_s
        for type_url in deadlines.keys() - waiting.keys():
            del deadlines[type_url]
        try:
            async with asyncio.timeout(max(0.0, min(at for _, at in deadlines.values()) - now)):
                await call.wake.wait()
        except TimeoutError:
            for type_url, (_, at) in deadlines.items():
                if at <= self._clock():
                    call.stream.stop_waiting(type_url)

    def _tell(self, call: _Call, events: Sequence[Event]) -> None:
        if call.info is not None:
            for event in events:
                self._on_event(call.info, event)

    @staticmethod
    def _stop_watching(call: _Call) -> None:
        if call.unwatch is not None:
            call.unwatch()
            call.unwatch = None


def _invalid(detail: str) -> _Refusal:
    return _Refusal(grpc.StatusCode.INVALID_ARGUMENT, detail)


def _with_type(request: Request, type_url: str) -> Request:
    """Fill in what a per-type service knows (T-02)."""
    return replace(request, type_url=type_url)


def _first(group: BaseExceptionGroup[_Refusal]) -> _Refusal:
    found = group.exceptions[0]
    return found if isinstance(found, _Refusal) else _first(found)
