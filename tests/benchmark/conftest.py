"""A control plane of its own for each figure; figures are printed, never asserted."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
import uvloop
from harness import ControlPlane


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Generate load on uvloop, so that the server and not its client is the limit."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield session


@pytest.fixture
async def control_plane(tmp_path: Path, client: aiohttp.ClientSession) -> AsyncIterator[ControlPlane]:
    running = ControlPlane(folder=tmp_path, client=client)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\n  {line}", flush=True)

    return say
