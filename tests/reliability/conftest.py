"""How far the runs go: a share in `make test`, all of it in `make reliability`."""

import pytest


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--thorough"))
