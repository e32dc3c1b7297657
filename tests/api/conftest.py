"""The real application on the real memory registry, and clients of it."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from intakes import intake_of

from controlplane import api
from controlplane.health import CheckReport
from controlplane.intake import Intake
from controlplane.live import LiveCatalog
from controlplane.model import HealthCheck, InstanceKey
from controlplane.pick import Picker
from controlplane.readiness import Readiness
from controlplane.registry.memory import MemoryRegistry
from xds.types import Node, Snapshot

EPOCH = "e"
NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z, whatever day it is


@dataclass
class Reports:
    """Hand out the newest checks, as the monitor does."""

    known: dict[InstanceKey, CheckReport] = field(default_factory=dict)

    def report(self, key: InstanceKey) -> CheckReport | None:
        return self.known.get(key)


@dataclass
class Counted:
    """Keep what the edge counts."""

    operations: list[tuple[str, str, str]] = field(default_factory=list)
    hits: list[bool] = field(default_factory=list)
    requests: list[tuple[str, str, int, float]] = field(default_factory=list)
    counted: asyncio.Event = field(default_factory=asyncio.Event)

    def registry_operation(self, registry: str, operation: str, outcome: str) -> None:
        self.operations.append((registry, operation, outcome))

    def cache_read(self, hit: bool) -> None:
        self.hits.append(hit)

    def http_request(self, method: str, route: str, status: int, duration_s: float) -> None:
        self.requests.append((method, route, status, duration_s))
        self.counted.set()

    def exposition(self, accept: str | None) -> tuple[bytes, str]:
        return b"up 1\n", "text/plain; version=0.0.4; charset=utf-8"


class Clock:
    """Tell the time that a test sets, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Running:
    """Give a test the application, what it reads and writes, and what it reported."""

    client: TestClient[Any, Any]
    live: LiveCatalog
    intake: Intake
    registry: MemoryRegistry
    readiness: Readiness
    reports: Reports
    metrics: Counted
    clock: Clock
    errors: list[Exception]

    async def json(self, method: str, path: str, status: int, body: object = None, **options: Any) -> Any:
        """Ask, expect `status`, and return the answer's document."""
        if body is not None:
            options["json"] = body
        async with self.client.request(method, path, **options) as response:
            text = await response.text()
            assert response.status == status, text
            return await response.json(content_type=None) if text else None

    async def register(self, name: str = "web", host: str = "10.0.0.1", **fields: Any) -> dict[str, Any]:
        """Register an instance."""
        body = {"name": name, "host": host, "port": 8080, **fields}
        async with self.client.post("/api/v1/services", json=body) as response:
            assert response.status in {200, 201}, await response.text()
            return dict(await response.json())


Start = Callable[..., Awaitable[Running]]


def script_problem(check: HealthCheck) -> str | None:
    return "script checks are switched off here" if check.script[0] != "allowed" else None


async def nothing_published(_: Node) -> Snapshot:
    return Snapshot()


@asynccontextmanager
async def running(*, silent: bool = False, **changes: Any) -> AsyncIterator[Running]:
    """Run the application for as long as the block lasts; `changes` are of its context.

    `silent`: the registry stores, but its events never come.
    """
    live = LiveCatalog(epoch=EPOCH, call_later=lambda _delay, _call: None)
    clock = Clock()
    registry = changes.pop("registry", None)
    if registry is None:
        registry = MemoryRegistry(journal=None, clock=clock, call_later=lambda _delay, _call: _Timer())
    intake = intake_of(live)
    reports, metrics, readiness = Reports(), Counted(), Readiness()
    errors: list[Exception] = []
    ids = count(1)
    context = api.Context(
        **{
            "live": live,
            "registry": registry,
            "guard": intake,
            "freshness": lambda: api.Freshness(age_s=0.0, connected=True, known=True, stale=False),
            "picker": Picker(random=random.Random(7), clock=clock),
            "reports": reports,
            "readiness": readiness,
            "proxies": None,
            "discovery": nothing_published,
            "metrics": metrics,
            "script_problem": script_problem,
            "health_defaults": api.HealthDefaults(interval=30, timeout=10),
            "version": "1.2.3",
            "report_error": lambda error, _request_id: errors.append(error),
            "monotonic": clock,
            "wall_clock": lambda: NOW,
            "random": lambda: 0.0,
            "request_id": lambda: f"r{next(ids)}",
            **changes,
        }
    )
    async with AsyncExitStack() as stack:
        task = asyncio.create_task(asyncio.Event().wait() if silent else registry.run(intake.heard))
        client: TestClient[Any, Any] = TestClient(Server(api.build(context), host="127.0.0.1"))
        await stack.enter_async_context(client)
        try:
            yield Running(
                client=client,
                live=live,
                intake=intake,
                registry=registry,
                readiness=readiness,
                reports=reports,
                metrics=metrics,
                clock=clock,
                errors=errors,
            )
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Server(TestServer):
    """Run the application as the process does."""

    async def _make_runner(self, **_options: Any) -> api.Runner:
        return api.Runner(self.app, shutdown_timeout=2.0)


class _Timer:
    def cancel(self) -> None:
        """Nothing was set."""


@pytest.fixture
async def edge() -> AsyncIterator[Running]:
    """Run the application with nothing registered."""
    async with running() as it:
        yield it
        assert not it.errors, it.errors


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Run the application with a context changed by the test."""
    async with AsyncExitStack() as stack:

        async def begin(**changes: Any) -> Running:
            return await stack.enter_async_context(running(**changes))

        yield begin
