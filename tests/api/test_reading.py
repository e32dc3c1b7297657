"""Reads show what the catalog holds, filtered, paged and cached as asked."""

import asyncio
import gc

import pytest
from builders import instance, key, verdict

from controlplane.api import Freshness
from controlplane.api.edge import ReadyBytes, Rendered
from controlplane.catalog import Service
from controlplane.health import CheckReport
from controlplane.model import HealthStatus, Judged, PutInstance, Resolved

pytestmark = pytest.mark.unit

CHECK = {"type": "http"}


async def test_a_registered_instance_is_read_back_with_what_is_known_of_it(edge):
    await edge.register(
        id="w1", tags=["api"], metadata={"version": 1.5}, weight=3, ttl=20, locality={"zone": "z"}, health_check=CHECK
    )
    service = await edge.json("GET", "/api/v1/services/web", 200)

    assert service == {
        "name": "web",
        "revision": "e.2",
        "instances": [
            {
                "name": "web",
                "host": "10.0.0.1",
                "port": 8080,
                "id": "w1",
                "tags": ["api"],
                "metadata": {"version": 1.5},
                "weight": 3,
                "ttl": 20.0,
                "draining": False,
                "locality": {"region": "", "zone": "z", "sub_zone": ""},
                "health_check": {
                    "enabled": True,
                    "type": "http",
                    "http_path": "/health",
                    "grpc_service": "",
                    "script": [],
                    "interval": 30,
                    "timeout": 10,
                    "healthy_threshold": 1,
                    "unhealthy_threshold": 3,
                },
                "status": "unknown",
                "since": None,
                "registry": "memory",
                "held": False,
                "address": "10.0.0.1",
                "revision": "e.2",
            }
        ],
    }
    assert await edge.json("GET", "/api/v1/services/web/instances/w1", 200) == service["instances"][0]


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        pytest.param("", ["a", "b", "c"], id="all instances by id"),
        pytest.param("?tags=x", ["a", "b"], id="one tag"),
        pytest.param("?tags=x,y", ["b"], id="several tags mean all of them"),
        pytest.param("?tags=x&tags=y", ["b"], id="a tag parameter may repeat"),
        pytest.param("?tags=nobody", [], id="a tag that none has leaves an empty list"),
        pytest.param("?healthy_only=true", ["a", "c"], id="only the healthy"),
        pytest.param("?healthy_only=1&tags=x", ["a"], id="both filters at once"),
        pytest.param("?healthy_only=&tags=", ["a", "b", "c"], id="empty parameters count as not given"),
        pytest.param("?healthy_only=false", ["a", "b", "c"], id="the filter switched off"),
    ],
)
async def test_filters_select_instances(edge, query, ids):
    await edge.register(id="c", host="10.0.0.3")
    await edge.register(id="a", host="10.0.0.1", tags=["x"])
    await edge.register(id="b", host="10.0.0.2", tags=["x", "y"], health_check=CHECK)
    edge.live.apply(Judged(key=key("web", "b"), verdict=verdict(HealthStatus.UNHEALTHY)))

    found = await edge.json("GET", f"/api/v1/services/web{query}", 200)

    assert [instance["id"] for instance in found["instances"]] == ids


async def test_services_are_listed_by_name_page_by_page(edge):
    for name in ("d", "a", "c", "b", "e"):
        await edge.register(name, tags=["odd"] if name in "ace" else [])
    pages, path = [], "/api/v1/services?limit=2"
    while path:
        async with edge.client.get(path) as response:
            page = await response.json()
            pages.append([item["name"] for item in page["items"]])
            link = response.links.get("next")
            assert (page["next"] is None) == (link is None)
            path = str(link["url"].relative()) if link else None

    assert pages == [["a", "b"], ["c", "d"], ["e"]]
    odd = await edge.json("GET", "/api/v1/services?tags=odd&limit=2", 200)
    rest = await edge.json("GET", f"/api/v1/services?tags=odd&limit=2&cursor={odd['next']}", 200)
    assert [item["name"] for item in odd["items"] + rest["items"]] == ["a", "c", "e"]
    assert rest["next"] is None


async def test_a_listed_service_is_summed_up_over_all_its_instances(edge):
    await edge.register(id="a", host="10.0.0.1", tags=["x", "z"])
    await edge.register(id="b", host="10.0.0.2", tags=["y"], health_check=CHECK)
    await edge.register(id="c", host="10.0.0.3", draining=True)

    listed = await edge.json("GET", "/api/v1/services?tags=x&healthy_only=true", 200)

    assert listed["items"] == [
        {
            "name": "web",
            "instances": 3,
            "healthy": 1,
            "tags": ["x", "y", "z"],
            "statuses": {"healthy": 1, "unknown": 1, "draining": 1},
            "strategy": "weighted_round_robin",
            "revision": "e.4",
        }
    ]
    assert (await edge.json("GET", "/api/v1/services?tags=y&healthy_only=true", 200))["items"] == []


