"""A registration over REST becomes traffic through a real Envoy, and stops being it when it goes."""

import time
from pathlib import Path

import aiohttp
import pytest
from envoys import EVERY_ENVOY
from harness import ControlPlane, Envoy, Traffic, eventually, free_port, instances, upstream

pytestmark = pytest.mark.e2e

BOTH_PROTOCOLS = pytest.mark.parametrize("protocol", ["sotw", "delta"])
CHECK = {"type": "http", "http_path": "/health", "interval": 0.5, "timeout": 0.3, "unhealthy_threshold": 1}


@EVERY_ENVOY
@BOTH_PROTOCOLS
async def test_three_instances_are_reached_by_host_and_by_path(control_plane: ControlPlane, envoy: Envoy) -> None:
    async with instances(control_plane, "web", "web-1", "web-2", "web-3") as started:
        await envoy.serves("web", *started)

        by_path = await envoy.shares(30, "/web/some/page")
        assert set(by_path) == set(started)
        assert {instance.last_path for instance in started.values()} == {"/some/page"}

        by_host = await envoy.shares(30, "/other/page", host="web")
        assert set(by_host) == set(started)
        assert {instance.last_path for instance in started.values()} == {"/other/page"}

        with_port = await envoy.get("/", host="web:8080")
        assert with_port[0] == 200
        assert (await envoy.get("/nobody/"))[0] == 404


@BOTH_PROTOCOLS
async def test_a_deregistered_instance_gets_no_request_and_none_fails(
    control_plane: ControlPlane, envoy: Envoy
) -> None:
    async with instances(control_plane, "web", "web-1", "web-2", "web-3") as started:
        await envoy.serves("web", *started)
        async with Traffic(envoy, "/web/") as traffic:
            await traffic.more()
            await control_plane.delete("web", "web-2")

            async def gone() -> bool:
                return len(await envoy.hosts("web")) == 2

            await eventually(gone, "Envoy has dropped the host")
            await traffic.more(10)  # what was on its way
            before = started["web-2"].requests
            await traffic.more(200)

        assert started["web-2"].requests == before
        assert traffic.failures == []


@EVERY_ENVOY
@BOTH_PROTOCOLS
async def test_envoy_finds_nothing_to_warn_of(control_plane: ControlPlane, envoy: Envoy, tmp_path: Path) -> None:
    async with instances(control_plane, "web", "web-1"):
        await envoy.serves("web", "web-1")
        await control_plane.policy("web", strategy="consistent_hash")
        await control_plane.put("late", "web-1", 1)

        async def known() -> bool:
            return bool(await envoy.hosts("late"))

        await eventually(known, "Envoy has heard of everything")

    assert (tmp_path / "e2e.log").read_text() == ""


async def test_the_last_instance_may_go_and_come_back(control_plane: ControlPlane, envoy: Envoy) -> None:
    async with instances(control_plane, "web", "web-1") as started:
        await envoy.serves("web", "web-1")
        added = await envoy.stats("cluster_manager.cluster_added")

        await control_plane.delete("web", "web-1")

        async def unavailable() -> bool:
            return (await envoy.get("/web/"))[0] == 503

        await eventually(unavailable, "nothing is left to answer")
        await control_plane.put("web", "web-1", started["web-1"].port)
        await envoy.serves("web", "web-1")
        assert await envoy.stats("cluster_manager.cluster_added") == added


