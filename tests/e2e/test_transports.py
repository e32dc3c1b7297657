"""An Envoy that polls, and one with a stream for each type: each is told to fetch the rest the same way."""

import re
from pathlib import Path

import aiohttp
import pytest
from harness import ControlPlane, Envoy, eventually, instances, running_envoy

pytestmark = pytest.mark.e2e

PER_TYPE = """\
node: {{ id: streams, cluster: e2e, metadata: {{ xds_transport: grpc }} }}
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin_port} }} }} }}
dynamic_resources:
  cds_config: &stream
    resource_api_version: V3
    initial_fetch_timeout: 0s
    api_config_source:
      api_type: DELTA_GRPC
      transport_api_version: V3
      grpc_services: [{{ envoy_grpc: {{ cluster_name: xds_cluster }} }}]
  lds_config: *stream
static_resources:
  clusters:
  - name: xds_cluster
    type: STATIC
    load_assignment:
      cluster_name: xds_cluster
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {xds_port} }} }} }}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
"""


async def lives_through_changes(control_plane: ControlPlane, envoy: Envoy) -> None:
    """Reach a service, follow a moved endpoint, and a service that is registered later."""
    async with instances(control_plane, "web", "web-1", "web-2") as started:
        await envoy.serves("web", "web-1", "web-2")
        await control_plane.delete("web", "web-1")

        async def one_left() -> bool:
            return list(await envoy.hosts("web")) == [f"127.0.0.1:{started['web-2'].port}"]

        await eventually(one_left, "the deregistered instance is gone")
        async with instances(control_plane, "late", "late-1"):
            await envoy.serves("late", "late-1")
        assert await envoy.get("/web/") == (200, "web-2")
    refused = await envoy.stats("update_rejected$")
    assert refused
    assert set(refused.values()) == {0}


async def polls(control_plane: ControlPlane) -> dict[tuple[str, int], int]:
    """Count the polls by type and status."""
    async with control_plane.client.get(f"{control_plane.url}/metrics") as answer:
        text = await answer.text()
    found = re.findall(r"http_server_request_duration_seconds_count\{(.*discovery:.*)\} ([0-9.]+)", text)
    counted: dict[tuple[str, int], int] = {}
    for labels, count in found:
        values = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        counted[values["route"].partition(":")[2], int(values["status"])] = int(float(count))
    return counted


@pytest.mark.parametrize("protocol", ["rest"])
async def test_an_envoy_that_polls_follows_every_change(control_plane: ControlPlane, envoy: Envoy) -> None:
    await lives_through_changes(control_plane, envoy)

    kinds = ("clusters", "endpoints", "listeners", "routes")

    async def all_unchanged() -> bool:
        counted = await polls(control_plane)
        return all((kind, status) in counted for kind in kinds for status in (200, 304))

    await eventually(all_unchanged, "each type was polled, found changed and found unchanged")


async def test_an_envoy_with_a_stream_for_each_type_follows_every_change(
    control_plane: ControlPlane, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    envoy = Envoy(folder=tmp_path, client=client, control_plane=control_plane, node_id="streams")
    config = tmp_path / "streams.yaml"
    config.write_text(PER_TYPE.format(admin_port=envoy.admin_port, xds_port=control_plane.xds_port))
    async with running_envoy(config, tmp_path / "streams.log", envoy.admin_port):
        await lives_through_changes(control_plane, envoy)

        async with client.get(f"{control_plane.api}/proxies/streams") as answer:
            scopes = {stream["scope"] for stream in (await answer.json())["streams"]}
        assert "ads" not in scopes
        assert len(scopes) == 4


async def test_a_removed_cluster_stays_for_its_grace_period_on_separate_streams(
    control_plane: ControlPlane, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """O-08: nothing orders separate streams, so what a route leads to does not go with its last instance."""
    envoy = Envoy(folder=tmp_path, client=client, control_plane=control_plane, node_id="streams")
    config = tmp_path / "streams.yaml"
    config.write_text(PER_TYPE.format(admin_port=envoy.admin_port, xds_port=control_plane.xds_port))
    async with running_envoy(config, tmp_path / "streams.log", envoy.admin_port):
        async with instances(control_plane, "web", "web-1"):
            await envoy.serves("web", "web-1")
            before = await envoy.stats("^http.gateway.no_cluster$")
            await control_plane.delete("web", "web-1")

            async def without_hosts() -> bool:
                return (await envoy.get("/web/"))[0] == 503

            await eventually(without_hosts, "the last instance is gone")
        assert await envoy.stats("^cluster.web.membership_total$") == {"cluster.web.membership_total": 0}
        assert await envoy.stats("^http.gateway.no_cluster$") == before
