"""`controlplane serve`: the process around the control plane, with its signals and its event loop."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
import uvloop

from controlplane.app import control_plane
from controlplane.cli import FAILED, fail
from controlplane.ports import StartError
from controlplane.settings import Loaded
from controlplane.telemetry.logs import configure


def run_serve(loaded: Loaded) -> None:
    """Serve until a signal; exit with a message where the start fails."""
    configure_logs(loaded)
    run(lambda stop: _serve(loaded, stop))


async def _serve(loaded: Loaded, stop: asyncio.Event) -> None:
    async with control_plane(loaded.settings):
        await stop.wait()


def configure_logs(loaded: Loaded) -> None:
    """Set up logging as asked for, and say what the settings warn of."""
    configure(loaded.settings.log_level, loaded.settings.log_format)
    for warning in loaded.warnings:
        structlog.get_logger("controlplane.settings").warning("settings.ignored", message=warning)


def run(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run `main(stop)` on uvloop; the first SIGTERM or SIGINT sets `stop`, the second ends the process at once."""

    async def with_signals() -> None:
        stop = asyncio.Event()

        def on_signal() -> None:
            if stop.is_set():
                os._exit(FAILED)
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        await main(stop)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(with_signals())
    except BaseExceptionGroup as group:
        ours, others = group.split(StartError)
        if ours is None or others is not None:
            raise
        fail("\n".join(str(error) for error in _leaves(ours)), FAILED)
    except StartError as error:
        fail(str(error), FAILED)


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves
