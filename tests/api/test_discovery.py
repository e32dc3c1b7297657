"""REST-JSON xDS: what clients that poll get, when there is nothing new, and what they are told of mistakes (J-01)."""

import asyncio
import json
from typing import Any

import pytest

from controlplane.api.resource_json import RenderedResources
from controlplane.model import RawResource
from controlplane.raw.compile import Compiler
from controlplane.render import load, render
from xds.types import (
    CLUSTER,
    ENDPOINT,
    EXTENSION,
    LISTENER,
    ROUTE,
    RUNTIME,
    SCOPED_ROUTE,
    SECRET,
    Node,
    Resource,
    ResourceSet,
    Snapshot,
)

pytestmark = pytest.mark.unit

BEFORE = "services: {web: {instances: [{id: a, host: 10.0.0.1, port: 80}]}, api: {}}"
AFTER = "services: {web: {instances: [{id: a, host: 10.0.0.2, port: 80}]}, api: {}}"


class Published:
    """Give every node the same snapshot, and remember who asked."""

    def __init__(self, text: str | None) -> None:
        self.snapshot: Snapshot | None = None if text is None else render(load(text), "127.0.0.1", 10000)
        self.nodes: list[Node] = []

    async def __call__(self, node: Node) -> Snapshot | None:
        self.nodes.append(node)
        return self.snapshot


def names(response: dict[str, Any]) -> list[str]:
    return [each.get("name", each.get("clusterName")) for each in response["resources"]]


@pytest.mark.parametrize(
    ("path", "type_url", "expected"),
    [
        pytest.param("clusters", CLUSTER, ["api", "web"], id="clusters"),
        pytest.param("listeners", LISTENER, ["gateway"], id="listeners"),
        pytest.param("scoped-routes", None, [], id="scoped routes"),
        pytest.param("scoped_routes", None, [], id="scoped routes, spelled with _"),
        pytest.param("endpoints", ENDPOINT, [], id="no endpoints: they are asked for by name"),
        pytest.param("routes", ROUTE, [], id="no routes: they are asked for by name"),
        pytest.param("secrets", None, [], id="no secrets: they are asked for by name"),
        pytest.param("runtime", None, [], id="no runtime: it is asked for by name"),
        pytest.param("extension_configs", None, [], id="no extensions: they are asked for by name"),
    ],
)
async def test_without_names_a_client_gets(start, path, type_url, expected):
    it = await start(discovery=Published(BEFORE))
    response = await it.json("POST", f"/v3/discovery:{path}", 200, {"node": {"id": "edge-1"}})
    assert names(response) == expected
    assert {each["@type"] for each in response["resources"]} == ({type_url} if expected else set())
    assert type_url is None or response["typeUrl"] == type_url


async def test_by_name_a_client_gets_what_there_is(start):
    it = await start(discovery=Published(BEFORE))
    clusters = await it.json("POST", "/v3/discovery:clusters", 200, {"resource_names": ["web", "no"]})
    routes = await it.json("POST", "/v3/discovery:routes", 200, {"resourceNames": ["gateway"]})
    assert names(clusters) == ["web"]
    assert names(routes) == ["gateway"]


async def test_the_assignment_of_an_unknown_cluster_is_empty_rather_than_missing(start):
    """G-07: an Envoy that starts would wait for it for ever."""
    it = await start(discovery=Published(BEFORE))
    response = await it.json("POST", "/v3/discovery:endpoints", 200, {"resourceNames": ["no"]})
    assert response["resources"] == [{"@type": ENDPOINT, "clusterName": "no"}]


async def test_a_client_that_has_the_newest_version_gets_an_empty_304(start):
    published = Published(BEFORE)
    it = await start(discovery=published)
    ask = {"resource_names": ["web"]}
    first = await it.json("POST", "/v3/discovery:endpoints", 200, ask)

    async with it.client.post("/v3/discovery:endpoints", json={**ask, "version_info": first["versionInfo"]}) as same:
        assert (same.status, await same.read()) == (304, b"")

    published.snapshot = Published(AFTER).snapshot
    second = await it.json(
        "POST", "/v3/discovery:endpoints", 200, {"resourceNames": ["web"], "versionInfo": first["versionInfo"]}
    )
    assert second["versionInfo"] != first["versionInfo"]
    assert "10.0.0.2" in str(second["resources"])


async def test_a_version_is_that_of_what_was_asked_for(start):
    """A change of one service must not make the polls for all others answer in full."""
    published = Published(BEFORE)
    it = await start(discovery=published)
    before = await it.json("POST", "/v3/discovery:endpoints", 200, {"resourceNames": ["api"]})
    published.snapshot = Published(AFTER).snapshot
    await it.json(
        "POST", "/v3/discovery:endpoints", 304, {"resourceNames": ["api"], "versionInfo": before["versionInfo"]}
    )


async def test_equal_content_has_the_same_version_in_every_process(start):
    one, two = await start(discovery=Published(BEFORE)), await start(discovery=Published(BEFORE))
    for path in ("clusters", "listeners"):
        first = await one.json("POST", f"/v3/discovery:{path}", 200, {})
        assert await two.json("POST", f"/v3/discovery:{path}", 200, {}) == first


async def test_before_anything_is_published_a_client_is_told_to_come_back(start):
    it = await start(discovery=Published(None))
    async with it.client.post("/v3/discovery:clusters", json={}) as response:
        problem = await response.json(content_type=None)
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
    assert problem["type"].endswith("not-ready")


