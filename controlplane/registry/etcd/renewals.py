"""Renew leases at one member of etcd, all over one stream: a stream for each renewal costs several times as much."""

import asyncio
from typing import Any

import grpc
import grpc.aio
from aetcd import rpc


class Renewals:
    """Send renewals and give each its answer, by the lease's id. The stream is opened when it is needed, and again."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[float]] = {}

    async def renew(self, lease: int, *, timeout: float, metadata: tuple[tuple[str, str], ...]) -> float:
        """Renew a lease; return the seconds that it lasts, 0 where it has gone.

        Who asks for the same lease shares the answer. Raises grpc.aio.AioRpcError.
        """
        if self._reader is None or self._reader.done():
            self._call = self._stub.LeaseKeepAlive(metadata=metadata)
            self._reader = asyncio.create_task(self._read(self._call, self._waiting))
        reader = self._reader
        answer = self._waiting.get(lease)
        if answer is None:
            answer = self._waiting[lease] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may wait any more
            try:
                async with asyncio.timeout(timeout):
                    await self._call.write(rpc.LeaseKeepAliveRequest(ID=lease))
            except (asyncio.InvalidStateError, grpc.aio.AioRpcError, TimeoutError):
                pass  # the reader gives the reason, or below it takes too long
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(answer)
        except TimeoutError:
            reader.cancel()  # what hangs is not waited for by the next
            raise _error(grpc.StatusCode.DEADLINE_EXCEEDED, "a lease's renewal was not answered") from None

    async def close(self) -> None:
        """End the stream; who still waits is told so."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])

    async def _read(self, call: Any, waiting: dict[int, asyncio.Future[float]]) -> None:
        reason = _error(grpc.StatusCode.UNAVAILABLE, "the stream of renewals has ended")
        try:
            while (answer := await call.read()) is not grpc.aio.EOF:
                if (future := waiting.pop(answer.ID, None)) is not None:
                    future.set_result(float(answer.TTL))
        except grpc.aio.AioRpcError as error:
            reason = error
        finally:
            call.cancel()
            if self._waiting is waiting:
                self._waiting = {}
            for future in waiting.values():
                if not future.done():
                    future.set_exception(reason)


def _error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)
