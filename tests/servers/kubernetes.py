"""A real Kubernetes API for tests: kube-apiserver on an etcd of its own, without nodes, kubelets and controllers.

What controllers would do, a test does itself: nothing makes EndpointSlices from Services, and nothing removes what
a deleted namespace held. Where the API server is older than 1.21, EndpointSlice is served by `endpointslices.yaml`.
"""

import asyncio
import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from servers.binaries import KUBE_APISERVER
from servers.certificates import Authority, trusting
from servers.etcd import EtcdServer
from servers.process import Server, ServerFailed, port

ADMIN = "admin"
"""May do everything (`system:masters`)."""
WATCHER = "watcher"
"""May get, list and watch services, endpoint slices and nodes, everywhere, and nothing else."""
NOBODY = "nobody"
"""Is known, and may do nothing."""

TOKENS = {user: f"token-of-{user}" for user in (ADMIN, WATCHER, NOBODY)}

_CRD = Path(__file__).with_name("endpointslices.yaml")
_SLICES = "/apis/discovery.k8s.io/v1"
_RBAC = "/apis/rbac.authorization.k8s.io/v1"
_READ = ("get", "list", "watch")


class KubernetesServer(Server):
    """Run a Kubernetes API. `kill`, `pause` and `resume` are the API server's; `store` is its etcd, which goes on."""

    name = "kube-apiserver"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = port()
        self.store = EtcdServer(folder / "etcd")
        self.authority = Authority(folder / "certificates")
        self._certificate = self.authority.server("apiserver", hosts=("localhost", "127.0.0.1", "10.0.0.1"))
        self._accounts = self.authority.server("service-accounts")

    @property
    def endpoint(self) -> str:
        """Return its URL."""
        return f"https://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        tokens = self.folder / "tokens.csv"
        tokens.write_text(
            "".join(
                f"{token},{user},{user}{',system:masters' if user == ADMIN else ''}\n" for user, token in TOKENS.items()
            )
        )
        return [
            *(str(KUBE_APISERVER.path()), "--etcd-servers", self.store.endpoint),
            *("--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1", "--secure-port", str(self.port)),
            *("--tls-cert-file", str(self._certificate.certificate)),
            *("--tls-private-key-file", str(self._certificate.key)),
            *("--client-ca-file", str(self.authority.file), "--token-auth-file", str(tokens)),
            *("--service-account-issuer", "https://kubernetes.default.svc", "--api-audiences", "api"),
            *("--service-account-key-file", str(self._accounts.certificate)),
            *("--service-account-signing-key-file", str(self._accounts.key)),
            *("--authorization-mode", "RBAC", "--service-cluster-ip-range", "10.0.0.0/24"),
            # no controller makes the service accounts that this plug-in would look for
            *("--disable-admission-plugins", "ServiceAccount"),
            # the definition of v1 takes the whole group: the older version may not hold it
            *("--runtime-config", "discovery.k8s.io/v1beta1=false"),
            *("--cert-dir", str(self.folder / "certificates")),
        ]

    async def start(self) -> None:
        """Start it, its store first where that does not run, and wait until it serves EndpointSlices."""
        if not self.store.running:
            await self.store.start()
        try:
            await super().start()
            await self._prepare()
        except BaseException:
            await self._kill_both()
            raise

    async def __aexit__(self, *_: object) -> None:
        await self._kill_both()

    async def _kill_both(self) -> None:
        try:
            await self.kill()
        finally:
            await self.store.kill()

    async def wipe(self) -> None:
        """Crash it and its store, lose all data, and start both empty, on the same ports."""
        await self.kill()
        await self.store.wipe()
        await self.start()

    async def answers(self) -> bool:
        try:
            await self.request("GET", "/readyz")
            await self.request("GET", "/api/v1/namespaces/default")  # made a moment after it is ready
        except ServerFailed:
            return False
        return True

    async def _prepare(self) -> None:
        """Have it serve EndpointSlices and know what `WATCHER` may, unless its store remembers."""
        if not await self._has(_SLICES):
            definition = yaml.safe_load(_CRD.read_text())
            await self.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        async with asyncio.timeout(10):
            while not await self._has(f"{_SLICES}/endpointslices"):
                await asyncio.sleep(0.02)
        if not await self._has(f"{_RBAC}/clusterroles/test-{WATCHER}"):
            read = list(_READ)
            await self.allow(
                WATCHER,
                {"apiGroups": [""], "resources": ["services", "nodes"], "verbs": read},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read},
            )

    async def _has(self, path: str) -> bool:
        try:
            await self.request("GET", path)
        except ServerFailed as error:
            if " 404 " in str(error):
                return False
            raise
        return True

    async def allow(self, user: str, *rules: dict[str, Sequence[str]], namespace: str | None = None) -> None:
        """Let a user do what RBAC rules say, in one namespace or everywhere; once per user and namespace."""
        kind = "ClusterRole" if namespace is None else "Role"
        base = _RBAC if namespace is None else f"{_RBAC}/namespaces/{namespace}"
        name = {"name": f"test-{user}"}
        group = "rbac.authorization.k8s.io"
        await self.request("POST", f"{base}/{kind.lower()}s", {"metadata": name, "rules": rules})
        await self.request(
            "POST",
            f"{base}/{kind.lower()}bindings",
            {
                "metadata": name,
                "roleRef": {"apiGroup": group, "kind": kind, **name},
                "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
            },
        )

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        user: str = ADMIN,
        content_type: str = "application/json",
    ) -> Any:
        """Send a request to the API as a user and return the answer's JSON (text, where it is none).

        Raises:
            ServerFailed: the answer is an error; the message holds the status and the server's words.
        """
        headers = {"Authorization": f"Bearer {TOKENS.get(user, user)}", "Content-Type": content_type}
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.request(
                method,
                f"{self.endpoint}{path}",
                data=None if body is None else json.dumps(body),
                headers=headers,
                ssl=trusting(self.authority.file),
            ) as answer,
        ):
            text = await answer.text()
            if answer.status >= 400:
                raise ServerFailed(f"Kubernetes: {method} {path}: {answer.status} {text}")
            return json.loads(text) if answer.content_type == "application/json" else text

    def kubeconfig(self, user: str = ADMIN, *, namespace: str = "default", token: str | None = None) -> Path:
        """Write a kubeconfig for a user, or for a token of the test's own, and return its path."""
        path = self.folder / f"kubeconfig-{user}-{namespace}"
        path.touch(mode=0o600)
        authority = base64.b64encode(self.authority.file.read_bytes()).decode()
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {"name": "test", "cluster": {"server": self.endpoint, "certificate-authority-data": authority}}
            ],
            "users": [{"name": user, "user": {"token": token if token is not None else TOKENS[user]}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user, "namespace": namespace}}],
        }
        path.write_text(yaml.safe_dump(content))
        return path

    async def add_namespace(self, name: str) -> None:
        """Make a namespace."""
        await self.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})

    async def empty(self, namespace: str) -> None:
        """Remove a namespace's services, endpoint slices, leases and config maps, and let it go."""
        services = f"/api/v1/namespaces/{namespace}/services"
        for service in (await self.request("GET", services))["items"]:  # 1.20 deletes no collection of services
            await self.request("DELETE", f"{services}/{service['metadata']['name']}")
        await self.request("DELETE", f"{_SLICES}/namespaces/{namespace}/endpointslices")
        await self.request("DELETE", f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases")
        await self.request("DELETE", f"/api/v1/namespaces/{namespace}/configmaps")
        await self.request("DELETE", f"/api/v1/namespaces/{namespace}")
