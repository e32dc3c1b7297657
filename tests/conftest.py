"""What all tests share: real components are named when missing, and `--no-skips` makes a skip a failure."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from envoys import NEWEST, OLDER, binary, remedy
from harness import ControlPlane, Envoy
from servers.binaries import missing as missing_servers

pytest_plugins = ["servers.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail when any test is skipped")
    parser.addoption("--thorough", action="store_true", help="let tests/reliability run as long as it takes")
    parser.addoption("--fuzz-requests", type=int, default=20_000, help="how many spoilt requests the fuzz tests send")
    parser.addoption("--fuzz-seed", type=int, default=1, help="where they begin; 0 takes a new one, and prints it")
    parser.addoption("--update-golden", action="store_true", help="write tests/golden's outputs anew")


def pytest_report_header() -> list[str]:
    """Say which real components this run has."""
    found = {version: binary(version) is not None for version in (*OLDER, NEWEST)}
    here = [f"Envoy {', '.join(version for version, there in found.items() if there) or 'none'}"]
    lacking = {f"Envoy {version}": remedy(version) for version, there in found.items() if not there}
    servers = missing_servers()
    here += [server for server in ("etcd", "Consul", "kube-apiserver") if server not in servers]
    missing = ", ".join(f"{name} ({cure})" for name, cure in {**lacking, **servers}.items())
    return [f"real components: {', '.join(here)}; missing: {missing or 'none'}"]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter is not None else []
    if session.config.getoption("--no-skips") and skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """Give a test an HTTP client that keeps no cookies."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=10),
    ) as session:
        yield session


@pytest.fixture
async def control_plane(tmp_path: Path, client: aiohttp.ClientSession) -> AsyncIterator[ControlPlane]:
    """Run a control plane of the test's own, as a process."""
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
def envoy_path(request: pytest.FixtureRequest) -> Path:
    """Name the Envoy binary that a test runs: the newest, or each in turn with `EVERY_ENVOY`."""
    version = getattr(request, "param", NEWEST)
    if (path := binary(version)) is None:
        pytest.skip(f"Envoy {version} is not installed: {remedy(version)}")
    return path


@pytest.fixture
async def envoy(
    tmp_path: Path, client: aiohttp.ClientSession, envoy_path: Path, control_plane: ControlPlane, protocol: str
) -> AsyncIterator[Envoy]:
    """Run a real Envoy that takes everything from the test's control plane."""
    running = Envoy(folder=tmp_path, client=client, control_plane=control_plane, protocol=protocol, binary=envoy_path)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()
