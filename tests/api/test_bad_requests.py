"""Whatever is wrong with a request is refused as a problem that lists every fault, and changes nothing."""

import gzip
import json
import string
import zlib
from io import BytesIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.unit

GOOD = {"name": "web", "host": "10.0.0.9", "port": 80}
INSTANCE = "/api/v1/services/web/instances/a"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        pytest.param("/api/v1/services/", "did you mean /api/v1/services, without the slash?", id="a list"),
        pytest.param("/api/v1/services/web/?limit=1", "did you mean /api/v1/services/web, without", id="with a query"),
        pytest.param("/api/v1/instances:batch/", "did you mean /api/v1/instances:batch, without", id="another method"),
        pytest.param("/api/v1/nothing/", "GET /openapi.json lists what is", id="a path that is none without it either"),
        pytest.param("/docs//", "did you mean /docs, without the slash?", id="two of them"),
    ],
)
async def test_a_slash_too_many_is_recognised(edge, path, hint):
    problem = await edge.json("GET", path, 404)

    assert hint in problem["detail"]


async def test_who_deletes_a_service_learns_how_its_instances_go(edge):
    await edge.register()
    problem = await edge.json("DELETE", f"{SERVICES}/web", 405)

    assert "DELETE /api/v1/services/web/instances/{id}" in problem["detail"]


async def test_a_misspelt_strategy_is_recognised_and_all_are_listed(edge):
    await edge.register()
    problem = await edge.json("GET", f"{SERVICES}/web/instance?strategy=roundrobin", 400)

    detail = problem["errors"][0]["detail"]
    assert "did you mean 'round_robin'? known are: round_robin, weighted_round_robin, " in detail
    assert "<" not in detail


POLICY = "/api/v1/services/web/policy"
SERVICES = "/api/v1/services"
BATCH = "/api/v1/instances:batch"


def bad(method, path, body, status, places, id):
    return pytest.param(method, path, body, status, places, id=id)


