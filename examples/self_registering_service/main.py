"""A service that registers itself, keeps its lease alive and deregisters when it stops.

python examples/self_registering_service/main.py --name hello [--id hello-1] [--control-plane URL]
"""

import argparse
import asyncio
import signal
import sys
from typing import Any

import aiohttp
from aiohttp import web

TTL_S = 30
DRAIN_S = 2.0
"""How long requests may still come after the service has deregistered: proxies hear of it within milliseconds."""
CHECK = {"type": "http", "http_path": "/health", "interval": 1, "timeout": 1, "unhealthy_threshold": 2}


async def main(name: str, id: str | None, control_plane: str) -> None:  # noqa: A002
    """Serve until a signal comes."""

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text=f"{name} greets {request.query.get('who', 'you')}\n")

    async def healthy(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    app = web.Application()
    app.add_routes([web.get("/health", healthy), web.get("/{path:.*}", hello)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    instance = {
        "name": name,
        "host": "127.0.0.1",
        "port": port,
        "ttl": TTL_S,
        "tags": ["example"],
        "health_check": CHECK,
        **({"id": id} if id else {}),
    }
    async with aiohttp.ClientSession(control_plane, timeout=aiohttp.ClientTimeout(total=5)) as client:
        where = await register(client, instance)
        print(f"registered as {where}, serving on port {port}", flush=True)
        while not stop.is_set():
            try:
                async with asyncio.timeout(TTL_S / 3):
                    await stop.wait()
            except TimeoutError:
                await stay_registered(client, where, instance)
        # Out of the load balancer first, then out of the world.
        async with client.delete(where):
            pass
        print("deregistered", flush=True)
    # Requests that arrive before the proxies have heard of it get an answer.
    await asyncio.sleep(DRAIN_S)
    await runner.cleanup()


async def register(client: aiohttp.ClientSession, instance: dict[str, Any]) -> str:
    """Register, and return where; the control plane says in words what it does not like."""
    async with client.post("/api/v1/services", json=instance) as answer:
        if answer.status >= 400:
            sys.exit(f"the control plane refused: {await answer.text()}")
        return answer.headers["Location"]


async def stay_registered(client: aiohttp.ClientSession, where: str, instance: dict[str, Any]) -> None:
    """Renew the lease; a control plane that is away must not take the service down."""
    try:
        async with client.put(f"{where}/heartbeat") as answer:
            lost = answer.status == 404
        if lost:
            await register(client, instance)
    except (aiohttp.ClientError, TimeoutError) as error:
        print(f"no heartbeat, trying again: {error}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="hello")
    parser.add_argument("--id")
    parser.add_argument("--control-plane", default="http://127.0.0.1:8090")
    arguments = parser.parse_args()
    try:
        asyncio.run(main(arguments.name, arguments.id, arguments.control_plane))
    except aiohttp.ClientError as error:
        sys.exit(f"the control plane cannot be reached; is `make run` running? {error}")
