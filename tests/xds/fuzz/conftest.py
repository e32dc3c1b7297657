"""How much to fuzz, and where to begin: see `make fuzz`."""

import secrets

import pytest


@pytest.fixture(scope="session")
def fuzz_seed(request: pytest.FixtureRequest) -> int:
    """Give the seed that was asked for, or a new one."""
    return int(request.config.getoption("--fuzz-seed")) or secrets.randbelow(2**32)


@pytest.fixture
def fuzz_requests(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--fuzz-requests"))
