"""The registry in Consul when servers die, wait, or are something else: what is refused, and how soon."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from builders import instance
from registry.consul import consul_registry
from registry.test_consul import running
from servers.consul import ConsulCluster, ConsulServer

from controlplane.model import Lost, RawResource, Synced
from controlplane.registry import Attention, RegistryUnavailable
from controlplane.registry.consul import ATTENTION

pytestmark = pytest.mark.consul

A = instance("web", "a", host="10.0.0.1")
B = instance("web", "b", host="10.0.0.2")


@asynccontextmanager
async def impostor(handler: web.RequestHandler) -> AsyncIterator[str]:
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