@EVERY_ENVOY
@BOTH_PROTOCOLS
async def test_weights_hold(control_plane: ControlPlane, envoy: Envoy) -> None:
    async with upstream("light") as light, upstream("heavy") as heavy:
        await control_plane.put("web", "light", light.port, weight=1)
        await control_plane.put("web", "heavy", heavy.port, weight=3)
        await envoy.serves("web", "light", "heavy")

        shares = await envoy.shares(2000, "/web/")

    assert shares["heavy"] == pytest.approx(1500, rel=0.1)
    assert shares["light"] == pytest.approx(500, rel=0.1)


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param({"strategy": "round_robin"}, id="round_robin"),
        pytest.param({"strategy": "random"}, id="random"),
    ],
)
async def test_strategies_that_ignore_weights(
    control_plane: ControlPlane, envoy: Envoy, policy: dict[str, str]
) -> None:
    async with upstream("light") as light, upstream("heavy") as heavy:
        await control_plane.policy("web", **policy)
        await control_plane.put("web", "light", light.port, weight=1)
        await control_plane.put("web", "heavy", heavy.port, weight=100)
        await envoy.serves("web", "light", "heavy")

        shares = await envoy.shares(1000, "/web/")

    assert shares["light"] == pytest.approx(500, rel=0.15)


async def test_least_connections_avoids_a_slow_instance(control_plane: ControlPlane, envoy: Envoy) -> None:
    async with upstream("fast-1") as one, upstream("fast-2") as two, upstream("slow", delay_s=0.1) as slow:
        await control_plane.policy("web", strategy="least_connections")
        for instance in (one, two, slow):
            await control_plane.put("web", instance.name, instance.port)
        await envoy.serves("web", "fast-1", "fast-2", "slow")

        shares = await envoy.shares(600, "/web/", workers=12)

    assert shares["slow"] < min(shares["fast-1"], shares["fast-2"]) / 2


@pytest.mark.parametrize(("algorithm", "disturbed"), [("ring_hash", 0.15), ("maglev", 0.05)])
async def test_consistent_hash_keeps_a_key_where_it_is(
    control_plane: ControlPlane, envoy: Envoy, algorithm: str, disturbed: float
) -> None:
    names = [f"web-{number}" for number in range(10)]
    keys = [f"user-{number}" for number in range(300)]
    async with instances(control_plane, "web", *names):
        await control_plane.policy(
            "web",
            strategy="consistent_hash",
            consistent_hash={"algorithm": algorithm, "hash_on": {"source": "header", "name": "x-user"}},
        )

        async def placed() -> dict[str, str]:
            answers = [await envoy.get("/web/", **{"x-user": key}) for key in keys]
            assert {status for status, _ in answers} == {200}
            return {key: body for key, (_, body) in zip(keys, answers, strict=True)}

        async def hashed() -> bool:
            seen = [await envoy.get("/web/", **{"x-user": "one"}) for _ in range(20)]
            return len(set(seen)) == 1 and seen[0][0] == 200 and len(await envoy.hosts("web")) == len(names)

        await eventually(hashed, "Envoy hashes over ten hosts")
        before = await placed()
        assert set(before.values()) == set(names)
        assert await placed() == before

        await control_plane.delete("web", "web-4")

        async def dropped() -> bool:
            return len(await envoy.hosts("web")) == len(names) - 1

        await eventually(dropped, "Envoy has dropped the host")
        after = await placed()

    lost = {key for key, name in before.items() if name == "web-4"}
    moved = {key for key in keys if before[key] != after[key]}
    assert lost <= moved
    # A tenth is lost. On the ring Envoy then gives the nine a ninth more points each, which moves up to as many again.
    assert len(lost) < 0.2 * len(keys)
    assert len(moved - lost) < disturbed * len(keys)


@EVERY_ENVOY
@BOTH_PROTOCOLS
async def test_a_failing_check_takes_an_instance_out_and_recovery_brings_it_back(
    control_plane: ControlPlane, envoy: Envoy
) -> None:
    async with upstream("good") as good, upstream("sick") as sick:
        await control_plane.policy("web", panic_threshold=0)
        for instance in (good, sick):
            await control_plane.put("web", instance.name, instance.port, health_check=CHECK)
        await envoy.serves("web", "good", "sick")
        async with Traffic(envoy, "/web/") as traffic:
            sick.healthy = False
            started = time.monotonic()

            async def out() -> bool:
                return (await envoy.hosts("web")).get(f"127.0.0.1:{sick.port}") == "UNHEALTHY"

            await eventually(out, "Envoy was told that the instance is unhealthy")
            took = time.monotonic() - started
            await traffic.more(10)
            before = sick.requests
            await traffic.more(100)
            assert sick.requests == before

            sick.healthy = True
            await envoy.serves("web", "sick")

        assert traffic.failures == []
    # threshold x interval (with its jitter) + timeout, and half a second for this machine
    assert took <= 1 * 0.5 * 1.1 + 0.3 + 0.5


