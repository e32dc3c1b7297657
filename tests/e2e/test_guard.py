"""The mass-loss guard in the real process, in front of a real Envoy: traffic does not notice what registries lose."""

import asyncio

import pytest
from harness import ControlPlane, Envoy, Traffic, eventually, instances

pytestmark = pytest.mark.e2e

NAMES = ("one", "two", "three", "four")


async def held(control_plane: ControlPlane) -> dict[str, bool]:
    async with control_plane.client.get(f"{control_plane.api}/services/web") as answer:
        return {each["id"]: each["held"] for each in (await answer.json()).get("instances", [])}


async def all_held(control_plane: ControlPlane) -> None:
    async def look() -> bool:
        return await held(control_plane) == dict.fromkeys(NAMES, True)

    await eventually(look, "all instances are held")


async def text(control_plane: ControlPlane, path: str) -> str:
    async with control_plane.client.get(f"{control_plane.url}{path}") as answer:
        assert answer.status == 200, await answer.text()
        return await answer.text()


async def test_leases_that_all_run_out_at_once_are_held_through_a_crash_until_a_person_lets_go(
    control_plane: ControlPlane, envoy: Envoy
) -> None:
    async with instances(control_plane, "web", *NAMES) as started:
        await envoy.serves("web", *NAMES)
        async with Traffic(envoy, "/web/") as traffic:
            for name, instance in started.items():
                await control_plane.put("web", name, instance.port, ttl=1)
            await all_held(control_plane)
            await traffic.more()

            # The guard says so wherever somebody looks.
            assert "web: 4 instances are held, because" in await text(control_plane, "/readyz?verbose")
            assert "degraded" in await text(control_plane, "/health")
            assert "sd_guard_held_instances 4.0" in await text(control_plane, "/metrics")
            assert "guard.held" in control_plane.log()

            # The journal holds none of them any more; the last known good state does.
            file = control_plane.folder / "data" / "last-known-good"

            async def on_disk() -> bool:
                return await asyncio.to_thread(lambda: file.exists() and file.read_bytes().count(b'"held":"web"') == 4)

            await eventually(on_disk, "the hold is on disk")
            await control_plane.stop(kill=True)
            await traffic.more()
            await control_plane.start()
            await all_held(control_plane)
            await envoy.serves("web", *NAMES)
            assert await envoy.hosts("web") == {f"127.0.0.1:{each.port}": "HEALTHY" for each in started.values()}

            # One comes back by itself; the others are let go by hand.
            await control_plane.put("web", "one", started["one"].port)
            assert await held(control_plane) == {"four": True, "one": False, "three": True, "two": True}
            await traffic.more()

            url = f"{control_plane.api}/guard/web/release"
            async with control_plane.client.post(url) as answer:
                assert answer.status == 200, await answer.text()

            async def only_one_left() -> bool:
                return await envoy.hosts("web") == {f"127.0.0.1:{started['one'].port}": "HEALTHY"}

            await eventually(only_one_left, "Envoy has the one that came back, alone")
            await traffic.more()
        assert traffic.failures == []
    assert await held(control_plane) == {"one": False}
    assert "sd_guard_held_instances 0.0" in await text(control_plane, "/metrics")
