"""`controlplane demo` (`make run`): everything on one machine, to look at and to play with.

Starts the control plane, a local Envoy that takes its configuration from it, and a demo service of two
instances, registered over REST as any service would be. Says what to try next, then `ready`.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from controlplane.app import control_plane
from controlplane.bootstrap import bootstrap
from controlplane.cli.run import configure_logs, run
from controlplane.local_envoy import EnvoyMissing, LocalEnvoy, envoy_binary
from controlplane.ports import StartError, require_free
from controlplane.settings import Loaded

SERVICE = "demo"
_START_TIMEOUT_S = 60.0
_LOOK_EVERY_S = 0.1


def run_demo(loaded: Loaded, admin_port: int) -> None:
    """Run the demo until a signal; exit with a message where something cannot start."""
    configure_logs(loaded)
    run(lambda stop: _demo(loaded, admin_port, stop))


async def _demo(loaded: Loaded, admin_port: int, stop: asyncio.Event) -> None:
    settings = loaded.settings
    envoy_binary_or_start_error()
    ports = (
        (settings.service_host, settings.service_port, "SERVICE_PORT"),
        (settings.xds_host, settings.xds_port, "XDS_PORT"),
        (settings.gateway_host, settings.gateway_port, "GATEWAY_PORT"),
        ("127.0.0.1", admin_port, "--admin-port or ENVOY_ADMIN_PORT"),
    )
    checks = await asyncio.gather(*(require_free(*port) for port in ports), return_exceptions=True)
    if taken := [str(error) for error in checks if isinstance(error, StartError)]:
        raise StartError("\n".join(taken))
    assert settings.data_dir is not None  # noqa: S101 - the demo command always sets it
    async with control_plane(settings) as running, aiohttp.ClientSession() as client:
        envoy = LocalEnvoy(
            bootstrap=bootstrap(
                node_id="local-gateway",
                cluster="gateway",
                xds=[("127.0.0.1", running.xds_port)],
                protocol="delta",
                admin_host="127.0.0.1",
                admin_port=admin_port,
                gateway_port=None,
            ),
            log_path=settings.data_dir / "envoy.log",
            say=_say,
        )
        api = f"http://127.0.0.1:{running.service_port}"
        gateway = f"http://127.0.0.1:{settings.gateway_port}"
        gateway_task = asyncio.create_task(envoy.run())
        stopping = asyncio.create_task(stop.wait())
        try:
            async with _instance(client, api, "demo-1"), _instance(client, api, "demo-2"):
                ready = asyncio.create_task(_answers(client, f"{gateway}/{SERVICE}/"))
                await asyncio.wait(
                    {ready, gateway_task, stopping},
                    timeout=_START_TIMEOUT_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if gateway_task.done():
                    ready.cancel()
                    gateway_task.result()
                if not ready.done():
                    ready.cancel()
                    if not stopping.done():
                        raise StartError(
                            f"the gateway did not answer within {_START_TIMEOUT_S:g} s; "
                            f"Envoy's log is {settings.data_dir / 'envoy.log'}"
                        )
                else:
                    _greet(api, gateway, admin_port)
                await asyncio.wait({gateway_task, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if gateway_task.done():
                    gateway_task.result()
        finally:
            gateway_task.cancel()
            stopping.cancel()
            await asyncio.gather(gateway_task, stopping, return_exceptions=True)


def envoy_binary_or_start_error() -> None:
    """Fail before anything is started where there is no Envoy to start."""
    try:
        envoy_binary()
    except EnvoyMissing as error:
        raise StartError(str(error)) from error


@asynccontextmanager
async def _instance(client: aiohttp.ClientSession, api: str, id: str) -> AsyncIterator[None]:  # noqa: A002
    """Run one instance of the demo service on a free port and keep it registered."""

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text=f"hello from {id}: {request.method} {request.path}\n")

    async def healthy(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    app = web.Application()
    app.router.add_get("/health", healthy)
    app.router.add_route("*", "/{path:.*}", hello)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        url = f"{api}/api/v1/services/{SERVICE}/instances/{id}"
        instance = {
            "host": "127.0.0.1",
            "port": port,
            "tags": ["demo"],
            "health_check": {"type": "http", "http_path": "/health", "interval": 5, "timeout": 2},
        }
        async with client.put(url, json=instance) as answer:
            if answer.status >= 300:
                raise StartError(f"cannot register the demo service: {await answer.text()}")
        yield
        async with client.delete(url):
            pass
    finally:
        await runner.cleanup()


async def _answers(client: aiohttp.ClientSession, url: str) -> None:
    while True:
        try:
            async with client.get(url, timeout=aiohttp.ClientTimeout(total=2)) as answer:
                if answer.status == 200:
                    return
        except (aiohttp.ClientError, TimeoutError):
            pass
        await asyncio.sleep(_LOOK_EVERY_S)


def _greet(api: str, gateway: str, admin_port: int) -> None:
    _say(f"""
The control plane, an Envoy gateway and a demo service of two instances are running. Try:

  # through Envoy, by path and by host
  curl {gateway}/{SERVICE}/
  curl -H 'Host: {SERVICE}' {gateway}/

  # what is registered; one instance picked, and why that one
  curl {api}/api/v1/services/{SERVICE}
  curl '{api}/api/v1/services/{SERVICE}/instance?strategy=random'

  # register your own, take it away again
  curl -X POST {api}/api/v1/services -H 'Content-Type: application/json' \\
       -d '{{"name": "mine", "id": "mine-1", "host": "127.0.0.1", "port": 9000}}'
  curl -X DELETE {api}/api/v1/services/mine/instances/mine-1

  # what Envoy holds, and what it acknowledged
  curl http://127.0.0.1:{admin_port}/clusters
  curl {api}/api/v1/proxies

API documentation: {api}/docs   Stop with Ctrl-C.
ready""")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
