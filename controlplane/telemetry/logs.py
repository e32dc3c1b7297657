"""The process's logs: one renderer for structlog's events and for the standard library's, secrets left out.

`json`: one object a line on stdout, as containers expect: `time` (RFC 3339, UTC), `level`, `logger`, `event`, then
the event's own fields. `console`: for a person, on stderr. Logging belongs to the process, so `configure` is the
one thing here that has a global effect; only the entry point calls it.
"""

import logging
import sys
from collections.abc import Mapping
from typing import Any, Literal, TextIO

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

REDACTED = "[redacted]"

_SECRETS = ("token", "password", "passwd", "secret", "apikey", "authorization", "credential", "privatekey", "cookie")
_HANDLER = "controlplane"
_DEEPEST = 6


def configure(level: str, log_format: Literal["json", "console"], *, stream: TextIO | None = None) -> None:
    """Send all logging of the process, from `level` on, to `stream`; by default stdout for json, else stderr.

    Can be called again; the newest call counts.
    """
    stream = stream or (sys.stdout if log_format == "json" else sys.stderr)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        redact,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.set_name(_HANDLER)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(log_format, stream)],
        )
    )
    root = logging.getLogger()
    for old in [each for each in root.handlers if each.get_name() == _HANDLER]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    # What these say below INFO is about their own insides.
    for name in ("grpc", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLevelName(level)))
    logging.captureWarnings(True)


def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Replace the values of fields that are named like a secret, at any depth."""
    return {name: _redacted(name, value, _DEEPEST) for name, value in event.items()}


def _redacted(name: str, value: Any, depth: int) -> Any:
    if value is not None and _is_secret(name):
        return REDACTED
    if depth == 0:
        return value
    if isinstance(value, Mapping):
        return {key: _redacted(str(key), each, depth - 1) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted("", each, depth - 1) for each in value]
    return value


def _is_secret(name: str) -> bool:
    plain = name.lower().replace("-", "").replace("_", "")
    return any(word in plain for word in _SECRETS)


def _renderers(log_format: Literal["json", "console"], stream: TextIO) -> list[Processor]:
    if log_format == "console":
        # Not the default traceback, which prints local variables, secrets among them.
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=stream.isatty(), timestamp_key="time", exception_formatter=plain)]
    return [structlog.processors.format_exc_info, _in_order, structlog.processors.JSONRenderer(serializer=_to_json)]


def _in_order(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Put what every line has at its beginning, where a person's eye looks for it."""
    first = ("time", "level", "logger", "event")
    return {**{name: event[name] for name in first if name in event}, **event}


def _to_json(event: EventDict, **_: Any) -> str:
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
