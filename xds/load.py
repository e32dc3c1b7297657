"""Load reporting (LRS): streams are accepted, and no client is asked for reports.

A client that opens `StreamLoadStats` sends nothing until a response tells it which clusters to report and how
often (envoy/service/load_stats/v3/lrs.proto). Staying silent is therefore how a server says "none", while refusing
the method would make every Envoy retry, and warn in its log, every five seconds.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc


class LoadReports:
    """Hold the load report streams of all clients open until `stop`."""

    def __init__(self) -> None:
        self._stopped = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the service, to be added to a gRPC server."""
        return grpc.method_handlers_generic_handler(
            "envoy.service.load_stats.v3.LoadReportingService",
            {"StreamLoadStats": grpc.stream_stream_rpc_method_handler(self._serve)},
        )

    def stop(self) -> None:
        """End all streams, so that the server need not wait for them."""
        self._stopped.set()

    async def _serve(self, requests: AsyncIterator[bytes], _context: Any) -> None:
        async def until_closed() -> None:
            async for _ in requests:
                pass

        waiting = {asyncio.ensure_future(until_closed()), asyncio.ensure_future(self._stopped.wait())}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
