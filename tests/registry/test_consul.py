"""The registry in Consul, beyond the contract: what agents register, what people see, rights, TLS, and failures."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import instance, key
from registry.consul import consul_registry
from registry.harness import Told
from servers.certificates import Authority, Tls
from servers.consul import ConsulCluster, ConsulServer

from controlplane.model import (
    DeleteInstance,
    HealthStatus,
    Lost,
    Missing,
    PutInstance,
    PutPolicy,
    RegistryEvent,
    Release,
    ServiceName,
    Synced,
)
from controlplane.policy import Policy, Strategy
from controlplane.registry import ReadOnly, RegistryUnavailable, UnknownInstance
from controlplane.registry.consul import ConsulRegistry, tls_context

pytestmark = pytest.mark.consul

A = instance("web", "a", host="10.0.0.1")
B = instance("web", "b", host="10.0.0.2")
READ = 'service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }'
WRITE = (
    'service_prefix "" { policy = "write" } node_prefix "" { policy = "read" } '
    'node "service-discovery" { policy = "write" } '
    'key_prefix "service-discovery/" { policy = "write" } session_prefix "" { policy = "write" }'
)


@asynccontextmanager
async def running(registry: ConsulRegistry) -> AsyncIterator[Told]:
    """Open and run a registry; its first listing has not been read."""
    async with registry:
        told = Told(registry)
        task = asyncio.create_task(registry.run(told.emit))
        try:
            yield told
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled(), "run ends by cancellation only"


async def until(told: Told, kind: type[RegistryEvent]) -> Any:
    """Return the next event of a kind, passing over others."""
    while not isinstance(event := await told.next(), kind):
        pass
    return event


async def agent_registers(server: ConsulServer, name: str, id: str, **fields: Any) -> None:
    definition = {"Name": name, "ID": id, "Address": "10.1.0.1", "Port": 80, **fields}
    await server.request("PUT", "/v1/agent/service/register", definition)


class TestForeignRegistrations:
    async def test_a_service_of_an_agent_arrives_with_all_that_consul_says_of_it(self, consul: ConsulServer) -> None:
        await agent_registers(
            consul,
            "web",
            "web-7",
            Tags=["v1", "a b"],
            Meta={"version": "2", "zone": "eu-1", "region": "eu"},
            Weights={"Passing": 5000, "Warning": 1},
        )
        async with running(consul_registry(consul)) as told:
            (event,) = await told.listing()

        assert isinstance(event, PutInstance)
        assert event.stated is None, "its node's check passes, which is no news"
        got = event.instance
        assert (got.id, got.host, got.port, got.weight, got.tags) == ("web-7", "10.1.0.1", 80, 1000, ("v1",))
        assert (got.locality.region, got.locality.zone) == ("eu", "eu-1")
        assert got.metadata["version"] == "2"
        (remark,) = told.registry.remarks.values()
        assert "tags with spaces" in remark

    async def test_its_checks_make_it_degraded_and_unhealthy(self, consul: ConsulServer) -> None:
        await agent_registers(consul, "web", "web-7", Check={"CheckID": "beat", "Name": "beat", "TTL": "60s"})
        async with running(consul_registry(consul)) as told:
            await told.listing()
            seen = []
            for word in ("warn", "pass", "fail"):
                await consul.request("PUT", f"/v1/agent/check/{word}/beat")
                event = await told.next()
                assert isinstance(event, PutInstance)
                seen.append(None if event.stated is None else (event.stated.status, event.stated.reason))

        assert seen == [
            (HealthStatus.DEGRADED, "warning: beat"),
            None,
            (HealthStatus.UNHEALTHY, "critical: beat"),
        ]

    @pytest.mark.parametrize("path", ["service/maintenance/web-7", "maintenance"], ids=["of a service", "of a node"])
    async def test_maintenance_mode_is_draining(self, consul: ConsulServer, path: str) -> None:
        await agent_registers(consul, "web", "web-7")
        async with running(consul_registry(consul)) as told:
            await told.listing()
            await consul.request("PUT", f"/v1/agent/{path}?enable=true")
            draining = (await told.next()).instance.draining
            await consul.request("PUT", f"/v1/agent/{path}?enable=false")
            again = (await told.next()).instance.draining

        assert (draining, again) == (True, False)

    async def test_a_deregistration_is_trusted_even_of_the_last_instance(self, consul: ConsulServer) -> None:
        await agent_registers(consul, "web", "web-7")
        async with running(consul_registry(consul)) as told:
            await told.listing()
            await consul.request("PUT", "/v1/agent/service/deregister/web-7")

            assert await told.next() == DeleteInstance(key=key("web", "web-7"), registry="consul")

    async def test_what_an_agent_registered_is_changed_there_and_not_through_us(self, consul: ConsulServer) -> None:
        await agent_registers(consul, "web", "web-7")
        async with running(consul_registry(consul)) as told:
            await told.listing()
            for write in (
                told.registry.put(instance("web", "web-7", host="10.0.0.9")),
                told.registry.delete(key("web", "web-7")),
                told.registry.drain(key("web", "web-7"), 1.0),
            ):
                with pytest.raises(ReadOnly, match="agent of node 'consul'"):
                    await write
            assert await told.registry.heartbeat(key("web", "web-7")) is None

    async def test_one_id_on_two_nodes_is_two_instances(self, consul: ConsulServer) -> None:
        for node, address in (("n1", "10.2.0.1"), ("n2", "10.2.0.2")):
            for id in ("web", "w"):
                service = {"Service": "web", "ID": id, "Port": 80 if id == "w" else 81}
                body = {"Node": node, "Address": address, "Service": service}
                await consul.request("PUT", "/v1/catalog/register", body)
        async with running(consul_registry(consul)) as told:
            found = {event.instance.id: event.instance.host for event in await told.listing()}

        assert found == {"web:n1": "10.2.0.1", "web:n2": "10.2.0.2", "w": "10.2.0.1", "w:n2": "10.2.0.2"}

    async def test_names_that_are_no_dns_names_are_left_out_with_a_remark(self, consul: ConsulServer) -> None:
        await agent_registers(consul, "Web_Shop", "x")
        await agent_registers(consul, "web", "y")
        async with running(consul_registry(consul)) as told:
            assert [event.instance.name for event in await told.listing()] == ["web"]
            assert "DNS name" in told.registry.remarks["Web_Shop"]


class TestWhatPeopleSee:
    async def test_an_instance_stands_in_the_catalog_in_consuls_own_fields(self, consul: ConsulServer) -> None:
        full = replace(A, tags=("v1",), metadata={"version": "2", "shard": 7}, weight=3, ttl=60.0, draining=True)
        async with consul_registry(consul) as registry:
            await registry.put(full)
            (row,) = await consul.request("GET", "/v1/health/service/web")

        service = row["Service"]
        assert (service["ID"], service["Address"], service["Port"]) == ("web/a", "10.0.0.1", 8080)
        assert (service["Tags"], service["Meta"]["version"], service["Weights"]["Passing"]) == (["v1"], "2", 3)
        assert row["Node"]["Meta"]["external-node"] == "true"
        assert {check["CheckID"]: check["Status"] for check in row["Checks"]} == {
            "service-discovery-ttl:web/a": "passing",
            "_service_maintenance:web/a": "critical",
        }

    async def test_one_whose_ttl_ran_out_is_seen_as_critical_until_it_registers_again(
        self, consul: ConsulServer
    ) -> None:
        async with running(consul_registry(consul)) as told:
            await told.listing()
            await told.registry.put(replace(A, ttl=0.5))
            await told.next()
            assert isinstance(await told.next(), Missing)

            (row,) = await consul.request("GET", "/v1/health/service/web")
            assert [check["Status"] for check in row["Checks"]] == ["critical"]
            with pytest.raises(UnknownInstance):
                await told.registry.heartbeat(A.key)
            assert await told.registry.put(replace(A, ttl=60.0)) is True
            (row,) = await consul.request("GET", "/v1/health/service/web")
            assert [check["Status"] for check in row["Checks"]] == ["passing"]

    async def test_what_has_expired_stays_so_across_a_restart(self, consul: ConsulServer) -> None:
        async with running(consul_registry(consul)) as told:
            await told.registry.put(replace(A, ttl=0.5))
            await until(told, Missing)
        async with running(consul_registry(consul, member="two")) as told:
            assert await told.listing() == []

    async def test_large_metadata_comes_back_as_it_was_and_too_large_is_refused(self, consul: ConsulServer) -> None:
        large = replace(A, metadata={"k" * 100: "ü" * 1000, "a b": "✓", "n": 1.0, **{f"m{n}": "x" for n in range(55)}})
        async with running(consul_registry(consul)) as told:
            await told.listing()
            await told.registry.put(large)
            assert await told.next() == PutInstance(instance=large, registry="consul")
            with pytest.raises(ReadOnly, match="64 pairs"):
                await told.registry.put(replace(B, metadata={f"m{n}": "x" * 4000 for n in range(20)}))

    async def test_a_good_instance_that_becomes_unreadable_stays_as_it_was(self, consul: ConsulServer) -> None:
        async with running(consul_registry(consul)) as told:
            await told.listing()
            await told.registry.put(A)
            await told.next()
            service = {"ID": "web/a", "Service": "web", "Address": "not an address!", "Port": 80}
            body = {"Node": "service-discovery", "Address": "127.0.0.1", "Service": service}
            await consul.request("PUT", "/v1/catalog/register", body)
            await consul.request("PUT", "/v1/kv/service-discovery/policies/web", {"strategy": "random"})

            assert isinstance(await told.next(), PutPolicy), "nothing is told of the instance"
            async with asyncio.timeout(10):
                while not told.registry.remarks:
                    await asyncio.sleep(0.01)
            (remark,) = told.registry.remarks.values()
            assert "host" in remark

    async def test_a_policy_that_a_person_writes_counts_and_a_broken_one_is_remarked(
        self, consul: ConsulServer
    ) -> None:
        async with running(consul_registry(consul)) as told:
            await told.listing()
            await consul.request("PUT", "/v1/kv/service-discovery/policies/web", {"strategy": "random"})
            put = await told.next()
            await consul.request("PUT", "/v1/kv/service-discovery/policies/web", {"strategy": "no such"})
            await consul.request("PUT", "/v1/kv/service-discovery/policies/api", {"strategy": "random"})
            other = await told.next()

            assert put == PutPolicy(
                service=ServiceName("web"), policy=Policy(strategy=Strategy.RANDOM), registry="consul"
            )
            assert isinstance(other, PutPolicy)
            assert other.service == "api"
            assert list(told.registry.remarks) == ["service-discovery/policies/web"]


class TestSeveral:
    async def test_two_see_each_other_and_one_that_stops_is_gone_at_once(self, consul: ConsulServer) -> None:
        one, two = consul_registry(consul, member="one"), consul_registry(consul, member="two")
        async with running(one) as first:
            await first.until(lambda: first.members == {"one"})
            async with running(two) as second:
                await first.until(lambda: first.members == {"one", "two"})
                await second.until(lambda: second.members == {"one", "two"})
            await first.until(lambda: first.members == {"one"})

    async def test_one_that_falls_silent_is_counted_out_by_ones_own_clock(self, consul: ConsulServer) -> None:
        async with running(consul_registry(consul, member="one", ttl_s=1.5)) as told:
            await consul.request("PUT", "/v1/kv/service-discovery/members/silent", 1)
            await told.until(lambda: told.members == {"one", "silent"})
            await told.until(lambda: told.members == {"one"})

    async def test_what_one_writes_the_other_tells(self, consul: ConsulServer) -> None:
        one, two = consul_registry(consul, member="one"), consul_registry(consul, member="two")
        async with running(one) as first, running(two) as second:
            await first.listing()
            await second.listing()
            await one.put(A)
            assert await second.next() == PutInstance(instance=A, registry="consul")
            await two.drain(A.key, 0.5)
            assert [(await told.next()).instance.draining for told in (first, first)] == [False, True]
            assert (await second.next()).instance.draining
            gone = DeleteInstance(key=A.key, registry="consul")
            assert [await first.next(), await second.next()] == [gone, gone]
            await one.release("hold-1")
            release = Release(hold="hold-1", registry="consul")
            assert [await first.next(), await second.next()] == [release, release]

    async def test_a_heartbeat_at_one_renews_the_lease_at_the_other(self, consul: ConsulServer) -> None:
        one, two = consul_registry(consul, member="one"), consul_registry(consul, member="two")
        leased = replace(A, ttl=3.0)
        async with running(one) as first, running(two) as second:
            await first.until(lambda: len(first.members) == 2)
            await one.put(leased)
            loop = asyncio.get_running_loop()
            end = loop.time() + 5
            while loop.time() < end:
                assert await one.heartbeat(leased.key) == 3.0
                await asyncio.sleep(0.25)  # how often a client beats
            await one.put_policy(ServiceName("marker"), Policy(timeout=1.0))
            events = []
            while not isinstance(event := await second.next(), PutPolicy):
                events.append(event)

        assert [type(event) for event in events] == [Synced, PutInstance], "and no Missing"

    async def test_a_drained_instance_is_removed_by_whoever_starts_next(self, consul: ConsulServer) -> None:
        async with consul_registry(consul) as registry:
            await registry.put(A)
            await registry.drain(A.key, 1.0)
        async with running(consul_registry(consul, member="two")) as told:
            await told.listing()
            assert await told.next() == DeleteInstance(key=A.key, registry="consul")

    async def test_150_services_on_the_default_200_connections_and_every_change_arrives(
        self, consul: ConsulServer
    ) -> None:
        async def registers(n: int, port: int) -> None:
            service = {"Service": f"s{n}", "ID": f"s{n}-1", "Address": "10.3.0.1", "Port": port}
            body = {"Node": "elsewhere", "Address": "10.3.0.1", "Service": service}
            await consul.request("PUT", "/v1/catalog/register", body)

        for n in range(150):
            await registers(n, 80)
        one, two = consul_registry(consul, member="one"), consul_registry(consul, member="two")
        async with running(one) as first, running(two) as second:
            assert len([event for event in await first.listing() if isinstance(event, PutInstance)]) == 150
            await second.listing()
            for n in (0, 75, 149):
                await registers(n, 81)
                for told in (first, second):
                    event = await told.next()
                    assert isinstance(event, PutInstance)
                    assert (event.instance.name, event.instance.port) == (f"s{n}", 81)
            await consul.request("PUT", "/v1/catalog/deregister", {"Node": "elsewhere"})
            gone = [await first.next() for _ in range(150)]

        assert {type(event) for event in gone} == {DeleteInstance}, "a node that is removed on a live watch is trusted"

    @pytest.mark.timeout(120)
    async def test_of_many_changes_at_once_by_many_hands_none_is_missed(self, consul: ConsulServer) -> None:
        one, two = consul_registry(consul, member="one"), consul_registry(consul, member="two")
        names = [f"s{n}" for n in range(70)]

        async def registers(name: str, port: int) -> None:
            service = {"Service": name, "ID": f"{name}-f", "Address": "10.3.0.1", "Port": port}
            body = {"Node": "elsewhere", "Address": "10.3.0.1", "Service": service}
            await consul.request("PUT", "/v1/catalog/register", body)

        async def foreign() -> None:
            for port in (1, 2):
                for name in names:
                    await registers(name, port)

        held: dict[str, int] = {}
        wanted = {f"{name}/{name}-f": 2 for name in names} | {f"{name}/o": 3 for name in names}
        done = asyncio.Event()

        def emit(event: RegistryEvent) -> None:
            match event:
                case PutInstance(instance=put):
                    held[str(put.key)] = put.port
                case DeleteInstance() | Missing():
                    raise AssertionError(f"nothing was taken away: {event}")
            if held == wanted:
                done.set()

        async with running(one), two:
            task = asyncio.create_task(two.run(emit))
            await asyncio.gather(foreign(), *(one.put(instance(name, "o", host="10.3.0.2", port=3)) for name in names))
            await asyncio.wait_for(done.wait(), 90)
            task.cancel()
            await asyncio.wait([task])


class TestFailures:
    async def test_a_killed_server_is_lost_once_and_back_on_its_data_without_a_change(self, tmp_path: Path) -> None:
        async with (
            ConsulServer(tmp_path) as server,
            running(consul_registry(server)) as told,
        ):
            await told.listing()
            await told.registry.put(A)
            await told.next()
            await server.kill()
            assert isinstance(await told.next(), Lost)
            with pytest.raises(RegistryUnavailable):
                await told.registry.put(B)

            await server.start()

            assert isinstance(await told.next(), Synced), "and nothing between"
            assert await told.registry.put(B) is True
            assert await told.next() == PutInstance(instance=B, registry="consul")

    async def test_a_server_that_comes_back_empty_takes_all_in_one_doubted_event(self, tmp_path: Path) -> None:
        async with (
            ConsulServer(tmp_path) as server,
            running(consul_registry(server)) as told,
        ):
            await told.listing()
            await asyncio.gather(told.registry.put(A), told.registry.put(B))
            await told.next(), await told.next()
            await server.wipe()

            assert isinstance(await told.next(), Lost)
            assert await told.next() == Missing(
                keys=(A.key, B.key), registry="consul", reason="missing after a reconnect"
            )
            assert isinstance(await told.next(), Synced)
            assert await told.registry.put(A) is True, "its node is made anew"

    async def test_a_hanging_server_is_noticed_and_writes_are_refused_meanwhile(self, tmp_path: Path) -> None:
        loop = asyncio.get_running_loop()
        async with (
            ConsulServer(tmp_path) as server,
            running(consul_registry(server)) as told,
        ):
            await told.listing()
            began = loop.time()
            server.pause()
            with pytest.raises(RegistryUnavailable):
                await told.registry.put(A)
            assert loop.time() - began < 6
            lost = await told.next()
            assert isinstance(lost, Lost)
            assert "did not answer" in lost.reason
            assert loop.time() - began < 13
            server.resume()
            assert isinstance(await until(told, Synced), Synced)

    async def test_of_three_servers_another_is_used_when_the_leader_dies(self, tmp_path: Path) -> None:
        async with ConsulCluster(tmp_path) as cluster:
            leader = await cluster.leader()
            others = [member.address for member in cluster.members if member is not leader]
            registry = consul_registry(leader, host=",".join([leader.address, *others]))
            async with running(registry) as told:
                await told.listing()
                await registry.put(A)
                await told.next()
                await leader.kill()

                assert isinstance(await told.next(), Lost)
                assert isinstance(await told.next(), Synced), "no instance was lost"
                assert await registry.put(B) is True
                assert await told.next() == PutInstance(instance=B, registry="consul")


class TestRights:
    @pytest.fixture
    async def guarded(self, tmp_path: Path) -> AsyncIterator[ConsulServer]:
        async with ConsulServer(tmp_path, acl=True) as server:
            yield server

    async def test_a_token_with_the_rights_that_are_documented_is_enough(self, guarded: ConsulServer) -> None:
        registry = consul_registry(guarded, token=await guarded.add_token(WRITE))
        async with running(registry) as told:
            assert await told.listing() == []
            await registry.put(replace(A, ttl=30.0))
            await told.next()
            await registry.drain(A.key, 0.1)
            assert isinstance(await until(told, DeleteInstance), DeleteInstance)

    async def test_a_wrong_token_is_said_once_and_never_shown(self, guarded: ConsulServer) -> None:
        wrong = "deadbeef-0000-0000-0000-000000000000"
        async with running(consul_registry(guarded, token=wrong)) as told:
            lost = await told.next()

        assert isinstance(lost, Lost)
        assert "CONSUL_TOKEN" in lost.reason
        assert wrong not in lost.reason

    async def test_without_a_token_one_is_asked_for(self, guarded: ConsulServer) -> None:
        async with running(consul_registry(guarded, token=None)) as told:
            lost = await told.next()

        assert isinstance(lost, Lost)
        assert "set CONSUL_TOKEN" in lost.reason

    async def test_one_that_may_not_write_says_so_and_reads(self, guarded: ConsulServer) -> None:
        async with consul_registry(guarded) as registry:
            await registry.put(A)
        reader = consul_registry(guarded, token=await guarded.add_token(READ), sharing=None)
        async with running(reader) as told:
            assert await told.listing() == [PutInstance(instance=A, registry="consul")]
            with pytest.raises(RegistryUnavailable, match="Permission denied"):
                await reader.put(B)

    async def test_a_right_to_read_that_is_taken_away_deletes_nothing(self, guarded: ConsulServer) -> None:
        async with consul_registry(guarded) as registry:
            await registry.put(A)
        policy = await guarded.request("PUT", "/v1/acl/policy", {"Name": "p", "Rules": READ})
        token = (await guarded.request("PUT", "/v1/acl/token", {"Policies": [{"Name": "p"}]}))["SecretID"]
        async with running(consul_registry(guarded, token=token, sharing=None)) as told:
            await told.listing()
            rules = 'service_prefix "" { policy = "read" }'
            await guarded.request("PUT", f"/v1/acl/policy/{policy['ID']}", {**policy, "Rules": rules})
            await guarded.request("PUT", "/v1/kv/other", 1)
            async with consul_registry(guarded, member="two") as writer:
                lost = None
                async with asyncio.timeout(50):
                    while lost is None:
                        await writer.put(replace(A, weight=1 + (A.weight % 900)))
                        await writer.put(A)
                        event = await told.next()
                        assert not isinstance(event, DeleteInstance | Missing)
                        lost = event if isinstance(event, Lost) else None

        assert "node:read" in lost.reason


class TestTls:
    async def test_a_file_that_cannot_be_used_is_named_with_its_setting(self, tmp_path: Path) -> None:
        client = Authority(tmp_path / "ours").client()
        with pytest.raises(ValueError, match="CONSUL_CA_FILE=/nowhere"):
            tls_context("/nowhere", None, None)
        with pytest.raises(ValueError, match="CONSUL_KEY_FILE=/nowhere"):
            tls_context(None, str(client.certificate), "/nowhere")

    async def test_its_own_authority_and_client_certificate(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path / "ours")
        client = authority.client()
        tls = Tls(server=authority.server(), client=client)
        context = tls_context(str(client.authority), str(client.certificate), str(client.key))
        async with ConsulServer(tmp_path / "consul", tls=tls) as server:
            async with running(consul_registry(server, scheme="https", context=context, datacenter="dc1")) as told:
                await told.listing()
                await told.registry.put(A)
                assert await told.next() == PutInstance(instance=A, registry="consul")
            without = tls_context(str(client.authority), None, None)
            async with running(consul_registry(server, scheme="https", context=without)) as told:
                assert isinstance(await told.next(), Lost)
            stranger = tls_context(str(Authority(tmp_path / "strange").file), None, None)
            async with running(consul_registry(server, scheme="https", context=stranger)) as told:
                lost = await told.next()
                assert isinstance(lost, Lost)
                assert "certificate" in lost.reason.lower()
