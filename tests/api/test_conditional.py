"""Every read is tagged; tags save transfers, make clients wait for changes, and guard writes."""

import asyncio

import pytest
from aiohttp import web
from builders import key, verdict

from controlplane.model import HealthStatus, Judged

pytestmark = pytest.mark.unit

WEB = "/api/v1/services/web"
INSTANCE = f"{WEB}/instances/a"
READS = [
    pytest.param(path, id=path)
    for path in ("/api/v1/services", WEB, INSTANCE, "/api/v1/health/web", f"{WEB}/policy", "/api/v1/proxies")
]


@pytest.mark.parametrize("path", [*READS, pytest.param(f"{WEB}/instance", id="a pick")])
async def test_every_read_has_a_strong_tag_and_a_revision(edge, path):
    await edge.register(id="a")

    async with edge.client.get(path) as response:
        assert response.status == 200
        assert response.headers["ETag"].startswith('"')
        assert response.headers["Revision"].startswith("e.")


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize("header", ["{}", 'W/"x", {}', "W/{}", "*"])
async def test_what_has_not_changed_is_not_sent_again(edge, path, header):
    await edge.register(id="a")
    async with edge.client.get(path) as first:
        tag = first.headers["ETag"]

    async with edge.client.get(path, headers={"If-None-Match": header.format(tag)}) as second:
        assert (second.status, await second.read()) == (304, b"")
        assert second.headers["ETag"] == tag
        assert second.headers["Revision"] == first.headers["Revision"]


@pytest.mark.parametrize("path", READS[:4])
async def test_what_has_changed_is_sent(edge, path):
    await edge.register(id="a", health_check={"type": "tcp"})
    async with edge.client.get(path) as first:
        tag = first.headers["ETag"]
    edge.live.apply(Judged(key=key("web", "a"), verdict=verdict(HealthStatus.DEGRADED)))

    async with edge.client.get(path, headers={"If-None-Match": tag, "Prefer": "wait=30"}) as second:
        assert second.status == 200
        assert second.headers["ETag"] != tag


class Reading:
    """Tell when a read of a service has been rendered, and so waits."""

    def __init__(self, metrics):
        self.rendered = asyncio.Event()
        metrics.cache_read = lambda _hit: self.rendered.set()


async def waiting(edge, prefer="wait=300"):
    """Ask for `web` with a wait, and return the request once the edge has looked and waits."""
    async with edge.client.get(WEB) as first:
        tag = first.headers["ETag"]
    reading = Reading(edge.metrics)
    headers = {"If-None-Match": tag, "Prefer": prefer}
    task = asyncio.create_task(edge.client.get(WEB, headers=headers))
    await reading.rendered.wait()
    return task


async def test_a_wait_ends_with_the_change_of_that_service(edge):
    await edge.register("web", id="a")
    task = await waiting(edge, "respond-async, wait=300; x")
    await edge.register("other")
    assert not task.done()

    await edge.register("web", id="b", host="10.0.0.2")

    async with await task as response:
        assert response.status == 200
        assert response.headers["Preference-Applied"] == "wait=300"
        assert len((await response.json())["instances"]) == 2


async def test_a_wait_ends_where_the_service_is_forgotten(edge):
    await edge.json("PUT", f"{WEB}/policy", 201, {"strategy": "random"})
    task = await waiting(edge)
    await edge.json("DELETE", f"{WEB}/policy", 204)

    async with await task as response:
        assert response.status == 404


async def test_a_wait_that_ends_in_time_says_that_nothing_changed(edge):
    await edge.register("web")
    async with edge.client.get(WEB) as first:
        headers = {"If-None-Match": first.headers["ETag"], "Prefer": "wait=0"}
    async with edge.client.get(WEB, headers=headers) as response:
        assert (response.status, response.headers["Preference-Applied"]) == (304, "wait=0")


async def test_nobody_waits_longer_than_five_minutes(edge):
    await edge.register("web")
    task = await waiting(edge, "wait=99999")
    await edge.register("web", host="10.0.0.2")

    async with await task as response:
        assert response.headers["Preference-Applied"] == "wait=300"


async def test_shutdown_does_not_wait_for_those_who_wait(edge):
    await edge.register("web")
    task = await waiting(edge)
    app = edge.client.app
    assert isinstance(app, web.Application)

    await app.shutdown()

    async with await task as response:
        assert response.status == 304


