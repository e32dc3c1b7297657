"""The Kubernetes API that tests are given behaves as they rely on."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from servers.certificates import Authority, trusting
from servers.kubernetes import NOBODY, WATCHER, KubernetesServer
from servers.process import ServerFailed

pytestmark = pytest.mark.k8s


def slices(namespace: str) -> str:
    return f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"


def endpoint_slice(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True}, "zone": "eu-1"}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        **fields,
    }


async def names(server: KubernetesServer, namespace: str, **by: str) -> list[str]:
    found = await server.request("GET", slices(namespace), **by)
    return [item["metadata"]["name"] for item in found["items"]]


async def test_objects_survive_a_kill_and_are_lost_by_a_wipe(
    shared_kubernetes: KubernetesServer,
) -> None:
    """On the shared server, which is as good as new after it: one more would cost six seconds."""
    before = shared_kubernetes.endpoint
    await shared_kubernetes.request("POST", slices("default"), endpoint_slice("web-1"))

    await shared_kubernetes.kill()
    with pytest.raises(aiohttp.ClientConnectorError):
        await shared_kubernetes.answers()
    await shared_kubernetes.start()
    assert shared_kubernetes.endpoint == before
    assert await names(shared_kubernetes, "default", user=WATCHER) == ["web-1"]

    await shared_kubernetes.wipe()
    assert await names(shared_kubernetes, "default", user=WATCHER) == []


async def test_a_paused_server_accepts_and_never_answers_until_it_is_resumed(
    shared_kubernetes: KubernetesServer,
) -> None:
    async with aiohttp.ClientSession() as session:
        shared_kubernetes.pause()
        try:
            with pytest.raises(TimeoutError):
                await session.get(
                    f"{shared_kubernetes.endpoint}/readyz",
                    ssl=trusting(shared_kubernetes.authority.file),
                    timeout=aiohttp.ClientTimeout(total=0.3),
                )
        finally:
            shared_kubernetes.resume()

    await shared_kubernetes.ready()


async def test_its_certificate_is_trusted_through_its_authority_alone(
    shared_kubernetes: KubernetesServer, tmp_path: Path
) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(f"{shared_kubernetes.endpoint}/readyz", ssl=trusting(Authority(tmp_path).file))


async def test_a_wrong_token_is_401_and_a_missing_right_403(
    shared_kubernetes: KubernetesServer, kubernetes_namespace: str
) -> None:
    with pytest.raises(ServerFailed, match=" 401 "):
        await names(shared_kubernetes, kubernetes_namespace, user="a token that nobody has")
    with pytest.raises(ServerFailed, match=" 403 "):
        await names(shared_kubernetes, kubernetes_namespace, user=NOBODY)
    with pytest.raises(ServerFailed, match=" 403 "):
        await shared_kubernetes.request("POST", slices(kubernetes_namespace), endpoint_slice("web-1"), user=WATCHER)


async def test_what_a_user_is_allowed_ends_at_the_namespace(
    shared_kubernetes: KubernetesServer, kubernetes_namespace: str
) -> None:
    rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}
    await shared_kubernetes.allow(NOBODY, rule, namespace=kubernetes_namespace)

    listed = await shared_kubernetes.request(
        "GET", f"/api/v1/namespaces/{kubernetes_namespace}/configmaps", user=NOBODY
    )

    assert listed["kind"] == "ConfigMapList"
    with pytest.raises(ServerFailed, match=" 403 "):
        await shared_kubernetes.request("GET", "/api/v1/namespaces/default/configmaps", user=NOBODY)


async def test_a_slice_that_the_real_kind_refuses_is_refused(
    shared_kubernetes: KubernetesServer, kubernetes_namespace: str
) -> None:
    for wrong in ({"addressType": "IPX"}, {"endpoints": [{"addresses": []}]}, {"ports": [{"port": 70_000}]}):
        with pytest.raises(ServerFailed, match=" 422 "):
            await shared_kubernetes.request("POST", slices(kubernetes_namespace), endpoint_slice("web-1", **wrong))


async def test_an_emptied_namespace_leaves_nothing_for_the_next_test(
    shared_kubernetes: KubernetesServer, kubernetes_namespace: str
) -> None:
    services = f"/api/v1/namespaces/{kubernetes_namespace}/services"
    await shared_kubernetes.request("POST", slices(kubernetes_namespace), endpoint_slice("web-1"))
    await shared_kubernetes.request(
        "POST", services, {"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}], "clusterIP": "None"}}
    )

    await shared_kubernetes.empty(kubernetes_namespace)

    assert await names(shared_kubernetes, kubernetes_namespace) == []
    assert (await shared_kubernetes.request("GET", services))["items"] == []


async def test_the_official_client_enters_by_the_kubeconfig(
    shared_kubernetes: KubernetesServer, kubernetes_namespace: str
) -> None:
    from kubernetes.aio import client, config

    await shared_kubernetes.request("POST", slices(kubernetes_namespace), endpoint_slice("web-1"))
    settings = client.Configuration()
    await config.load_kube_config(str(shared_kubernetes.kubeconfig(WATCHER)), client_configuration=settings)

    async with client.ApiClient(settings) as connection:
        listed = await client.DiscoveryV1Api(connection).list_namespaced_endpoint_slice(kubernetes_namespace)

    assert [(item.metadata.name, item.endpoints[0].zone) for item in listed.items] == [("web-1", "eu-1")]
