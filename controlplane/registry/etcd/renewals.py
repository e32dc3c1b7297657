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
        self._writing = asyncio.Lock()

    async def renew(self, lease: int, *, timeout: float, metadata: tuple[tuple[str, str], ...]) -> float:
        """Renew a lease; return the seconds that it lasts, 0 where it has gone.

        Who asks for the same lease shares the answer. Raises grpc.aio.AioRpcError.
        """
        if self._reader is None or self._reader.done():
            self._waiting = {}
            self._call = self._stub.LeaseKeepAlive(metadata=metadata)
            self._reader = asyncio.create_task(_read(self._call, self._waiting))
        call, reader, waiting = self._call, self._reader, self._waiting
        try:
            async with asyncio.timeout(timeout):
                answer = waiting.get(lease)
                if answer is None:
                    answer = waiting[lease] = asyncio.get_running_loop().create_future()
                    answer.add_done_callback(_seen)
                    async with self._writing:  # gRPC takes one message at a time
                        await _write(call, lease)
                return await asyncio.shield(answer)
        except TimeoutError:
            reader.cancel()  # the others that wait are told at once
            if self._reader is reader:
                self._reader = None  # what hangs is not used by the next
            raise _error(grpc.StatusCode.DEADLINE_EXCEEDED, "a lease's renewal was not answered") from None

    async def close(self) -> None:
        """End the stream; who still waits is told so."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])


async def _write(call: Any, lease: int) -> None:
    """Ask for a renewal. Where the stream has ended, its reader tells everyone why."""
    try:
        await call.write(rpc.LeaseKeepAliveRequest(ID=lease))
    except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
        pass
    except asyncio.CancelledError:  # so gRPC says that the stream was cancelled, which is not to cancel us
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise


async def _read(call: Any, waiting: dict[int, asyncio.Future[float]]) -> None:
    reason = _error(grpc.StatusCode.UNAVAILABLE, "the stream of renewals has ended")
    try:
        while (answer := await call.read()) is not grpc.aio.EOF:
            if (future := waiting.pop(answer.ID, None)) is not None:
                future.set_result(float(answer.TTL))
    except grpc.aio.AioRpcError as error:
        reason = error
    finally:
        call.cancel()
        for future in waiting.values():
            future.set_exception(reason)


def _seen(done: asyncio.Future[float]) -> None:
    """Look at an error that nobody waits for any more, lest asyncio complain."""
    if not done.cancelled():
        done.exception()


def _error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)
