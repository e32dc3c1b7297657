"""The items of the conformance list that begin with a registration and end on the wire: the whole control plane."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.xds.client import Response, XdsStream, versions
from tests.xds.conformance.plane import TYPES, Plane, running
from tests.xds.conformance.world import BOTH, contents, names, ports, settle, until_quiet
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE

pytestmark = pytest.mark.integration


def version_of(response: Response) -> str:
    return str(getattr(response, "version_info", ""))


def register(service: str, id: str = "one", port: int = 8080, **fields: Any) -> dict[str, Any]:
    return {
        "op": "register",
        "instance": {"name": service, "id": id, "host": "10.0.0.1", "port": port, **fields},
    }


@BOTH
async def test_w_09_a_control_plane_without_services_says_so(delta: bool) -> None:
    async with running() as plane:
        response = await settle(plane.client.ads(delta=delta), CLUSTER)

        assert response.resources == []
        assert response.nonce
        assert delta or version_of(response)


@BOTH
async def test_p_01_a_write_that_changes_nothing_is_not_heard_of(delta: bool) -> None:
    async with running() as plane:
        await plane.register("web", "one", tags=["a", "b"], ttl=60, metadata={"x": 1, "y": "z"})
        await plane.register("web", "two", port=8081)
        await plane.published("web")
        stream, before = await plane.envoy_like(delta=delta)
        await plane.register("web", "two", port=8081)
        await plane.register("web", "one", tags=["b", "a"], ttl=60, metadata={"y": "z", "x": 1})
        assert await plane.send("PUT", "/api/v1/services/web/instances/one/heartbeat") == 200
        await stream.expect_quiet()
        _, after = await plane.envoy_like(delta=delta)

        assert {url: answer.resources for url, answer in after.items()} == {
            url: answer.resources for url, answer in before.items()
        }
        assert list(map(version_of, after.values())) == list(map(version_of, before.values()))


async def test_p_01_a_check_that_passes_again_is_not_heard_of() -> None:
    checked = asyncio.Semaphore(0)

    def on_check(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        checked.release()
        writer.close()

    server = await asyncio.start_server(on_check, "127.0.0.1", 0)
    async with server, running() as plane:
        check = {"type": "tcp", "interval": 0.1, "timeout": 1}
        await plane.register("web", host="127.0.0.1", port=server.sockets[0].getsockname()[1], health_check=check)
        await plane.published("web")
        stream = plane.client.ads(delta=True)
        told = await settle(stream, ENDPOINT, ["web"])
        while not ports(contents(told)["web"]):
            told = await stream.expect(ENDPOINT)
            await stream.ack(told)
        for _ in range(4):
            await checked.acquire()
        await stream.expect_quiet()


@BOTH
async def test_p_02_a_change_of_endpoints_concerns_who_asked_for_them_and_no_other_type(delta: bool) -> None:
    async with running() as plane:
        for service in ("web", "api"):
            await plane.register(service)
        await plane.published("web", "api")
        stream, _ = await plane.envoy_like(delta=delta)
        elsewhere = plane.client.ads(delta=delta)
        await settle(elsewhere, CLUSTER)
        await settle(elsewhere, ENDPOINT, ["api"])
        await plane.register("web", "two", port=8081)
        told = await until_quiet(stream)

        assert [(each.type_url, names(each)) for each in told] == [(ENDPOINT, ["web"])]
        await elsewhere.expect_quiet()


@BOTH
async def test_p_04_p_06_five_hundred_new_services_are_few_pushes_and_all_arrive(delta: bool) -> None:
    async with running() as plane:
        stream = plane.client.ads(delta=delta)
        await settle(stream, CLUSTER)
        await plane.batch(*(register(f"s{number}") for number in range(500)))
        held: set[str] = set()
        pushes = 0
        while len(held) < 500:
            response = await stream.expect(CLUSTER)
            await stream.ack(response)
            pushes += 1
            held |= {*names(response)}

        assert pushes < 100
        assert held == {f"s{number}" for number in range(500)}


async def test_p_04_registrations_without_end_do_not_keep_a_new_service_away() -> None:
    async with running() as plane:
        stream = plane.client.ads(delta=True)
        await settle(stream, CLUSTER)

        async def register_for_ever() -> None:
            number = 0
            while True:
                await plane.register(f"noise-{number}")
                number += 1

        noise = asyncio.create_task(register_for_ever())
        try:
            await plane.register("web")
            held: set[str] = set()
            async with asyncio.timeout(5):
                while "web" not in held:
                    response = await stream.expect(CLUSTER)
                    await stream.ack(response)
                    held |= {*names(response)}

            assert not noise.done()
        finally:
            noise.cancel()
            await asyncio.gather(noise, return_exceptions=True)


async def test_p_05_what_changes_and_changes_back_ends_as_it_was() -> None:
    async with running() as plane:
        await plane.register("web", weight=1)
        await plane.published("web")
        stream = plane.client.ads(delta=True)
        before = await settle(stream, ENDPOINT, ["web"])
        remove = {"op": "deregister", "name": "web", "id": "one"}
        await plane.batch(*[operation for _ in range(20) for operation in (remove, register("web", weight=1))])
        told = await until_quiet(stream)

        assert len(told) <= 20
        if told:
            assert told[-1].resources == before.resources
        assert (await settle(plane.client.ads(delta=True), ENDPOINT, ["web"])).resources == before.resources


@BOTH
async def test_g_04_g_05_a_service_whose_last_instance_went_has_an_empty_assignment_and_keeps_its_cluster(
    delta: bool,
) -> None:
    async with running() as plane:
        await plane.register("web")
        await plane.published("web")
        stream, _ = await plane.envoy_like(delta=delta)
        await plane.deregister("web")
        told = await until_quiet(stream)

        assert [(each.type_url, getattr(each, "removed_resources", [])) for each in told] == [(ENDPOINT, [])]
        assert ports(contents(told[0])["web"]) == []
        late, first = await plane.envoy_like(delta=delta)

        assert names(first[CLUSTER]) == ["web"]
        assert ports(contents(first[ENDPOINT])["web"]) == []
        await late.expect_quiet()


@BOTH
async def test_g_05_a_service_whose_instances_never_passed_a_check_has_an_empty_assignment(delta: bool) -> None:
    async with running() as plane:
        check = {"type": "tcp", "interval": 60, "timeout": 1}
        await plane.register("web", host="127.0.0.1", port=1, health_check=check)
        await plane.published("web")
        _, first = await plane.envoy_like(delta=delta)

        assert ports(contents(first[ENDPOINT])["web"]) == []


@BOTH
async def test_o_01_o_02_a_new_policy_brings_the_assignment_of_its_cluster_once(delta: bool) -> None:
    async with running() as plane:
        for service in ("web", "api"):
            await plane.register(service)
        await plane.published("web", "api")
        stream, before = await plane.envoy_like(delta=delta)
        await plane.policy("web", strategy="round_robin", connect_timeout=1)
        changed = await stream.expect(CLUSTER)
        assignment = await stream.expect(ENDPOINT)
        await stream.ack(changed)
        await stream.ack(assignment)
        rest = await until_quiet(stream)

        assert names(assignment) == ["web"]
        assert contents(assignment)["web"] == contents(before[ENDPOINT])["web"], "its endpoints are as before"
        assert {each.type_url for each in rest} <= {ROUTE}


@BOTH
async def test_o_05_a_service_comes_before_its_route_and_goes_after_it(
    delta: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.live.GRACE_S", 0.2)
    async with running() as plane:
        await plane.register("web")
        await plane.published("web")
        stream, _ = await plane.envoy_like(delta=delta)
        await plane.register("api")
        made = await stream.expect(CLUSTER)
        await stream.subscribe(ENDPOINT, ["api"] if delta else ["web", "api"])
        await stream.ack(made)
        order = [made, *await until_idle(stream, ROUTE)]

        assert [each.type_url for each in order] == [CLUSTER, ENDPOINT, ROUTE]
        assert "api" in names(made)
        await plane.deregister("api")
        order = await until_idle(stream, CLUSTER)
        told = [each.type_url for each in order]

        assert told == [ENDPOINT, ROUTE, CLUSTER]
        assert "api" not in routed(order[1])
        assert getattr(order[2], "removed_resources", ["api"]) == ["api"]
        assert "api" not in names(order[2])


async def until_idle(stream: XdsStream, last: str) -> list[Response]:
    """Acknowledge responses up to the first of a type."""
    seen: list[Response] = []
    while not seen or seen[-1].type_url != last:
        seen.append(await stream.next())
        await stream.ack(seen[-1])
    return seen


def routed(response: Response) -> set[str]:
    """List the clusters that a response's routes lead to."""
    return {*targets(contents(response)["gateway"])}


