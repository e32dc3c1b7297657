"""HTTP, TCP and gRPC checks against real servers on the loopback."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from aiohttp import ClientSession, web
from builders import instance
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from controlplane.health import OUTPUT_LIMIT_BYTES, Outcome, OutcomeKind, Probe
from controlplane.health.attempt import Answer, attempt
from controlplane.health.grpc import GrpcProbe
from controlplane.health.http import HttpProbe, probe_session
from controlplane.health.tcp import TcpProbe
from controlplane.model import CheckType, HealthCheck

pytestmark = pytest.mark.integration

PASS, DEGRADED, FAIL, TIMEOUT = OutcomeKind.PASS, OutcomeKind.DEGRADED, OutcomeKind.FAIL, OutcomeKind.TIMEOUT
PATIENCE_S = 20.0
IMPATIENCE_S = 0.1

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with probe_session() as session:
        yield session


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[int]]]:
    """Serve a handler for every path, and return the port."""
    runners: list[web.AppRunner] = []

    async def start(handler: Handler, host: str = "127.0.0.1") -> int:
        app = web.Application()
        app.router.add_get("/{path:.*}", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, host, 0)
        await site.start()
        return runner.addresses[0][1]

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
def refusing_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
async def mute_port() -> AsyncIterator[int]:
    """Accept connections and say nothing."""
    accepted: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: accepted.append(writer), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in accepted:
        writer.close()
    await server.wait_closed()


async def ask(
    probe: Probe, port: int, *, address: str = "127.0.0.1", timeout_s: float = PATIENCE_S, **check: Any
) -> Outcome:
    asked = instance(host=check.pop("host", address), port=port, health_check=HealthCheck(**check))
    return await probe(asked, address, timeout_s)


def answering(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers=headers)

    return handler


@pytest.mark.parametrize(
    ("handler", "kind", "output"),
    [
        pytest.param(answering(200, b"all well\n"), PASS, "HTTP 200\nall well", id="200 passes, its body is kept"),
        pytest.param(answering(204), PASS, "HTTP 204", id="any 2xx passes"),
        pytest.param(answering(302, headers={"Location": "/"}), FAIL, "HTTP 302", id="a redirect is not followed"),
        pytest.param(answering(429), DEGRADED, "HTTP 429", id="too many requests is degraded"),
        pytest.param(answering(200, headers={"X-Envoy-Degraded": ""}), DEGRADED, "HTTP 200", id="Envoy's header"),
        pytest.param(answering(503, headers={"x-envoy-degraded": "1"}), FAIL, "HTTP 503", id="a failure with it"),
        pytest.param(answering(503, b"\x1b[31mdown\xff"), FAIL, "HTTP 503\n\ufffd[31mdown\ufffd", id="503, odd bytes"),
        pytest.param(answering(404), FAIL, "HTTP 404", id="404 fails"),
    ],
)
async def test_an_http_answer_is_judged_by_its_status(
    handler: Handler, kind: OutcomeKind, output: str, serve: Callable[..., Awaitable[int]], session: ClientSession
) -> None:
    outcome = await ask(HttpProbe(session), await serve(handler))
    assert (outcome.kind, outcome.output) == (kind, output)
    assert 0 < outcome.latency_s < PATIENCE_S


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/health", id="a plain path"),
        pytest.param("/health?full=1&x=%2F", id="a query"),
        pytest.param("/a%2Fb/../c;d=e", id="escapes and dots as they are"),
        pytest.param("//double", id="two slashes are no authority"),
    ],
)
async def test_the_request_is_what_was_registered(
    path: str, serve: Callable[..., Awaitable[int]], session: ClientSession
) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(text=f"{request.raw_path} {request.headers['Host']}")

    port = await serve(echo)
    outcome = await ask(HttpProbe(session), port, host="web.internal", http_path=path)
    assert outcome.output == f"HTTP 200\n{path} web.internal:{port}"


async def test_http_over_ipv6_with_brackets(serve: Callable[..., Awaitable[int]], session: ClientSession) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(text=request.headers["Host"])

    port = await serve(echo, "::1")
    outcome = await ask(HttpProbe(session), port, address="::1")
    assert (outcome.kind, outcome.output) == (PASS, f"HTTP 200\n[::1]:{port}")


async def test_an_endless_body_is_read_to_4_kib_and_no_further(
    serve: Callable[..., Awaitable[int]], session: ClientSession
) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65_536)

    outcome = await ask(HttpProbe(session), await serve(endless))
    assert (outcome.kind, outcome.summary) == (PASS, "HTTP 200")
    assert outcome.output == "HTTP 200\n" + "x" * OUTPUT_LIMIT_BYTES


async def test_a_connection_closed_without_an_answer_fails(session: ClientSession) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        outcome = await ask(HttpProbe(session), server.sockets[0].getsockname()[1])
    assert outcome.kind is FAIL
    assert "disconnected" in outcome.output or "reset" in outcome.output


async def test_what_is_not_http_fails_readably(session: ClientSession) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail ready\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        outcome = await ask(HttpProbe(session), server.sockets[0].getsockname()[1])
    assert outcome.kind is FAIL
    assert len(outcome.summary) > 5


@pytest.mark.parametrize("check", [CheckType.HTTP, CheckType.GRPC])
async def test_silence_is_a_timeout_within_the_bound(check: CheckType, mute_port: int, session: ClientSession) -> None:
    probe: Probe = HttpProbe(session) if check is CheckType.HTTP else GrpcProbe()
    outcome = await ask(probe, mute_port, timeout_s=IMPATIENCE_S)
    assert (outcome.kind, outcome.output) == (TIMEOUT, "no answer within 0.1 s")
    assert IMPATIENCE_S <= outcome.latency_s + 0.01 < PATIENCE_S


@pytest.mark.parametrize("check", [CheckType.HTTP, CheckType.TCP, CheckType.GRPC])
async def test_a_refused_connection_fails_and_says_so(
    check: CheckType, refusing_port: int, session: ClientSession
) -> None:
    probes: dict[CheckType, Probe] = {
        CheckType.HTTP: HttpProbe(session),
        CheckType.TCP: TcpProbe(),
        CheckType.GRPC: GrpcProbe(),
    }
    outcome = await ask(probes[check], refusing_port)
    assert (outcome.kind, outcome.output) == (FAIL, "connection refused")


async def test_tcp_passes_where_a_connection_is_accepted_and_closes_it() -> None:
    closed = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""
        writer.close()
        closed.set()

    for host in ("127.0.0.1", "::1"):
        closed.clear()
        server = await asyncio.start_server(accept, host, 0)
        async with server:
            outcome = await ask(TcpProbe(), server.sockets[0].getsockname()[1], address=host)
            assert (outcome.kind, outcome.output) == (PASS, "connected")
            await closed.wait()


@pytest.fixture(params=["127.0.0.1", "[::1]"])
async def grpc_port(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, int]]:
    """Serve grpc.health.v1: the server and `up` are serving, `down` is not."""
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for service, status in (
        ("", health_pb2.HealthCheckResponse.SERVING),
        ("up", health_pb2.HealthCheckResponse.SERVING),
        ("down", health_pb2.HealthCheckResponse.NOT_SERVING),
        ("odd", health_pb2.HealthCheckResponse.UNKNOWN),
    ):
        await servicer.set(service, status)
    port = server.add_insecure_port(f"{request.param}:0")
    await server.start()
    yield request.param.strip("[]"), port
    await server.stop(None)


@pytest.mark.parametrize(
    ("service", "kind", "output"),
    [
        pytest.param("", PASS, "SERVING", id="the server serves"),
        pytest.param("up", PASS, "SERVING", id="a service serves"),
        pytest.param("down", FAIL, "NOT_SERVING", id="a service does not serve"),
        pytest.param("odd", FAIL, "UNKNOWN", id="a service of unknown state"),
        pytest.param("none", FAIL, "NOT_FOUND", id="no such service"),
    ],
)
async def test_grpc_health(service: str, kind: OutcomeKind, output: str, grpc_port: tuple[str, int]) -> None:
    address, port = grpc_port
    outcome = await ask(GrpcProbe(), port, address=address, type=CheckType.GRPC, grpc_service=service)
    assert (outcome.kind, outcome.output.partition(":")[0]) == (kind, output)


async def test_a_grpc_server_without_the_health_service_fails() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        outcome = await ask(GrpcProbe(), port, type=CheckType.GRPC)
    finally:
        await server.stop(None)
    assert outcome.kind is FAIL
    assert outcome.output.startswith("UNIMPLEMENTED: ")


async def test_a_grpc_instance_that_returns_passes_at_once(refusing_port: int) -> None:
    probe = GrpcProbe()
    for _ in range(3):
        assert (await ask(probe, refusing_port, type=CheckType.GRPC)).kind is FAIL
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{refusing_port}")
    await server.start()
    try:
        outcome = await ask(probe, refusing_port, type=CheckType.GRPC)
    finally:
        await server.stop(None)
    assert outcome.kind is PASS


@pytest.mark.parametrize(
    ("error", "kind", "output"),
    [
        pytest.param(OSError(errno.ECONNRESET, "x"), FAIL, "connection reset by peer", id="the peer's doing"),
        pytest.param(OSError(errno.EMFILE, "x"), OutcomeKind.UNKNOWN, "too many open files", id="our own want"),
        pytest.param(OSError("odd"), FAIL, "OSError: odd", id="no error number"),
        pytest.param(ValueError("bad\x1b value"), FAIL, "ValueError: bad\ufffd value", id="any other exception"),
        pytest.param(KeyError(), FAIL, "KeyError", id="an exception without words"),
        pytest.param(TimeoutError(), TIMEOUT, "no answer within 2.5 s", id="a deadline of the probe's own"),
    ],
)
async def test_every_exception_becomes_an_outcome(error: Exception, kind: OutcomeKind, output: str) -> None:
    async def broken() -> Answer:
        raise error

    ticks = iter((10.0, 10.25))
    outcome = await attempt(broken(), 2.5, lambda: next(ticks))
    assert outcome == Outcome(kind=kind, output=output, latency_s=0.25)


async def test_cancellation_is_no_outcome() -> None:
    async def forever() -> Answer:
        await asyncio.get_running_loop().create_future()
        return PASS, ""

    task = asyncio.create_task(attempt(forever(), PATIENCE_S, lambda: 0.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
