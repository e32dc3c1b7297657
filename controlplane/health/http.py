"""Check by a GET: 2xx passes, 429 or an `x-envoy-degraded` header means degraded, anything else fails.

Redirects are answers, never followed: a check speaks of one instance. Plain HTTP only.
"""

import string
import time
from collections.abc import Callable
from urllib.parse import quote

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from yarl import URL

from controlplane.health import OUTPUT_LIMIT_BYTES, Outcome, OutcomeKind
from controlplane.health.attempt import Answer, attempt, readable
from controlplane.model import HealthCheck, Instance

_SENT_AS_IT_IS = string.punctuation.replace("#", "")


def probe_session() -> ClientSession:
    """Return a session fit for checks; the caller closes it.

    No cookies, no decompression (a small answer could unpack to a large one), no connection kept: ten thousand
    idle connections would exhaust the file descriptors, and a fresh one proves that the instance still accepts.
    The connector has no bound of its own; the monitor's is the only one.
    """
    return ClientSession(
        connector=TCPConnector(limit=0, force_close=True),
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
        timeout=ClientTimeout(total=None),  # each check brings its own deadline
    )


class HttpProbe:
    """GET the instance's `http_path`."""

    def __init__(self, session: ClientSession, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._session = session
        self._clock = clock

    async def __call__(self, instance: Instance, address: str, timeout_s: float) -> Outcome:
        """Judge the instance by its answer's status; the first 4 KiB of the body go with the outcome."""
        return await attempt(self._get(instance, address), timeout_s, self._clock)

    async def _get(self, instance: Instance, address: str) -> Answer:
        path = (instance.health_check or HealthCheck()).http_path
        url = URL(f"http://{_authority(address, instance.port)}{quote(path, safe=_SENT_AS_IT_IS)}", encoded=True)
        headers = {
            "Host": _authority(instance.host, instance.port),
            "User-Agent": "service-discovery-health-check",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
        }
        async with self._session.get(url, headers=headers, allow_redirects=False) as response:
            body = bytearray()
            while len(body) < OUTPUT_LIMIT_BYTES:
                chunk = await response.content.read(OUTPUT_LIMIT_BYTES - len(body))
                if not chunk:
                    break
                body += chunk
            ok = 200 <= response.status < 300
            degraded = response.status == 429 or (ok and "x-envoy-degraded" in response.headers)
            kind = OutcomeKind.DEGRADED if degraded else OutcomeKind.PASS if ok else OutcomeKind.FAIL
            return kind, f"HTTP {response.status}\n{readable(bytes(body))}".rstrip()


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
