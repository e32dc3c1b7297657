"""A control plane and an Envoy of its own for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from harness import ControlPlane, Envoy


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=10)
    ) as session:
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
def protocol() -> str:
    """Name the xDS variant that Envoy uses; a test may be run with both."""
    return "delta"


@pytest.fixture
async def envoy(
    tmp_path: Path, client: aiohttp.ClientSession, control_plane: ControlPlane, protocol: str
) -> AsyncIterator[Envoy]:
    running = Envoy(folder=tmp_path, client=client, control_plane=control_plane, protocol=protocol)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()
