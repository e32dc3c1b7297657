"""Writes go to the registry and answer once they can be read, with the revision that they made."""

import asyncio
from dataclasses import replace

import pytest
from builders import instance, key

from controlplane.model import Instance, InstanceKey, PutInstance
from controlplane.registry import RegistryUnavailable
from controlplane.registry.memory import MemoryRegistry

pytestmark = pytest.mark.unit

PATH = "/api/v1/services/web/instances/a"
BODY = {"host": "10.0.0.1", "port": 8080}


async def test_registering_answers_with_the_stored_instance_and_where_it_is(edge):
    async with edge.client.post("/api/v1/services", json={"name": "web", **BODY, "tags": ["b", "a", "b"]}) as response:
        stored = await response.json()

        assert response.status == 201
        assert response.headers["Location"] == "/api/v1/services/web/instances/web-10.0.0.1-8080"
        assert response.headers["Revision"] == stored["revision"] == edge.live.revision
        assert stored["tags"] == ["b", "a"]
        assert stored["status"] == "healthy"
    async with edge.client.get(response.headers["Location"]) as read:
        assert await read.json() == stored
        assert read.headers["ETag"] == response.headers["ETag"]


async def test_registering_the_same_id_again_replaces(edge):
    await edge.register(id="a", weight=1)
    replaced = await edge.json("POST", "/api/v1/services", 200, {"name": "web", "id": "a", **BODY, "weight": 9})

    assert replaced["weight"] == 9
    assert len((await edge.json("GET", "/api/v1/services/web", 200))["instances"]) == 1


async def test_put_takes_name_and_id_from_the_path(edge):
    created = await edge.json("PUT", PATH, 201, BODY)
    replaced = await edge.json("PUT", PATH, 200, {**BODY, "name": "web", "id": "a", "weight": 7})

    assert (created["name"], created["id"], created["weight"]) == ("web", "a", 1)
    assert replaced["weight"] == 7


async def test_what_was_read_can_be_written_back(edge):
    await edge.register(id="a", health_check={"type": "tcp"})
    read = await edge.json("GET", PATH, 200)

    assert await edge.json("PUT", PATH, 200, read) | {"revision": None} == read | {"revision": None}


@pytest.mark.parametrize(
    ("patch", "changed"),
    [
        pytest.param({"weight": 9}, {"weight": 9}, id="one field"),
        pytest.param({"tags": ["x"]}, {"tags": ["x"]}, id="a list is replaced"),
        pytest.param({"metadata": {"b": 2}}, {"metadata": {"a": 1, "b": 2}}, id="objects merge"),
        pytest.param({"metadata": {"a": None}}, {"metadata": {}}, id="null removes a member"),
        pytest.param({"weight": None}, {"weight": 1}, id="null takes a field back to its default"),
        pytest.param({"draining": True}, {"draining": True, "status": "draining"}, id="draining"),
        pytest.param({"port": 9090}, {"port": 9090}, id="the address may change"),
        pytest.param({"id": "a", "name": "web"}, {}, id="the identity may be repeated"),
        pytest.param({"status": "unhealthy", "revision": "x"}, {}, id="read-only fields are ignored"),
        pytest.param({}, {}, id="an empty patch changes nothing"),
    ],
)
async def test_a_patch_changes_what_it_names(edge, patch, changed):
    before = await edge.register(id="a", weight=5, tags=["t"], metadata={"a": 1})

    after = await edge.json("PATCH", PATH, 200, patch)

    assert after | {"revision": None} == before | changed | {"revision": None}


async def test_no_concurrent_patch_is_lost(edge):
    await edge.register(id="a")

    await asyncio.gather(*(edge.json("PATCH", PATH, 200, {"metadata": {f"k{n}": n}}) for n in range(40)))

    assert (await edge.json("GET", PATH, 200))["metadata"] == {f"k{n}": n for n in range(40)}


async def test_a_patch_gives_up_where_the_instance_never_stops_changing(start):
    class Contended(MemoryRegistry):
        """Change an instance between every read and write of it."""

        async def put(self, instance: Instance, *, expected: Instance | None = None) -> bool:
            if expected is not None:
                nonlocal weight
                weight = weight % 1000 + 1
                await super().put(Instance(name="web", id="a", **BODY, weight=weight))
            return await super().put(instance, expected=expected)

    weight = 1
    it = await start(registry=Contended(journal=None), visible_within_s=0.2)
    await it.register(id="a")

    problem = await it.json("PATCH", PATH, 409, {"tags": ["x"]})

    assert problem["type"] == "/docs#problem-conflict"


async def test_deregistering_answers_alike_however_often(edge):
    await edge.register(id="a")
    async with edge.client.delete(PATH) as first:
        assert (first.status, first.headers["Revision"]) == (204, "e.3")

    assert edge.live.current.entry(key("web", "a")) is None
    await edge.json("DELETE", PATH, 204)
    await edge.json("DELETE", "/api/v1/services/never/instances/was", 204)


async def test_a_drain_marks_at_once_and_removes_later(edge):
    await edge.register(id="a")
    async with edge.client.delete(f"{PATH}?drain=30") as response:
        drained = await response.json()
        assert response.status == 202
        assert response.headers["Revision"] == drained["revision"] == edge.live.revision

    assert (drained["draining"], drained["status"]) == (True, "draining")
    assert edge.live.current.entry(key("web", "a")) is not None
    await edge.json("DELETE", f"{PATH}?drain=0", 204)
    await edge.json("DELETE", f"{PATH}?drain=30", 204)


