"""Services of a real Kubernetes API become traffic through a real Envoy; registrations stay Kubernetes' own."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from harness import ControlPlane, Envoy, Upstream, eventually, upstream
from registry.cluster import Cluster, a_service, a_slice, an_endpoint
from servers.kubernetes import KubernetesServer

pytestmark = [pytest.mark.e2e, pytest.mark.k8s]


@pytest.fixture
def cluster(shared_kubernetes: KubernetesServer, kubernetes_namespace: str) -> Cluster:
    return Cluster(server=shared_kubernetes, namespace=kubernetes_namespace)


@pytest.fixture
async def control_plane(tmp_path: Path, client: aiohttp.ClientSession, cluster: Cluster) -> AsyncIterator[ControlPlane]:
    """Run a control plane on Kubernetes, in the test's namespace."""
    environ = {
        "REGISTRY_TYPE": "kubernetes",
        "KUBECONFIG": str(cluster.server.kubeconfig(namespace=cluster.namespace)),
        "KUBERNETES_NAMESPACES": cluster.namespace,
    }
    running = ControlPlane(folder=tmp_path, client=client, environ=environ)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


async def offer(cluster: Cluster, *pods: Upstream, unready: str = "") -> None:
    """Put a slice of the service `web` for each pod, as the endpoint slice controller would."""
    for pod in pods:
        endpoint = an_endpoint("127.0.0.1", pod.name, conditions={"ready": pod.name != unready})
        ports = [{"name": "http", "port": pod.port, "protocol": "TCP"}]
        await cluster.put(a_slice("web", endpoint, name=pod.name, ports=ports))


async def test_a_service_is_reached_by_its_short_and_its_long_name(
    control_plane: ControlPlane, envoy: Envoy, cluster: Cluster
) -> None:
    long = f"web.{cluster.namespace}"
    async with AsyncExitStack() as stack:
        pods = [await stack.enter_async_context(upstream(name)) for name in ("web-a", "web-b")]
        await cluster.put(a_service("web"))
        await offer(cluster, *pods)
        await envoy.serves("web", "web-a", "web-b")

        for host in (long, f"{long}:8080"):
            assert set(await envoy.shares(20, "/page", host=host)) == {"web-a", "web-b"}
        assert set(await envoy.shares(20, f"/{long}/page")) == {"web-a", "web-b"}
        assert {pod.last_path for pod in pods} == {"/page"}
        async with envoy.client.get(f"{control_plane.api}/services") as answer:
            assert [each["name"] for each in (await answer.json())["items"]] == ["web"]


async def test_a_pod_that_is_not_ready_gets_no_request(
    control_plane: ControlPlane, envoy: Envoy, cluster: Cluster
) -> None:
    async with AsyncExitStack() as stack:
        pods = [await stack.enter_async_context(upstream(name)) for name in ("web-a", "web-b", "web-c")]
        await cluster.put(a_service("web"))
        await offer(cluster, *pods)
        await envoy.serves("web", *(pod.name for pod in pods))
        await offer(cluster, *pods, unready="web-b")

        async def only_two() -> bool:
            return set(await envoy.shares(20, "/web/")) == {"web-a", "web-c"}

        await eventually(only_two, "the pod that is not ready gets nothing")
        async with envoy.client.get(f"{control_plane.api}/services/web") as answer:
            statuses = {each["id"]: each["status"] for each in (await answer.json())["instances"]}
        assert statuses == {"web-a": "healthy", "web-b": "unhealthy", "web-c": "healthy"}


async def test_a_registration_over_rest_is_refused_with_an_explanation_and_a_policy_is_taken(
    control_plane: ControlPlane, cluster: Cluster
) -> None:
    instance: dict[str, Any] = {"name": "web", "host": "10.0.0.1", "port": 80}
    async with control_plane.client.post(f"{control_plane.api}/services", json=instance) as answer:
        assert answer.status == 409
        assert "Kubernetes owns the instances of 'web'" in (await answer.json())["detail"]
    await control_plane.policy("web", strategy="random")
    async with control_plane.client.get(f"{control_plane.api}/services/web/policy") as answer:
        assert (await answer.json())["strategy"] == "random"
