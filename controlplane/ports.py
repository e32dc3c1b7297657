"""The two ports of the process: opened when everything behind them is there, closed in the order that hurts least."""

import asyncio
import errno
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web
from grpc_health.v1 import health as grpc_health

from controlplane import api
from controlplane.settings import Settings
from xds.csds import ClientStatus
from xds.load import LoadReports
from xds.server import XdsServer

DRAIN_S = 2.0
"""How long streams are given to end, one after another, when the process stops."""


class StartError(Exception):
    """Report why the control plane cannot start, and what would help."""


@asynccontextmanager
async def xds_port(
    server: XdsServer,
    settings: Settings,
    health: grpc_health.aio.HealthServicer,
    beside: Sequence[LoadReports | ClientStatus],
) -> AsyncIterator[int]:
    """Serve gRPC for as long as the block lasts; yield the port. Streams end spread over `DRAIN_S`.

    `beside` are the services on the port whose streams last. Raises StartError.
    """
    await require_free(settings.xds_host, settings.xds_port, "XDS_PORT")
    try:
        port = await server.start(settings.xds_host, settings.xds_port)
    except RuntimeError as error:
        raise StartError(f"XDS_PORT: {error}") from error
    try:
        yield port
    finally:
        await health.enter_graceful_shutdown()
        for service in beside:
            service.stop()
        await server.stop(DRAIN_S)


@asynccontextmanager
async def rest_port(app: web.Application, settings: Settings) -> AsyncIterator[int]:
    """Serve REST for as long as the block lasts; yield the port. Raises StartError."""
    await require_free(settings.service_host, settings.service_port, "SERVICE_PORT")
    runner = api.Runner(app, shutdown_timeout=DRAIN_S)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, settings.service_host, settings.service_port).start()
        except OSError as error:
            where = f"{settings.service_host}:{settings.service_port}"
            raise StartError(f"SERVICE_PORT: cannot listen on {where}: {error.strerror or error}") from error
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def require_free(host: str, port: int, setting: str) -> None:
    """Raise StartError where a port to listen on is taken, in words that grpc and the kernel do not find."""
    try:
        server = await asyncio.start_server(lambda *_: None, host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = f"port {port} ({setting}) is in use; is another control plane running? Stop it or set {setting}"
        else:
            why = f"cannot listen on {host}:{port} ({setting}): {error.strerror or error}"
        raise StartError(why) from error
    server.close()
    await server.wait_closed()
