"""A gRPC service that registers itself, answers greetings, keeps its lease and deregisters when it stops.

python examples/grpc_without_proxies/server.py --name greeter [--id greeter-1] [--weight 1] [--control-plane URL]
"""

import argparse
import asyncio
import signal
import sys
from typing import Any

import aiohttp
import grpc
import grpc.aio

TTL_S = 30
DRAIN_S = 2.0
"""How long calls may still come after the service has deregistered: clients hear of it within milliseconds."""


async def main(name: str, id: str, weight: int, control_plane: str) -> None:  # noqa: A002
    """Serve until a signal comes."""

    async def greet(who: bytes, _: Any) -> bytes:
        return f"{id} greets {who.decode() or 'you'}".encode()

    server = grpc.aio.server()
    methods = {"Greet": grpc.unary_unary_rpc_method_handler(greet)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("example.Greeter", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    where = f"/api/v1/services/{name}/instances/{id}"
    instance = {"host": "127.0.0.1", "port": port, "weight": weight, "ttl": TTL_S}
    try:
        async with aiohttp.ClientSession(control_plane, timeout=aiohttp.ClientTimeout(total=5)) as client:
            async with client.put(where, json=instance) as answer:
                if answer.status >= 400:
                    sys.exit(f"the control plane refused: {await answer.text()}")
            print(f"registered as {where}, serving on port {port}", flush=True)
            while not stop.is_set():
                try:
                    async with asyncio.timeout(TTL_S / 3):
                        await stop.wait()
                except TimeoutError:
                    await renew(client, where, instance)
            # Out of the clients' sight first, then out of the world.
            async with client.delete(where):
                pass
            print("deregistered", flush=True)
        # Calls that begin before the clients have heard of it get an answer: to those, stop() gives no grace.
        await asyncio.sleep(DRAIN_S)
    finally:
        await server.stop(DRAIN_S)


async def renew(client: aiohttp.ClientSession, where: str, instance: dict[str, Any]) -> None:
    """Register again, which renews the lease; a control plane that is away must not take the service down."""
    try:
        async with client.put(where, json=instance):
            pass
    except (aiohttp.ClientError, TimeoutError) as error:
        print(f"not renewed, trying again: {error}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="greeter")
    parser.add_argument("--id", default="greeter-1")
    parser.add_argument("--weight", type=int, default=1)
    parser.add_argument("--control-plane", default="http://127.0.0.1:8090")
    arguments = parser.parse_args()
    try:
        asyncio.run(main(arguments.name, arguments.id, arguments.weight, arguments.control_plane))
    except aiohttp.ClientError as error:
        sys.exit(f"the control plane cannot be reached; is `make run` running? {error}")
