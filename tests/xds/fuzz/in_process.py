"""The xDS server without a network: its own handlers, called as grpc would call them, a thousand times faster.

Everything of ours takes part, the driver included; what grpc itself does with bytes is for the tests with a port.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest

from xds.server import XdsServer


class Call:
    """Be one stream's context: what the handler asks grpc for."""

    def __init__(self, requests: AsyncIterator[bytes]) -> None:
        self.requests = requests
        self.responses: list[bytes] = []
        self.code = grpc.StatusCode.OK
        self.detail = ""

    def peer(self) -> str:
        return "in-process"

    async def read(self) -> Any:
        return await anext(self.requests, grpc.aio.EOF)

    async def send_initial_metadata(self, _metadata: Sequence[tuple[str, str]]) -> None:
        pass

    async def write(self, data: bytes) -> None:
        self.responses.append(data)

    async def abort(self, code: grpc.StatusCode, detail: str) -> None:
        self.code, self.detail = code, detail
        raise grpc.aio.AbortError


class InProcess:
    """Stand in for `grpc.aio.server`, and open streams of the handlers that it was given."""

    def __init__(self) -> None:
        self._handlers: tuple[Any, ...] = ()

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self._handlers = tuple(handlers)

    def add_insecure_port(self, _address: str) -> int:
        return 1

    async def start(self) -> None:
        pass

    async def stop(self, _grace: float) -> None:
        pass

    async def run(self, path: str, call: Call) -> None:
        """Run a stream to its end."""
        details = SimpleNamespace(method=path, invocation_metadata=())
        method = next(found for handler in self._handlers if (found := handler.service(details)) is not None)
        with suppress(grpc.aio.AbortError):  # the status is on the call
            await method.stream_stream(call.requests, call)


async def in_process(server: XdsServer, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """Start a server on no port at all."""
    grpc_server = InProcess()
    monkeypatch.setattr(grpc.aio, "server", lambda **_options: grpc_server)
    await server.start("127.0.0.1", 0)
    return grpc_server
