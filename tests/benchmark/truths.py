"""The real servers that registries follow, each holding a fleet, written to past the control plane.

A truth is written to as its own users do: by etcd's JSON gateway, Consul's agent, the Kubernetes API; the embedded
registry has no door but ours. A new registry is one more class here.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import aiohttp
from benchmark.processes import PATIENCE_S, ServerFailed
from benchmark.rest_servers import Fleet, consul_agent
from harness import free_port
from servers.certificates import trusting
from servers.etcd import EtcdServer
from servers.kubernetes import ADMIN, TOKENS, KubernetesServer

_TOGETHER = 16
_OPERATIONS = 64
"""How many writes make one transaction: as many as Consul takes; etcd takes 128."""


class Truth(Protocol):
    """Be a server with a fleet of services `svc-<n>` of instances `e<n>`."""

    environ: Mapping[str, str]
    """How a control plane finds it."""
    pids: tuple[int, ...]
    """Its processes: what they use is no foreign work."""

    def service(self, number: int) -> str:
        """Return the name under which the control plane knows a service."""
        ...

    async def write(self, service: int, address: str) -> None:
        """Give endpoint 0 of a service another address; return when the server has taken it."""
        ...


@asynccontextmanager
async def memory(fleet: Fleet, folder: Path) -> AsyncIterator[Truth]:
    """Say how the embedded registry is opened; what it holds is in its journal."""
    rest = free_port()
    async with _session(f"http://127.0.0.1:{rest}") as session:
        yield _Memory(session, fleet, {"SERVICE_PORT": str(rest), "DATA_DIR": str(folder / "data")})


class _Memory:
    def __init__(self, session: aiohttp.ClientSession, fleet: Fleet, environ: Mapping[str, str]) -> None:
        self._session = session
        self._fleet = fleet
        self.environ = environ
        self.pids: tuple[int, ...] = ()

    def service(self, number: int) -> str:
        return f"svc-{number}"

    async def fill(self) -> None:
        """Register the fleet with the control plane that runs."""
        operations = [
            {"op": "register", "instance": _instance(service, endpoint, _address(service, endpoint))}
            for service, endpoint in self._fleet.all()
        ]
        for start in range(0, len(operations), 1_000):
            body = {"operations": operations[start : start + 1_000]}
            await _ask(self._session, "POST", "/api/v1/instances:batch", body)

    async def write(self, service: int, address: str) -> None:
        await _ask(self._session, "POST", "/api/v1/services", _instance(service, 0, address))


@asynccontextmanager
async def etcd(fleet: Fleet, folder: Path) -> AsyncIterator[Truth]:
    """Run an etcd with the fleet in it."""
    async with EtcdServer(folder / "etcd") as server, _session(server.endpoint) as session:
        truth = _Etcd(session, {"ETCD_ENDPOINTS": server.address}, server.pid)
        puts = [truth.put(*where, _address(*where)) for where in fleet.all()]
        for start in range(0, len(puts), _OPERATIONS):
            operations = [{"requestPut": put} for put in puts[start : start + _OPERATIONS]]
            await _ask(session, "POST", "/v3/kv/txn", {"success": operations})
        yield truth


class _Etcd:
    def __init__(self, session: aiohttp.ClientSession, environ: Mapping[str, str], *pids: int) -> None:
        self._session = session
        self.environ = environ
        self.pids = pids

    def service(self, number: int) -> str:
        return f"svc-{number}"

    def put(self, service: int, endpoint: int, address: str) -> dict[str, str]:
        instance = _instance(service, endpoint, address)
        key = f"/services/{instance['name']}/{instance['id']}".encode()
        value = json.dumps(instance).encode()
        return {"key": base64.b64encode(key).decode(), "value": base64.b64encode(value).decode()}

    async def write(self, service: int, address: str) -> None:
        await _ask(self._session, "POST", "/v3/kv/put", self.put(service, 0, address))


@asynccontextmanager
async def consul(fleet: Fleet, folder: Path) -> AsyncIterator[Truth]:
    """Run a Consul with the fleet in its catalog, each endpoint of a service on a node of its own.

    Not with its agent, where one agent would stand for all nodes: that looks through its 10,000 for every write.
    """
    with consul_agent(Fleet(services=0, endpoints=0), folder) as (pid, port):
        async with _session(f"http://127.0.0.1:{port}") as session:
            truth = _Consul(session, {"CONSUL_HOST": "127.0.0.1", "CONSUL_PORT": str(port)}, pid)
            operations: list[dict[str, Any]] = [
                {"Node": {"Verb": "set", "Node": {"Node": f"node-{endpoint}", "Address": "127.0.0.1"}}}
                for endpoint in range(fleet.endpoints)
            ]
            operations += [
                {"Service": {"Verb": "set", "Node": f"node-{endpoint}", "Service": truth.entry(service, endpoint)}}
                for service, endpoint in fleet.all()
            ]
            for start in range(0, len(operations), _OPERATIONS):
                await _ask(session, "PUT", "/v1/txn", operations[start : start + _OPERATIONS])
            yield truth


class _Consul:
    def __init__(self, session: aiohttp.ClientSession, environ: Mapping[str, str], *pids: int) -> None:
        self._session = session
        self.environ = environ
        self.pids = pids

    def service(self, number: int) -> str:
        return f"svc-{number}"

    def entry(self, service: int, endpoint: int, address: str | None = None) -> dict[str, Any]:
        name = f"svc-{service}"
        address = address or _address(service, endpoint)
        return {"Service": name, "ID": f"{name}/e{endpoint}", "Address": address, "Port": 8080}

    async def write(self, service: int, address: str) -> None:
        body = {"Node": "node-0", "Address": "127.0.0.1", "Service": self.entry(service, 0, address)}
        await _ask(self._session, "PUT", "/v1/catalog/register", {**body, "SkipNodeUpdate": True})


@asynccontextmanager
async def kubernetes(fleet: Fleet, folder: Path) -> AsyncIterator[Truth]:
    """Run a Kubernetes API with the fleet in it: a Service and an EndpointSlice each."""
    async with (
        KubernetesServer(folder / "kubernetes") as server,
        _session(
            server.endpoint,
            headers={"Authorization": f"Bearer {TOKENS[ADMIN]}"},
            connector=aiohttp.TCPConnector(ssl=trusting(server.authority.file)),
        ) as session,
    ):
        truth = _Kubernetes(session, {"KUBECONFIG": str(server.kubeconfig())}, server.pid, server.store.pid)
        services = iter(range(fleet.services))

        async def fill() -> None:
            for service in services:
                await truth.make(service, fleet.endpoints)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(_TOGETHER):
                tasks.create_task(fill())
        yield truth


class _Kubernetes:
    _SERVICES = "/api/v1/namespaces/default/services"
    _SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"

    def __init__(self, session: aiohttp.ClientSession, environ: Mapping[str, str], *pids: int) -> None:
        self._session = session
        self.environ = environ
        self.pids = pids

    def service(self, number: int) -> str:
        return f"svc-{number}"

    async def make(self, service: int, endpoints: int) -> None:
        name = f"svc-{service}"
        port = {"name": "http", "port": 8080, "protocol": "TCP"}
        # headless: the range of cluster addresses has no thousand
        spec = {"clusterIP": "None", "ports": [port]}
        await _ask(self._session, "POST", self._SERVICES, {"metadata": {"name": name}, "spec": spec})
        await _ask(
            self._session,
            "POST",
            self._SLICES,
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "ports": [port],
                "endpoints": [
                    {"addresses": [_address(service, each)], "conditions": {"ready": True}} for each in range(endpoints)
                ],
            },
        )

    async def write(self, service: int, address: str) -> None:
        patch = [{"op": "replace", "path": "/endpoints/0/addresses/0", "value": address}]
        path = f"{self._SLICES}/svc-{service}"
        await _ask(self._session, "PATCH", path, patch, content_type="application/json-patch+json")


TRUTHS = {"memory": memory, "etcd": etcd, "consul": consul, "kubernetes": kubernetes}
"""By REGISTRY_TYPE."""


def _instance(service: int, endpoint: int, address: str) -> dict[str, Any]:
    return {"name": f"svc-{service}", "id": f"e{endpoint}", "host": address, "port": 8080}


def _address(service: int, endpoint: int) -> str:
    return f"10.{endpoint}.{service // 250}.{service % 250 + 1}"


def _session(base: str, **options: Any) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(base, timeout=aiohttp.ClientTimeout(total=PATIENCE_S), **options)


async def _ask(
    session: aiohttp.ClientSession, method: str, path: str, body: Any, *, content_type: str = "application/json"
) -> None:
    headers = {"Content-Type": content_type}
    async with session.request(method, path, data=json.dumps(body), headers=headers) as answer:
        if answer.status >= 300:
            raise ServerFailed(f"{method} {path}: {answer.status} {(await answer.text())[:300]}")
        await answer.read()
