"""Many operations at once: each has its own result, and one bad one stops no other."""

import asyncio
from collections import Counter

import pytest

from controlplane.model import Instance, InstanceKey
from controlplane.registry.memory import MemoryRegistry

pytestmark = pytest.mark.unit

BATCH = "/api/v1/instances:batch"


def register(id="a", host="10.0.0.1", name="web", **fields):
    return {"op": "register", "instance": {"name": name, "id": id, "host": host, "port": 80, **fields}}


def deregister(id="a", name="web"):
    return {"op": "deregister", "name": name, "id": id}


async def batch(edge, *operations):
    document = await edge.json("POST", BATCH, 200, {"operations": operations})
    assert len(document["results"]) == len(operations)
    return document


async def test_each_operation_has_the_status_that_it_would_have_alone(edge):
    await edge.register(id="old", host="10.0.0.7")
    done = await batch(
        edge,
        register("a"),
        register("old", "10.0.0.7", weight=4),
        register("b", "10.0.0.1"),
        register("c", "bad host", port=0),
        deregister("never"),
        deregister("old"),
        {"op": "drain"},
        7,
    )

    results = done["results"]
    assert [result["status"] for result in results] == [201, 200, 409, 400, 204, 204, 400, 400]
    assert [result["id"] for result in results] == ["a", "old", "b", "c", "never", "old", None, None]
    assert [fault["pointer"] for fault in results[3]["problem"]["errors"]] == [
        "#/operations/3/instance/host",
        "#/operations/3/instance/port",
    ]
    assert results[2]["problem"]["owner"] == "a"
    assert results[6]["problem"]["errors"][0]["choices"] == ["register", "deregister"]
    assert results[0]["revision"] == "e.3"
    assert done["revision"] == edge.live.revision
    assert {str(id) for id in edge.live.current.services["web"].entries} == {"a"}


@pytest.mark.parametrize(
    ("item", "pointers"),
    [
        pytest.param({}, ["op"], id="no operation"),
        pytest.param({"op": None}, ["op"], id="an operation that is no name"),
        pytest.param({"op": "register"}, ["instance"], id="nothing to register"),
        pytest.param({"op": "register", "instance": [], "x": 1}, ["x", "instance"], id="two faults"),
        pytest.param(
            {"op": "register", "instance": {"x": 1, "name": "a", "host": "b", "port": 1}, "y": 1},
            ["y", "instance/x"],
            id="faults at both levels",
        ),
        pytest.param({"op": "deregister", "name": "web"}, ["id"], id="nothing to deregister"),
        pytest.param({"op": "deregister", "name": "WEB", "id": "a b", "z": 1}, ["z", "name", "id"], id="a bad key"),
    ],
)
async def test_a_faulty_operation_says_where(edge, item, pointers):
    (result,) = (await batch(edge, item))["results"]

    assert result["status"] == 400
    assert [fault["pointer"] for fault in result["problem"]["errors"]] == [f"#/operations/0/{p}" for p in pointers]


async def test_operations_on_the_same_thing_keep_their_order(edge):
    await edge.register(id="a", host="10.0.0.1", port=80)
    done = await batch(
        edge,
        deregister("a"),
        register("b", "10.0.0.1"),  # the address that a gave back
        register("c", "10.0.0.2", weight=1),
        register("c", "10.0.0.2", weight=2),
        deregister("c"),
        register("c", "10.0.0.2", weight=3),
    )

    assert [result["status"] for result in done["results"]] == [204, 201, 201, 200, 204, 201]
    entries = edge.live.current.services["web"].entries
    assert {str(id): entry.instance.weight for id, entry in entries.items()} == {"b": 1, "c": 3}


async def test_a_thousand_operations_are_done(edge):
    done = await batch(
        edge, *(register(f"i{n}", f"10.0.{n // 250}.{n % 250 + 1}", name=f"s{n % 7}") for n in range(1000))
    )

    assert Counter(result["status"] for result in done["results"]) == {201: 1000}
    assert sum(1 for _ in edge.live.current.entries()) == 1000


async def test_a_slow_registry_is_asked_side_by_side(start):
    class Slow(MemoryRegistry):
        """Answer nobody before all have asked."""

        async def put(self, instance: Instance, *, expected: Instance | None = None) -> bool:
            await barrier.wait()
            return await super().put(instance, expected=expected)

    barrier = asyncio.Barrier(20)
    it = await start(registry=Slow(journal=None))

    done = await batch(it, *(register(f"i{n}", f"10.0.0.{n + 1}") for n in range(20)))

    assert {result["status"] for result in done["results"]} == {201}


async def test_what_the_catalog_does_not_show_in_time_is_accepted(start):
    it = await start(silent=True, visible_within_s=0)
    await it.registry.put(Instance(name="web", id="old", host="10.0.0.9", port=1))

    done = await batch(it, register("a"))

    assert [(result["status"], result["revision"]) for result in done["results"]] == [(202, None)]


async def test_an_unexpected_fault_in_one_operation_is_a_fault_of_the_request(start):
    class Broken(MemoryRegistry):
        async def delete(self, key: InstanceKey) -> bool:
            raise ZeroDivisionError("secret")

    it = await start(registry=Broken(journal=None))

    await it.json("POST", BATCH, 500, {"operations": [deregister()]})
    assert len(it.errors) == 1
