"""Check by connecting: whoever accepts a TCP connection passes. Nothing is sent."""

import asyncio
import time
from collections.abc import Callable

from controlplane.health import Outcome, OutcomeKind
from controlplane.health.attempt import Answer, attempt
from controlplane.model import Instance


class TcpProbe:
    """Connect and close."""

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    async def __call__(self, instance: Instance, address: str, timeout_s: float) -> Outcome:
        """Pass where the instance's port accepts a connection."""
        return await attempt(_connect(address, instance.port), timeout_s, self._clock)


async def _connect(address: str, port: int) -> Answer:
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, address, port)
    transport.close()
    return OutcomeKind.PASS, "connected"
