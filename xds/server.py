"""The xDS server over grpc.aio: a thin driver around `xds.protocol.Stream`, raw bytes in and out.

Per stream one reader and one writer in one TaskGroup; only the writer sends. What needs time lives here: how
long an ACK holds others up, how long a send may take, how long a stream lasts, the drain. What to say and when
is `xds.protocol`'s, how to read and spell it `xds.requests`' and `xds.responses`', what to serve `xds.cache`'s; who
is told about it is the caller's (`on_event`).
"""

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from random import Random
from typing import Any

import grpc
import grpc.aio

from xds.cache import Changes, SnapshotCache
from xds.call import Call, Context, Refusal
from xds.protocol import ORDER, Event, Regrouped, Request, Response, Row, Sent, Stream, one_row
from xds.requests import NamesPool, RequestReader
from xds.responses import ResponseWriter
from xds.services import ADS, SERVICES
from xds.status import StreamInfo
from xds.types import Node, Snapshot
from xds.wire import WireError

__all__ = ["MAX_REQUEST_BYTES", "StreamInfo", "XdsServer"]

# 40,000 names in one request are normal after a restart (F-03); reading one blocks all streams meanwhile, 0.2 s a MB.
MAX_REQUEST_BYTES = 16 * 1024 * 1024

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it in silence
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.max_ping_strikes", 0),  # and a client may ping as often as it likes (T-09)
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 1_000_000),  # relays multiplex (F-05)
    # Thousands of clients that come back at once wait for their turn; by default some of more than a thousand would
    # be cancelled at random, and all of more than three thousand, to come back yet again.
    ("grpc.server.max_pending_requests", 1_000_000),
    ("grpc.server.max_pending_requests_hard_limit", 1_000_000),
    ("grpc.server_max_unrequested_time_in_server", 300),  # seconds
)
_LONG_S = 0.005  # a request that takes longer to work in is counted by its time
_SHARE = 4  # one stream may take a quarter of the time (P-08)
_JITTER = 0.1  # of a stream's age, each way: those that came together do not go together
# A connection takes no new streams from this part of their age on (GOAWAY), and gRPC adds a jitter of a tenth: so a
# stream that ends of old age finds it so, and the next one is opened on another connection, maybe to another replica.
_CONNECTION_AGE = 0.8


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
        first_request_timeout_s: after which a client that has not said a word is let go.
        max_stream_age_s: how long a stream lasts, a tenth more or less; 0: for ever. It ends OK between two responses,
            and clients come back, maybe to another replica (R-12).
        keepalive_s, keepalive_timeout_s: how often a silent connection is pinged, and how long the answer may take
            before it counts as dead (T-10).
        random: where the jitter comes from.
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
        first_request_timeout_s: float = 30.0,
        max_stream_age_s: float = 0.0,
        keepalive_s: float = 30.0,
        keepalive_timeout_s: float = 20.0,
        random: Random | None = None,
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
        self._first_request_timeout_s = first_request_timeout_s
        self._max_stream_age_s = max_stream_age_s
        self._keepalive_s = keepalive_s
        self._keepalive_timeout_s = keepalive_timeout_s
        self._random = random or Random()  # noqa: S311 - jitter
        self._writer = ResponseWriter(identifier)
        self._names = NamesPool()
        self._ids = count(1)
        self._calls: dict[int, Call] = {}
        self._draining = False
        self._server: Any = None
        self._keeping_time: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port, which matters if 0 was asked for.

        Raises:
            RuntimeError: the address cannot be bound.
        """
        server = grpc.aio.server(options=(*_OPTIONS, *self._options()))
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
        self._keeping_time = asyncio.create_task(self._keep_time())
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
                # Half a step in: even a single stream leaves whoever watches readiness the time to notice.
                if (pause := start + (number + 0.5) * drain_s / len(open_now) - self._clock()) > 0:
                    await asyncio.sleep(pause)
                call.ending = True
                call.wake()
        finally:
            await stopping
            if self._keeping_time is not None:
                self._keeping_time.cancel()

    def streams(self) -> tuple[StreamInfo, ...]:
        """List the streams that have told who they are."""
        return tuple(call.info for call in self._calls.values() if call.info is not None)

    def regroup(self) -> None:
        """Ask `group_of` again for every stream, and have those that belong elsewhere now told what differs there.

        Call this when the answer for a node may have become another one.
        """
        for call in tuple(self._calls.values()):
            if call.info is not None:
                self._recognise(call, call.info, call.info.node)

    def _options(self) -> Iterator[tuple[str, int]]:
        # The transport's own limit is wider, so that an oversized request meets our status and not its.
        yield "grpc.max_receive_message_length", self._max_request_bytes + 4 * 1024 * 1024
        yield "grpc.keepalive_time_ms", round(self._keepalive_s * 1000)
        yield "grpc.keepalive_timeout_ms", round(self._keepalive_timeout_s * 1000)
        yield "grpc.http2.ping_timeout_ms", round(self._keepalive_timeout_s * 1000)  # else a minute, whatever that says
        if self._max_stream_age_s:
            yield "grpc.max_connection_age_ms", round(self._max_stream_age_s * _CONNECTION_AGE * 1000)

    # The services

    def _services(self) -> list[grpc.GenericRpcHandler]:
        ads = {
            "StreamAggregatedResources": self._method("", ORDER, delta=False),
            "DeltaAggregatedResources": self._method("", ORDER, delta=True),
        }
        services = [grpc.method_handlers_generic_handler(ADS, ads)]
        for type_url, (service, sotw, delta) in SERVICES.items():
            methods = {delta: self._method(type_url, one_row(type_url), delta=True)}
            if sotw:
                methods[sotw] = self._method(type_url, one_row(type_url), delta=False)
            services.append(grpc.method_handlers_generic_handler(service, methods))
        return services

    def _method(self, type_url: str, rows: Sequence[Row], *, delta: bool) -> grpc.RpcMethodHandler:
        async def serve(_requests: object, context: Context) -> None:
            await self._serve(context, type_url, rows, delta=delta)

        return grpc.stream_stream_rpc_method_handler(serve)

    async def _serve(self, context: Context, type_url: str, rows: Sequence[Row], *, delta: bool) -> None:
        """Run one stream until either side has enough; leave nothing behind."""
        call = Call(
            context=context,
            reader=RequestReader(delta=delta, pool=self._names),
            stream=Stream(delta=delta, rows=rows),
            type_url=type_url,
            delta=delta,
            opened_at=self._clock(),
            lasts_s=self._lifetime_s(),
        )
        key = next(self._ids)
        refusal: Refusal | None = None
        self._calls[key] = call
        try:
            self._admit()
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read(key, call))
                call.writing = tasks.create_task(self._write(call, reading))
        except* Refusal as group:
            refusal = _first(group)
        finally:
            del self._calls[key]
            self._stop_watching(call)
            self._tell(call, call.stream.close())
        if refusal is not None:
            with suppress(grpc.aio.InternalError):  # one that reads nothing may not even be told why
                await context.abort(refusal.code, refusal.detail)

    def _admit(self) -> None:
        if self._draining:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "the control plane is shutting down; try another replica")
        if not self._ready():
            detail = "the control plane is not ready: it does not know its services yet; try again"
            raise Refusal(grpc.StatusCode.UNAVAILABLE, detail)

    def _lifetime_s(self) -> float:
        if not self._max_stream_age_s:
            return math.inf
        return self._max_stream_age_s * self._random.uniform(1 - _JITTER, 1 + _JITTER)

    # The reader

    async def _read(self, key: int, call: Call) -> None:
        rate = self._requests_per_s
        allowance, last = rate, self._clock()
        read, stream = call.context.read, call.stream
        while (data := await read()) is not grpc.aio.EOF:
            now = self._clock()
            allowance, last = min(rate, allowance + (now - last) * rate) - 1, now
            if allowance < 0:
                await asyncio.sleep(-allowance / rate)
                now = self._clock()
            try:
                request = self._understand(key, call, data)
            except Refusal as refusal:
                call.refuse(refusal)
                return
            self._tell(call, stream.receive(request))
            if (spent_s := self._clock() - now) > _LONG_S:
                # A list of 50,000 names takes as long as thousands of ACKs, and everybody else waits meanwhile.
                allowance = max(allowance - _SHARE * spent_s * rate, -rate)
            del data, request  # a thousand streams that wait must not each keep their last request
            if stream.owes:
                call.wake()
        call.half_closed = True
        call.wake()

    def _understand(self, key: int, call: Call, data: bytes) -> Request:
        if len(data) > self._max_request_bytes:
            raise _invalid(f"the request has {len(data)} bytes; at most {self._max_request_bytes} are read")
        try:
            request = call.reader.read(data)
        except WireError as error:
            raise _invalid(f"the request cannot be read: {error}") from error
        if call.info is None:
            self._greet(key, call)
        elif call.reader.node is not None and call.reader.node is not call.info.node:
            self._recognise(call, call.info, call.reader.node)
        if request.type_url == "":
            if not call.type_url:
                raise _invalid("type_url is missing; on an aggregated stream every request has one")
            return _with_type(request, call.type_url)
        if call.type_url and request.type_url != call.type_url:
            raise _invalid(f"this service serves {call.type_url}, not {request.type_url}")
        return request

    def _greet(self, key: int, call: Call) -> None:
        node = call.reader.node
        if node is None or not node.id:
            raise _invalid("the first request of a stream must carry a node with an id")
        stream = call.stream
        stream.by_name_only = self._by_name_only(node)

        call.info = StreamInfo(
            id=key,
            node=node,
            group=self._group_of(node),
            peer=call.context.peer(),
            delta=call.delta,
            type_url=call.type_url,
            held=call.held,
            settled=call.settled,
            names=call.names,
            standing=call.standing,
            waiting=call.waiting,
        )

        self._watch(call, call.info.group)

    def _recognise(self, call: Call, info: StreamInfo, node: Node) -> None:
        """Take a node for what it says now, which may change while its stream lives (N-04), and group it anew."""
        group = self._group_of(node)
        if node is info.node and group == info.group:
            return
        call.info = replace(info, node=node, group=group)
        if group != info.group:
            self._stop_watching(call)
            self._watch(call, group)
        self._tell(call, [Regrouped()])

    def _watch(self, call: Call, group: Hashable) -> None:
        def watcher(snapshot: Snapshot, changes: Changes | None) -> None:
            if call.stream.offer(snapshot, changes, self._clock()):
                call.wake()

        if not self._draining:
            call.unwatch = self._cache.watch(group, watcher)

    # The writer

    async def _write(self, call: Call, reading: asyncio.Task[None]) -> None:
        """Send whatever may be sent, and sleep until there is a reason to look again."""
        loop = asyncio.get_running_loop()
        while True:
            call.asleep = None
            if self._may_retire(call):
                break
            for response in call.stream.responses():
                await self._send(call, response)
                if call.over:
                    break
            if call.refusal is not None:
                raise call.refusal
            if call.half_closed or (call.ending and call.responded):
                break
            if call.ending:
                raise Refusal(grpc.StatusCode.UNAVAILABLE, "the control plane is shutting down; it had no answer yet")
            call.asleep = loop.create_future()
            await call.asleep
        reading.cancel()

    async def _send(self, call: Call, response: Response) -> None:
        data = self._writer.write(response)
        sent = Sent(
            type_url=response.type_url,
            version=response.version,
            nonce=response.nonce,
            revision=response.revision,
            resources=len(response.resources),
            removed=len(response.removed),
            size_bytes=len(data),
        )
        # Told first: a client near by has acknowledged before the write returns, and an ACK must not come before.
        self._tell(call, (sent,))
        call.writing_since = now = self._clock()
        call.awaited[response.type_url] = response.nonce, now
        try:
            if not call.responded:  # else it would go with the message, and no status after one that is stuck
                await call.context.send_initial_metadata(())
            await call.context.write(data)
        except grpc.aio.InternalError:
            call.half_closed = True  # the client went while we were writing: nothing is left to say
        except asyncio.CancelledError:
            if not call.timed_out:
                raise
            detail = f"nothing was read for {self._send_timeout_s:g} s"
            raise Refusal(grpc.StatusCode.UNAVAILABLE, detail) from None
        finally:
            call.writing_since = None
        call.responded = True

    async def _keep_time(self) -> None:
        """See to it that nobody is waited for too long: one look at all streams now and then, no timer for each."""
        shortest = min(self._ack_timeout_s, self._send_timeout_s, self._first_request_timeout_s)
        pause = max(0.005, min(1.0, shortest / 4, self._max_stream_age_s / 40 or math.inf))
        while True:
            await asyncio.sleep(pause)
            now = self._clock()
            for call in tuple(self._calls.values()):
                self._look_at(call, now)

    def _look_at(self, call: Call, now: float) -> None:
        if call.writing_since is not None and now - call.writing_since > self._send_timeout_s:
            call.timed_out = True
            if call.writing is not None:
                call.writing.cancel()
            return
        if call.info is None and now - call.opened_at >= self._first_request_timeout_s:
            detail = f"no request came within {self._first_request_timeout_s:g} s of opening the stream"
            call.refuse(Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, detail))
            return
        if call.retires_by is None and now - call.opened_at >= call.lasts_s:
            call.retires_by = now + self._ack_timeout_s
        if self._may_retire(call):
            call.wake()
        overdue = [url for url, (_, at) in call.awaited.items() if now - at >= self._ack_timeout_s]
        for type_url in overdue:
            nonce, _ = call.awaited.pop(type_url)
            if call.stream.unanswered().get(type_url) == nonce:
                call.stream.stop_waiting(type_url)
                call.wake()

    def _may_retire(self, call: Call) -> bool:
        """Say whether a stream is old enough and may go: not before it has had a response (T-12).

        Answers that are on their way are waited for, a while.
        """
        if call.retires_by is None or not call.responded:
            return False
        return not call.stream.unanswered() or self._clock() >= call.retires_by

    def _tell(self, call: Call, events: Sequence[Event]) -> None:
        if call.info is not None:
            for event in events:
                self._on_event(call.info, event)

    @staticmethod
    def _stop_watching(call: Call) -> None:
        if call.unwatch is not None:
            call.unwatch()
            call.unwatch = None


def _invalid(detail: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, detail)


def _with_type(request: Request, type_url: str) -> Request:
    """Fill in what a per-type service knows (T-02)."""
    return replace(request, type_url=type_url)


def _first(group: BaseExceptionGroup[Refusal]) -> Refusal:
    found = group.exceptions[0]
    return found if isinstance(found, Refusal) else _first(found)
