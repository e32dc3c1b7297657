"""What becomes of an etcd registry when its etcd dies, hangs, forgets, is emptied, or refuses."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
from builders import instance
from registry.etcds import followed, in_sync, registry_at
from registry.harness import Told
from registry.wire import Wire
from servers.certificates import Authority, Tls
from servers.etcd import EtcdCluster, EtcdServer

from controlplane.model import DeleteInstance, Lost, Missing, PutInstance, Synced
from controlplane.policy import Policy
from controlplane.registry import RegistryUnavailable
from controlplane.registry.etcd import Credentials, EtcdRegistry

pytestmark = pytest.mark.etcd

A = instance("web", "a", host="10.0.0.1")
B = instance("web", "b", host="10.0.0.2")
C = instance("web", "c", host="10.0.0.3")


async def lost(told: Told) -> str:
    event = await told.next()
    assert isinstance(event, Lost)
    return event.reason


async def put(registry: EtcdRegistry, told: Told) -> None:
    for each in (A, B, C):
        await registry.put(each)
        assert await told.next() == PutInstance(instance=each, registry="etcd")


class TestDeath:
    async def test_a_killed_etcd_is_said_once_and_everything_goes_on_when_it_is_back(self, tmp_path: Path) -> None:
        async with EtcdServer(tmp_path) as server, in_sync(server.address) as (registry, told):
            await put(registry, told)
            await server.kill()
            assert server.address in await lost(told)
            with pytest.raises(RegistryUnavailable, match=server.address):
                await registry.put(replace(A, weight=2))

            await server.start()

            assert await told.next() == Synced(registry="etcd")
            await registry.put(replace(A, weight=2))
            assert await told.next() == PutInstance(instance=replace(A, weight=2), registry="etcd")
            await told.silence()
            await told.until(lambda: told.members == {"one"})

    async def test_one_that_is_not_there_at_the_start_is_said_once_and_followed_when_it_comes(
        self, tmp_path: Path
    ) -> None:
        server = EtcdServer(tmp_path)
        async with followed(registry_at(server.address)) as (registry, told):
            assert "refused" in (await lost(told)).lower()
            async with server:
                assert await told.listing() == []
                await registry.put(A)
                assert await told.next() == PutInstance(instance=A, registry="etcd")

    async def test_one_that_comes_back_empty_takes_nothing_away_but_doubtfully_and_at_once(
        self, tmp_path: Path
    ) -> None:
        async with EtcdServer(tmp_path) as server, in_sync(server.address) as (registry, told):
            await put(registry, told)
            await server.wipe()

            await lost(told)
            assert await told.listing() == [
                Missing(keys=(A.key, B.key, C.key), registry="etcd", reason="missing after a reconnect")
            ]
            await registry.put(A)
            assert await told.next() == PutInstance(instance=A, registry="etcd")

    async def test_one_that_was_emptied_and_filled_anew_out_of_our_sight_is_listed_anew(self, tmp_path: Path) -> None:
        async with EtcdServer(tmp_path) as server, Wire(server.port) as wire, in_sync(wire.address) as (registry, told):
            await put(registry, told)
            await wire.cut()
            await lost(told)
            await server.wipe()
            async with in_sync(server.address, member="two") as (other, _):
                for weight in range(1, 20):  # its revisions are beyond ours
                    await other.put(replace(A, weight=weight))
            await wire.mend()

            assert await told.listing() == [
                PutInstance(instance=replace(A, weight=19), registry="etcd"),
                Missing(keys=(B.key, C.key), registry="etcd", reason="missing after a reconnect"),
            ]

    async def test_a_hanging_etcd_is_noticed_in_ten_seconds_and_writes_do_not_hang_with_it(
        self, tmp_path: Path
    ) -> None:
        async with EtcdServer(tmp_path) as server, in_sync(server.address, ttl_s=60) as (registry, told):
            await put(registry, told)
            began = time.monotonic()
            server.pause()
            with pytest.raises(RegistryUnavailable, match="does not answer"):
                await registry.put(replace(A, weight=2))
            assert time.monotonic() - began < 5.5
            assert "does not answer" in await lost(told)
            assert time.monotonic() - began < 10
            assert registry.age_s() > 2
            while time.monotonic() - began < 12:
                with pytest.raises(RegistryUnavailable):
                    await registry.put(replace(A, weight=2))

            server.resume()

            event = await told.next()
            if event != Synced(registry="etcd"):  # a write that nobody waited for any more was taken after all
                assert event == PutInstance(instance=replace(A, weight=2), registry="etcd")
                event = await told.next()
            assert event == Synced(registry="etcd")
            await told.silence()


class TestHistory:
    async def test_after_a_short_loss_the_watch_goes_on_so_a_deletion_meanwhile_is_trusted(
        self, tmp_path: Path
    ) -> None:
        async with EtcdServer(tmp_path) as server, Wire(server.port) as wire, in_sync(wire.address) as (registry, told):
            await put(registry, told)
            await wire.cut()
            await lost(told)
            await server.etcdctl("del", "/services/web/a")
            await server.etcdctl("put", "/services/web/d", '{"host": "10.0.0.4", "port": 8080}')
            await wire.mend()

            assert await told.listing() == [
                DeleteInstance(key=A.key, registry="etcd"),
                PutInstance(instance=instance("web", "d", host="10.0.0.4"), registry="etcd"),
            ]

    async def test_where_history_was_compacted_everything_is_listed_and_what_is_missing_is_doubted(
        self, tmp_path: Path
    ) -> None:
        async with EtcdServer(tmp_path) as server, Wire(server.port) as wire, in_sync(wire.address) as (registry, told):
            await put(registry, told)
            await wire.cut()
            await lost(told)
            await server.etcdctl("del", "/services/web/a")
            await server.etcdctl("del", "/services/web/b")
            await server.etcdctl("put", "/services/web/c", '{"host": "10.0.0.3", "port": 8080, "weight": 7}')
            await server.compact()
            await wire.mend()

            assert await told.listing() == [
                PutInstance(instance=replace(C, weight=7), registry="etcd"),
                Missing(keys=(A.key, B.key), registry="etcd", reason="missing after a reconnect"),
            ]
            await told.silence()

    async def test_a_compaction_under_a_live_watch_is_nothing(self, tmp_path: Path) -> None:
        async with EtcdServer(tmp_path) as server, in_sync(server.address) as (registry, told):
            await put(registry, told)
            await server.compact()
            await registry.delete(A.key)
            assert await told.next() == DeleteInstance(key=A.key, registry="etcd")

    async def test_a_large_listing_is_complete_and_leaves_others_their_turns(self, tmp_path: Path) -> None:
        async with EtcdServer(tmp_path) as server:
            async with in_sync(server.address) as (registry, _):
                for start in range(0, 3_000, 100):
                    await asyncio.gather(
                        *(registry.put(instance("web", f"i{n}", port=1 + n)) for n in range(start, start + 100))
                    )
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0)
                    turns += 1

            async with followed(registry_at(server.address)) as (_, told):
                counting = asyncio.create_task(count())
                assert len(await told.listing()) == 3_000
                counting.cancel()
            assert turns > 3_000 / 200


class TestCluster:
    async def test_the_loss_of_the_leader_costs_neither_an_instance_nor_a_write(self, tmp_path: Path) -> None:
        async with EtcdCluster(tmp_path) as cluster:
            leader = await cluster.leader()
            others = [member for member in cluster.members if member is not leader]
            endpoints = [leader.address, *(member.address for member in others)]
            async with in_sync(*endpoints) as (registry, told):
                await put(registry, told)
                await leader.kill()

                await registry.put(replace(A, weight=2))

                await lost(told)
                assert await told.listing() == [PutInstance(instance=replace(A, weight=2), registry="etcd")]
                await told.silence()

    async def test_a_dead_member_first_in_the_list_is_passed_over(self, tmp_path: Path) -> None:
        dead = EtcdServer(tmp_path / "dead")
        async with (
            EtcdServer(tmp_path / "alive") as server,
            followed(registry_at(dead.address, server.address)) as (
                registry,
                told,
            ),
        ):
            assert await told.listing() == []
            await registry.put(A)
            assert await told.next() == PutInstance(instance=A, registry="etcd")


class TestPasswords:
    async def test_a_user_who_may_use_our_keys_and_no_others_is_enough(self, tmp_path: Path) -> None:
        async with EtcdServer(tmp_path) as server:
            await server.demand_passwords()
            await server.add_user("ada", "right", prefix="/services")
            who = Credentials(username="ada", password="right")
            async with in_sync(server.address, who=who) as (registry, told):
                await put(registry, told)
                await registry.put(replace(A, ttl=60.0))
                assert await registry.heartbeat(A.key) == 60.0

    async def test_a_wrong_password_is_one_clear_loss_and_right_once_etcd_knows_it(self, tmp_path: Path) -> None:
        async with EtcdServer(tmp_path) as server:
            await server.demand_passwords()
            await server.add_user("ada", "right", prefix="/services")
            who = Credentials(username="ada", password="s3cr3t")
            assert "s3cr3t" not in repr(who)
            async with followed(registry_at(server.address, who=who)) as (registry, told):
                reason = await lost(told)
                assert "ETCD_PASSWORD" in reason
                assert "s3cr3t" not in reason
                with pytest.raises(RegistryUnavailable, match="ETCD_PASSWORD"):
                    await registry.put(A)
                await server.etcdctl("user", "delete", "ada")
                await server.etcdctl("user", "add", "ada:s3cr3t")
                await server.etcdctl("user", "grant-role", "ada", "ada")

                assert await told.listing() == []

    async def test_no_user_where_one_is_demanded_says_which_settings_are_missing(self, tmp_path: Path) -> None:
        async with EtcdServer(tmp_path) as server:
            await server.demand_passwords()
            async with followed(registry_at(server.address)) as (_, told):
                assert "ETCD_USERNAME" in await lost(told)

    async def test_a_user_without_the_right_is_told_which_to_grant(self, tmp_path: Path) -> None:
        async with EtcdServer(tmp_path) as server:
            await server.demand_passwords()
            await server.add_user("ada", "right", prefix="/elsewhere")
            who = Credentials(username="ada", password="right")
            async with followed(registry_at(server.address, who=who)) as (_, told):
                assert "grant" in await lost(told)

    async def test_a_user_where_none_is_demanded_is_let_in(self, shared_etcd: EtcdServer, etcd_prefix: str) -> None:
        who = Credentials(username="ada", password="right")
        async with in_sync(shared_etcd.address, prefix=etcd_prefix, who=who) as (registry, told):
            await registry.put(A)
            assert await told.next() == PutInstance(instance=A, registry="etcd")

    async def test_a_token_that_has_run_out_is_renewed_unseen(self, tmp_path: Path) -> None:
        async with EtcdServer(tmp_path, auth_token_ttl_s=1) as server:
            await server.demand_passwords()
            await server.add_user("ada", "right", prefix="/services")
            who = Credentials(username="ada", password="right")
            async with in_sync(server.address, ttl_s=600, who=who) as (registry, told):
                await registry.put(replace(A, ttl=3.0))
                await told.next()
                assert await told.next() == Missing(keys=(A.key,), registry="etcd", reason="ttl expired")
                await asyncio.gather(*(registry.put(each) for each in (A, B, C)))

                assert {type(await told.next()) for _ in range(3)} == {PutInstance}
                await told.silence()

    async def test_tokens_that_a_restart_has_forgotten_are_renewed(self, tmp_path: Path) -> None:
        async with EtcdServer(tmp_path) as server:
            await server.demand_passwords()
            await server.add_user("ada", "right", prefix="/services")
            who = Credentials(username="ada", password="right")
            async with in_sync(server.address, who=who) as (registry, told):
                await server.kill()
                await lost(told)
                await server.start()
                assert await told.listing() == []
                await registry.put_policy(A.key.service, Policy())

    async def test_passwords_that_are_switched_on_meanwhile_are_used(self, tmp_path: Path) -> None:
        async with EtcdServer(tmp_path) as server:
            who = Credentials(username="ada", password="right")
            async with in_sync(server.address, who=who) as (registry, _):
                await server.demand_passwords()
                await server.add_user("ada", "right", prefix="/services")
                assert await registry.put(A) is True


class TestCertificates:
    async def test_an_authority_of_ones_own_is_trusted_by_its_file(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path / "ours")
        async with EtcdServer(tmp_path, tls=Tls(server=authority.server())) as server:
            async with in_sync(server.address, who=Credentials(ca_file=authority.file)) as (registry, told):
                await put(registry, told)
            async with followed(registry_at(server.endpoint)) as (_, told):
                assert "ETCD_CA_FILE" in await lost(told)

    async def test_another_authority_is_one_clear_loss(self, tmp_path: Path) -> None:
        authority, stranger = Authority(tmp_path / "ours"), Authority(tmp_path / "strange")
        async with (
            EtcdServer(tmp_path, tls=Tls(server=authority.server())) as server,
            followed(registry_at(server.address, who=Credentials(ca_file=stranger.file))) as (registry, told),
        ):
            assert "ETCD_CA_FILE" in await lost(told)
            with pytest.raises(RegistryUnavailable, match="ETCD_CA_FILE"):
                await registry.put(A)

    async def test_a_client_certificate_opens_where_one_is_demanded(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path / "ours")
        client = authority.client()
        async with EtcdServer(tmp_path, tls=Tls(server=authority.server(), client=client)) as server:
            who = Credentials(ca_file=authority.file, cert_file=client.certificate, key_file=client.key)
            async with in_sync(server.address, who=who) as (registry, told):
                await put(registry, told)
            async with followed(registry_at(server.address, who=Credentials(ca_file=authority.file))) as (_, told):
                assert server.address in await lost(told)

    async def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        who = Credentials(ca_file=tmp_path / "missing.pem")
        async with followed(registry_at("127.0.0.1:1", who=who)) as (_, told):
            reason = await lost(told)
        assert "ETCD_CA_FILE" in reason
        assert "missing.pem" in reason
