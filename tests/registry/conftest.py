"""The registries that the contract suite is run against: one entry each."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from registry.harness import Subject, VirtualClock

from controlplane.registry import WritableRegistry
from controlplane.registry.journal import Journal
from controlplane.registry.memory import MemoryRegistry


def memory(_: Path) -> Subject:
    clock = VirtualClock()

    @asynccontextmanager
    async def start() -> AsyncIterator[WritableRegistry]:
        yield MemoryRegistry(journal=None, clock=clock, call_later=clock.call_later)

    return Subject(open=start, advance=clock.advance)


def memory_with_journal(folder: Path) -> Subject:
    clock = VirtualClock()

    @asynccontextmanager
    async def start() -> AsyncIterator[WritableRegistry]:
        async with Journal.open(folder / "data") as journal:
            yield MemoryRegistry(journal=journal, clock=clock, call_later=clock.call_later)

    return Subject(open=start, advance=clock.advance)


DURABLE: dict[str, Callable[[Path], Subject]] = {"memory with a journal": memory_with_journal}
"""Those that remember across starts of the process."""

SUBJECTS = {"memory": memory, **DURABLE}


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    return SUBJECTS[request.param](tmp_path)


@pytest.fixture(params=DURABLE)
def durable(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    return DURABLE[request.param](tmp_path)