async def test_the_time_of_waiting_is_not_counted_as_work(edge):
    await edge.register("web")
    task = await waiting(edge)
    edge.clock.now += 25
    await edge.register("web", host="10.0.0.2")
    async with await task:
        pass

    durations = {route: duration for _, route, _, duration in edge.metrics.requests if "{name}" in route}
    assert durations == {"/api/v1/services/{name}": 0.0}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        pytest.param("PUT", INSTANCE, {"host": "10.0.0.1", "port": 8080, "weight": 2}, id="put an instance"),
        pytest.param("PATCH", INSTANCE, {"weight": 2}, id="patch an instance"),
        pytest.param("DELETE", INSTANCE, None, id="delete an instance"),
        pytest.param("DELETE", f"{INSTANCE}?drain=5", None, id="drain an instance"),
        pytest.param("PUT", f"{WEB}/policy", {"strategy": "round_robin"}, id="put a policy"),
        pytest.param("DELETE", f"{WEB}/policy", None, id="delete a policy"),
    ],
)
async def test_a_write_may_demand_the_version_that_was_read(edge, method, path, body):
    await edge.register(id="a")
    await edge.json("PUT", f"{WEB}/policy", 201, {"strategy": "random"})
    async with edge.client.get(path.partition("?")[0]) as read:
        tag = read.headers["ETag"]
    before = edge.live.revision

    problem = await edge.json(method, path, 412, body, headers={"If-Match": '"another"'})
    assert problem["type"] == "/docs#problem-precondition-failed"
    await edge.json(method, path, 412, body, headers={"If-Match": f"W/{tag}"})
    await edge.json(method, path, 412, body, headers={"If-None-Match": "*"})
    bad = await edge.json(method, path, 400, body, headers={"If-Match": "another"})
    assert bad["errors"][0]["header"] == "If-Match"
    assert edge.live.revision == before

    async with edge.client.request(method, path, json=body, headers={"If-Match": f'"old", {tag}'}) as written:
        assert written.status in {200, 202, 204}
    assert edge.live.revision != before


@pytest.mark.parametrize(
    ("method", "body"),
    [
        pytest.param("PUT", {"host": "10.0.0.1", "port": 8080, "weight": 2}, id="put"),
        pytest.param("PATCH", {"weight": 2}, id="patch"),
        pytest.param("DELETE", None, id="delete"),
    ],
)
async def test_a_verdict_is_no_write_that_came_in_between(edge, method, body):
    await edge.register(id="a", health_check={"type": "tcp"})
    async with edge.client.get(INSTANCE) as read:
        tag = read.headers["ETag"]
    edge.live.apply(Judged(key=key("web", "a"), verdict=verdict(HealthStatus.DEGRADED)))
    async with edge.client.get(INSTANCE, headers={"If-None-Match": tag}) as read:
        assert (read.status, (await read.json())["status"]) == (200, "degraded")

    async with edge.client.request(method, INSTANCE, json=body, headers={"If-Match": tag}) as written:
        assert written.status in {200, 204}, await written.text()
    await edge.json(method, INSTANCE, 412, body, headers={"If-Match": tag})


async def test_a_write_may_demand_that_there_is_something_or_nothing(edge):
    body = {"host": "10.0.0.1", "port": 8080}

    await edge.json("PUT", INSTANCE, 412, body, headers={"If-Match": "*"})
    await edge.json("PUT", INSTANCE, 201, body, headers={"If-None-Match": "*"})
    await edge.json("PUT", INSTANCE, 412, body, headers={"If-None-Match": "*"})
    await edge.json("PUT", INSTANCE, 200, body, headers={"If-Match": "*"})


async def test_of_two_writers_who_read_the_same_version_one_writes(edge):
    await edge.register(id="a")
    for path, bodies in (
        (INSTANCE, [{"host": "10.0.0.1", "port": 8080, "weight": weight} for weight in range(2, 12)]),
        (f"{WEB}/policy", [{"timeout": timeout} for timeout in range(2, 12)]),
    ):
        if path.endswith("policy"):
            await edge.json("PUT", path, 201, {})
        async with edge.client.get(path) as read:
            headers = {"If-Match": read.headers["ETag"]}

        async def write(body, path=path, headers=headers):
            async with edge.client.put(path, json=body, headers=headers) as response:
                return response.status

        assert sorted(await asyncio.gather(*map(write, bodies))) == [200] + [412] * 9
