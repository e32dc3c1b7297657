"""One server as a process: started until it answers, killed, paused, wiped, and never left behind.

`subprocess.Popen`, not asyncio's processes: those belong to the event loop that started them, and a server that a
whole session shares outlives the loop of each test.
"""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

import aiohttp

START_PATIENCE_S = 30.0
"""How long a server may take to answer. It takes 4 s at most on an idle machine; other tests may run beside it."""
STOP_PATIENCE_S = 10.0
_POLL_S = 0.02


class ServerFailed(Exception):
    """Raised where a server ended or did not answer in time; the message ends with its log's last lines."""


def port() -> int:
    """Return a port of loopback that is free now and stays so while its server is down.

    Below the range from which the kernel takes the ports of outgoing connections (32768 on Linux): a client that knocks
    at a stopped server's port again and again could otherwise be given that port, and be connected to itself. Drawn
    from the system, not from `random`'s own state, which pytest-randomly sets alike in every process.
    """
    while True:
        candidate = random.SystemRandom().randrange(20_000, 32_000)
        with (
            socket.socket(type=socket.SOCK_STREAM) as stream,
            socket.socket(type=socket.SOCK_DGRAM) as datagram,
            contextlib.suppress(OSError),
        ):
            stream.bind(("127.0.0.1", candidate))
            datagram.bind(("127.0.0.1", candidate))
            return candidate


class Server(ABC):
    """Run one server: `async with Server(folder) as server`; it answers when the block begins, and ends with it.

    All that it writes lies in `folder`; its ports stay the same for its whole life, through every restart.
    """

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    @property
    @abstractmethod
    def endpoint(self) -> str:
        """Return where clients reach it."""

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line."""

    @abstractmethod
    async def answers(self) -> bool:
        """Tell whether it does its work now; anything else but a clear yes is a no."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()  # nobody wants its data any more, and a farewell can take seconds

    @property
    def running(self) -> bool:
        """Tell whether it was started and neither killed nor stopped since, nor paused."""
        return self._process is not None and not self._paused

    @property
    def pid(self) -> int:
        """Return the process id.

        Raises:
            ServerFailed: it does not run.
        """
        if self._process is None:
            raise ServerFailed(f"{self.name} does not run; start it first")
        return self._process.pid

    async def start(self) -> None:
        """Start it, on the data that it has, and wait until it answers.

        Raises:
            ServerFailed: it ended, or did not answer within `START_PATIENCE_S`; it no longer runs.
        """
        self.launch()
        try:
            await self.ready()
        except BaseException:
            await self.kill()
            raise

    def launch(self) -> None:
        """Start the process and do not wait."""
        if self._process is not None:
            raise ServerFailed(f"{self.name} runs already; kill or stop it first")
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    async def ready(self) -> None:
        """Wait until it answers."""
        try:
            async with asyncio.timeout(START_PATIENCE_S):
                while not await self._answers():
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise ServerFailed(f"{self.name} did not answer in {START_PATIENCE_S} s; its log:\n{self.log()}") from None

    async def _answers(self) -> bool:
        if self._process is None or (code := self._process.poll()) is not None:
            raise ServerFailed(f"{self.name} ended with {code} instead of answering; its log:\n{self.log()}")
        try:
            async with asyncio.timeout(2):
                return await self.answers()
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def kill(self) -> None:
        """End it as a crash would, by SIGKILL, and return once it is gone; one that does not run is left at that."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """End it in order, by SIGTERM, and return once it is gone; one that does not run is left at that."""
        await self._end(signal.SIGTERM)

    async def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if self._paused:  # a stopped process takes no SIGTERM
            process.send_signal(signal.SIGCONT)
            self._paused = False
        process.send_signal(how)
        try:
            await asyncio.shield(asyncio.to_thread(process.wait, STOP_PATIENCE_S))
        except (subprocess.TimeoutExpired, asyncio.CancelledError):
            process.kill()
            process.wait(STOP_PATIENCE_S)
            raise

    def pause(self) -> None:
        """Make it hang: connections stay, nothing answers (SIGSTOP)."""
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)  # the signal alone leaves it a few last answers
        self._paused = True

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)
        self._paused = False

    def _signal(self, what: signal.Signals) -> None:
        if self._process is None:
            raise ServerFailed(f"{self.name} does not run; start it first")
        self._process.send_signal(what)

    async def wipe(self) -> None:
        """Crash it, lose its data, and start it empty, on the same ports."""
        await self.kill()
        await asyncio.to_thread(shutil.rmtree, self.data, ignore_errors=False)
        await self.start()

    @property
    def _log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def log(self) -> str:
        """Return the end of what it wrote."""
        return self._log.read_bytes()[-4000:].decode(errors="replace") if self._log.exists() else ""
