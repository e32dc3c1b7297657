"""REST-JSON xDS (J-01): what a node is to be told of one type, for clients that poll instead of streaming.

The same snapshots as over gRPC, as proto3 JSON. A poll that names the version it has costs no rendering, and each
resource is rendered once for everybody: what comes in is a discovery request, not one of the API's own bodies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from aiohttp import web
from pydantic import Field

from controlplane.api.bodies import read_body
from controlplane.api.edge import Edge
from controlplane.api.faults import found, pointer
from controlplane.api.operations import Answer, Body, Handler, Operation
from controlplane.api.parameters import read_query
from controlplane.api.problems import (
    INVALID,
    MALFORMED,
    NOT_READY,
    TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    Fault,
    Problem,
    invalid,
)
from xds.order import KINDS
from xds.typenames import ABBREVIATIONS, WORDS
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

DISCOVERY = "discovery"

PATHS: Mapping[str, str] = {
    "clusters": CLUSTER,
    "endpoints": ENDPOINT,
    "listeners": LISTENER,
    "routes": ROUTE,
    "scoped-routes": SCOPED_ROUTE,  # what Envoy asks
    "scoped_routes": SCOPED_ROUTE,  # what others write
    "secrets": SECRET,
    "runtime": RUNTIME,
    "extension_configs": EXTENSION,
}
"""What stands behind `/v3/discovery:`, fixed by the HTTP annotations of Envoy's services."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryLocality:
    """Say where a node runs."""

    region: str = ""
    zone: str = ""
    sub_zone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryNode:
    """Say who asks. `metadata` is the node's own: `gateway_port` and `xds_transport` are read."""

    id: str = ""
    cluster: str = ""
    metadata: Annotated[Mapping[str, Any], Field(default_factory=dict)]
    locality: Annotated[DiscoveryLocality, Field(default_factory=DiscoveryLocality)]
    user_agent_name: str = ""
    user_agent_version: str = ""
    client_features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryRequest:
    """Ask for resources of one type. `version_info` is the version held: 304 where that is the newest.

    No `resource_names` means all clusters, listeners or scoped routes, and none of any other type. `type_url` goes
    without saying. This is `envoy.service.discovery.v3.DiscoveryRequest` as proto3 JSON: names may be written in
    camelCase too, and other fields are ignored.
    """

    version_info: str = ""
    node: Annotated[DiscoveryNode, Field(default_factory=DiscoveryNode)]
    resource_names: tuple[str, ...] = ()
    type_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryResponse:
    """Answer with resources; each has its type in `@type`, the rest is its message in proto3 JSON."""

    versionInfo: str  # noqa: N815 - proto3 JSON's spelling
    resources: tuple[Mapping[str, Any], ...]
    typeUrl: str  # noqa: N815 - proto3 JSON's spelling


def discover(type_url: str) -> Handler:
    """Make the handler of one type."""

    async def handle(edge: Edge, request: web.Request) -> web.Response:
        """Answer with the resources asked for, or 304 where the client has just these."""
        read_query(request, ())
        asked = _read(await read_body(request), type_url)
        snapshot = None if edge.context.discovery is None else await edge.context.discovery(asked.node)
        if snapshot is None:
            detail = "nothing has been published yet; GET /readyz?verbose says what is missing"
            raise Problem(NOT_READY, detail, headers={"Retry-After": "1"})
        resources, version = _subscribed(snapshot, type_url, asked.names)
        if asked.version == version:
            return web.Response(status=304)
        parts = await edge.rendered_resources.render(type_url, resources)
        head = f'{{"versionInfo":"{version}","typeUrl":"{type_url}","resources":['.encode()
        body = b"".join((head, b",".join(parts), b"]}"))
        return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})

    return handle


def _subscribed(snapshot: Snapshot, type_url: str, names: tuple[str, ...]) -> tuple[list[Resource], str]:
    """Return the resources that names stand for, and the version of just these (S-04).

    A missing resource is left out, but where clients take that for no answer at all an empty one is sent (G-07): an
    Envoy that starts would wait for the endpoints of an unknown cluster for ever.
    """
    every, kind = snapshot.of_type(type_url), KINDS[type_url]
    if "*" in names or (not names and kind.full):
        return list(every.ordered), every.version
    asked = sorted(set(names))
    some = [every[name] if name in every else kind.absent(name) for name in asked if name in every or kind.empty]
    return some, ResourceSet(some).version


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    node: Node
    names: tuple[str, ...]
    version: str


