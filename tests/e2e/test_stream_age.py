"""Streams of a real Envoy end of old age, again and again: nothing is sent twice and no request notices."""

import pytest
from harness import ControlPlane, Envoy, Traffic, eventually, upstream

pytestmark = pytest.mark.e2e

RELOADS = r"^(cluster_manager\.cluster_(added|modified|removed)|listener_manager\.listener_(added|modified|removed))$"
CONNECTIONS = r"^cluster\.xds_cluster\.upstream_cx_total$"


@pytest.fixture
async def control_plane(control_plane: ControlPlane) -> ControlPlane:
    """Have streams end after a second."""
    await control_plane.stop()
    control_plane.environ["XDS_MAX_STREAM_AGE"] = "1"
    await control_plane.start()
    return control_plane


@pytest.mark.parametrize("protocol", ["sotw", "delta"])
async def test_r_12_envoy_comes_back_on_another_connection_and_changes_nothing(
    control_plane: ControlPlane, envoy: Envoy
) -> None:
    async with upstream("web-1") as instance, upstream("late") as late:
        await control_plane.put("web", "web-1", instance.port)
        await envoy.serves("web", "web-1")
        before, connections = await envoy.stats(RELOADS), (await envoy.stats(CONNECTIONS)).popitem()[1]

        async def came_back_twice() -> bool:
            return (await envoy.stats(CONNECTIONS)).popitem()[1] >= connections + 2

        async with Traffic(envoy, "/web/") as traffic:
            await eventually(came_back_twice, "Envoy opened two more connections")

        assert traffic.failures == []
        assert await envoy.stats(RELOADS) == before
        await control_plane.put("other", "late", late.port)
        await envoy.serves("other", "late")
