"""The Consul that tests are given behaves as they rely on."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from harness import eventually
from servers.certificates import Authority, Tls, trusting
from servers.consul import ConsulCluster, ConsulServer
from servers.process import ServerFailed

pytestmark = pytest.mark.consul

WEB = {"Name": "web", "ID": "web/1", "Address": "127.0.0.1", "Port": 80}


async def register(server: ConsulServer, **fields: Any) -> None:
    await server.request("PUT", "/v1/agent/service/register", {**WEB, **fields})
    await eventually(lambda: services(server), "the catalog has it")


async def services(server: ConsulServer, token: str | None = None) -> list[str]:
    return [each["ServiceID"] for each in await server.request("GET", "/v1/catalog/service/web", token=token)]


async def test_what_was_registered_survives_a_kill_on_the_same_port_and_is_lost_by_a_wipe(tmp_path: Path) -> None:
    async with ConsulServer(tmp_path) as server:
        before = server.endpoint
        await register(server)
        await server.kill()
        with pytest.raises(aiohttp.ClientConnectorError):
            await server.answers()

        await server.start()
        assert server.endpoint == before
        assert await services(server) == ["web/1"]

        await server.wipe()
        assert await services(server) == []


async def test_a_paused_server_accepts_and_never_answers_until_it_is_resumed(consul: ConsulServer) -> None:
    async with aiohttp.ClientSession() as session:
        consul.pause()
        try:
            with pytest.raises(TimeoutError):
                await session.get(
                    f"{consul.endpoint}/v1/status/leader", timeout=aiohttp.ClientTimeout(total=0.3, sock_connect=0.1)
                )
        finally:
            consul.resume()

    await consul.ready()


async def test_tls_is_trusted_through_the_authority_alone(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "ours"), Authority(tmp_path / "strange")

    async with ConsulServer(tmp_path, tls=Tls(server=authority.server())) as server, aiohttp.ClientSession() as session:
        async with session.get(f"{server.endpoint}/v1/status/leader", ssl=trusting(authority.file)) as answer:
            assert answer.status == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(f"{server.endpoint}/v1/status/leader", ssl=trusting(stranger.file))


async def test_where_client_certificates_are_demanded_nobody_enters_without_one(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ours")
    tls = Tls(server=authority.server(), client=authority.client())

    async with ConsulServer(tmp_path, tls=tls) as server, aiohttp.ClientSession() as session:
        await register(server)

        with pytest.raises((aiohttp.ClientError, OSError)):
            await session.get(f"{server.endpoint}/v1/status/leader", ssl=trusting(authority.file))


async def test_a_token_allows_what_its_rules_say_a_wrong_one_nothing_and_ours_all_even_after_a_wipe(
    tmp_path: Path,
) -> None:
    async with ConsulServer(tmp_path, acl=True) as server:
        reader = await server.add_token('service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }')
        await register(server)

        assert await services(server, token=reader) == ["web/1"]
        assert await services(server, token="") == [], "without a token Consul shows an empty catalog, not an error"
        with pytest.raises(ServerFailed, match="403 Permission denied"):
            await server.request("PUT", "/v1/agent/service/register", WEB, token=reader)
        with pytest.raises(ServerFailed, match="403 ACL not found"):
            await services(server, token="00000000-0000-0000-0000-000000000000")

        await server.wipe()
        await register(server)  # the token with all rights is the same


async def test_a_shared_server_is_empty_again_for_the_next_test(consul: ConsulServer) -> None:
    await register(consul)
    await consul.request("PUT", "/v1/kv/policies/web", {"strategy": "random"})
    await consul.request(
        "PUT", "/v1/catalog/register", {"Node": "far", "Address": "10.0.0.1", "Service": {"Service": "web"}}
    )
    await consul.request("PUT", "/v1/session/create", {"TTL": "30s"})

    await consul.empty()

    assert set(await consul.request("GET", "/v1/catalog/services")) == {"consul"}
    assert [node["Node"] for node in await consul.request("GET", "/v1/catalog/nodes")] == [consul.name]
    assert await consul.request("GET", "/v1/session/list") == []
    with pytest.raises(ServerFailed, match="404"):
        await consul.request("GET", "/v1/kv/policies/web")


async def test_a_cluster_that_loses_its_leader_elects_another_and_keeps_its_data(tmp_path: Path) -> None:
    async with ConsulCluster(tmp_path) as cluster:
        first = await cluster.leader()
        await first.request("PUT", "/v1/kv/policies/web", {"strategy": "random"})
        await first.kill()

        second = await cluster.leader()

        assert second is not first
        assert len(await second.request("GET", "/v1/kv/policies/web")) == 1
        await first.start()
        assert len(await first.request("GET", "/v1/kv/policies/web")) == 1
