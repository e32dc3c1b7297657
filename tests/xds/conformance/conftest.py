"""A server with the conformance list's fixture, for each test its own."""

from collections.abc import AsyncIterator

import pytest

from tests.xds.conformance.world import World, serving


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Serve the fixture over real gRPC."""
    async with serving() as running:
        yield running
