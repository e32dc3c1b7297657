"""What the process logs, and what it keeps to itself."""

import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog

from controlplane.telemetry import logs

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Put the process's logging back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_object_a_line_beginning_with_what_every_line_has(stream: io.StringIO) -> None:
    logs.configure("INFO", "json", stream=stream)
    structlog.get_logger("xds").warning("xds.nack", node_id="edge-1", error="bad\ncluster", count=2)

    (line,) = lines(stream)
    assert list(line)[:4] == ["time", "level", "logger", "event"]
    assert abs(datetime.fromisoformat(line.pop("time")) - datetime.now(UTC)) < timedelta(minutes=1)
    assert line == {
        "level": "warning",
        "logger": "xds",
        "event": "xds.nack",
        "node_id": "edge-1",
        "error": "bad\ncluster",
        "count": 2,
    }


def test_libraries_are_rendered_the_same_way(stream: io.StringIO) -> None:
    logs.configure("INFO", "json", stream=stream)
    logging.getLogger("aiohttp.server").error("no answer from %s", "10.0.0.1", extra={"attempt": 3})

    (line,) = lines(stream)
    assert (line["level"], line["logger"], line["event"]) == ("error", "aiohttp.server", "no answer from 10.0.0.1")
    assert line["attempt"] == 3


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        pytest.param("DEBUG", ["debug", "info", "warning"], id="DEBUG shows all"),
        pytest.param("INFO", ["info", "warning"], id="INFO leaves out debug"),
        pytest.param("WARNING", ["warning"], id="WARNING leaves out info too"),
    ],
)
@pytest.mark.parametrize("get_logger", [structlog.get_logger, logging.getLogger], ids=["ours", "a library's"])
def test_the_level_counts(stream: io.StringIO, level: str, seen: list[str], get_logger: Any) -> None:
    logs.configure(level, "json", stream=stream)
    log = get_logger("any")
    log.debug("a")
    log.info("b")
    log.warning("c")

    assert [line["level"] for line in lines(stream)] == seen


@pytest.mark.parametrize(
    "name",
    ["token", "consul_token", "Password", "api_key", "X-Api-Key", "Authorization", "client_secret", "Set-Cookie"],
)
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_what_is_named_like_a_secret_is_left_out(stream: io.StringIO, log_format: Any, name: str) -> None:
    logs.configure("INFO", log_format, stream=stream)
    structlog.get_logger("a").info("e", **{name: "hunter2"}, headers={"x": [{name: "hunter2"}]}, kept="visible")
    logging.getLogger("b").info("e", extra={name: "hunter2"})

    assert "hunter2" not in stream.getvalue()
    assert "visible" in stream.getvalue()


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("get_logger", [structlog.get_logger, logging.getLogger], ids=["ours", "a library's"])
def test_an_exception_comes_with_its_traceback_but_without_variables(
    stream: io.StringIO, log_format: Any, get_logger: Any
) -> None:
    def fail() -> None:
        password = "hunter" + "2"
        raise ValueError(f"length {len(password)}")

    logs.configure("INFO", log_format, stream=stream)
    try:
        fail()
    except ValueError:
        get_logger("a").exception("failed")

    text = stream.getvalue()
    assert "ValueError: length 7" in text
    assert "hunter2" not in text
    if log_format == "json":
        assert "Traceback" in lines(stream)[0]["exception"]


def test_values_of_any_kind_can_be_logged(stream: io.StringIO) -> None:
    logs.configure("INFO", "json", stream=stream)
    structlog.get_logger("a").info("e", error=ValueError("x"), ids={"one"}, by_number={1: "a"})

    (line,) = lines(stream)
    assert line["error"] == "x"
    assert line["by_number"] == {"1": "a"}


def test_a_secret_that_is_not_set_says_so(stream: io.StringIO) -> None:
    logs.configure("INFO", "json", stream=stream)
    structlog.get_logger("a").info("e", token=None)

    assert lines(stream)[0]["token"] is None


def test_json_goes_to_stdout_and_console_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", "json", stream=sys.stdout)
    structlog.get_logger("a").info("for machines")
    logs.configure("INFO", "console")
    structlog.get_logger("a").info("for people")

    out, err = capsys.readouterr()
    assert json.loads(out)["event"] == "for machines"
    assert "for people" in err


def test_configuring_again_replaces_and_repeats_nothing(stream: io.StringIO) -> None:
    logs.configure("INFO", "json", stream=io.StringIO())
    logs.configure("INFO", "json", stream=stream)
    structlog.get_logger("a").info("once")

    assert [line["event"] for line in lines(stream)] == ["once"]


def test_warnings_are_logged_too(stream: io.StringIO) -> None:
    logs.configure("INFO", "json", stream=stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old ways", DeprecationWarning, stacklevel=1)

    assert lines(stream)[0]["logger"] == "py.warnings"