async def test_an_instance_is_not_offered_before_its_first_check_passes(
    control_plane: ControlPlane, envoy: Envoy
) -> None:
    async with upstream("good") as good, upstream("sick") as sick:
        sick.healthy = False
        await control_plane.put("web", "good", good.port)
        await control_plane.put("web", "sick", sick.port, health_check=CHECK)
        await envoy.serves("web", "good")

        async def judged() -> bool:
            async with control_plane.client.get(f"{control_plane.api}/services/web/instances/sick") as answer:
                return bool((await answer.json())["status"] == "unhealthy")

        await eventually(judged, "the first check has failed")
        # What is registered after the verdict shows that the verdict has been heard, too.
        await control_plane.put("other", "good", good.port)
        await envoy.serves("other", "good")
        assert list(await envoy.hosts("web")) == [f"127.0.0.1:{good.port}"]

        sick.healthy = True
        await envoy.serves("web", "sick")


async def test_a_draining_instance_gets_no_new_request(control_plane: ControlPlane, envoy: Envoy) -> None:
    async with instances(control_plane, "web", "web-1", "web-2") as started:
        await envoy.serves("web", *started)
        url = f"{control_plane.api}/services/web/instances/web-1"
        async with control_plane.client.patch(url, json={"draining": True}) as answer:
            assert (await answer.json())["status"] == "draining"

        async def told() -> bool:
            return (await envoy.hosts("web")).get(f"127.0.0.1:{started['web-1'].port}") == "DRAINING"

        await eventually(told, "Envoy was told that the instance drains")
        assert set(await envoy.shares(40, "/web/")) == {"web-2"}


async def test_a_dns_name_reaches_envoy_as_an_address(control_plane: ControlPlane, envoy: Envoy) -> None:
    async with upstream("web-1") as instance:
        url = f"{control_plane.api}/services/web/instances/web-1"
        async with control_plane.client.put(url, json={"host": "localhost", "port": instance.port}) as answer:
            assert answer.status == 201
        await envoy.serves("web", "web-1")

        assert list(await envoy.hosts("web")) == [f"127.0.0.1:{instance.port}"]


async def test_a_node_may_listen_elsewhere(
    tmp_path: Path, client: aiohttp.ClientSession, control_plane: ControlPlane, envoy: Envoy
) -> None:
    second = Envoy(
        folder=tmp_path, client=client, control_plane=control_plane, node_id="second", gateway_port=free_port()
    )
    await second.start()
    try:
        async with instances(control_plane, "web", "web-1"):
            await envoy.serves("web", "web-1")
            await second.serves("web", "web-1")
    finally:
        await second.stop()


async def test_nothing_that_is_refused_reaches_envoy(control_plane: ControlPlane, envoy: Envoy) -> None:
    async with instances(control_plane, "web", "web-1") as started:
        await envoy.serves("web", "web-1")
        before = await envoy.stats(r"\.(update_attempt|update_rejected)$")
        for body, status in (
            ({"name": "web", "host": "127.0.0.1", "port": 0}, 400),
            ({"name": "web", "host": "127.0.0.1", "port": started["web-1"].port, "id": "other"}, 409),
            ({"name": "Web", "host": "127.0.0.1", "port": 80}, 400),
        ):
            async with control_plane.client.post(f"{control_plane.api}/services", json=body) as answer:
                assert answer.status == status, await answer.text()
                assert answer.content_type == "application/problem+json"

        assert await envoy.stats(r"\.(update_attempt|update_rejected)$") == before
        assert all(not count for name, count in before.items() if name.endswith("rejected"))