async def test_a_service_whose_last_instance_went_is_known_and_empty(edge):
    await edge.register(id="a")
    await edge.json("DELETE", "/api/v1/services/web/instances/a", 204)

    assert (await edge.json("GET", "/api/v1/services/web", 200))["instances"] == []
    assert (await edge.json("GET", "/api/v1/services/other", 404))["type"] == "/docs#problem-unknown-service"


async def test_a_host_name_shows_its_address_once_it_is_resolved(edge):
    await edge.register(id="a", host="web.internal")
    path = "/api/v1/services/web/instances/a"
    async with edge.client.get(path) as before:
        assert (await before.json())["address"] is None

    edge.live.apply(Resolved(host="web.internal", addresses=("10.9.9.9",)))

    async with edge.client.get(path, headers={"If-None-Match": before.headers["ETag"]}) as after:
        assert after.status == 200
        assert (await after.json())["address"] == "10.9.9.9"
    assert (await edge.json("GET", "/api/v1/services/web", 200))["instances"][0]["address"] == "10.9.9.9"


async def test_health_shows_the_verdict_and_the_newest_check(edge):
    await edge.register(id="a", health_check=CHECK)
    await edge.register(id="b", host="10.0.0.2")
    edge.live.apply(Judged(key=key("web", "a"), verdict=verdict(HealthStatus.UNHEALTHY, reason="HTTP 503, 3 of 3")))
    edge.reports.known[key("web", "a")] = CheckReport(
        checked_at=1700000000.5,
        passed=False,
        output="HTTP 503",
        latency_s=0.25,
        score=40,
        consecutive_passes=0,
        consecutive_failures=3,
    )

    checked, unchecked = (await edge.json("GET", "/api/v1/health/web", 200))["instances"]

    assert checked == {
        "id": "a",
        "host": "10.0.0.1",
        "port": 8080,
        "checked": True,
        "status": "unhealthy",
        "reason": "HTTP 503, 3 of 3",
        "since": "1970-01-01T00:16:40.000Z",
        "score": 40,
        "last_check": "2023-11-14T22:13:20.500Z",
        "passed": False,
        "output": "HTTP 503",
        "latency": 0.25,
        "consecutive_passes": 0,
        "consecutive_failures": 3,
    }
    assert (unchecked["status"], unchecked["reason"], unchecked["last_check"]) == ("healthy", "not checked", None)


async def test_health_says_what_a_registry_says_of_an_instance_by_itself(edge):
    stated = verdict(HealthStatus.UNHEALTHY, reason="check 'disk' is critical")
    edge.live.apply(PutInstance(instance=instance("web", "a"), registry="consul", stated=stated))

    (shown,) = (await edge.json("GET", "/api/v1/health/web", 200))["instances"]

    assert (shown["status"], shown["reason"]) == ("unhealthy", "consul says check 'disk' is critical")


@pytest.mark.parametrize(
    ("flag", "ids"),
    [("true", ["b"]), ("True", ["b"]), ("TRUE", ["b"]), ("1", ["b"]), ("False", ["a", "b"]), ("0", ["a", "b"])],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
async def test_a_flag_may_be_written_in_any_case(edge, flag, ids):
    await edge.register(id="a", draining=True)
    await edge.register(id="b", host="10.0.0.2")

    found = await edge.json("GET", f"/api/v1/services/web?healthy_only={flag}", 200)

    assert [instance["id"] for instance in found["instances"]] == ids


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        pytest.param([], "left out: nosuch.invalid has not been resolved", id="not looked up yet"),
        pytest.param(
            [Resolved(host="nosuch.invalid", error="no such name")],
            "left out: nosuch.invalid has not been resolved: no such name",
            id="looked up in vain",
        ),
        pytest.param([Resolved(host="nosuch.invalid", addresses=("10.9.9.9",))], "not checked", id="found"),
    ],
)
async def test_health_says_where_a_host_has_not_been_resolved(edge, events, reason):
    await edge.register(host="nosuch.invalid")
    for event in events:
        edge.live.apply(event)

    (shown,) = (await edge.json("GET", "/api/v1/health/web", 200))["instances"]

    assert shown["reason"] == reason


async def test_an_unresolved_host_is_never_picked_and_the_refusal_says_so(edge):
    await edge.register(host="nosuch.invalid")

    problem = await edge.json("GET", "/api/v1/services/web/instance", 503)
    edge.live.apply(Resolved(host="nosuch.invalid", addresses=("10.9.9.9",)))
    picked = await edge.json("GET", "/api/v1/services/web/instance", 200)

    assert "1 of them left out, because the host has not been resolved" in problem["detail"]
    assert picked["address"] == "10.9.9.9"


async def test_a_time_that_no_calendar_knows_hides_nothing_else(edge):
    await edge.register(id="a", health_check=CHECK)
    edge.live.apply(Judged(key=key("web", "a"), verdict=verdict(since=1e300)))

    assert (await edge.json("GET", "/api/v1/services/web", 200))["instances"][0]["since"] is None


