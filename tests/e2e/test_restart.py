"""Restart the control plane under traffic: no proxy notices."""

import pytest
from envoys import EVERY_ENVOY
from harness import ControlPlane, Envoy, Traffic, eventually, upstream

pytestmark = pytest.mark.e2e

CHECK = {"type": "http", "http_path": "/health", "interval": 0.5, "timeout": 0.3, "unhealthy_threshold": 1}
RELOADS = (
    r"^(cluster_manager\.cluster_(added|modified|removed)"
    r"|listener_manager\.listener_(added|modified|removed|create_success|in_place_updated)"
    r"|http\.gateway\.rds\.gateway\.config_reload"
    r"|cluster\.web\.(update_empty|membership_change))$"
)


@EVERY_ENVOY
@pytest.mark.parametrize("protocol", ["sotw", "delta"])
@pytest.mark.parametrize("kill", [False, True], ids=["sigterm", "sigkill"])
async def test_a_restart_changes_nothing_on_envoy_and_fails_no_request(
    control_plane: ControlPlane, envoy: Envoy, kill: bool
) -> None:
    async with upstream("checked") as checked, upstream("plain") as plain, upstream("sick") as sick:
        await control_plane.policy("web", strategy="least_connections", panic_threshold=0)
        await control_plane.put("web", "checked", checked.port, health_check=CHECK, weight=3)
        await control_plane.put("web", "plain", plain.port, ttl=60, tags=["a", "b"])
        await control_plane.put("web", "sick", sick.port, health_check=CHECK)
        await envoy.serves("web", "checked", "plain", "sick")
        sick.healthy = False

        async def told() -> bool:
            return (await envoy.hosts("web")).get(f"127.0.0.1:{sick.port}") == "UNHEALTHY"

        await eventually(told, "Envoy was told that one instance is unhealthy")
        hosts = await envoy.hosts("web")
        reloads = await envoy.stats(RELOADS)
        connects = (await envoy.stats(r"^cluster\.xds_cluster\.upstream_cx_total$")).popitem()[1]
        before = sick.requests

        async with Traffic(envoy, "/web/") as traffic:
            await traffic.more()
            await control_plane.stop(kill=kill)
            await traffic.more()
            await control_plane.start()

            async def connected_again() -> bool:
                stats = await envoy.stats(r"^(cluster\.xds_cluster\.upstream_cx_total|control_plane\.connected_state)$")
                return (
                    stats["control_plane.connected_state"] == 1
                    and stats["cluster.xds_cluster.upstream_cx_total"] > connects
                )

            await eventually(connected_again, "Envoy has found the control plane again")
            async with upstream("late") as late:
                # What arrives after the restart shows that everything before it has been heard, too.
                await control_plane.put("other", "late", late.port)
                await envoy.serves("other", "late")
                await traffic.more(100)

                async def in_step() -> bool:
                    async with control_plane.client.get(f"{control_plane.api}/proxies/{envoy.node_id}") as answer:
                        return bool((await answer.json())["synced"])

                await eventually(in_step, "the control plane sees that Envoy holds everything")
                after = await envoy.stats(RELOADS)
                hosts_after = await envoy.hosts("web")

        assert traffic.failures == []
        assert hosts_after == hosts
        assert sick.requests == before
        changed = {name: after[name] - value for name, value in reloads.items() if after[name] != value}
        # The late service alone: one cluster and one route update more, nothing else.
        assert changed == {"cluster_manager.cluster_added": 1, "http.gateway.rds.gateway.config_reload": 1}


async def test_without_a_control_plane_traffic_goes_on(control_plane: ControlPlane, envoy: Envoy) -> None:
    async with upstream("web-1") as instance:
        await control_plane.put("web", "web-1", instance.port)
        await envoy.serves("web", "web-1")
        await control_plane.stop(kill=True)

        assert set(await envoy.shares(50, "/web/")) == {"web-1"}


async def test_a_control_plane_that_drains_says_so(control_plane: ControlPlane, envoy: Envoy) -> None:
    """REST outlives the streams: a load balancer in front sees 503, and services can still deregister."""
    assert control_plane.process is not None
    control_plane.process.terminate()

    async def draining() -> bool:
        async with control_plane.client.get(f"{control_plane.url}/readyz?verbose") as answer:
            return answer.status == 503 and "drain" in await answer.text()

    await eventually(draining, "/readyz says that the control plane drains")
    await control_plane.stop()
