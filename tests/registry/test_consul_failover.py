"""The registry in Consul when servers die, wait, or are something else: what is refused, and how soon."""

import asyncio
import json
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from builders import instance
from registry.consul import consul_registry
from registry.test_consul import WRITE, running
from servers.consul import ConsulCluster, ConsulServer

from controlplane.model import HealthStatus, Lost, PutInstance, PutPolicy, RawResource, RegistryEvent, Synced, Verdict
from controlplane.policy import Policy
from controlplane.registry import Attention, RegistryUnavailable
from controlplane.registry.consul import ATTENTION
from controlplane.registry.consul.client import Client
from controlplane.registry.consul.following import WATCHED_MAX
from controlplane.registry.consul.transport import Unreachable

pytestmark = pytest.mark.consul

A = instance("web", "a", host="10.0.0.1")
B = instance("web", "b", host="10.0.0.2")


@asynccontextmanager
async def impostor(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """Serve something that is no Consul; yield its address."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"{host}:{port}"
    finally:
        await runner.cleanup()


class TestWrites:
    async def test_one_that_changes_nothing_is_not_answered_by_what_another_control_plane_has_just_removed(
        self, consul: ConsulServer
    ) -> None:
        one, two = consul_registry(consul, member="one"), consul_registry(consul, member="two")
        async with running(one) as first, running(two) as second:
            await first.listing()
            await second.listing()
            for _ in range(10):
                await one.put(replace(A, ttl=60.0))
                await two.delete(A.key)
                await one.put(replace(A, ttl=60.0))
                assert len(await consul.request("GET", "/v1/health/service/web?consistent")) == 1

    async def test_one_is_taken_although_the_leader_and_first_host_was_just_killed(self, tmp_path: Path) -> None:
        async with ConsulCluster(tmp_path) as cluster:
            leader = await cluster.leader()
            hosts = [leader, *(member for member in cluster.members if member is not leader)]
            registry = consul_registry(leader, host=",".join(each.address for each in hosts))
            async with running(registry) as told:
                await told.listing()
                await registry.put(A)
                await leader.kill()
                began = time.monotonic()

                assert await registry.put(B) is True

                assert time.monotonic() - began < 5

    async def test_the_next_host_is_asked_at_once_where_the_first_accepts_no_connection(
        self, consul: ConsulServer
    ) -> None:
        async with consul_registry(consul, host=f"127.0.0.1:1,{consul.address}") as registry:
            began = time.monotonic()
            assert await registry.put(A) is True
            assert time.monotonic() - began < 1

    async def test_one_is_refused_at_once_where_no_host_accepts_a_connection(self, consul: ConsulServer) -> None:
        async with consul_registry(consul, host="127.0.0.1:1,127.0.0.1:2") as registry:
            began = time.monotonic()
            with pytest.raises(RegistryUnavailable, match="cannot be reached"):
                await registry.put(A)
            assert time.monotonic() - began < 1


@pytest.mark.parametrize("name", ["..", "."])
async def test_a_document_whose_name_is_a_step_of_a_path_is_kept(consul: ConsulServer, name: str) -> None:
    resource = RawResource(type_url="type.googleapis.com/envoy.service.runtime.v3.Runtime", name=name, body="{}")
    async with running(consul_registry(consul)) as told:
        await told.listing()
        assert await told.registry.put_resource(resource) is True
        assert (await told.next()).resource == resource
        assert await told.registry.put_resource(resource) is False
        assert await told.registry.delete_resource(resource.key) is True
        assert (await told.next()).key == resource.key


async def test_a_key_that_cannot_be_a_document_is_remarked_until_it_is_removed(consul: ConsulServer) -> None:
    key = "/v1/kv/service-discovery/policies/a/b"
    async with running(consul_registry(consul)) as told:
        await told.listing()
        await consul.request("PUT", key, {"strategy": "random"})
        async with asyncio.timeout(10):
            while not told.registry.remarks:
                await asyncio.sleep(0.01)
            await consul.request("DELETE", key)
            while told.registry.remarks:
                await asyncio.sleep(0.01)


class TestWhatIsNoConsul:
    @pytest.mark.parametrize(
        "text", ["<html>Welcome</html>", '[{"Key": "k", "Value": "c2VjcmV0', "null", '{"Results": 5}']
    )
    async def test_an_answer_that_is_not_consuls_is_a_loss_that_shows_none_of_it(
        self, consul: ConsulServer, text: str
    ) -> None:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(text=text, headers={"X-Consul-Index": "no number"})

        async with impostor(answer) as address, running(consul_registry(consul, host=address)) as told:
            lost = await told.next()
            assert isinstance(lost, Lost)
            assert "not Consul's JSON" in lost.reason
            assert "c2VjcmV0" not in lost.reason

    async def test_a_redirect_does_not_take_the_token_elsewhere(self, consul: ConsulServer) -> None:
        shown: list[str | None] = []

        async def listen(request: web.Request) -> web.Response:
            shown.append(request.headers.get("X-Consul-Token"))
            return web.Response(text="[]")

        async with impostor(listen) as elsewhere:

            async def send_on(_: web.Request) -> web.Response:
                raise web.HTTPTemporaryRedirect(f"http://{elsewhere}/")

            async with (
                impostor(send_on) as address,
                running(consul_registry(consul, host=address, token="the-token")) as told,
            ):
                assert isinstance(await told.next(), Lost)
        assert shown == []


class TestAttention:
    def test_a_query_waits_8_s_unless_cache_ttl_is_short(self) -> None:
        assert ATTENTION.probe_s * 16 / 17 == 8
        assert Attention.within(30.0, at_most=ATTENTION) == ATTENTION
        assert Attention.within(4.0, at_most=ATTENTION) == Attention(probe_s=2.0, patience_s=1.5)

    async def test_a_hanging_server_is_lost_within_a_short_cache_ttl(self, tmp_path: Path) -> None:
        async with (
            ConsulServer(tmp_path) as server,
            running(consul_registry(server, attention=Attention.within(2.0, at_most=ATTENTION))) as told,
        ):
            await told.listing()
            began = time.monotonic()
            server.pause()
            try:
                assert isinstance(await told.next(), Lost)
                assert time.monotonic() - began < 3
                assert told.registry.age_s() >= 1
            finally:
                server.resume()
            while not isinstance(await told.next(), Synced):
                pass


class TestNothingIsMissed:
    async def test_a_check_that_fails_just_after_the_listing_counts_although_its_service_has_no_query_of_its_own(
        self, consul: ConsulServer
    ) -> None:
        def registration(number: int, status: str) -> dict[str, Any]:
            name = f"s{number:02}"
            service = {"Service": name, "ID": f"{name}-1", "Address": "10.3.0.1", "Port": 80}
            check = {"Node": "elsewhere", "CheckID": f"c{number}", "Name": "c", "Status": status}
            return {
                "Node": "elsewhere",
                "Address": "10.3.0.1",
                "Service": service,
                "Check": {**check, "ServiceID": f"{name}-1"},
            }

        last = WATCHED_MAX + 9
        for number in range(last + 1):
            await consul.request("PUT", "/v1/catalog/register", registration(number, "passing"))
        seen = asyncio.Event()

        def emit(event: RegistryEvent) -> None:
            match event:
                case Synced():  # nobody else has a turn before the following begins
                    _at_once(consul, "/v1/catalog/register", registration(last, "critical"))
                case PutInstance(stated=Verdict(status=HealthStatus.UNHEALTHY)):
                    seen.set()

        async with consul_registry(consul) as registry:
            task = asyncio.create_task(registry.run(emit))
            try:
                await asyncio.wait_for(seen.wait(), 15)
            finally:
                task.cancel()
                await asyncio.wait([task])

    async def test_a_heartbeat_that_could_not_be_told_to_the_others_is_told_when_consul_is_back(
        self, consul: ConsulServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write, broken = Client.write, ["once"]

        async def breaks_off(client: Client, key: str, *args: Any, **options: Any) -> bool:
            if "/renewals/one/" in key and broken:
                raise Unreachable(f"broken off {broken.pop()}")
            return await write(client, key, *args, **options)

        monkeypatch.setattr(Client, "write", breaks_off)
        one, two = consul_registry(consul, member="one"), consul_registry(consul, member="two")
        async with running(one) as told, running(two):
            await told.until(lambda: told.members == {"one", "two"})
            await one.put(replace(A, ttl=60.0))
            assert await one.heartbeat(A.key) == 60.0
            while not isinstance(await told.next(), Lost):
                pass
            async with asyncio.timeout(10):
                while not [
                    key
                    for key in await consul.request("GET", "/v1/kv/service-discovery/renewals/?keys")
                    if key.startswith("service-discovery/renewals/one/")
                ]:
                    await asyncio.sleep(0.05)


async def test_a_removal_that_the_token_may_not_make_keeps_nothing_else_from_being_followed(tmp_path: Path) -> None:
    rights = WRITE.replace('service_prefix "" { policy = "write" }', 'service_prefix "" { policy = "read" }')
    async with ConsulServer(tmp_path, acl=True) as server:
        async with consul_registry(server) as everything:
            await everything.put(A)
            await everything.drain(A.key, 0.0)
        async with running(consul_registry(server, token=await server.add_token(rights), member="two")) as told:
            assert [event.instance.draining for event in await told.listing()] == [True]
            for timeout in (1.0, 2.0):
                await told.registry.put_policy(A.name, Policy(timeout=timeout))
                assert isinstance(await told.next(), PutPolicy), "and no Lost"


def _at_once(server: ConsulServer, path: str, body: dict[str, Any]) -> None:
    """Send a request while the event loop stands still."""
    request = urllib.request.Request(f"{server.endpoint}{path}", data=json.dumps(body).encode(), method="PUT")
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.status == 200
