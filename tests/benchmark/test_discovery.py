"""How fast services are looked up, and how soon a registration is served through a real Envoy."""

import statistics
import time
from collections.abc import Callable
from itertools import repeat

import pytest
from harness import ControlPlane, Envoy, upstream
from load import get, run

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(300)]

READS = 50_000


@pytest.mark.parametrize("instances", [1, 10])
@pytest.mark.parametrize(
    "path",
    [
        pytest.param("", id="all instances"),
        pytest.param("?healthy_only=true", id="healthy instances"),
        pytest.param("/instance", id="one instance picked"),
    ],
)
async def test_reads_per_second(
    control_plane: ControlPlane, report: Callable[[str], None], path: str, instances: int
) -> None:
    for number in range(instances):
        await control_plane.put("web", f"web-{number}", 8000 + number, tags=["a"], metadata={"version": "1"})
    url = f"/api/v1/services/web{path}"
    await run(control_plane.service_port, repeat(get(url), 2_000), connections=32)

    result = await run(control_plane.service_port, repeat(get(url), READS), connections=32)

    report(f"GET {url}, {instances} instances, 32 connections: {result}")


async def first_served_ms(control_plane: ControlPlane, envoy: Envoy, service: str, name: str, port: int) -> float:
    """Return the milliseconds from the start of the registration to the first answer by the new instance."""
    started = time.perf_counter()
    await control_plane.put(service, name, port)
    while await envoy.get(f"/{service}/") != (200, name):
        pass
    return 1000 * (time.perf_counter() - started)


async def test_from_registration_to_the_first_request_served(
    control_plane: ControlPlane, envoy: Envoy, report: Callable[[str], None]
) -> None:
    further, first = [], []
    async with upstream("base") as base, upstream("new") as new:
        await control_plane.put("web", "base", base.port)
        await envoy.serves("web", "base")
        for number in range(50):
            further.append(await first_served_ms(control_plane, envoy, "web", "new", new.port))
            await control_plane.delete("web", "new")
            while await envoy.hosts("web") != {f"127.0.0.1:{base.port}": "HEALTHY"}:
                pass
            first.append(await first_served_ms(control_plane, envoy, f"new-{number}", "new", new.port))

    for what, taken in (("a further instance", further), ("the first instance of a new service", first)):
        report(
            f"registration -> first request served by {what}: median {statistics.median(taken):.1f} ms, "
            f"p95 {statistics.quantiles(taken, n=20)[-1]:.1f} ms, {len(taken)} times"
        )
