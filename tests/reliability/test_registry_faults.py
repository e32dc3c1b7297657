"""What happens to traffic when the registry dies, hangs, loses its leader, or comes back empty: nothing."""

from pathlib import Path

import pytest
from harness import eventually
from reliability.kinds import of
from reliability.scene import for_a_while, scene

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


@of("etcd", "consul", "kubernetes")
async def test_a_registry_that_is_killed_and_comes_back_costs_no_request(kind: str, tmp_path: Path) -> None:
    async with scene(kind, tmp_path) as play:
        await play.registry.kill()
        await play.ready(f"connection/{play.registry.name} lost")
        await play.traffic.more(200)
        await play.registry.start()
        await play.ready(f"[+]connection/{play.registry.name}")
        await play.settled()
        play.report("killed (SIGKILL), started again on its data")


@of("etcd of 3", "consul of 3")
async def test_a_cluster_that_loses_its_leader_costs_no_request(kind: str, tmp_path: Path) -> None:
    async with scene(kind, tmp_path) as play:
        leader = await play.registry.kill_leader()
        await play.settled()
        await leader.start()
        await play.add("later")
        play.report("3 servers, the leader killed")


@of("etcd", thorough=("consul", "kubernetes"))
async def test_a_registry_that_hangs_costs_no_request(kind: str, tmp_path: Path, thorough: bool) -> None:
    lasts_s = 30 if thorough else 15
    async with scene(kind, tmp_path) as play:
        play.registry.pause()
        try:
            await play.ready(f"connection/{play.registry.name} lost", patience_s=lasts_s + 15)
            await for_a_while(lasts_s - 12)
        finally:
            play.registry.resume()
        await play.ready(f"[+]connection/{play.registry.name}")
        await play.settled()
        play.report(f"hanging (SIGSTOP) for {lasts_s} s")


@of("etcd", "consul", "kubernetes")
async def test_a_registry_that_comes_back_empty_empties_nothing(kind: str, tmp_path: Path) -> None:
    async with scene(kind, tmp_path) as play:
        await play.control_plane.policy("web", strategy="random")
        await play.registry.wipe()
        await play.ready("[-]guard")
        await play.traffic.more(200)
        assert await play.strategy() == "random"
        assert await play.hosts() == {instance.port for instance in play.instances.values()}
        await play.register_again()
        await play.ready("[+]guard")
        await play.settled()
        play.report("wiped, comes back empty; services register again")


@of("consul", thorough=("etcd", "kubernetes"))
async def test_what_stays_gone_goes_when_a_person_says_so(kind: str, tmp_path: Path) -> None:
    async with scene(kind, tmp_path) as play:
        await play.registry.wipe()
        await play.ready("[-]guard")
        kept = next(iter(play.instances))
        await play.registry.put(play.control_plane, kept, play.instances[kept].port)
        for id in [id for id in play.instances if id != kept]:
            del play.instances[id]
        url = f"{play.control_plane.api}/guard/web/release"
        async with play.client.post(url) as answer:
            assert answer.status == 200, await answer.text()
        expected = {play.instances[kept].port}

        async def as_registered() -> bool:
            return await play.hosts() == expected

        await eventually(as_registered, "Envoy holds what the registry does")
        await play.settled()
        play.report("wiped, the hold released by hand")


@of("etcd", "consul", thorough=("kubernetes",))
async def test_a_control_plane_starts_while_its_registry_is_down(kind: str, tmp_path: Path) -> None:
    async with scene(kind, tmp_path) as play:
        await for_a_while(3.0)  # the last known good state is written within two seconds
        await play.registry.kill()
        await play.control_plane.stop(kill=True)
        await play.control_plane.start()
        assert "the last known good state is served in its place" in await play.readiness()
        async with play.client.get(f"{play.control_plane.url}/health") as answer:
            assert await answer.json() == {"status": "degraded", "last_known_good": True}
        await play.traffic.more(200)
        await play.traffic.pause()
        await play.envoy.stop()
        await play.envoy.start()  # an Envoy that knows nothing gets everything from that control plane
        play.traffic.go_on()
        await play.envoy.serves("web", *play.instances)
        await play.registry.start()
        await play.ready(f"[+]connection/{play.registry.name}")
        await play.settled()
        play.report("down while the control plane restarts, and a new Envoy with it")
