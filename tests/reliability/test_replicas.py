"""Several control planes on one registry: any of them may go, and no proxy can tell them apart."""

from pathlib import Path

import pytest
from harness import ControlPlane, eventually
from reliability.kinds import of
from reliability.scene import Scene, scene

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

RELOADS = (
    r"^(cluster_manager\.cluster_(added|modified|removed)"
    r"|listener_manager\.listener_(added|modified|removed|create_success|in_place_updated)"
    r"|http\.gateway\.rds\.gateway\.config_reload"
    r"|cluster\.web\.(update_empty|membership_change))$"
)


async def told_by(play: Scene) -> ControlPlane:
    """Wait until one of the control planes has the Envoy, and return it."""

    async def who() -> ControlPlane | None:
        for each in play.control_planes:
            if each.process is None or each.process.returncode is not None:
                continue
            async with play.client.get(f"{each.api}/proxies/{play.envoy.node_id}") as answer:
                if answer.status == 200 and (await answer.json())["synced"]:
                    return each
        return None

    return await eventually(who, "a control plane has the Envoy", patience_s=60)


@of("etcd", thorough=("consul", "kubernetes"))
async def test_killing_any_replica_in_turn_costs_no_request_and_changes_nothing(
    kind: str, tmp_path: Path, thorough: bool
) -> None:
    times = 20 if thorough else 3
    async with scene(kind, tmp_path, replicas=2) as play:
        await told_by(play)
        before = await play.envoy.stats(RELOADS)
        for turn in range(times):
            victim = play.control_planes[turn % 2]
            await victim.stop(kill=True)
            await told_by(play)
            await play.traffic.more(50)
            await victim.start()
        moved = await play.envoy.stats(RELOADS)
        assert {name: moved[name] - value for name, value in before.items() if moved[name] != value} == {}
        await play.settled()
        play.report(f"two replicas, one killed, {times} times in turn")


@of("consul", thorough=("etcd",))
async def test_each_instance_is_checked_by_one_and_a_dead_ones_share_is_taken_over(kind: str, tmp_path: Path) -> None:
    async with scene(kind, tmp_path, replicas=2, count=6, checked=True) as play:
        first, second = play.control_planes

        async def checked_at(control_plane: ControlPlane) -> set[str]:
            async with play.client.get(f"{control_plane.api}/health/web") as answer:
                return {each["id"] for each in (await answer.json())["instances"] if each["last_check"]}

        async def shared_out() -> bool:
            mine, theirs = await checked_at(first), await checked_at(second)
            return bool(mine) and bool(theirs) and mine | theirs == set(play.instances)

        await eventually(shared_out, "both check, and together they check all", patience_s=30)
        await second.stop(kill=True)
        sick = next(iter(play.instances.values()))
        for instance in play.instances.values():
            instance.healthy = False
        sick.healthy = True

        async def all_seen() -> bool:
            async with play.client.get(f"{first.api}/health/web") as answer:
                found = {each["id"]: each["status"] for each in (await answer.json())["instances"]}
            return sum(status == "unhealthy" for status in found.values()) == len(play.instances) - 1

        # A member counts as gone after one interval; what it checked fails twice within two more.
        await eventually(all_seen, "the survivor has found all that are ill", patience_s=12)
        await second.start()

        async def agree() -> bool:
            async with play.client.get(f"{second.api}/health/web") as answer:
                found = {each["id"]: each["status"] for each in (await answer.json())["instances"]}
            return sum(status == "unhealthy" for status in found.values()) == len(play.instances) - 1

        await eventually(agree, "the one that came back knows what the other found")
        play.report("two replicas share the checks, one killed")
