"""The etcd that tests are given behaves as they rely on."""

import asyncio
from pathlib import Path

import aiohttp
import pytest
from servers.certificates import Authority, Tls, trusting
from servers.etcd import EtcdCluster, EtcdServer
from servers.process import ServerFailed

pytestmark = pytest.mark.etcd


async def value(server: EtcdServer, key: str) -> str:
    return (await server.etcdctl("get", key, "--print-value-only")).strip()


async def test_what_was_written_survives_a_kill_on_the_same_port(tmp_path: Path) -> None:
    async with EtcdServer(tmp_path) as server:
        before = server.endpoint
        await server.etcdctl("put", "/services/web/1", "kept")
        await server.kill()
        with pytest.raises(aiohttp.ClientConnectorError):
            await server.answers()

        await server.start()

        assert server.endpoint == before
        assert await value(server, "/services/web/1") == "kept"


async def test_a_wiped_server_is_empty_and_knows_no_users(tmp_path: Path) -> None:
    async with EtcdServer(tmp_path) as server:
        await server.etcdctl("put", "/services/web/1", "lost")
        await server.demand_passwords()

        await server.wipe()

        assert await value(server, "/services/web/1") == ""


async def test_a_paused_server_accepts_and_never_answers_until_it_is_resumed(tmp_path: Path) -> None:
    async with EtcdServer(tmp_path) as server, aiohttp.ClientSession() as session:
        server.pause()
        with pytest.raises(TimeoutError):
            await session.get(f"{server.endpoint}/health", timeout=aiohttp.ClientTimeout(total=0.3, sock_connect=0.1))

        server.resume()

        await asyncio.wait_for(server.ready(), 5)


async def test_a_paused_server_can_be_stopped(tmp_path: Path) -> None:
    async with EtcdServer(tmp_path) as server:
        server.pause()

    assert not server.running


async def test_a_block_that_fails_leaves_no_process_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        async with EtcdServer(tmp_path) as server:
            raise RuntimeError
    with pytest.raises(aiohttp.ClientConnectorError):
        await server.answers()


async def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    server = EtcdServer(tmp_path)
    server.data.write_text("where a folder is to be")

    with pytest.raises(ServerFailed, match="not a directory"):
        await server.start()

    assert not server.running


async def test_tls_is_trusted_through_the_authority_alone(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "ours"), Authority(tmp_path / "strange")

    async with EtcdServer(tmp_path, tls=Tls(server=authority.server())) as server, aiohttp.ClientSession() as session:
        async with session.get(f"{server.endpoint}/health", ssl=trusting(authority.file)) as answer:
            assert answer.status == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(f"{server.endpoint}/health", ssl=trusting(stranger.file))


async def test_where_client_certificates_are_demanded_nobody_enters_without_one(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ours")
    tls = Tls(server=authority.server(), client=authority.client())

    async with EtcdServer(tmp_path, tls=tls) as server, aiohttp.ClientSession() as session:
        await server.etcdctl("put", "/services/web/1", "mutual")

        with pytest.raises((aiohttp.ClientError, OSError)):
            await session.get(f"{server.endpoint}/health", ssl=trusting(authority.file))


async def test_wrong_passwords_and_foreign_prefixes_are_refused(tmp_path: Path) -> None:
    async with EtcdServer(tmp_path) as server:
        await server.demand_passwords()
        await server.add_user("ada", "right", prefix="/services/")
        await server.etcdctl("put", "/services/web/1", "hers", user="ada:right")

        with pytest.raises(ServerFailed, match="invalid user ID or password"):
            await server.etcdctl("put", "/services/web/1", "his", user="ada:wrong")
        with pytest.raises(ServerFailed, match="permission denied"):
            await server.etcdctl("put", "/elsewhere", "hers", user="ada:right")
        assert await value(server, "/services/web/1") == "hers"


async def test_history_before_a_compaction_is_gone(shared_etcd: EtcdServer, etcd_prefix: str) -> None:
    await shared_etcd.etcdctl("put", f"{etcd_prefix}web", "first")

    revision = await shared_etcd.compact()

    with pytest.raises(ServerFailed, match="has been compacted"):
        await shared_etcd.etcdctl("get", f"{etcd_prefix}web", "--rev", str(revision - 1))


async def test_a_cluster_that_loses_its_leader_elects_another_and_keeps_its_data_until_it_is_wiped(
    tmp_path: Path,
) -> None:
    async with EtcdCluster(tmp_path) as cluster:
        first = await cluster.leader()
        await first.etcdctl("put", "/services/web/1", "kept")
        await first.kill()

        second = await cluster.leader()

        assert second is not first
        assert await value(second, "/services/web/1") == "kept"
        await first.start()
        assert await value(first, "/services/web/1") == "kept"

        await cluster.wipe()
        assert await value(first, "/services/web/1") == ""
