"""What tests put into a namespace of a real Kubernetes API, and the registry that reads it from there."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from servers.kubernetes import ADMIN, KubernetesServer
from servers.process import ServerFailed

from controlplane.registry import Sharing
from controlplane.registry.kubernetes import KubernetesRegistry

SLICES = "/apis/discovery.k8s.io/v1"


def a_service(name: str, *, namespace: str = "shop", version: int = 1, **fields: Any) -> dict[str, Any]:
    """Return a Service's JSON with a port `http`; `annotations` and `labels` go into its metadata, the rest is spec."""
    metadata = {"name": name, "namespace": namespace, "resourceVersion": str(version)}
    metadata |= {key: fields.pop(key) for key in ("annotations", "labels") if key in fields}
    spec = {"ports": [{"name": "http", "port": 80, "protocol": "TCP"}], **fields}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def an_endpoint(address: str, pod: str = "", **fields: Any) -> dict[str, Any]:
    """Return one endpoint of a slice, ready unless `conditions` say otherwise."""
    target = {"targetRef": {"kind": "Pod", "name": pod}} if pod else {}
    return {"addresses": [address], "conditions": {"ready": True}, **target, **fields}


def a_slice(
    service: str, *endpoints: dict[str, Any], name: str = "", namespace: str = "shop", version: int = 1, **fields: Any
) -> dict[str, Any]:
    """Return an EndpointSlice's JSON for a service, with the port `http` on 8080."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name or f"{service}-1",
            "namespace": namespace,
            "resourceVersion": str(version),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": list(endpoints),
        **fields,
    }


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Write into one namespace of a server, as the admin, and read it by registries."""

    server: KubernetesServer
    namespace: str
    options: Mapping[str, Any] = field(default_factory=dict)

    async def put(self, thing: dict[str, Any]) -> dict[str, Any]:
        """Make an object, or replace it, whatever its version."""
        group = {"Service": "/api/v1", "EndpointSlice": SLICES, "ConfigMap": "/api/v1"}[thing["kind"]]
        base = f"{group}/namespaces/{self.namespace}/{thing['kind'].lower()}s"
        metadata = {key: value for key, value in thing["metadata"].items() if key != "resourceVersion"}
        thing = {**thing, "metadata": {**metadata, "namespace": self.namespace}}
        try:
            stored = await self.server.request("GET", f"{base}/{metadata['name']}")
        except ServerFailed:
            return dict(await self.server.request("POST", base, thing))
        thing["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"]
        if thing["kind"] == "Service" and "clusterIP" in stored["spec"]:
            thing["spec"] = {**thing["spec"], "clusterIP": stored["spec"]["clusterIP"]}
        return dict(await self.server.request("PUT", f"{base}/{metadata['name']}", thing))

    async def delete(self, kind: str, name: str) -> None:
        """Delete an object."""
        group = SLICES if kind == "EndpointSlice" else "/api/v1"
        await self.server.request("DELETE", f"{group}/namespaces/{self.namespace}/{kind.lower()}s/{name}")

    async def leases(self) -> list[str]:
        """Return the holders of the leases in the namespace."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases"
        found = await self.server.request("GET", path)
        return [lease["spec"]["holderIdentity"] for lease in found["items"]]

    def registry(
        self,
        member: str | None = "one",
        *,
        ttl_s: float = 30.0,
        user: str = ADMIN,
        token: str | None = None,
        kubeconfig: Path | str | None = None,
        **options: Any,
    ) -> KubernetesRegistry:
        """Return a registry of this namespace; `member` None: one that shares nothing."""
        if kubeconfig is None:
            kubeconfig = self.server.kubeconfig(user, namespace=self.namespace, token=token)
        given: dict[str, Any] = {
            "kubeconfig": str(kubeconfig),
            "namespaces": (self.namespace,),
            "sharing": None if member is None else Sharing(member=member, ttl_s=ttl_s),
            "clock": time.monotonic,
            "wall_clock": time.time,
            "random": Random(1),
            "environ": {},
        }
        return KubernetesRegistry(**{**given, **self.options, **options})
