"""The real things, started and stopped by a test: the control plane's process, Envoy, and instances to reach.

Everything listens on loopback, on ports that were free a moment ago, and ends with the block that started it.
"""

import asyncio
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import aiohttp
from aiohttp import web

from controlplane.bootstrap import bootstrap
from controlplane.local_envoy import envoy_binary

T = TypeVar("T")

PATIENCE_S = 20.0
"""How long anything may take before a test gives up on it."""

START_S = 60.0
"""How long a process may take to be ready: it loads for seconds of CPU, which others on the machine may want too."""


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def eventually(
    look: Callable[[], Awaitable[T | None]], what: str | Callable[[], str], patience_s: float = PATIENCE_S
) -> T:
    """Look again and again until there is something to see; fail with `what` where there never is."""
    try:
        async with asyncio.timeout(patience_s):
            while True:
                if (seen := await look()) not in (None, False):
                    return seen  # type: ignore[return-value]
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {patience_s} s: {what if isinstance(what, str) else what()}") from None


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise AssertionError("a process had to be killed: it did not end on SIGTERM") from None


@dataclass(kw_only=True)
class ControlPlane:
    """Run `controlplane serve` as a process of its own."""

    folder: Path
    client: aiohttp.ClientSession
    environ: dict[str, str] = field(default_factory=dict)
    durable: bool = True
    service_port: int = field(default_factory=free_port)
    xds_port: int = field(default_factory=free_port)
    gateway_port: int = field(default_factory=free_port)
    process: asyncio.subprocess.Process | None = None

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.service_port}/api/v1"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.service_port}"

    async def start(self) -> None:
        """Start the process and wait until it is ready."""
        environ = {
            **{name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}},
            "SERVICE_PORT": str(self.service_port),
            "XDS_PORT": str(self.xds_port),
            "GATEWAY_PORT": str(self.gateway_port),
            "LOG_LEVEL": "INFO",
            "LOG_FORMAT": "json",
            **({"DATA_DIR": str(self.folder / "data")} if self.durable else {}),
            **self.environ,
        }
        with (self.folder / "controlplane.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-W", "error::RuntimeWarning", "-m", "controlplane", "serve"),
                env=environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            await eventually(self._ready, lambda: f"the control plane is ready; its log:\n{self.log()}", START_S)
        except BaseException:
            if self.process.returncode is None:
                self.process.kill()
                await self.process.wait()
            raise

    async def _ready(self) -> bool:
        assert self.process is not None
        if self.process.returncode is not None:
            raise AssertionError(f"the control plane ended with {self.process.returncode}:\n{self.log()}")
        try:
            async with self.client.get(f"{self.url}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def stop(self, *, kill: bool = False) -> None:
        """End the process, with SIGKILL if asked."""
        assert self.process is not None
        if kill and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()
        await _ended(self.process)

    def log(self) -> str:
        path = self.folder / "controlplane.log"
        return path.read_text()[-4000:] if path.exists() else ""

    async def put(self, service: str, id: str, port: int, **fields: Any) -> dict[str, Any]:
        """Register an instance on 127.0.0.1 under an id."""
        url = f"{self.api}/services/{service}/instances/{id}"
        async with self.client.put(url, json={"host": "127.0.0.1", "port": port, **fields}) as answer:
            assert answer.status in (200, 201), await answer.text()
            return dict(await answer.json())

    async def delete(self, service: str, id: str) -> None:
        async with self.client.delete(f"{self.api}/services/{service}/instances/{id}") as answer:
            assert answer.status == 204, await answer.text()

    async def policy(self, service: str, **policy: Any) -> None:
        async with self.client.put(f"{self.api}/services/{service}/policy", json=policy) as answer:
            assert answer.status in (200, 201), await answer.text()


@dataclass(kw_only=True)
class Envoy:
    """Run a real Envoy that takes everything from a control plane."""

    folder: Path
    client: aiohttp.ClientSession
    control_plane: ControlPlane
    replicas: Sequence[ControlPlane] = ()
    binary: Path = field(default_factory=envoy_binary)
    protocol: Literal["delta", "sotw", "rest"] = "delta"
    node_id: str = "e2e"
    gateway_port: int | None = None
    runtime_layer: str | None = None
    admin_port: int = field(default_factory=free_port)
    process: asyncio.subprocess.Process | None = None

    @property
    def gateway(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port or self.control_plane.gateway_port}"

    async def start(self) -> None:
        """Start Envoy and wait until it is live, which it is once xDS has answered."""
        config = self.folder / f"{self.node_id}.yaml"
        config.write_text(
            bootstrap(
                node_id=self.node_id,
                cluster="e2e",
                xds=[
                    ("127.0.0.1", each.service_port if self.protocol == "rest" else each.xds_port)
                    for each in (self.control_plane, *self.replicas)
                ],
                protocol=self.protocol,
                admin_host="127.0.0.1",
                admin_port=self.admin_port,
                gateway_port=self.gateway_port,
                runtime_layer=self.runtime_layer,
            )
        )
        with (self.folder / f"{self.node_id}.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(str(self.binary), "-c", str(config), "--concurrency", "1", "--disable-hot-restart"),
                *("--log-level", "warning"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        await eventually(self._live, "Envoy is live")

    async def _live(self) -> bool:
        try:
            async with self.client.get(f"http://127.0.0.1:{self.admin_port}/ready") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def stop(self) -> None:
        assert self.process is not None
        await _ended(self.process)

    async def stats(self, pattern: str = "") -> dict[str, int]:
        """Return Envoy's counters and gauges whose name matches a regular expression."""
        url = f"http://127.0.0.1:{self.admin_port}/stats?format=json&type=All&filter={pattern}"
        async with self.client.get(url) as answer:
            stats = (await answer.json())["stats"]
        return {stat["name"]: stat["value"] for stat in stats if "value" in stat}

    async def hosts(self, cluster: str) -> dict[str, str]:
        """Return the hosts of a cluster that Envoy holds, by address, with the health that EDS gave them."""
        url = f"http://127.0.0.1:{self.admin_port}/clusters?format=json"
        async with self.client.get(url) as answer:
            statuses = (await answer.json()).get("cluster_statuses", [])
        return {
            f"{host['address']['socket_address']['address']}:{host['address']['socket_address']['port_value']}": host[
                "health_status"
            ].get("eds_health_status", "UNKNOWN")
            for status in statuses
            if status["name"] == cluster
            for host in status.get("host_statuses", [])
        }

    async def get(self, path: str, host: str | None = None, **headers: str) -> tuple[int, str]:
        """Send a request through the gateway; return its status and body."""
        sent = {**headers, **({"Host": host} if host else {})}
        async with self.client.get(f"{self.gateway}{path}", headers=sent) as answer:
            return answer.status, await answer.text()

    async def shares(self, count: int, path: str, host: str | None = None, workers: int = 8) -> Counter[str]:
        """Send `count` requests, `workers` at a time, and count the bodies; every one must succeed."""
        seen: Counter[str] = Counter()
        left = iter(range(count))

        async def work() -> None:
            for _ in left:
                status, body = await self.get(path, host)
                assert status == 200, (status, body)
                seen[body] += 1

        async with asyncio.TaskGroup() as tasks:
            for _ in range(workers):
                tasks.create_task(work())
        return seen

    async def serves(self, service: str, *bodies: str) -> None:
        """Wait until each of these instances has answered a request to the service by path."""
        missing = set(bodies)

        async def all_seen() -> bool:
            status, body = await self.get(f"/{service}/")
            if status == 200:
                missing.discard(body)
            return not missing

        await eventually(all_seen, f"{service} is served by {sorted(bodies)}")


@dataclass(kw_only=True)
class Upstream:
    """Run one instance of a service that answers with its name."""

    name: str
    healthy: bool = True
    delay_s: float = 0.0
    requests: int = 0
    last_path: str = ""
    port: int = 0


@asynccontextmanager
async def upstream(name: str, *, delay_s: float = 0.0) -> AsyncIterator[Upstream]:
    """Start an instance on a free port of 127.0.0.1."""
    state = Upstream(name=name, delay_s=delay_s)

    async def check(_: web.Request) -> web.Response:
        return web.Response(status=200 if state.healthy else 503)

    async def answer(request: web.Request) -> web.Response:
        state.requests += 1
        state.last_path = request.path
        if state.delay_s:
            await asyncio.sleep(state.delay_s)
        return web.Response(text=name)

    app = web.Application()
    app.router.add_get("/health", check)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    state.port = runner.addresses[0][1]
    try:
        yield state
    finally:
        await runner.cleanup()


@asynccontextmanager
async def instances(control_plane: ControlPlane, service: str, *names: str) -> AsyncIterator[dict[str, Upstream]]:
    """Start instances and register them under their names."""
    async with AsyncExitStack() as stack:
        started = {name: await stack.enter_async_context(upstream(name)) for name in names}
        for name, instance in started.items():
            await control_plane.put(service, name, instance.port)
        yield started


class Traffic:
    """Send requests one after another in the background, and remember what came back.

    `pause_s` lies between an answer and the next request, so that what is tested has the machine's time too.
    """

    def __init__(self, envoy: Envoy, path: str, *, pause_s: float = 0.0) -> None:
        self._pause_s = pause_s
        self._envoy = envoy
        self._path = path
        self.seen: Counter[str] = Counter()
        self.failures: list[object] = []
        self._under_way = 0
        self._wanted = asyncio.Event()
        self._wanted.set()

    async def pause(self) -> None:
        """Send nothing for now, what is down is meant to be; return when every answer under way has come."""
        self._wanted.clear()

        async def idle() -> bool:
            return self._under_way == 0

        await eventually(idle, "every request has been answered")

    def go_on(self) -> None:
        self._wanted.set()

    async def __aenter__(self) -> "Traffic":
        self._tasks = [asyncio.create_task(self._send()) for _ in range(4)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send(self) -> None:
        while True:
            await asyncio.sleep(self._pause_s)
            await self._wanted.wait()
            self._under_way += 1
            try:
                status, body = await self._envoy.get(self._path)
            except (aiohttp.ClientError, TimeoutError) as error:
                self.failures.append(error)
                continue
            finally:
                self._under_way -= 1
            if status == 200:
                self.seen[body] += 1
            else:
                self.failures.append((status, body))

    async def more(self, count: int = 50) -> None:
        """Wait for that many further answers."""
        target = self.seen.total() + count

        async def enough() -> bool:
            return self.seen.total() + len(self.failures) >= target

        await eventually(enough, f"{count} more answers")


@asynccontextmanager
async def running_envoy(config: Path, log: Path, admin_port: int) -> AsyncIterator[None]:
    """Run an Envoy with a bootstrap of the test's own; it is live when the block begins."""
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(str(envoy_binary()), "-c", str(config), "--concurrency", "1", "--disable-hot-restart"),
            *("--log-level", "warning"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        async with aiohttp.ClientSession() as client:

            async def live() -> bool:
                if process.returncode is not None:
                    raise AssertionError(f"Envoy ended with {process.returncode}:\n{log.read_text()[-4000:]}")
                try:
                    async with client.get(f"http://127.0.0.1:{admin_port}/ready") as answer:
                        return answer.status == 200
                except aiohttp.ClientError:
                    return False

            await eventually(live, f"Envoy is live; its log:\n{log.read_text()[-4000:]}")
        yield
    finally:
        await _ended(process)
