"""Put an HTTP load on a server by `wrk`: a compiled client, so that the server and not its client is the limit."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from servers.binaries import Binary

WRK = Binary(name="wrk", variable="TEST_WRK", remedy="`apt-get install wrk` brings it, or TEST_WRK names one")
_SCRIPT = Path(__file__).with_name("load.lua")
_GRACE_S = 30.0


class LoadFailed(Exception):
    """Report a load whose figures would say nothing: a request was refused, or a connection broke."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Say what is asked of service after service; for `{s}`, `{e}` and `{v}` in the texts see `load.lua`."""

    method: str
    path: str
    body: str = ""

    def filled(self, service: int, endpoint: int, version: int) -> "Request":
        """Return one request of them."""

        def fill(text: str) -> str:
            return text.replace("{s}", str(service)).replace("{e}", str(endpoint)).replace("{v}", str(version))

        return Request(method=self.method, path=fill(self.path), body=fill(self.body))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Hold what a load measured."""

    per_second: float
    p50_ms: float
    p99_ms: float


def load(
    url: str, request: Request, *, services: int, endpoints: int, version: int, connections: int, seconds: float
) -> Rate:
    """Ask over that many connections, one request in flight on each.

    Raises BinaryMissing and LoadFailed.
    """
    command = [
        *(str(WRK.path()), "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", "-s", str(_SCRIPT), url),
        *("--", request.method, request.path, request.body, str(services), str(endpoints), str(version)),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _GRACE_S, check=False)
    except subprocess.TimeoutExpired:
        raise LoadFailed(f"wrk was not done {_GRACE_S:g} s after its time") from None
    if done.returncode:
        raise LoadFailed(f"wrk ended with status {done.returncode}: {(done.stdout + done.stderr)[-500:]!r}")
    found = json.loads(done.stdout.splitlines()[-1])
    if found["refused"] or found["broken"] or not found["requests"]:
        raise LoadFailed(
            f"of {found['requests']} requests {found['refused']} were refused, {found['broken']} broke off"
        )
    return Rate(per_second=found["requests"] / found["seconds"], p50_ms=found["p50_ms"], p99_ms=found["p99_ms"])