NODE = {
    "id": "edge-1",
    "cluster": "edge",
    "metadata": {"gateway_port": 10001, "xds_transport": "rest"},
    "locality": {"region": "eu", "zone": "eu-1", "sub_zone": "a"},
    "user_agent_name": "envoy",
    "user_agent_version": "1.38.0",
    "client_features": ["envoy.lb.does_not_support_overprovisioning"],
    "extensions": [{"name": "unknown to us"}],
}
CAMEL_NODE = {
    **{name: NODE[name] for name in ("id", "cluster", "metadata", "extensions")},
    "locality": {"region": "eu", "zone": "eu-1", "subZone": "a"},
    "userAgentName": "envoy",
    "userAgentVersion": "1.38.0",
    "clientFeatures": ["envoy.lb.does_not_support_overprovisioning"],
}


@pytest.mark.parametrize("node", [pytest.param(NODE, id="as in the proto"), pytest.param(CAMEL_NODE, id="camelCase")])
async def test_a_node_is_understood_in_either_spelling(start, node):
    published = Published(BEFORE)
    it = await start(discovery=published)
    await it.json("POST", "/v3/discovery:clusters", 200, {"node": node})
    assert published.nodes == [
        Node(
            id="edge-1",
            cluster="edge",
            metadata={"gateway_port": 10001, "xds_transport": "rest"},
            region="eu",
            zone="eu-1",
            sub_zone="a",
            user_agent_name="envoy",
            user_agent_version="1.38.0",
            client_features=frozenset({"envoy.lb.does_not_support_overprovisioning"}),
        )
    ]


async def test_what_is_null_is_absent(start):
    it = await start(discovery=Published(BEFORE))
    asked = {"node": {"id": None, "locality": None, "metadata": None}, "resource_names": None, "version_info": None}
    assert names(await it.json("POST", "/v3/discovery:clusters", 200, asked)) == ["api", "web"]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        pytest.param([], "#", id="a list"),
        pytest.param({"node": "edge"}, "#/node", id="a node that is no object"),
        pytest.param({"node": {"id": 1}}, "#/node/id", id="a node id that is a number"),
        pytest.param(
            {"node": {"userAgentName": 1}}, "#/node/userAgentName", id="a field in the spelling that was sent"
        ),
        pytest.param({"node": {"locality": {"zone": []}}}, "#/node/locality/zone", id="a zone that is a list"),
        pytest.param({"resourceNames": "web"}, "#/resourceNames", id="names that are no list"),
        pytest.param({"resource_names": ["web", 1]}, "#/resource_names/1", id="a name that is a number"),
        pytest.param({"version_info": 1}, "#/version_info", id="a version that is a number"),
        pytest.param({"type_url": ENDPOINT}, "#/type_url", id="another path's type"),
    ],
)
async def test_a_faulty_field_is_named(start, body, where):
    it = await start(discovery=Published(BEFORE))
    problem = await it.json("POST", "/v3/discovery:clusters", 400, body)
    assert [each["pointer"] for each in problem["errors"]] == [where]


async def test_what_is_not_json_is_told_where_it_breaks_off(start):
    it = await start(discovery=Published(BEFORE))
    async with it.client.post("/v3/discovery:clusters", data=b'{"node": ') as response:
        assert response.status == 400
        assert "line 1, column 10" in (await response.json(content_type=None))["detail"]


@pytest.mark.parametrize("path", ["/v3/discovery:aggregated", "/v3/discovery", "/v3/discovery:virtual-hosts"])
async def test_there_is_no_other_discovery(start, path):
    it = await start(discovery=Published(BEFORE))
    await it.json("POST", path, 404, {})


async def test_a_resource_is_rendered_once_for_all_who_poll() -> None:
    snapshot = render(load(BEFORE), "127.0.0.1", 10000)
    rendered = RenderedResources()
    clusters = snapshot.of_type(CLUSTER).ordered
    first, second = await asyncio.gather(rendered.render(CLUSTER, clusters), rendered.render(CLUSTER, clusters))
    assert all(one is other for one, other in zip(first, second, strict=True))


async def test_bytes_in_a_wrapper_are_spelled_in_base64_and_stop_no_poll() -> None:
    document = {"@type": "type.googleapis.com/google.protobuf.BytesValue", "value": "YQ=="}
    body = json.dumps({"name": "x", "typed_config": document})
    (made,) = Compiler().compile(RawResource(type_url=EXTENSION, name="x", body=body)).resources
    (text,) = await RenderedResources().render(EXTENSION, [made])
    assert json.loads(text)["typedConfig"] == document


async def test_what_is_kept_of_rendered_resources_is_bounded() -> None:
    rendered = RenderedResources(limit_bytes=1000)
    for number in range(50):
        name = f"service-{number}"
        resource = Resource.of(name, b"\x0a" + bytes((len(name),)) + name.encode())
        (text,) = await rendered.render(CLUSTER, [resource])
        assert name.encode() in text
        assert rendered.size <= 1000


@pytest.mark.parametrize(
    ("path", "type_url", "body", "expected"),
    [
        pytest.param("secrets", SECRET, b"\x0a\x01a", {"name": "a"}, id="a secret"),
        pytest.param("runtime", RUNTIME, b"\x0a\x01a", {"name": "a"}, id="a runtime layer"),
        pytest.param("extension_configs", EXTENSION, b"\x0a\x01a", {"name": "a"}, id="an extension"),
        pytest.param("scoped_routes", SCOPED_ROUTE, b"\x0a\x01a", {"name": "a"}, id="a scope"),
    ],
)
async def test_every_type_can_be_polled(start, path, type_url, body, expected):
    published = Published(None)
    published.snapshot = Snapshot({type_url: ResourceSet([Resource.of("a", body)])})
    it = await start(discovery=published)
    response = await it.json("POST", f"/v3/discovery:{path}", 200, {"resource_names": ["a"]})
    assert response["resources"] == [{"@type": type_url, **expected}]