def post(changes, places, id):
    return bad("POST", SERVICES, {**GOOD, **changes}, 400, places, id)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "places"),
    [
        bad("POST", SERVICES, {}, 400, ["#/name", "#/host", "#/port"], "nothing given: every required field is named"),
        post({"prot": 1, "colour": 2}, ["#/prot", "#/colour"], "unknown fields"),
        post({"port": "80"}, ["#/port"], "a port as a string"),
        post({"port": 0}, ["#/port"], "a port out of range"),
        post({"name": "Web"}, ["#/name"], "an upper-case name"),
        post({"host": "no good"}, ["#/host"], "a host that is none"),
        post({"id": "a/b"}, ["#/id"], "an id with a slash"),
        post({"weight": 0, "ttl": -1}, ["#/weight", "#/ttl"], "two faults at once"),
        post({"tags": ["a", "a", "b c"]}, ["#/tags/2"], "the tag's place is counted as it was sent"),
        post({"tags": [[1]]}, ["#/tags/0"], "a tag that is a list"),
        post({"metadata": {"a/b~c": {}}}, ["#/metadata/a~1b~0c"], "a pointer is escaped"),
        post({"metadata": {"": 1}}, ["#/metadata/"], "an empty metadata key"),
        post({"metadata": {"k": "x" * 4097}}, ["#/metadata/k"], "a metadata value that is too long"),
        post({"health_check": {"type": "htp"}}, ["#/health_check/type"], "an unknown check type"),
        post({"health_check": {"pth": 1}}, ["#/health_check/pth"], "an unknown field at depth"),
        post({"health_check": {"type": "script", "script": ["x"]}}, ["#/health_check/script"], "a script not allowed"),
        post({"host": f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 60}"}, ["#/id"], "a default id that is too long"),
        bad("POST", SERVICES, [GOOD], 400, ["#"], "a list instead of an object"),
        bad("POST", SERVICES, b"", 400, ["#"], "no body"),
        bad("POST", SERVICES, b"{", 400, [], "broken JSON"),
        bad("POST", SERVICES, b'{"port": NaN}', 400, [], "NaN is no JSON"),
        bad("POST", SERVICES, b'{"port": 1, "port": 2}', 400, [], "a name that stands twice"),
        bad("POST", SERVICES, b'{"name": "\xff"}', 400, [], "bytes that are no UTF-8"),
        bad("POST", SERVICES, b'{"name": "\\ud800"}', 400, [], "half a surrogate pair"),
        bad("POST", SERVICES, b"[" * 100_000, 400, [], "nested without end"),
        bad("POST", SERVICES, b'{"a":' * 1010 + b"1" + b"}" * 1010, 400, [], "nested nearly without end"),
        bad("POST", SERVICES, b" " * (1024 * 1024 + 1), 413, [], "a body over 1 MiB"),
        bad("POST", BATCH, b" " * (1024 * 1024 + 1), 413, [], "a batch over 1 MiB"),
        bad("POST", f"{SERVICES}?dry=1", GOOD, 400, ["dry"], "an unknown query parameter on a write"),
        bad("PUT", INSTANCE, {**GOOD, "id": "b", "name": "x"}, 400, ["#/name"], "a name that is not the path's"),
        bad("PUT", INSTANCE, {**GOOD, "id": 5}, 400, ["#/id"], "an id that is no string"),
        bad("PUT", INSTANCE, {"host": "10.0.0.9"}, 400, ["#/port"], "a field missing in a put"),
        bad(
            "PUT", "/api/v1/services/WEB/instances/a", {"host": "h", "port": 1}, 400, ["name"], "a bad name in the path"
        ),
        bad(
            "PUT", "/api/v1/services/web/instances/a%20b", {"host": "h", "port": 1}, 400, ["id"], "a bad id in the path"
        ),
        bad("PATCH", INSTANCE, {"id": "b", "name": "x"}, 400, ["#/name", "#/id"], "a patch of the identity"),
        bad("PATCH", INSTANCE, {"name": None}, 400, ["#/name"], "a patch that removes the name"),
        bad("PATCH", INSTANCE, {"wieght": None}, 400, ["#/wieght"], "a patch that removes an unknown field"),
        bad("PATCH", INSTANCE, {"host": None, "port": 0}, 400, ["#/host", "#/port"], "a patch to something invalid"),
        bad("PATCH", f"{INSTANCE}x", {"weight": 2}, 404, [], "a patch of an unknown instance"),
        bad("DELETE", f"{INSTANCE}?drain=", None, 400, ["drain"], "a drain that was left empty"),
        bad("DELETE", f"{INSTANCE}?drain=soon", None, 400, ["drain"], "a drain that is no number"),
        bad("DELETE", f"{INSTANCE}?drain=nan", None, 400, ["drain"], "a drain that is not a number"),
        bad("DELETE", f"{INSTANCE}?drain=-1", None, 400, ["drain"], "a drain into the past"),
        bad("DELETE", f"{INSTANCE}?drain=1&drain=2", None, 400, ["drain"], "a parameter given twice"),
        bad("PUT", POLICY, {"strategy": "fastest"}, 400, ["#/strategy"], "an unknown strategy in a policy"),
        bad("PUT", POLICY, {"consistent_hash": {}}, 400, ["#/consistent_hash"], "options of another strategy"),
        bad(
            "PUT",
            POLICY,
            {"strategy": "consistent_hash", "consistent_hash": {"table_size": 4}},
            400,
            ["#/consistent_hash/table_size"],
            "a table of no prime size",
        ),
        bad(
            "PUT",
            POLICY,
            {"strategy": "consistent_hash", "consistent_hash": {"hash_on": {"source": "header"}}},
            400,
            ["#/consistent_hash/hash_on/name"],
            "a header to hash on without its name",
        ),
        post({"health_check": {"type": "script"}}, ["#/health_check/script"], "a script check without its script"),
        bad("PUT", POLICY, {"timeout": -1, "tiemout": 1}, 400, ["#/timeout", "#/tiemout"], "a policy with two faults"),
        bad("PUT", "/api/v1/services/a_b/policy", {}, 400, ["name"], "a policy of a bad name"),
        bad("POST", BATCH, {}, 400, ["#/operations"], "a batch without operations"),
        bad("POST", BATCH, {"operations": {}}, 400, ["#/operations"], "operations that are no list"),
        bad("POST", BATCH, {"operations": [1] * 1001}, 400, ["#/operations"], "more than a thousand operations"),
        bad("POST", BATCH, {"operations": [], "ops": 1}, 400, ["#/ops"], "an unknown field of a batch"),
        bad("GET", f"{SERVICES}/web/instance?strategy=fastest", None, 400, ["strategy"], "an unknown strategy"),
        bad("GET", f"{SERVICES}/web?healty_only=true", None, 400, ["healty_only"], "a misspelt parameter"),
        bad("GET", f"{SERVICES}/web?healthy_only=yes", None, 400, ["healthy_only"], "a flag that is neither"),
        bad("GET", f"{SERVICES}?limit=0&cursor=!", None, 400, ["limit", "cursor"], "two bad parameters"),
        bad("GET", f"{SERVICES}?limit=1001", None, 400, ["limit"], "a limit too high"),
        bad("GET", f"{SERVICES}?limit=%C2%B2", None, 400, ["limit"], "a limit in superscript"),
        bad("GET", f"{SERVICES}/nobody", None, 404, [], "an unknown service"),
        bad("GET", f"{SERVICES}/nobody/policy", None, 404, [], "the policy of an unknown service"),
        bad("GET", f"{SERVICES}/web/instances/nobody", None, 404, [], "an unknown instance"),
        bad("GET", "/api/v1/nothing", None, 404, [], "an unknown path"),
        bad("GET", f"{SERVICES}/%ff%00", None, 404, [], "a path that is no text"),
        bad("POST", f"{SERVICES}/web", None, 405, [], "a method that is not allowed"),
    ],
)
async def test_a_bad_request_is_refused_with_every_fault(edge, method, path, body, status, places):
    await edge.register(id="a")
    before = edge.live.revision
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()

    async with edge.client.request(
        method, path, data=None if data is None else BytesIO(data), headers={"X-Request-Id": "mine"}
    ) as response:
        problem = await response.json(content_type="application/problem+json")

    assert response.status == status, problem
    assert response.headers["X-Request-Id"] == problem["instance"] == "mine"
    assert problem["status"] == status
    assert problem["type"].startswith("/docs#problem-")
    assert problem["title"]
    assert problem["detail"]
    found = [fault.get("pointer", fault.get("parameter")) for fault in problem.get("errors", [])]
    assert sorted(found) == sorted(places)
    assert all(fault["detail"] for fault in problem.get("errors", []))
    assert edge.live.revision == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"prot": 1}, "did you mean 'port'?", id="a near miss is recognised"),
        pytest.param({"zzzz": 1}, "known are: draining, ", id="what there is is listed"),
        pytest.param({"port": "80"}, "expected a whole number, found the string '80'", id="expected and found"),
        pytest.param({"port": 70_000}, "expected a number of at most 65535, found 70000", id="a bound"),
        pytest.param({"tags": "x"}, "expected a list, found the string 'x'", id="a list"),
        pytest.param(
            {"tags": ["a b"]}, "expected text without commas or spaces, found the string 'a b'", id="a pattern"
        ),
        pytest.param({"metadata": {"k": None}}, "expected a string, a number or a boolean, found null", id="a union"),
        pytest.param({"draining": "yes"}, "expected true or false, found the string 'yes'", id="a boolean"),
        pytest.param({"locality": 5}, "expected an object, found 5", id="an object"),
        pytest.param({"health_check": {"type": "gprc"}}, "did you mean 'grpc'?", id="a choice"),
    ],
)
async def test_a_fault_says_what_was_expected_and_what_was_found(edge, change, said):
    problem = await edge.json("POST", SERVICES, 400, {**GOOD, **change})

    assert said in problem["errors"][0]["detail"]