async def test_one_instance_is_picked_with_the_strategy_and_the_reason(edge):
    for number in range(3):
        await edge.register(id=f"w{number}", host=f"10.0.0.{number + 1}")

    picked = await edge.json("GET", "/api/v1/services/web/instance", 200)
    by_key = {
        (await edge.json("GET", "/api/v1/services/web/instance?strategy=consistent_hash&key=k", 200))["id"]
        for _ in range(5)
    }

    assert picked["id"] in {"w0", "w1", "w2"}
    assert picked["strategy"] == "weighted_round_robin"
    assert picked["reason"]
    assert len(by_key) == 1


async def test_where_none_can_serve_the_answer_says_why(edge):
    await edge.register(id="a", health_check=CHECK)
    await edge.register(id="b", host="10.0.0.2", draining=True)

    problem = await edge.json("GET", "/api/v1/services/web/instance", 503)

    assert problem["type"] == "/docs#problem-none-available"
    assert "1 unknown" in problem["detail"]
    assert "1 draining" in problem["detail"]


async def test_ready_bytes_show_a_change_at_once(edge):
    await edge.register("web")
    await edge.json("GET", "/api/v1/services/web", 200)
    await edge.register("web", host="10.0.0.2")
    found = await edge.json("GET", "/api/v1/services/web", 200)

    assert len(found["instances"]) == 2


async def test_an_answer_says_how_old_it_is_and_whether_the_registries_can_be_heard(start):
    it = await start(freshness=lambda: Freshness(age_s=12.7, connected=False, known=True, stale=True))
    await it.register("web")
    for path in ("/services", "/services/web", "/services/web/instance", "/health/web"):
        async with it.client.get(f"/api/v1{path}") as answer:
            assert (answer.headers["Age"], answer.headers["Registry-Connected"]) == ("12", "false")


async def test_a_read_before_any_registry_has_spoken_waits_for_it_and_counts_as_waited(start):
    spoken = []
    it = await start(freshness=lambda: Freshness(age_s=0.0, connected=True, known=bool(spoken), stale=False))
    reading = asyncio.create_task(it.json("GET", "/api/v1/services/web", 200))
    async with asyncio.timeout(10):
        while not it.metrics.hits:
            await asyncio.sleep(0)
    spoken.append(True)
    await it.register("web")

    assert (await reading)["name"] == "web"
    await it.json("GET", "/api/v1/services/web", 200)
    assert it.metrics.hits == [False, True]


async def test_a_silent_registry_is_not_an_empty_one(start):
    it = await start(
        freshness=lambda: Freshness(age_s=0.0, connected=False, known=False, stale=False), visible_within_s=0.01
    )
    problem = await it.json("GET", "/api/v1/services/web", 503)

    assert problem["type"].endswith("registry-unavailable")


def rendered(length):
    return Rendered(b"x" * length, '"e.1"', "e.1")


def test_ready_bytes_count_their_keys_and_what_an_entry_costs():
    ready = ReadyBytes(limit_bytes=100_000)
    service = Service(name="web", revision=1)
    for number in range(1_000):
        ready.put(service, f"tags={number:0200}", rendered(10))

    kept = sum(ready.get(service, f"tags={number:0200}") is not None for number in range(1_000))
    assert 0 < kept < 100
    assert ready.size <= 100_000


def test_ready_bytes_hold_a_bounded_number_of_answers_the_least_recently_used_leaving_first():
    ready = ReadyBytes(limit_entries=2)
    service = Service(name="web", revision=1)
    for query in ("a", "b"):
        ready.put(service, query, rendered(1))
    ready.get(service, "a")
    ready.put(service, "c", rendered(1))

    assert [query for query in "abc" if ready.get(service, query)] == ["a", "c"]


def test_what_is_replaced_and_what_leaves_is_no_longer_counted():
    ready = ReadyBytes(limit_entries=1)
    ready.put(Service(name="web", revision=1), "", rendered(5_000))
    ready.put(Service(name="web", revision=2), "", rendered(7))
    one = ready.size
    ready.put(Service(name="api", revision=2), "", rendered(7))

    assert ready.size == one < 5_000


def test_an_answer_to_a_long_query_is_not_kept():
    ready = ReadyBytes()
    service = Service(name="web", revision=1)
    for length in (256, 257):
        ready.put(service, "x" * length, rendered(1))

    assert ready.get(service, "x" * 256) is not None
    assert ready.get(service, "x" * 257) is None


def test_ready_bytes_keep_no_service_alive():
    ready = ReadyBytes()
    service = Service(name="web", revision=1)
    before = len(gc.get_referrers(service))
    ready.put(service, "tags=a", rendered(1))

    assert len(gc.get_referrers(service)) == before


async def test_requests_are_counted_by_their_template(edge):
    await edge.register("web")
    await edge.json("GET", "/api/v1/services/web", 200)
    await edge.json("GET", "/nowhere", 404)

    assert [counted[:3] for counted in edge.metrics.requests] == [
        ("POST", "/api/v1/services", 201),
        ("GET", "/api/v1/services/{name}", 200),
        ("GET", "unmatched", 404),
    ]
