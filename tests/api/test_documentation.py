"""The description is the truth: every route is in it, and every real answer is as it says."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, web
from builders import key, verdict
from jsonschema import Draft202012Validator

from controlplane.api import discovery, reference
from controlplane.api.openapi import path_parameters
from controlplane.api.table import OPERATIONS
from controlplane.health import CheckReport
from controlplane.model import HealthStatus, Judged, Missing
from xds.messages import Acked, Nacked, Sent, Subscribed
from xds.standing import Standing, State
from xds.status import Status, StreamInfo
from xds.types import CLUSTER, ENDPOINT, Node, Resource

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def document(edge) -> dict[str, Any]:
    return dict(await edge.json("GET", "/openapi.json", 200))


async def test_every_route_is_documented_and_every_documented_route_exists(edge, document):
    app = edge.client.app
    assert isinstance(app, web.Application)
    routes = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    documented = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}

    assert routes == documented
    assert len(documented) == len(OPERATIONS)


async def test_path_parameters_are_described(document):
    for path, methods in document["paths"].items():
        for operation in methods.values():
            described = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
            assert described == path_parameters(path), path


def one_of(*, model: str, fields: str) -> list[Any]:
    return [pytest.param(model, field, id=f"{field} of {model}") for field in fields.split()]


@pytest.mark.parametrize(
    ("model", "field"),
    [
        *one_of(model="Policy", fields="panic_threshold"),
        *one_of(model="PolicyView", fields="panic_threshold"),
        *one_of(model="Instance", fields="ttl draining"),
        *one_of(model="InstanceView", fields="ttl draining"),
        *one_of(model="PatchInstanceBody", fields="ttl draining"),
        *one_of(model="HealthCheck", fields="enabled type http_path grpc_service script interval timeout"),
        *one_of(model="HealthCheck", fields="healthy_threshold unhealthy_threshold"),
    ],
)
async def test_what_a_name_does_not_say_is_described(document, model, field):
    schema = document["components"]["schemas"][model]["properties"][field]
    descriptions = [part.get("description", "") for part in (schema, *schema.get("anyOf", ()))]

    assert any(len(text) > 30 for text in descriptions), schema


def test_operation_ids_are_unique():
    ids = [operation.id for operation in OPERATIONS]
    assert len(ids) == len(set(ids))


async def test_every_reference_leads_somewhere_and_every_schema_is_valid(document):
    for reference_ in re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)):
        node: Any = document
        for part in reference_.removeprefix("#/").split("/"):
            node = node[part]
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("operation", [pytest.param(each, id=each.id) for each in OPERATIONS if each.body is not None])
async def test_examples_fit_their_schemas_and_are_accepted(edge, document, operation):
    content = document["paths"][operation.path][operation.method.lower()]["requestBody"]["content"]
    ((media_type, body),) = content.items()
    validator(document, body["schema"]).validate(body["example"])

    await edge.register("user-service", id="a", host="10.9.9.9")
    path = operation.path.format(name="rtds_layer" if operation.tail else "user-service", id="a", type="runtimes")
    async with edge.client.request(
        operation.method, path, data=json.dumps(body["example"]), headers={"Content-Type": media_type}
    ) as response:
        assert response.status in {200, 201}, await response.text()


def closed(document: dict[str, Any]) -> dict[str, Any]:
    """Return the description with every answer's object closed: what it does not name may not be answered."""
    result = copy.deepcopy(document)
    for name, schema in result["components"]["schemas"].items():
        if "properties" in schema and name != "ProblemDocument":
            schema["unevaluatedProperties"] = False
    return result


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


