"""A real etcd for tests: one node or a cluster, with passwords or TLS where asked, killed and restarted at will."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import aiohttp
from servers.binaries import etcd as binary
from servers.certificates import Tls, trusting
from servers.cluster import Cluster
from servers.process import STOP_PATIENCE_S, Server, ServerFailed, port

ROOT_PASSWORD = "root's own"


class EtcdServer(Server):
    """Run one etcd node.

    It does not wait for the disk (`--unsafe-no-fsync`): what it answered survives SIGKILL, not a power cut.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tls: Tls | None = None,
        auth_token_ttl_s: int = 300,
        name: str = "etcd",
        peer_port: int | None = None,
        members: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(folder)
        self.name = name
        self.tls = tls
        self.port = port()
        self._peer_port = peer_port or port()
        self._members = members or {name: self._peer_port}
        self._auth_token_ttl_s = auth_token_ttl_s
        self._root_password: str | None = None

    @property
    def address(self) -> str:
        """Return `host:port`, as `ETCD_ENDPOINTS` takes it."""
        return f"127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> str:
        """Return its URL."""
        return f"{'https' if self.tls else 'http'}://{self.address}"

    def command(self) -> list[str]:
        peer = f"http://127.0.0.1:{self._peer_port}"
        cluster = ",".join(f"{name}=http://127.0.0.1:{peer_port}" for name, peer_port in self._members.items())
        return [
            *(str(binary()), "--name", self.name, "--data-dir", str(self.data), "--unsafe-no-fsync"),
            *("--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", cluster),
            *("--auth-token-ttl", str(self._auth_token_ttl_s), "--log-level", "warn"),
            # a node alone need not wait for others before it elects itself; a cluster keeps etcd's own timing
            *(() if len(self._members) > 1 else ("--heartbeat-interval", "10", "--election-timeout", "100")),
            *self._tls_flags(),
        ]

    def _tls_flags(self) -> list[str]:
        if self.tls is None:
            return []
        flags = ["--cert-file", str(self.tls.server.certificate), "--key-file", str(self.tls.server.key)]
        if self.tls.client is not None:
            # only here: etcd demands client certificates as soon as it is told of an authority
            flags += ["--client-cert-auth", "--trusted-ca-file", str(self.tls.client.authority)]
        return flags

    async def answers(self) -> bool:
        context = trusting(self.tls.server.authority, self.tls.client) if self.tls else True
        async with aiohttp.ClientSession() as session, session.get(f"{self.endpoint}/health", ssl=context) as answer:
            return answer.status == 200 and (await answer.json(content_type=None))["health"] == "true"

    async def wipe(self) -> None:
        """Crash it, lose its data and users, and start it empty; of a cluster, wipe the whole."""
        if len(self._members) > 1:
            raise ServerFailed("a member that lost its data cannot come back by itself; wipe the cluster")
        self._root_password = None
        await super().wipe()

    async def etcdctl(self, *arguments: str, user: str | None = None) -> str:
        """Run `etcdctl` on this node and return what it printed; as root where passwords are on.

        Raises:
            ServerFailed: it reported an error.
        """
        if user is None and self._root_password is not None:
            user = f"root:{self._root_password}"
        process = await asyncio.create_subprocess_exec(
            *(str(binary("etcdctl")), "--endpoints", self.endpoint, "--command-timeout", "5s"),
            *self._etcdctl_tls(),
            *(("--user", user) if user else ()),
            *arguments,
            env={**os.environ, "ETCDCTL_API": "3"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(STOP_PATIENCE_S):
                printed, errors = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        if process.returncode != 0:
            raise ServerFailed(f"etcdctl {' '.join(arguments[:2])}: {errors.decode().strip()}")
        return printed.decode()

    def _etcdctl_tls(self) -> list[str]:
        if self.tls is None:
            return []
        flags = ["--cacert", str(self.tls.server.authority)]
        if self.tls.client is not None:
            flags += ["--cert", str(self.tls.client.certificate), "--key", str(self.tls.client.key)]
        return flags

    async def demand_passwords(self) -> None:
        """Switch authentication on, with the user `root`."""
        await self.etcdctl("user", "add", f"root:{ROOT_PASSWORD}")
        await self.etcdctl("user", "grant-role", "root", "root")
        await self.etcdctl("auth", "enable")
        self._root_password = ROOT_PASSWORD

    async def add_user(self, name: str, password: str, *, prefix: str, permission: str = "readwrite") -> None:
        """Add a user that may `read`, `write` or `readwrite` the keys under a prefix and nothing else."""
        await self.etcdctl("user", "add", f"{name}:{password}")
        await self.etcdctl("role", "add", name)
        await self.etcdctl("role", "grant-permission", name, permission, prefix, "--prefix=true")
        await self.etcdctl("user", "grant-role", name, name)

    async def compact(self) -> int:
        """Forget all history up to now, so that no watch resumes from before; return the revision."""
        status = await self.etcdctl("put", "/compaction-marker", "", "--write-out", "fields")
        revision = int(next(line for line in status.splitlines() if '"Revision"' in line).rsplit(":", 1)[1])
        await self.etcdctl("compaction", str(revision))
        return revision


class EtcdCluster(Cluster[EtcdServer]):
    """Run a cluster of etcd nodes."""

    def __init__(self, folder: Path, *, size: int = 3, tls: Tls | None = None) -> None:
        peers = {f"etcd-{number}": port() for number in range(1, size + 1)}
        super().__init__(
            [
                EtcdServer(folder / name, name=name, peer_port=peer_port, members=peers, tls=tls)
                for name, peer_port in peers.items()
            ]
        )

    @property
    def addresses(self) -> str:
        """Return all members, as `ETCD_ENDPOINTS` takes them."""
        return ",".join(member.address for member in self.members)

    async def leads(self, member: EtcdServer) -> bool:
        try:
            status = await member.etcdctl("endpoint", "status", "--write-out", "fields")
        except ServerFailed:
            return False
        lines = (line.partition(":") for line in status.splitlines())
        fields = {key.strip('" '): value.strip() for key, _, value in lines}
        return fields["Leader"] == fields["MemberID"]