async def test_a_heartbeat_says_how_long_the_lease_runs(edge):
    await edge.register(id="a", ttl=20)
    await edge.register(id="b", host="10.0.0.2")

    assert await edge.json("PUT", f"{PATH}/heartbeat", 200) == {"expires_in": 20}
    assert await edge.json("PUT", "/api/v1/services/web/instances/b/heartbeat", 200) == {"expires_in": None}
    gone = await edge.json("PUT", "/api/v1/services/web/instances/c/heartbeat", 404)
    assert gone["type"].endswith("instance")
    assert gone["detail"].endswith("register it again: PUT /api/v1/services/web/instances/c")
    assert (await edge.json("PUT", "/api/v1/services/x/instances/c/heartbeat", 404))["type"].endswith("service")


async def test_an_address_belongs_to_one_instance_of_a_service(edge):
    await edge.register(id="a")

    problem = await edge.json("POST", "/api/v1/services", 409, {"name": "web", "id": "b", **BODY})

    assert problem["type"] == "/docs#problem-address-taken"
    assert problem["owner"] == "a"
    await edge.json("POST", "/api/v1/services", 201, {"name": "other", "id": "b", **BODY})


async def test_a_write_that_the_catalog_does_not_show_in_time_is_accepted_without_a_revision(start):
    it = await start(silent=True, visible_within_s=0)

    async with it.client.post("/api/v1/services", json={"name": "web", "id": "a", **BODY}) as response:
        stored = await response.json()

    assert response.status == 202
    assert "Revision" not in response.headers
    assert response.headers["Location"] == PATH
    assert (stored["id"], stored["revision"]) == ("a", None)


async def test_a_write_overtaken_by_another_answers_with_its_own_revision(start):
    class Overtaken(MemoryRegistry):
        """Take another write of the same instance before the first is told."""

        async def put(self, instance: Instance, *, expected: Instance | None = None) -> bool:
            new = await super().put(instance, expected=expected)
            await super().put(Instance(name="web", id="a", **BODY, weight=500))
            return new

    it = await start(registry=Overtaken(journal=None))

    stored = await it.json("POST", "/api/v1/services", 201, {"name": "web", "id": "a", **BODY, "weight": 5})

    assert (stored["weight"], stored["revision"]) == (5, "e.2")
    assert (await it.json("GET", PATH, 200))["weight"] == 500


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        pytest.param("PUT", PATH, BODY, id="put"),
        pytest.param("POST", "/api/v1/services", {"name": "web", "id": "a", **BODY}, id="register"),
    ],
)
async def test_behind_a_registry_whose_word_comes_first_nothing_is_stored_that_nobody_would_see(
    edge, method, path, body
):
    edge.live.current = replace(edge.live.current, ranking=("kubernetes", "memory"))
    edge.live.apply(PutInstance(instance=instance("web", "a", weight=7), registry="kubernetes"))

    problem = await edge.json(method, path, 409, body)

    assert problem["registry"] == "kubernetes"
    assert "change it there" in problem["detail"]
    assert not await edge.registry.delete(key("web", "a"))


async def test_a_registration_takes_the_place_of_that_of_a_registry_whose_word_comes_later(edge):
    edge.live.current = replace(edge.live.current, ranking=("memory", "kubernetes"))
    edge.live.apply(PutInstance(instance=instance("web", "a", weight=7), registry="kubernetes"))

    taken = await edge.json("PUT", PATH, 200, BODY)

    assert (taken["registry"], taken["weight"]) == ("memory", 1)


async def test_a_registry_that_takes_no_writes_now_is_named_so(start):
    class Down(MemoryRegistry):
        async def put(self, instance: Instance, *, expected: Instance | None = None) -> bool:
            raise RegistryUnavailable("no quorum")

    it = await start(registry=Down(journal=None))

    async with it.client.post("/api/v1/services", json={"name": "web", **BODY}) as response:
        problem = await response.json()

    assert (response.status, response.headers["Retry-After"]) == (503, "1")
    assert (problem["type"], problem["detail"]) == ("/docs#problem-registry-unavailable", "no quorum")
    assert it.metrics.operations == [("memory", "register", "failure")]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        pytest.param("PATCH", PATH, {"weight": 2}, id="patch"),
        pytest.param("DELETE", f"{PATH}?drain=5", None, id="drain"),
        pytest.param("PUT", f"{PATH}/heartbeat", None, id="heartbeat"),
    ],
)
async def test_what_another_registry_holds_is_not_changed_from_here(edge, method, path, body):
    edge.live.apply(PutInstance(instance=instance("web", "a"), registry="kubernetes"))

    problem = await edge.json(method, path, 409, body)

    assert "kubernetes" in problem["detail"]


async def test_writes_are_counted_by_outcome(edge):
    await edge.register(id="a")
    await edge.json("PUT", "/api/v1/services/web/instances/b", 409, BODY)
    await edge.json("PUT", f"{PATH}/heartbeat", 200)
    await edge.json("DELETE", PATH, 204)

    assert edge.metrics.operations == [
        ("memory", "register", "success"),
        ("memory", "register", "refused"),
        ("memory", "heartbeat", "success"),
        ("memory", "deregister", "success"),
    ]


async def test_an_unexpected_fault_shows_its_id_and_nothing_else(start):
    class Broken(MemoryRegistry):
        async def heartbeat(self, key: InstanceKey) -> float | None:
            raise ZeroDivisionError("secret")

    it = await start(registry=Broken(journal=None))

    async with it.client.put(f"{PATH}/heartbeat", headers={"X-Request-Id": "mine-1"}) as response:
        text = await response.text()

    assert response.status == 500
    assert response.headers["X-Request-Id"] == "mine-1"
    assert '"instance":"mine-1"' in text
    assert "secret" not in text
    assert [str(error) for error in it.errors] == ["secret"]
