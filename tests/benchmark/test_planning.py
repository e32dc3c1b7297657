"""What one change costs in a large service, and how many keys move when an instance goes."""

import time
from collections.abc import Callable

import pytest
from builders import catalog, put
from harness import ControlPlane, Envoy, eventually, instances

from controlplane.model import ServiceName
from controlplane.plan import Planner
from controlplane.translate import lint
from controlplane.translate.endpoint import Assignments

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(300)]

WEB = ServiceName("web")


def test_one_change_among_ten_thousand(report: Callable[[str], None]) -> None:
    state = catalog(
        *(put("web", f"w{number}", host=f"10.0.{number // 250}.{number % 250 + 1}") for number in range(10_000))
    )
    planner, assignments = Planner(), Assignments()
    assignments.assignment(planner.plan(state.services[WEB], state), "v")
    for weight in range(2, 5):
        state, _ = state.apply(put("web", "w7", host="10.0.0.8", weight=weight))
        started = time.perf_counter()
        planned = planner.plan(state.services[WEB], state)
        lint.problems(planned)
        assignments.assignment(planned, "v")
        report(f"one change among 10,000 instances, plan to bytes: {1000 * (time.perf_counter() - started):.1f} ms")


@pytest.mark.parametrize("algorithm", ["ring_hash", "maglev"])
async def test_keys_that_move_when_one_of_ten_goes(
    control_plane: ControlPlane, envoy: Envoy, report: Callable[[str], None], algorithm: str
) -> None:
    names = [f"web-{number}" for number in range(10)]
    keys = [f"user-{number}" for number in range(2_000)]
    hash_on = {"source": "header", "name": "x-user"}

    async def placed() -> dict[str, str]:
        return {key: (await envoy.get("/web/", **{"x-user": key}))[1] for key in keys}

    async with instances(control_plane, "web", *names):
        await control_plane.policy(
            "web", strategy="consistent_hash", consistent_hash={"algorithm": algorithm, "hash_on": hash_on}
        )

        async def hashed() -> bool:
            seen = {await envoy.get("/web/", **{"x-user": "one"}) for _ in range(20)}
            return len(seen) == 1 and len(await envoy.hosts("web")) == len(names)

        await eventually(hashed, "Envoy hashes over ten hosts")
        before = await placed()
        await control_plane.delete("web", "web-4")

        async def dropped() -> bool:
            return len(await envoy.hosts("web")) == len(names) - 1

        await eventually(dropped, "Envoy has dropped the host")
        after = await placed()

    lost = sum(name == "web-4" for name in before.values()) / len(keys)
    moved = sum(before[key] != after[key] for key in keys) / len(keys)
    report(f"{algorithm}, one of ten hosts goes: {lost:.1%} of the keys were its own, {moved:.1%} moved")
