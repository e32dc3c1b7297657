"""The registries that are made to fail, each a real server or several, with the same verbs."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from harness import ControlPlane
from servers.cluster import Cluster
from servers.consul import ConsulCluster, ConsulServer
from servers.etcd import EtcdCluster, EtcdServer
from servers.kubernetes import KubernetesServer
from servers.process import Server

SERVICE = "web"


class Backend(ABC):
    """Hold one registry under test. What a user registers comes in by the way that its users have."""

    name: str
    server: Server | Cluster[Any]

    @abstractmethod
    def environ(self) -> dict[str, str]:
        """Return the settings of a control plane that uses it."""

    async def put(self, control_plane: ControlPlane, id: str, port: int, **fields: Any) -> None:
        """Register an instance on 127.0.0.1."""
        await control_plane.put(SERVICE, id, port, **fields)

    async def delete(self, control_plane: ControlPlane, id: str) -> None:
        """Deregister an instance."""
        await control_plane.delete(SERVICE, id)

    async def kill(self) -> None:
        await self.server.kill()

    async def start(self) -> None:
        await self.server.start()

    async def wipe(self) -> None:
        await self.server.wipe()

    def pause(self) -> None:
        for server in self._servers():
            server.pause()

    def resume(self) -> None:
        for server in self._servers():
            server.resume()

    async def kill_leader(self) -> Any:
        """Kill the leader of a cluster and return it."""
        assert isinstance(self.server, Cluster)
        leader = await self.server.leader()
        await leader.kill()
        return leader

    def _servers(self) -> list[Server]:
        return list(self.server.members) if isinstance(self.server, Cluster) else [self.server]


class Etcd(Backend):
    name = "etcd"

    def __init__(self, server: EtcdServer | EtcdCluster) -> None:
        self.server = server

    def environ(self) -> dict[str, str]:
        members = self.server.members if isinstance(self.server, EtcdCluster) else [self.server]
        return {"REGISTRY_TYPE": "etcd", "ETCD_ENDPOINTS": ",".join(member.address for member in members)}


class Consul(Backend):
    name = "consul"

    def __init__(self, server: ConsulServer | ConsulCluster) -> None:
        self.server = server

    def environ(self) -> dict[str, str]:
        members = self.server.members if isinstance(self.server, ConsulCluster) else [self.server]
        return {"REGISTRY_TYPE": "consul", "CONSUL_HOST": ",".join(member.address for member in members)}


class Kubernetes(Backend):
    name = "kubernetes"

    def __init__(self, server: KubernetesServer) -> None:
        self.server = server
        self._server = server

    def environ(self) -> dict[str, str]:
        return {"REGISTRY_TYPE": "kubernetes", "KUBECONFIG": str(self._server.kubeconfig())}

    async def put(self, control_plane: ControlPlane, id: str, port: int, **fields: Any) -> None:
        """Do what the cluster does when a pod is ready: its endpoint stands in a slice."""
        await self._have_service()
        endpoint = {"addresses": ["127.0.0.1"], "conditions": {"ready": True}, "targetRef": {"kind": "Pod", "name": id}}
        await self._server.request(
            "POST",
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": f"{SERVICE}-{id}", "labels": {"kubernetes.io/service-name": SERVICE}},
                "addressType": "IPv4",
                "endpoints": [endpoint],
                "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
            },
        )

    async def delete(self, control_plane: ControlPlane, id: str) -> None:
        path = f"/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/{SERVICE}-{id}"
        await self._server.request("DELETE", path)

    async def _have_service(self) -> None:
        path = "/api/v1/namespaces/default/services"
        there = await self._server.request("GET", path)
        if SERVICE not in {item["metadata"]["name"] for item in there["items"]}:
            spec = {"ports": [{"name": "http", "port": 80}]}
            await self._server.request("POST", path, {"metadata": {"name": SERVICE}, "spec": spec})


@asynccontextmanager
async def backend(kind: str, folder: Path) -> AsyncIterator[Backend]:
    """Run a registry: `etcd`, `consul`, `kubernetes`, or `etcd of 3` and `consul of 3`."""
    async with AsyncExitStack() as stack:
        match kind:
            case "etcd":
                yield Etcd(await stack.enter_async_context(EtcdServer(folder / "etcd")))
            case "etcd of 3":
                yield Etcd(await stack.enter_async_context(EtcdCluster(folder / "etcd")))
            case "consul":
                yield Consul(await stack.enter_async_context(ConsulServer(folder / "consul")))
            case "consul of 3":
                yield Consul(await stack.enter_async_context(ConsulCluster(folder / "consul")))
            case "kubernetes":
                yield Kubernetes(await stack.enter_async_context(KubernetesServer(folder / "kubernetes")))
            case _:
                raise ValueError(f"no backend is called {kind!r}")