async def test_choices_are_listed(edge):
    problem = await edge.json("POST", SERVICES, 400, {**GOOD, "health_check": {"type": "icmp"}})
    assert problem["errors"][0]["choices"] == ["http", "tcp", "grpc", "script"]

    await edge.register()
    problem = await edge.json("GET", f"{SERVICES}/web/instance?strategy=x", 400)
    assert problem["errors"][0]["choices"][:2] == ["round_robin", "weighted_round_robin"]


async def test_broken_json_is_located(edge):
    problem = await edge.json("POST", SERVICES, 400, data=b'{"name": "web",\n "port": }')

    assert "line 2, column 10" in problem["detail"]


async def test_a_body_of_unknown_length_is_bounded_too(edge):
    async def endless():
        for _ in range(2 * 1024):
            yield b" " * 1024

    problem = await edge.json("POST", SERVICES, 413, data=endless())

    assert problem["type"] == "/docs#problem-too-large"


async def test_what_is_not_allowed_names_what_is(edge):
    async with edge.client.post(f"{SERVICES}/web") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET,HEAD"


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        pytest.param("application/json", 201, id="JSON"),
        pytest.param("application/json; charset=utf-8", 201, id="JSON with a charset"),
        pytest.param("application/merge-patch+json", 201, id="a kind of JSON"),
        pytest.param("application/x-www-form-urlencoded", 201, id="what curl says"),
        pytest.param("text/plain", 201, id="plain text"),
        pytest.param("", 201, id="none"),
        pytest.param("multipart/form-data; boundary=x", 415, id="a form with parts"),
        pytest.param("application/xml", 415, id="XML"),
    ],
)
async def test_a_body_is_read_as_json_unless_it_clearly_is_not(edge, content_type, status):
    async with edge.client.post(
        SERVICES, data=json.dumps(GOOD).encode(), headers={"Content-Type": content_type}
    ) as response:
        assert response.status == status, await response.text()


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        pytest.param("gzip", gzip.compress(json.dumps(GOOD).encode()), 201, id="gzip is undone"),
        pytest.param("deflate", zlib.compress(json.dumps(GOOD).encode()), 201, id="deflate is undone"),
        pytest.param("identity", json.dumps(GOOD).encode(), 201, id="no encoding, said aloud"),
        pytest.param("gzip", json.dumps(GOOD).encode(), 400, id="not the gzip that it claims to be"),
        pytest.param("gzip", gzip.compress(json.dumps(GOOD).encode())[:-20], 400, id="gzip that breaks off"),
        pytest.param("gzip", gzip.compress(b" " * 2_000_000), 413, id="a small body that unfolds to a large one"),
        pytest.param("compress", b"x", 415, id="an encoding that is not decoded"),
        pytest.param("gzip, gzip", b"x", 415, id="two encodings"),
    ],
)
async def test_an_encoded_body_is_decoded_or_refused(edge, encoding, body, status):
    headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    async with edge.client.post(SERVICES, data=BytesIO(body), headers=headers) as response:
        assert response.status == status, await response.text()
        assert response.content_type == "application/json" if status == 201 else "application/problem+json"
        assert ("Accept-Encoding" in response.headers) == (status == 415)


