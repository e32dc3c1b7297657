"""How fast instances are registered, and what they cost in memory. Journal on, fsync before each answer."""

from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from harness import ControlPlane
from load import post, run

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(300)]

SERVICES = 1_000


def registrations(number: int) -> Iterator[bytes]:
    """Build one registration for each of the services, the `number`th instance of each."""
    for service in range(SERVICES):
        body = {
            "name": f"service-{service:04}",
            "host": f"10.{number}.{service // 250}.{service % 250 + 1}",
            "port": 8080,
            "tags": ["api", "v1"],
            "metadata": {"version": "1.0.0"},
        }
        yield post("/api/v1/services", orjson.dumps(body))


def rss_mib(control_plane: ControlPlane) -> float:
    """Return the resident memory of the control plane's process."""
    assert control_plane.process is not None
    status = Path(f"/proc/{control_plane.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.parametrize("connections", [1, 16, 64])
async def test_registrations_per_second(
    control_plane: ControlPlane, report: Callable[[str], None], connections: int
) -> None:
    result = await run(control_plane.service_port, registrations(0), connections=connections)

    report(f"registrations, {connections} connections: {result}")


async def test_memory(control_plane: ControlPlane, report: Callable[[str], None]) -> None:
    report(f"RSS, nothing registered: {rss_mib(control_plane):.0f} MiB")
    result = await run(control_plane.service_port, registrations(0), connections=16)
    report(f"RSS, {SERVICES} services x 1 instance: {rss_mib(control_plane):.0f} MiB")
    for number in range(1, 10):
        result = await run(control_plane.service_port, registrations(number), connections=16)
    report(f"RSS, {SERVICES} services x 10 instances: {rss_mib(control_plane):.0f} MiB")
    report(f"registrations at 9,000 to 10,000 instances, 16 connections: {result}")
    await control_plane.stop()
    await control_plane.start()
    report(f"RSS after a restart with {SERVICES} x 10: {rss_mib(control_plane):.0f} MiB")
