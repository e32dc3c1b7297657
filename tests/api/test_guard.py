"""The mass-loss guard over REST: what is held is seen, let go by hand, and comes back by any write of its owner."""

import pytest
from builders import key

pytestmark = pytest.mark.unit

IDS = ("a", "b", "c", "d")
WEB = "/api/v1/services/web"


async def expire(it, *ids: str) -> None:
    """Let the leases of instances run out, and no others."""
    it.clock.now += 9
    for id_ in set(IDS) - set(ids):
        await it.json("PUT", f"{WEB}/instances/{id_}/heartbeat", 200)
    it.clock.now += 2
    # Whatever is written wakes the registry, which then looks at its leases.
    await it.register("other", id="wake")
    while not it.intake.holds():
        await it.live.wait()


@pytest.fixture
async def held(edge):
    """Run the application with a service of four, of which three are held."""
    for number, id_ in enumerate(IDS, start=1):
        await edge.register("web", host=f"10.0.0.{number}", id=id_, ttl=10)
    await expire(edge, "a", "b", "c")
    return edge


async def holds(it) -> dict[str, list[str]]:
    items = (await it.json("GET", "/api/v1/guard", 200))["items"]
    return {item["id"]: [each["id"] for each in item["instances"]] for item in items}


async def test_nothing_is_held_at_first(edge):
    assert (await edge.json("GET", "/api/v1/guard", 200))["items"] == []


async def test_what_is_held_is_listed_with_the_reason_and_marked_on_the_instance(held):
    (item,) = (await held.json("GET", "/api/v1/guard", 200))["items"]
    assert item == {
        "id": "web",
        "since": "1970-01-01T00:16:40.000Z",
        "until": "1970-01-01T00:26:40.000Z",
        "reason": "3 of 4 instances of web were lost within 10 s",
        "instances": [{"name": "web", "id": id_} for id_ in "abc"],
    }
    listed = (await held.json("GET", WEB, 200))["instances"]
    assert {each["id"]: (each["held"], each["status"]) for each in listed} == {
        "a": (True, "healthy"),
        "b": (True, "healthy"),
        "c": (True, "healthy"),
        "d": (False, "healthy"),
    }


async def test_a_hold_is_let_go_by_hand_and_counted(held):
    gone = await held.json("POST", "/api/v1/guard/web/release", 200)
    assert [each["id"] for each in gone["instances"]] == ["a", "b", "c"]
    assert await holds(held) == {}
    assert [each["id"] for each in (await held.json("GET", WEB, 200))["instances"]] == ["d"]
    assert ("memory", "release", "success") in held.metrics.operations


async def test_what_is_not_held_cannot_be_let_go(held):
    for id_ in ("db", "_everything", "web%2Fa"):
        problem = await held.json("POST", f"/api/v1/guard/{id_}/release", 404)
        assert problem["type"].endswith("unknown-hold")
        assert "GET /api/v1/guard" in problem["detail"]


async def test_a_service_can_be_let_go_though_it_is_held_with_all_others(edge):
    for number in range(20):
        await edge.register(f"s{number}", host=f"10.0.1.{number}", id="a", ttl=10)
    edge.clock.now += 11
    await edge.register("other", id="wake")
    while not edge.intake.holds():
        await edge.live.wait()

    gone = await edge.json("POST", "/api/v1/guard/s7/release", 200)
    assert (gone["id"], gone["instances"]) == ("_everything", [{"name": "s7", "id": "a"}])
    await edge.json("GET", "/api/v1/services/s7/instances/a", 404)
    assert len((await holds(edge))["_everything"]) == 19
    await edge.json("POST", "/api/v1/guard/_everything/release", 200)
    assert await holds(edge) == {}


async def test_a_heartbeat_brings_a_held_instance_back(held):
    assert await held.json("PUT", f"{WEB}/instances/a/heartbeat", 200) == {"expires_in": 10}
    while (await held.json("GET", f"{WEB}/instances/a", 200))["held"]:
        await held.live.wait()
    assert await holds(held) == {"web": ["b", "c"]}
    assert await held.registry.heartbeat(key("web", "a")) == 10, "the registry has it again"


async def test_a_registration_brings_a_held_instance_back(held):
    back = await held.json("PUT", f"{WEB}/instances/a", 200, {"host": "10.0.0.1", "port": 8080, "ttl": 10})
    assert back["held"] is False
    assert await holds(held) == {"web": ["b", "c"]}


async def test_a_registration_that_names_what_it_saw_brings_a_held_instance_back(held):
    async with held.client.get(f"{WEB}/instances/a") as seen:
        headers = {"If-Match": seen.headers["ETag"]}
    body = {"host": "10.0.0.1", "port": 8080, "ttl": 10, "weight": 3}
    back = await held.json("PUT", f"{WEB}/instances/a", 200, body, headers=headers)
    assert (back["held"], back["weight"]) == (False, 3)


async def test_a_patch_brings_a_held_instance_back_changed(held):
    back = await held.json("PATCH", f"{WEB}/instances/a", 200, {"weight": 5})
    assert (back["held"], back["weight"], back["ttl"]) == (False, 5, 10)
    assert await holds(held) == {"web": ["b", "c"]}


async def test_a_held_instance_is_deregistered_like_any_other(held):
    await held.json("DELETE", f"{WEB}/instances/a", 204)
    assert await holds(held) == {"web": ["b", "c"]}
    await held.json("GET", f"{WEB}/instances/a", 404)
    assert ("memory", "release", "success") in held.metrics.operations


async def test_the_last_deregistration_ends_the_hold(held):
    for id_ in "abc":
        await held.json("DELETE", f"{WEB}/instances/{id_}", 204)
    assert await holds(held) == {}


async def test_to_drain_a_held_instance_is_to_let_it_go_for_its_registry_has_none(held):
    await held.json("DELETE", f"{WEB}/instances/a?drain=30", 204)
    while (await holds(held))["web"] != ["b", "c"]:
        await held.live.wait()
    await held.json("GET", f"{WEB}/instances/a", 404)


async def test_a_deregistration_in_a_batch_lets_go_too(held):
    operations = [{"op": "deregister", "name": "web", "id": id_} for id_ in "ab"]
    await held.json("POST", "/api/v1/instances:batch", 200, {"operations": operations})
    while (await holds(held))["web"] != ["c"]:
        await held.live.wait()


async def test_holds_can_be_watched(held):
    async with held.client.get("/api/v1/guard") as first:
        tag = first.headers["ETag"]
    await held.json("DELETE", f"{WEB}/instances/a", 204)
    headers = {"If-None-Match": tag, "Prefer": "wait=10"}
    shown = await held.json("GET", "/api/v1/guard", 200, headers=headers)
    assert [each["id"] for each in shown["items"][0]["instances"]] == ["b", "c"]