@pytest.mark.parametrize(
    ("method", "site", "status"),
    [
        pytest.param("POST", "cross-site", 403, id="a write for another site's page"),
        pytest.param("POST", "same-origin", 201, id="a write for our own page"),
        pytest.param("POST", "none", 201, id="a write that the user asked for"),
        pytest.param("GET", "cross-site", 200, id="a read for another site's page"),
    ],
)
async def test_a_page_of_another_site_cannot_write(edge, method, site, status):
    body = GOOD if method == "POST" else None
    before = edge.live.revision
    answer = await edge.json(method, SERVICES, status, body, headers={"Sec-Fetch-Site": site})

    assert (edge.live.revision != before) == (status == 201)
    assert status != 403 or answer["type"] == "/docs#problem-cross-site"


@pytest.mark.parametrize("given_id", ["", "a b", "x" * 129, "ünï"])
async def test_a_request_id_that_is_none_is_replaced(edge, given_id):
    async with edge.client.get("/livez", headers={"X-Request-Id": given_id}) as response:
        assert response.headers["X-Request-Id"] == "r1"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Server"] == "controlplane"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ["name", "host", "port", "id", "tags", "metadata", "weight", "ttl", "draining", "locality", "health_check"]
BODIES = st.fixed_dictionaries({}, optional=dict.fromkeys([*FIELDS, "status", "x"], JSON_VALUES)).map(
    lambda change: {**GOOD, **change}
)
POLICIES = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ["strategy", "consistent_hash", "least_connections", "panic_threshold", "connect_timeout", "timeout"],
        JSON_VALUES,
    ),
)
OPERATION = st.fixed_dictionaries(
    {"op": st.sampled_from(["register", "deregister"]) | JSON_VALUES},
    optional={"instance": BODIES | JSON_VALUES, "name": JSON_VALUES, "id": JSON_VALUES},
)
REQUESTS = st.one_of(
    st.tuples(st.just("POST"), st.just(SERVICES), BODIES | JSON_VALUES),
    st.tuples(st.just("PUT"), st.just(INSTANCE), BODIES | JSON_VALUES),
    st.tuples(st.just("PATCH"), st.just(INSTANCE), BODIES | JSON_VALUES),
    st.tuples(st.just("PUT"), st.just(POLICY), POLICIES | JSON_VALUES),
    st.tuples(
        st.just("POST"), st.just(BATCH), st.lists(OPERATION, max_size=4).map(lambda items: {"operations": items})
    ),
)


async def test_no_body_whatever_makes_a_fault_of_ours(edge):
    await edge.register(id="a")
    seen: list[tuple[str, str, bytes]] = []

    @settings(max_examples=400, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(REQUESTS)
    def collect(request):
        method, path, body = request
        seen.append((method, path, json.dumps(body).encode()))

    collect()
    for method, path, data in seen:
        async with edge.client.request(method, path, data=data) as response:
            assert response.status < 500, (method, path, data, await response.text())
        async with edge.client.get(SERVICES) as listed:
            assert listed.status == 200
    for name in edge.live.current.services:
        await edge.json("GET", f"{SERVICES}/{name}", 200)
        await edge.json("GET", f"/api/v1/health/{name}", 200)


async def test_no_query_or_bytes_whatever_make_a_fault_of_ours(edge):
    await edge.register(id="a")
    seen: list[tuple[str, bytes]] = []
    names = st.sampled_from(["tags", "healthy_only", "limit", "cursor", "strategy", "key", "drain", "service"])
    text = st.text(string.printable + "é\u2028\x00", max_size=12)

    @settings(max_examples=200, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(names, text, max_size=3), st.binary(max_size=40))
    def collect(query, data):
        seen.append((query, data))

    collect()
    for query, data in seen:
        for path in (SERVICES, f"{SERVICES}/web", f"{SERVICES}/web/instance"):
            async with edge.client.get(path, params=query) as response:
                assert response.status in {200, 400}, (path, query)
        async with edge.client.post(SERVICES, data=data) as response:
            assert response.status < 500, data