def targets(routes: Any) -> Iterator[str]:
    for host in routes.virtual_hosts:
        for route in host.routes:
            if route.route is not None:
                yield route.route.cluster


@BOTH
async def test_o_08_on_streams_of_their_own_a_cluster_outlives_its_last_instance(delta: bool) -> None:
    async with running() as plane:
        await plane.register("web")
        await plane.published("web")
        clusters, routes = plane.client.open(CLUSTER, delta=delta), plane.client.open(ROUTE, delta=delta)
        await settle(clusters, CLUSTER)
        await settle(routes, ROUTE, ["gateway"])
        await plane.deregister("web")
        await clusters.expect_quiet()
        await routes.expect_quiet()


async def test_o_09_everything_that_is_referred_to_is_there() -> None:
    async with running() as plane:
        await plane.batch(*(register(f"s{number}") for number in range(20)))
        await plane.published(*(f"s{number}" for number in range(20)))
        told = await plane.everything()

        assert {*targets(told[ROUTE]["gateway"])} == told[CLUSTER].keys() == told[ENDPOINT].keys()
        assert len(told[CLUSTER]) == 20
        assert [*told[LISTENER]] == ["gateway"]


@BOTH
async def test_o_09_no_route_ever_leads_to_a_cluster_that_the_client_does_not_have(
    delta: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.live.GRACE_S", 0.05)
    async with running() as plane:
        await plane.register("last")
        await plane.published("last")
        stream, first = await plane.envoy_like(delta=delta)
        held, ways = {*names(first[CLUSTER])}, routed(first[ROUTE])

        async def churn() -> None:
            for round_ in range(10):
                await plane.batch(*(register(f"s{number}") for number in range(round_ % 5 + 1)))
                for number in range(round_ % 5 + 1):
                    await plane.deregister(f"s{number}")
            await plane.register("end")

        churning = asyncio.create_task(churn())
        while not ("end" in ways and churning.done() and held == {"last", "end"}):
            response = await stream.next()
            if response.type_url == CLUSTER:
                held = held | {*names(response)} if delta else {*names(response)}
                held -= {*getattr(response, "removed_resources", ())}
                await stream.subscribe(ENDPOINT, sorted(held))
            if response.type_url == ROUTE:
                ways = routed(response)

            assert ways <= held
            await stream.ack(response)
        await churning


async def test_r_08_replicas_with_the_same_registrations_serve_the_same_bytes() -> None:
    async with running() as one, running() as other:
        services = {"web": {"metadata": {"a": 1, "b": True}, "tags": ["x", "y"]}, "api": {"weight": 7}}
        for plane in (one, other):
            order = services if plane is one else dict(reversed(services.items()))
            for service, fields in order.items():
                for id, port in sorted({"one": 8080, "two": 8081}.items(), reverse=plane is other):
                    await plane.register(service, id, port=port, **fields)
            await plane.policy("web", strategy="consistent_hash")
            await plane.published("web", "api")
        (_, here), (_, there) = await one.envoy_like(delta=False), await other.envoy_like(delta=False)

        assert {url: answer.resources for url, answer in here.items()} == {
            url: answer.resources for url, answer in there.items()
        }
        assert [version_of(here[url]) for url in TYPES] == [version_of(there[url]) for url in TYPES]


@BOTH
async def test_s_04_r_01_a_restart_changes_no_version(delta: bool, tmp_path: Path) -> None:
    async with running(data_dir=tmp_path) as plane:
        for service in ("web", "api"):
            await plane.register(service, metadata={"a": 1})
        await plane.published("web", "api")
        _, before = await plane.envoy_like(delta=delta)
    async with running(data_dir=tmp_path) as plane:
        await until_served(plane)
        _, after = await plane.envoy_like(delta=delta)

        assert [answer.resources for answer in after.values()] == [answer.resources for answer in before.values()]
        assert list(map(version_of, after.values())) == list(map(version_of, before.values()))
        if delta:
            again = plane.client.ads(delta=True)
            nothing = await settle(again, CLUSTER, initial=versions(before[CLUSTER]))

            assert nothing.resources == []


async def until_served(plane: Plane) -> None:
    """Come back as a client does, until the control plane takes a stream."""
    async with asyncio.timeout(5):
        while True:
            stream = plane.client.ads()
            try:
                await stream.subscribe(CLUSTER)
                await stream.next()
            except (EOFError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await asyncio.sleep(0.02)
            else:
                await stream.half_close()
                return


async def test_r_09_a_control_plane_that_does_not_know_its_services_yet_refuses_and_is_not_ready(
    tmp_path: Path,
) -> None:
    check = {"type": "http", "interval": 60, "timeout": 30}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with running(data_dir=tmp_path) as plane:
            port = silent.getsockname()[1]
            await plane.register("web", host="127.0.0.1", port=port, health_check=check)
            await plane.register("api")
        async with running(data_dir=tmp_path) as plane:
            for own in ("", CLUSTER):
                code, said = await plane.client.open(own, delta=True).expect_end()

                assert code is grpc.StatusCode.UNAVAILABLE
                assert "not ready" in said
            assert await plane.send("GET", "/readyz") == 503
            assert await plane.send("GET", "/livez") == 200
