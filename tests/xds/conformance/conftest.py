"""A server with the conformance list's fixture, for each test its own."""

from collections.abc import AsyncIterator

import pytest

from tests.xds.conformance.world import World, serving


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Serve the fixture over real gRPC."""
    async with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    """End streams at once when a control plane stops: spreading that over seconds is `test_server.py`'s."""
    monkeypatch.setattr("controlplane.app.DRAIN_S", 0.0)