class Checked:
    """Ask, and hold every answer against the description."""

    def __init__(self, edge, document):
        self.edge = edge
        self.open = document
        self.closed = closed(document)
        self.covered: set[tuple[str, str, int]] = set()

    def template(self, path: str) -> str:
        """Return the documented path that a real one matches, the most literal first."""
        for known in sorted(self.open["paths"], key=lambda each: each.count("{")):
            if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(known)), path):
                return known
        raise AssertionError(f"{path} is not documented")

    async def __call__(self, method: str, path: str, status: int, body: object = None, **headers: str) -> str:
        options: dict[str, Any] = {"headers": {name.replace("_", "-"): value for name, value in headers.items()}}
        if body is not None:
            options["json"] = body
        async with self.edge.client.request(method, path, allow_redirects=False, **options) as response:
            assert response.status == status, await response.text()
            await self.check(method, self.template(path.partition("?")[0]), response)
            return response.headers.get("ETag", "")

    async def check(self, method: str, template: str, response: ClientResponse) -> None:
        answer = self.open["paths"][template][method.lower()]["responses"].get(str(response.status))
        assert answer is not None, f"{method} {template} answers {response.status}, which is not documented"
        self.covered.add((method, template, response.status))
        for name in ("ETag", "Revision", "Location", "Link"):
            assert name not in response.headers or name in answer["headers"], (template, name)
        if response.content_type == "text/event-stream":
            return
        data = await response.read()
        if data:
            assert response.content_type in answer["content"], (template, response.content_type)
        if data and response.content_type.endswith("json"):
            schema = answer["content"][response.content_type]["schema"]
            if "allOf" in schema:
                open_parts = validator(self.open, schema)
                open_parts.validate(json.loads(data))
                names = {name for part in schema["allOf"] for name in self.properties(part)}
                assert set(json.loads(data)) == names
            else:
                validator(self.closed, schema).validate(json.loads(data))

    def properties(self, part: dict[str, Any]) -> set[str]:
        return set(self.open["components"]["schemas"][part["$ref"].rpartition("/")[2]]["properties"])


def proxies() -> Status:
    """Return the picture of one proxy that took its clusters and refused its endpoints."""
    status = Status(clock=lambda: 1000.0)
    good, refused = Resource.of("web", b"\x0a\x03web"), Resource.of("web", b"\x0a\x04web2")
    node = Node(id="edge-1", cluster="edge", metadata={"a": {"b": [1, None]}}, user_agent_name="envoy")
    info = StreamInfo(
        id=1,
        node=node,
        group=1,
        peer="ipv4:127.0.0.1:1",
        delta=True,
        type_url="",
        held=lambda _: {},
        settled=lambda _: True,
        names=lambda _: ["web"],
        standing=lambda url, name: Standing(
            name=name, state=State.SYNCED if url == CLUSTER else State.ERROR, version="v", sent=refused, held=good
        ),
    )
    told: dict[str, Any] = {"version": "v1", "nonce": "1", "revision": "e.1"}
    for url in (CLUSTER, ENDPOINT):
        asked = Subscribed(type_url=url, added=(), dropped=(), wildcard=url == CLUSTER, names=2)
        status.on_event(info, asked)
        status.on_event(info, Sent(type_url=url, resources=1, removed=0, **told))
    acked = Acked(type_url=CLUSTER, names=("web",), offered_at=None, settled=True, refused=(), **told)
    status.on_event(info, acked)
    status.on_event(info, Nacked(type_url=ENDPOINT, names=("web",), code=3, message="no such cluster", **told))
    return status


async def test_a_proxy_is_shown_with_its_refusal_in_its_own_words(start):
    it = await start(proxies=proxies())

    listed = await it.json("GET", "/api/v1/proxies", 200)
    shown = await it.json("GET", "/api/v1/proxies/edge-1", 200)

    assert (listed["total"], listed["synced"]) == (1, 0)
    assert listed["items"][0]["types"] == {"Cluster": "SYNCED", "ClusterLoadAssignment": "ERROR"}
    assert (shown["state"], shown["metadata"]) == ("ERROR", {"a": {"b": [1, None]}})
    cluster, endpoint = shown["types"]
    assert (cluster["subscribed"], cluster["acked_revision"], cluster["last_nack"]) == (None, "e.1", None)
    assert endpoint["subscribed"] == 2
    assert endpoint["last_nack"]["message"] == endpoint["refusals"][0]["message"] == "no such cluster"
    assert endpoint["refusals"][0]["changes"] == [{"pointer": "/clusterName", "was": "web", "now": "web2"}]


