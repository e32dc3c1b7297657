"""How every probe asks: bounded in time, measured, and with each failure put into words.

The one place where exceptions become outcomes, so that no probe can take the monitor down. It knows nothing
of protocols; the probes do.
"""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable

from controlplane.health import OUTPUT_LIMIT_BYTES, Outcome, OutcomeKind

Answer = tuple[OutcomeKind, str]

_OUR_OWN_WANT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN})
"""Errors that say something about this machine and nothing about the instance."""


async def attempt(ask: Awaitable[Answer], timeout_s: float, clock: Callable[[], float]) -> Outcome:
    """Await an answer for at most `timeout_s`, measured by `clock`, and return it as an outcome.

    A deadline is a TIMEOUT; any other exception is a FAIL in readable words, or UNKNOWN where this machine lacks
    what a check takes.
    """
    started = clock()
    try:
        async with asyncio.timeout(timeout_s):
            kind, output = await ask
    except TimeoutError:
        kind, output = OutcomeKind.TIMEOUT, f"no answer within {timeout_s:g} s"
    except Exception as error:  # a probe's failure is an answer, whatever its class
        own = isinstance(error, OSError) and error.errno in _OUR_OWN_WANT
        kind, output = OutcomeKind.UNKNOWN if own else OutcomeKind.FAIL, _describe(error)
    return Outcome(kind=kind, output=output, latency_s=clock() - started)


def readable(data: bytes) -> str:
    """Return an answer's beginning as text without control characters, which could play tricks on a terminal."""
    text = data[:OUTPUT_LIMIT_BYTES].decode(errors="replace").strip()
    return "".join(ch if ch.isprintable() or ch in "\n\t" else "\N{REPLACEMENT CHARACTER}" for ch in text)


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        words = os.strerror(error.errno)  # asyncio's and aiohttp's own texts repeat the address
        return words[:1].lower() + words[1:]
    name, text = type(error).__name__, readable(str(error).encode())
    return f"{name}: {text}" if text else name
