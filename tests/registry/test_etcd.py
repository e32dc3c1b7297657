"""What etcd's registry does that others do not: keys that people write, and control planes that share them."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from builders import instance, verdict
from registry.etcds import followed, in_sync, registry_at
from servers.etcd import EtcdServer

from controlplane.model import (
    DeleteInstance,
    HealthCheck,
    Lost,
    Members,
    Missing,
    PutInstance,
    Release,
    Synced,
)
from controlplane.policy import Policy
from controlplane.registry import REMARKS_MAX, RegistryUnavailable, UnknownInstance

pytestmark = pytest.mark.etcd

A = instance("web", "a", host="10.0.0.1")
B = instance("web", "b", host="10.0.0.2")
BODY = '{"host": "10.0.0.1", "port": 8080}'


async def lease_of(server: EtcdServer, ttl_s: int) -> str:
    return (await server.etcdctl("lease", "grant", str(ttl_s))).split()[1]


class TestKeys:
    async def test_instances_are_all_that_lies_under_the_prefix(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        async with in_sync(shared_etcd.address, prefix=etcd_prefix) as (registry, _):
            await registry.put(A)
            await registry.put_policy(A.key.service, Policy())
            await registry.drain(A.key, 60.0)
            await registry.record(A.key, verdict(), A)

            listed = await shared_etcd.etcdctl("get", "--prefix", etcd_prefix)

        lines = listed.strip().splitlines()
        assert lines[0] == f"{etcd_prefix}web/a"
        assert json.loads(lines[1])["draining"] is True
        assert len(lines) == 2

    async def test_a_prefix_is_the_same_with_or_without_its_last_slash(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        async with in_sync(shared_etcd.address, prefix=etcd_prefix.rstrip("/")) as (registry, _):
            await registry.put(A)
            assert f"{etcd_prefix}web/a" in await shared_etcd.etcdctl("get", "--prefix", etcd_prefix)

    async def test_neighbours_with_a_longer_prefix_are_not_ours(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        neighbour = f"{etcd_prefix.rstrip('/')}.staging/web/a"
        await shared_etcd.etcdctl("put", neighbour, BODY)
        async with followed(registry_at(shared_etcd.address, prefix=etcd_prefix)) as (registry, told):
            assert await told.listing() == []
            await shared_etcd.etcdctl("put", neighbour, "changed")
            await told.silence()
            assert registry.remarks == {}


class TestForeignWriters:
    async def test_what_people_put_and_delete_is_told(self, shared_etcd: EtcdServer, etcd_prefix: str) -> None:
        async with in_sync(shared_etcd.address, prefix=etcd_prefix) as (_, told):
            await shared_etcd.etcdctl("put", f"{etcd_prefix}web/a", BODY)
            assert await told.next() == PutInstance(instance=A, registry="etcd")
            await shared_etcd.etcdctl("del", f"{etcd_prefix}web/a")
            assert await told.next() == DeleteInstance(key=A.key, registry="etcd")

    async def test_a_deletion_under_a_lease_is_doubted_for_it_may_be_an_expiry(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        lease = await lease_of(shared_etcd, 600)
        async with in_sync(shared_etcd.address, prefix=etcd_prefix) as (_, told):
            await shared_etcd.etcdctl("put", f"{etcd_prefix}web/a", BODY, "--lease", lease)
            await shared_etcd.etcdctl("put", f"{etcd_prefix}web/b", BODY.replace("0.1", "0.2"), "--lease", lease)
            await told.next()
            await told.next()
            await shared_etcd.etcdctl("lease", "revoke", lease)

            assert await told.next() == Missing(keys=(A.key, B.key), registry="etcd", reason="ttl expired")
            await told.silence()

    async def test_a_draining_instance_whose_lease_ends_was_to_go_anyway(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        async with in_sync(shared_etcd.address, prefix=etcd_prefix) as (registry, told):
            await registry.put(replace(A, ttl=1.0, draining=True))
            await told.next()
            assert await told.next() == DeleteInstance(key=A.key, registry="etcd", reason="ttl expired")

    async def test_a_heartbeat_renews_a_lease_that_somebody_else_made(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        lease = await lease_of(shared_etcd, 600)
        await shared_etcd.etcdctl("put", f"{etcd_prefix}web/a", BODY, "--lease", lease)
        async with in_sync(shared_etcd.address, prefix=etcd_prefix) as (registry, _):
            assert await registry.heartbeat(A.key) == 600.0

    async def test_a_change_over_rest_leaves_somebody_elses_lease_in_force(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        lease = await lease_of(shared_etcd, 600)
        await shared_etcd.etcdctl("put", f"{etcd_prefix}web/a", BODY, "--lease", lease)
        async with in_sync(shared_etcd.address, prefix=etcd_prefix) as (registry, told):
            await registry.put(replace(A, weight=7))
            await told.next()
            await shared_etcd.etcdctl("lease", "revoke", lease)
            assert await told.next() == Missing(keys=(A.key,), registry="etcd", reason="ttl expired")

    async def test_a_ttl_that_was_written_without_a_lease_is_kept_from_the_first_heartbeat_on(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        brief = replace(A, ttl=1.0)
        await shared_etcd.etcdctl("put", f"{etcd_prefix}web/a", '{"host": "10.0.0.1", "port": 8080, "ttl": 1.0}')
        async with in_sync(shared_etcd.address, prefix=etcd_prefix) as (registry, told):
            assert await registry.heartbeat(brief.key) == 1.0
            assert await told.next() == Missing(keys=(A.key,), registry="etcd", reason="ttl expired")

    async def test_a_heartbeat_of_what_was_deregistered_elsewhere_is_refused_though_its_lease_lasts(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        async with (
            in_sync(shared_etcd.address, prefix=etcd_prefix) as (here, told),
            in_sync(shared_etcd.address, prefix=etcd_prefix, member="two") as (there, _),
        ):
            await here.put(replace(A, ttl=60.0))
            await told.next()
            await there.delete(A.key)
            assert await told.next() == DeleteInstance(key=A.key, registry="etcd")
            with pytest.raises(UnknownInstance):
                await here.heartbeat(A.key)


class TestUnreadable:
    @pytest.mark.parametrize(
        ("name", "body", "why"),
        [
            pytest.param("web/x", "{", "not JSON", id="a value that is no JSON"),
            pytest.param("web/x", "[]", "must be a JSON object", id="a value that is no object"),
            pytest.param("web/x", '{"host": "10.0.0.9", "port": 0}', "port", id="a port that is none"),
            pytest.param("Web/x", BODY, "name", id="a service that has no good name"),
            pytest.param("web", BODY, "<service>/<instance id>", id="a key without an instance id"),
            pytest.param("web/x/y", BODY, "<service>/<instance id>", id="a key with a part too many"),
            pytest.param("web/x", BODY.replace("{", '{"id": "y", '), "says that it is web/y", id="another id"),
        ],
    )
    async def test_what_cannot_be_used_is_left_out_with_a_remark_and_the_rest_is_served(
        self, shared_etcd: EtcdServer, etcd_prefix: str, name: str, body: str, why: str
    ) -> None:
        await shared_etcd.etcdctl("put", etcd_prefix + name, body)
        await shared_etcd.etcdctl("put", f"{etcd_prefix}web/a", BODY)
        async with followed(registry_at(shared_etcd.address, prefix=etcd_prefix)) as (registry, told):
            assert await told.listing() == [PutInstance(instance=A, registry="etcd")]
            assert why in registry.remarks[etcd_prefix + name]
            await shared_etcd.etcdctl("del", etcd_prefix + name)
            await told.silence()
            assert registry.remarks == {}

    async def test_a_good_instance_that_becomes_unreadable_keeps_its_last_good_form(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        async with in_sync(shared_etcd.address, prefix=etcd_prefix) as (registry, told):
            await registry.put(A)
            await told.next()
            await shared_etcd.etcdctl("put", f"{etcd_prefix}web/a", "oops")
            await told.silence()
            assert list(registry.remarks) == [f"{etcd_prefix}web/a"]

            assert await registry.put(A) is False
            await told.silence()
            assert registry.remarks == {}
            assert '"10.0.0.1"' in await shared_etcd.etcdctl("get", f"{etcd_prefix}web/a")

    async def test_an_unreadable_policy_is_left_out_with_a_remark(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        place = f"{etcd_prefix.rstrip('/')}.state/policies/web"
        await shared_etcd.etcdctl("put", place, '{"strategy": "magic"}')
        async with followed(registry_at(shared_etcd.address, prefix=etcd_prefix)) as (registry, told):
            assert await told.listing() == []
            assert "strategy" in registry.remarks[place]

    async def test_remarks_are_bounded(self, shared_etcd: EtcdServer, etcd_prefix: str) -> None:
        async with in_sync(shared_etcd.address, prefix=etcd_prefix) as (registry, told):
            for number in range(REMARKS_MAX + 3):
                await shared_etcd.etcdctl("put", f"{etcd_prefix}web/{number}", "oops")
            await told.silence()
            assert len(registry.remarks) == REMARKS_MAX


class TestSharing:
    async def test_members_come_before_synced_and_we_are_among_them(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        events: list[object] = []
        async with registry_at(shared_etcd.address, prefix=etcd_prefix) as registry:
            synced = asyncio.Event()

            def emit(event: object) -> None:
                events.append(event)
                if isinstance(event, Synced):
                    synced.set()

            task = asyncio.create_task(registry.run(emit))
            await asyncio.wait_for(synced.wait(), 10)
            task.cancel()
            await asyncio.wait([task])
        assert events[:2] == [Members(ids=frozenset({"one"}), registry="etcd"), Synced(registry="etcd")]

    async def test_one_that_comes_is_told_and_one_that_leaves_in_order_is_gone_at_once(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        async with in_sync(shared_etcd.address, prefix=etcd_prefix, ttl_s=600) as (_, told):
            async with in_sync(shared_etcd.address, prefix=etcd_prefix, member="two", ttl_s=600) as (_, other):
                await told.until(lambda: told.members == {"one", "two"})
                await other.until(lambda: other.members == {"one", "two"})
            await told.until(lambda: told.members == {"one"})

    async def test_one_that_is_not_heard_any_more_is_counted_out(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        async with (
            in_sync(shared_etcd.address, prefix=etcd_prefix) as (_, told),
            registry_at(shared_etcd.address, prefix=etcd_prefix, member="two", ttl_s=1.0) as silent,
        ):
            task = asyncio.create_task(silent.run(lambda _: None))
            await told.until(lambda: "two" in told.members)
            task.cancel()
            await asyncio.wait([task])
            await told.until(lambda: told.members == {"one"})

    async def test_a_member_whose_lease_was_lost_lists_itself_again(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        place = f"{etcd_prefix.rstrip('/')}.state/members/two"
        async with (
            in_sync(shared_etcd.address, prefix=etcd_prefix) as (_, told),
            in_sync(shared_etcd.address, prefix=etcd_prefix, member="two", ttl_s=1.0),
        ):
            await told.until(lambda: "two" in told.members)
            fields = await shared_etcd.etcdctl("get", place, "--write-out", "fields")
            lease = next(line for line in fields.splitlines() if '"Lease"' in line).rsplit(":", 1)[1]
            await shared_etcd.etcdctl("lease", "revoke", f"{int(lease):x}")
            await told.until(lambda: told.members == {"one"})
            await told.until(lambda: told.members == {"one", "two"})

    async def test_a_removal_is_carried_out_by_whoever_is_left(self, shared_etcd: EtcdServer, etcd_prefix: str) -> None:
        async with in_sync(shared_etcd.address, prefix=etcd_prefix) as (_, told):
            async with in_sync(shared_etcd.address, prefix=etcd_prefix, member="two") as (leaver, _):
                await leaver.put(replace(A, ttl=60.0))
                await leaver.drain(A.key, 1.0)
            await told.next()
            await told.next()

            assert await told.next() == DeleteInstance(key=A.key, registry="etcd")
            await told.silence()
        left = await shared_etcd.etcdctl("get", "--prefix", etcd_prefix.rstrip("/"), "--keys-only")
        assert "removals" not in left

    async def test_a_drain_again_by_another_puts_the_removal_off(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        async with (
            in_sync(shared_etcd.address, prefix=etcd_prefix) as (here, told),
            in_sync(shared_etcd.address, prefix=etcd_prefix, member="two") as (there, _),
        ):
            await here.put(A)
            await here.drain(A.key, 0.3)
            await there.drain(A.key, 600.0)
            await here.put(B)
            await here.drain(B.key, 1.0)

            events = [await told.next() for _ in range(5)]
            assert events[-1] == DeleteInstance(key=B.key, registry="etcd")
            await told.silence()

    async def test_a_rest_delete_of_a_leased_instance_is_trusted_by_every_control_plane(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        async with (
            in_sync(shared_etcd.address, prefix=etcd_prefix) as (here, _),
            in_sync(shared_etcd.address, prefix=etcd_prefix, member="two") as (_, told),
        ):
            await here.put(replace(A, ttl=60.0))
            await here.delete(A.key)
            await told.next()
            assert await told.next() == DeleteInstance(key=A.key, registry="etcd")

    async def test_a_verdict_is_told_to_all_and_goes_with_its_instances_lease(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        checked = replace(A, ttl=1.0, health_check=HealthCheck())
        async with (
            in_sync(shared_etcd.address, prefix=etcd_prefix) as (here, _),
            in_sync(shared_etcd.address, prefix=etcd_prefix, member="two") as (_, told),
        ):
            await here.put(checked)
            await here.record(checked.key, verdict(), checked)
            await told.until(lambda: told.verdict_of(checked) == verdict())
            await told.until(lambda: told.verdict_of(checked) is None)
        assert "verdicts" not in await shared_etcd.etcdctl("get", "--prefix", etcd_prefix.rstrip("/"), "--keys-only")

    async def test_a_verdict_stays_when_its_instance_gets_another_lease(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        brief = replace(A, ttl=1.0, health_check=HealthCheck())
        lasting = replace(brief, ttl=None)
        async with in_sync(shared_etcd.address, prefix=etcd_prefix) as (registry, told):
            await registry.put(brief)
            await registry.record(brief.key, verdict(), brief)
            await told.until(lambda: told.verdict_of(brief) == verdict())
            await registry.put(lasting)
            await registry.put(replace(B, ttl=1.0))
            events = [await told.next() for _ in range(4)]
            assert events[-1] == Missing(keys=(B.key,), registry="etcd", reason="ttl expired")
            assert told.verdict_of(lasting) == verdict()

    async def test_a_verdict_of_another_registrys_instance_is_kept_until_it_is_forgotten(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        pod = instance("shop.prod", "pod-1")
        async with in_sync(shared_etcd.address, prefix=etcd_prefix) as (registry, told):
            await registry.record(pod.key, verdict(), pod)
            await told.until(lambda: told.verdict_of(pod) == verdict())
            await registry.forget(pod.key)
            await told.until(lambda: told.verdict_of(pod) is None)

    async def test_what_a_person_lets_go_is_told_to_every_control_plane(
        self, shared_etcd: EtcdServer, etcd_prefix: str
    ) -> None:
        async with (
            in_sync(shared_etcd.address, prefix=etcd_prefix) as (here, _),
            in_sync(shared_etcd.address, prefix=etcd_prefix, member="two") as (_, told),
        ):
            await here.release("web/a")
            assert await told.next() == Release(hold="web/a", registry="etcd")


class TestRenewals:
    async def test_many_at_once_each_get_their_own_answer(self, shared_etcd: EtcdServer, etcd_prefix: str) -> None:
        many = [instance("web", f"i{n}", port=1 + n, ttl=60.0 + n) for n in range(40)]
        async with in_sync(shared_etcd.address, prefix=etcd_prefix) as (registry, _):
            await asyncio.gather(*(registry.put(each) for each in many))
            lasting = await asyncio.gather(*(registry.heartbeat(each.key) for each in many for _ in range(2)))
        assert lasting == [60.0 + n for n in range(40) for _ in range(2)]

    async def test_after_a_restart_of_etcd_they_go_on(self, tmp_path: Path) -> None:
        leased = replace(A, ttl=60.0)
        async with EtcdServer(tmp_path) as server, in_sync(server.address) as (registry, told):
            await registry.put(leased)
            await told.next()
            assert await registry.heartbeat(A.key) == 60.0
            await server.kill()
            assert isinstance(await told.next(), Lost)
            with pytest.raises(RegistryUnavailable):
                await registry.heartbeat(A.key)
            await server.start()
            assert await told.listing() == []
            assert await registry.heartbeat(A.key) == 60.0
