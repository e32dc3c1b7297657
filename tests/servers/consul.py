"""A real Consul for tests: one server or three, with ACLs or TLS where asked, killed and restarted at will.

Servers with a data folder, not `-dev` agents: what a `-dev` agent knows dies with it. The limits are Consul's own; note
`limits.http_max_conns_per_client`, 200 connections from one address.
"""

import json
import secrets
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
from servers.binaries import CONSUL
from servers.certificates import Tls, trusting
from servers.cluster import Cluster
from servers.process import Server, ServerFailed, port


class ConsulServer(Server):
    """Run one Consul server.

    With `acl`, what is not allowed by a token is denied, and `token` may do everything; it stays the same when the
    server is wiped. With `tls`, there is no plain port.
    """

    def __init__(
        self,
        folder: Path,
        *,
        acl: bool = False,
        tls: Tls | None = None,
        datacenter: str = "dc1",
        name: str = "consul",
        gossip_port: int | None = None,
        gossip: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(folder)
        self.name = name
        self.tls = tls
        self.datacenter = datacenter
        self.token = str(uuid.uuid4()) if acl else None
        self.port = port()
        self._rpc_port = port()
        self._gossip_port = gossip_port or port()
        self._gossip = gossip or {name: self._gossip_port}

    @property
    def address(self) -> str:
        """Return `host:port`."""
        return f"127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> str:
        """Return its URL."""
        return f"{'https' if self.tls else 'http'}://{self.address}"

    @property
    def rpc_address(self) -> str:
        """Return the address by which the servers know each other."""
        return f"127.0.0.1:{self._rpc_port}"

    def command(self) -> list[str]:
        config = self.folder / "config.json"
        config.touch(mode=0o600)  # it holds the token
        config.write_text(json.dumps(self._config(), indent=2))
        return [str(CONSUL.path()), "agent", "-config-file", str(config), "-log-level", "warn"]

    def _config(self) -> dict[str, Any]:
        return {
            "server": True,
            "bootstrap_expect": len(self._gossip),
            "node_name": self.name,
            "datacenter": self.datacenter,
            "data_dir": str(self.data),
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "ports": {
                **({"http": -1, "https": self.port} if self.tls else {"http": self.port, "https": -1}),
                "dns": -1,
                "grpc": -1,
                "serf_wan": -1,
                "serf_lan": self._gossip_port,
                "server": self._rpc_port,
            },
            "retry_join": [f"127.0.0.1:{at}" for name, at in self._gossip.items() if name != self.name],
            "retry_interval": "1s",
            "performance": {"raft_multiplier": 1},
            "disable_update_check": True,
            **(
                {
                    "acl": {
                        "enabled": True,
                        "default_policy": "deny",
                        "tokens": {"master": self.token, "agent": self.token},
                    }
                }
                if self.token
                else {}
            ),
            **(
                {
                    "ca_file": str(self.tls.server.authority),
                    "cert_file": str(self.tls.server.certificate),
                    "key_file": str(self.tls.server.key),
                    "verify_incoming_https": self.tls.client is not None,
                }
                if self.tls
                else {}
            ),
        }

    async def answers(self) -> bool:
        try:
            # a consistent read is answered by a leader that has its office, and that has met this node
            nodes = await self.request("GET", "/v1/catalog/nodes?consistent")
        except ServerFailed:
            return False
        return any(node["Node"] == self.name for node in nodes)

    async def request(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> Any:
        """Send a request to its API and return the answer's JSON; with all rights, or with those of a token.

        Raises:
            ServerFailed: the answer is an error.
        """
        shown = token if token is not None else self.token
        context = trusting(self.tls.server.authority, self.tls.client) if self.tls else True
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.request(
                method,
                f"{self.endpoint}{path}",
                json=body,
                ssl=context,
                headers={"X-Consul-Token": shown} if shown else {},
            ) as answer,
        ):
            text = await answer.text()
            if answer.status != 200:
                raise ServerFailed(f"Consul: {method} {path}: {answer.status} {text}")
            return json.loads(text) if text else None

    async def add_token(self, rules: str) -> str:
        """Make a token with a policy of these rules (HCL) and return its secret."""
        policy = {"Name": f"test-{secrets.token_hex(4)}", "Rules": rules}
        await self.request("PUT", "/v1/acl/policy", policy)
        token = await self.request("PUT", "/v1/acl/token", {"Policies": [{"Name": policy["Name"]}]})
        return str(token["SecretID"])

    async def empty(self) -> None:
        """Remove every service, session and key, and every node but itself; of a cluster, `wipe` the whole."""
        for service in await self.request("GET", "/v1/agent/services"):
            await self.request("PUT", f"/v1/agent/service/deregister/{service.replace('/', '%2F')}")
        for node in await self.request("GET", "/v1/catalog/nodes"):
            if node["Node"] != self.name:
                await self.request("PUT", "/v1/catalog/deregister", {"Node": node["Node"]})
        for session in await self.request("GET", "/v1/session/list"):
            await self.request("PUT", f"/v1/session/destroy/{session['ID']}")
        await self.request("DELETE", "/v1/kv/?recurse")


class ConsulCluster(Cluster[ConsulServer]):
    """Run a cluster of Consul servers, without ACLs."""

    def __init__(self, folder: Path, *, size: int = 3, tls: Tls | None = None) -> None:
        gossip = {f"consul-{number}": port() for number in range(1, size + 1)}
        super().__init__(
            [
                ConsulServer(folder / name, name=name, gossip_port=at, gossip=gossip, tls=tls)
                for name, at in gossip.items()
            ]
        )

    async def leads(self, member: ConsulServer) -> bool:
        try:
            leader = await member.request("GET", "/v1/status/leader")
            return bool(leader == member.rpc_address and await member.answers())
        except (aiohttp.ClientError, ServerFailed, TimeoutError):
            return False