def _read(data: bytes, type_url: str) -> _Asked:
    """Read a DiscoveryRequest; raises Problem naming every field of another type than it should have."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Problem(MALFORMED, f"the body is not valid JSON: {error.msg} ({where})") from None
    fields = _Fields()
    top = _Object(fields, (), body)
    node = top.message("node")
    locality = node.message("locality")
    given = top.text("type_url")
    if given not in {"", type_url}:
        fields.faults.append(Fault(pointer=top.at("type_url"), detail=f"this path serves {type_url}, found {given}"))
    asked = _Asked(
        node=Node(
            id=node.text("id"),
            cluster=node.text("cluster"),
            metadata=node.message("metadata").members,
            region=locality.text("region"),
            zone=locality.text("zone"),
            sub_zone=locality.text("sub_zone"),
            user_agent_name=node.text("user_agent_name"),
            user_agent_version=node.text("user_agent_version"),
            client_features=frozenset(node.texts("client_features")),
        ),
        names=top.texts("resource_names"),
        version=top.text("version_info"),
    )
    if fields.faults:
        raise invalid(fields.faults)
    return asked


class _Fields:
    """Collect what is wrong with the fields of one request."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []


class _Object:
    """Read the fields of a message in proto3 JSON: either spelling, null for absent, unknown ones ignored."""

    def __init__(self, fields: _Fields, path: tuple[str, ...], value: object) -> None:
        self._fields = fields
        self._path = path
        self.members: Mapping[str, Any] = value if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            self._refuse(path, "an object", value)

    def at(self, name: str) -> str:
        """Return the pointer to a field, in the spelling that was sent."""
        return pointer(*self._path, self._spelled(name))

    def message(self, name: str) -> "_Object":
        value = self._value(name)
        return _Object(self._fields, (*self._path, self._spelled(name)), {} if value is None else value)

    def text(self, name: str) -> str:
        value = self._value(name)
        if value is None or isinstance(value, str):
            return value or ""
        self._refuse((*self._path, self._spelled(name)), "a string", value)
        return ""

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._value(name)
        path = (*self._path, self._spelled(name))
        if not isinstance(value, list):
            if value is not None:
                self._refuse(path, "a list", value)
            return ()
        for number, each in enumerate(value):
            if not isinstance(each, str):
                self._refuse((*path, number), "a string", each)
        return tuple(each for each in value if isinstance(each, str))

    def _value(self, name: str) -> Any:
        return self.members.get(self._spelled(name))

    def _spelled(self, name: str) -> str:
        if name in self.members:
            return name
        first, *rest = name.split("_")
        camel = first + "".join(word.capitalize() for word in rest)
        return camel if camel in self.members else name

    def _refuse(self, path: tuple[str | int, ...], expected: str, value: object) -> None:
        self._fields.faults.append(Fault(pointer=pointer(*path), detail=f"expected {expected}, found {found(value)}"))


def _id(path: str) -> str:
    first, *rest = path.replace("-", "_").split("_")
    alias = "Alias" if path == "scoped_routes" else ""
    return f"discover{first.capitalize()}{''.join(word.capitalize() for word in rest)}{alias}"


OPERATIONS = tuple(
    Operation(
        method="POST",
        path=f"/v3/discovery:{path}",
        id=_id(path),
        group=DISCOVERY,
        summary=f"Poll {WORDS[type_url].replace('-', ' ')} ({ABBREVIATIONS[type_url]})",
        description="xDS by REST-JSON, for Envoys that poll; others stream over gRPC.",
        handler=discover(type_url),
        body=Body(
            model=DiscoveryRequest,
            example={"node": {"id": "edge-1", "cluster": "edge"}, "version_info": "", "resource_names": []},
            required=(),
        ),
        answers=(
            Answer(status=200, description="The resources asked for.", models=(DiscoveryResponse,)),
            Answer(status=304, description="They are what `version_info` names; no body."),
        ),
        problems=(INVALID, MALFORMED, NOT_READY, TOO_LARGE, UNSUPPORTED_MEDIA_TYPE),
    )
    for path, type_url in PATHS.items()
)