async def test_every_real_answer_is_as_described(start):
    it = await start(proxies=proxies())
    ask = Checked(it, await it.json("GET", "/openapi.json", 200))
    base = "/api/v1"
    a, b = f"{base}/services/web/instances/a", f"{base}/services/web/instances/b"
    instance = {"name": "web", "id": "a", "host": "10.0.0.1", "port": 80, "ttl": 9, "health_check": {"type": "tcp"}}

    await ask("POST", f"{base}/services", 201, instance)
    await ask("POST", f"{base}/services", 200, {**instance, "weight": 2})
    await ask("POST", f"{base}/services", 400, {})
    await ask("POST", f"{base}/services", 409, {**instance, "id": "c"})
    await ask("POST", f"{base}/services", 415, instance, Content_Type="application/xml")
    await ask("PUT", b, 201, {"host": "web.internal", "port": 80, "metadata": {"x": True}, "locality": {"zone": "z"}})
    await ask("PUT", b, 200, {"host": "10.0.0.2", "port": 80})
    await ask("PUT", b, 412, {"host": "10.0.0.2", "port": 80}, If_Match='"x"')
    it.live.apply(Judged(key=key("web", "a"), verdict=verdict(HealthStatus.HEALTHY)))
    it.reports.known[key("web", "a")] = CheckReport(
        checked_at=1.0, passed=True, output="", latency_s=0.1, score=99, consecutive_passes=1, consecutive_failures=0
    )
    await ask("PATCH", a, 200, {"weight": 5})
    await ask("PATCH", f"{a}x", 404, {"weight": 5})
    await ask("PUT", f"{a}/heartbeat", 200)
    await ask("PUT", f"{a}x/heartbeat", 404)
    await ask("GET", f"{base}/services/web/instance", 200)
    await ask("GET", f"{base}/services/web/instance?strategy=x", 400)
    await ask("GET", f"{base}/services?limit=1", 200)
    await it.register("zeta")
    await ask("GET", f"{base}/services?limit=1", 200)
    reads = ["/services", "/services/web", "/services/web/instances/a", "/health/web", "/services/web/policy"]
    for path in [*reads, "/proxies", "/proxies/edge-1", "/proxies/edge-1/config"]:
        tag = await ask("GET", base + path, 200)
        await ask("GET", base + path, 304, If_None_Match=tag)
        await ask("GET", f"{base}{path}?x=1", 400)
    for path in ("/services/no", "/services/web/instances/no", "/health/no", "/services/no/policy"):
        await ask("GET", base + path, 404)
    for path in ("/proxies/no", "/proxies/no/config"):
        await ask("GET", base + path, 404)
    await ask("PUT", f"{base}/services/web/policy", 201, {"strategy": "consistent_hash", "consistent_hash": {}})
    await ask("PUT", f"{base}/services/web/policy", 200, {"strategy": "least_connections", "least_connections": {}})
    await ask("GET", f"{base}/services/web/policy", 200)
    await ask("PUT", f"{base}/services/web/policy", 400, {"strategy": "x"})
    await ask("DELETE", f"{base}/services/web/policy", 204)
    await ask("GET", f"{base}/guard", 200)
    await ask("GET", f"{base}/guard?x=1", 400)
    await ask("POST", f"{base}/guard/web/release", 404)
    for number in range(4):
        await it.register("leased", host=f"10.0.1.{number}", id=f"i{number}")
    lost = tuple(key("leased", f"i{number}") for number in range(4))
    it.intake.heard(Missing(keys=lost, registry="memory", reason="ttl expired"))
    await ask("GET", f"{base}/guard", 200)
    await ask("POST", f"{base}/guard/leased/release", 200)
    runtime = {"name": "rt", "layer": {"a": 1}}
    await ask("PUT", f"{base}/xds/runtimes/rt", 201, runtime)
    await ask("PUT", f"{base}/xds/runtimes/rt?node_zones=eu-1", 200, runtime)
    await ask("PUT", f"{base}/xds/runtimes/rt", 400, {"name": "rt", "lair": {}})
    await ask("PUT", f"{base}/xds/routes/gateway", 409, {"name": "gateway"})
    await ask("PUT", f"{base}/xds/runtimes/rt", 412, runtime, If_Match='"x"')
    for path in ("/xds", "/xds/runtimes", "/xds/runtimes/rt"):
        tag = await ask("GET", base + path, 200)
        await ask("GET", base + path, 304, If_None_Match=tag)
    await ask("GET", f"{base}/xds/no", 400)
    await ask("GET", f"{base}/xds/runtimes/no", 404)
    await ask("DELETE", f"{base}/xds/runtimes/rt", 204)
    await ask(
        "POST",
        f"{base}/instances:batch",
        200,
        {
            "operations": [
                {"op": "register", "instance": {"name": "web", "host": "10.0.0.3", "port": 1}},
                {"op": "register", "instance": {**instance, "id": "taken"}},
                {"op": "deregister", "name": "web", "id": "no"},
                {"op": "x"},
            ]
        },
    )
    await ask("POST", f"{base}/instances:batch", 400, {})
    await ask("DELETE", f"{a}?drain=5", 202)
    await ask("DELETE", a, 204)
    await ask("DELETE", b, 204)
    await ask("DELETE", f"{base}/services/web/instances/web-10.0.0.3-1", 204)
    await ask("GET", f"{base}/services/web/instance", 503)
    for path in discovery.PATHS:
        answer = await it.json("POST", f"/v3/discovery:{path}", 200, {})
        await ask("POST", f"/v3/discovery:{path}", 200, {"node": {"id": "edge-1"}})
        await ask("POST", f"/v3/discovery:{path}", 304, {"version_info": answer["versionInfo"]})
        await ask("POST", f"/v3/discovery:{path}", 400, {"resource_names": "web"})
    await ask("GET", "/", 302)
    for path in ("/health", "/livez", "/readyz", "/readyz?verbose", "/metrics", "/openapi.json", "/docs"):
        await ask("GET", path, 200)
    it.readiness.add("x", lambda: "why")
    await ask("GET", "/readyz", 503)
    for file in ("docs.js", "docs.css"):
        await ask("GET", f"/docs/{file}", 200)
    await ask("GET", "/favicon.ico", 200)
    await it.json("GET", "/docs/other.js", 404)
    await ask("GET", f"{base}/events", 200)
    await ask("GET", f"{base}/events?x=1", 400)

    answered = {(method, path) for method, path, status in ask.covered if status < 300 or status == 302}
    assert answered == {(operation.method, operation.path) for operation in OPERATIONS}


async def test_events_are_as_described(edge, document):
    schema = document["paths"]["/api/v1/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]["schema"]
    valid = validator(closed(document), schema)
    await edge.register("web", id="a")
    await edge.json("PUT", "/api/v1/services/web/policy", 201, {"strategy": "random"})
    last = edge.live.revision
    await edge.json("DELETE", "/api/v1/services/web/policy", 204)
    await edge.json("DELETE", "/api/v1/services/web/instances/a", 204)
    await edge.register("web", id="b")
    seen = 0
    for header in ({}, {"Last-Event-ID": last}):
        async with edge.client.get("/api/v1/events", headers=header) as response:
            event = ""
            while event != "synced":
                line = (await response.content.readuntil(b"\n")).decode().strip()
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                if line.startswith("data: ") and event != "synced":
                    valid.validate(json.loads(line.removeprefix("data: ")))
                    seen += 1

    assert seen == 4


def test_the_reference_page_is_current():
    assert (ROOT / "docs" / "api.md").read_text() == reference.markdown(), (
        "docs/api.md is out of date: python -m controlplane.api.reference > docs/api.md"
    )


async def test_the_bare_address_leads_to_the_page(edge):
    async with edge.client.get("/") as response:
        assert (response.status, response.url.path) == (200, "/docs")
        assert response.content_type == "text/html"


async def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_inline(edge):
    async with edge.client.get("/docs") as response:
        policy = response.headers["Content-Security-Policy"]
        page = await response.text()
    async with edge.client.get("/docs/docs.js") as response:
        script = await response.text()

    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "//" not in re.sub(r"<!.*?>", "", page)
    assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
    assert re.findall(r"\bon\w+=|\bstyle=", page) == []
    assert re.findall(r"innerHTML|eval\(|https?://", script) == []
