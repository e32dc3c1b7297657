"""What can go wrong with a request, as RFC 9457 problem documents.

Each kind of problem is one `ProblemType`: its URL, title and status are the same at every occurrence and stand in
the documentation; `detail` and `errors` tell what was wrong this time and what to do about it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from aiohttp import web
from pydantic import WithJsonSchema

PROBLEM_JSON = "application/problem+json"
_MAX_FAULTS = 100
_SERVICE_PATH = re.compile(r"/api/v1/services/[^/]+")


@dataclass(frozen=True, slots=True)
class ProblemType:
    """Name one kind of problem. `slug` makes its URL, `meaning` explains it in the documentation."""

    slug: str
    status: int
    title: str
    meaning: str

    @property
    def url(self) -> str:
        """Return where this kind is documented."""
        return f"/docs#problem-{self.slug}"


INVALID = ProblemType(
    "invalid-request",
    400,
    "The request is not valid",
    "A field of the body or a parameter is missing, unknown or out of range. `errors` lists every fault: the "
    "`pointer` (RFC 6901) of a field, or the name of a `parameter` or `header`.",
)
MALFORMED = ProblemType(
    "malformed-json",
    400,
    "The body is not JSON",
    "The body cannot be read as JSON (RFC 8259, UTF-8). `detail` gives the line and column.",
)
BAD_REQUEST = ProblemType("bad-request", 400, "The request cannot be understood", "The request is broken HTTP.")
CROSS_SITE = ProblemType(
    "cross-site",
    403,
    "Another site's page cannot write here",
    "A browser sent this write for a page of another site (`Sec-Fetch-Site: cross-site`), which may not be what its "
    "user wants. Reads are answered.",
)
NOT_FOUND = ProblemType("not-found", 404, "There is nothing here", "No resource has this path.")
UNKNOWN_SERVICE = ProblemType(
    "unknown-service",
    404,
    "The service is not known",
    "No instance, policy or grace period keeps a service of this name. A service whose last instance has gone "
    "stays known for 30 seconds, and as long as it has a policy.",
)
UNKNOWN_INSTANCE = ProblemType(
    "unknown-instance", 404, "The instance is not known", "The service has no instance of this id."
)
UNKNOWN_RESOURCE = ProblemType(
    "unknown-resource", 404, "The resource is not known", "No raw xDS resource of this type has this name."
)
UNKNOWN_HOLD = ProblemType(
    "unknown-hold", 404, "The hold is not known", "The mass-loss guard holds nothing of this id."
)
UNKNOWN_PROXY = ProblemType("unknown-proxy", 404, "The proxy is not known", "No proxy of this node id is connected.")
METHOD_NOT_ALLOWED = ProblemType(
    "method-not-allowed", 405, "The method is not allowed here", "`Allow` lists the methods of this resource."
)
ADDRESS_TAKEN = ProblemType(
    "address-taken",
    409,
    "The address belongs to another instance",
    "Two instances of a service cannot have one host and port. `owner` is the id of the one that has it.",
)
NAME_RESERVED = ProblemType(
    "name-reserved",
    409,
    "The name is not free",
    "A service's cluster and assignment, its listener and routes, and those of the gateway are made here; a raw "
    "resource cannot take their place. `owner` says whose the name is.",
)
CONFLICT = ProblemType(
    "conflict",
    409,
    "The write conflicts with the present state",
    "The instance kept changing meanwhile, or a registry that takes no writes here holds it.",
)
PRECONDITION_FAILED = ProblemType(
    "precondition-failed",
    412,
    "The resource is not in the expected state",
    "`If-Match` or `If-None-Match` named another version. Read it again, then repeat with its `ETag`.",
)
TOO_LARGE = ProblemType("too-large", 413, "The body is too large", "A body is at most 1 MiB (1,048,576 bytes).")
UNSUPPORTED_MEDIA_TYPE = ProblemType(
    "unsupported-media-type",
    415,
    "The content type is not supported",
    "Bodies are JSON. The content types application/json, application/merge-patch+json, any other +json, text/plain, "
    "application/x-www-form-urlencoded (what curl sends with -d) and none at all are read as JSON. The content "
    "encodings gzip and deflate are undone.",
)
INTERNAL = ProblemType(
    "internal-error", 500, "Something went wrong here", "A fault of the server. `instance` finds it in the log."
)
NONE_AVAILABLE = ProblemType(
    "none-available", 503, "No instance can serve", "The service is known, but none of its instances can be picked."
)
NOT_READY = ProblemType(
    "not-ready",
    503,
    "Nothing has been published yet",
    "The control plane is starting: proxies keep what they have. Repeat after `Retry-After` seconds.",
)
REGISTRY_UNAVAILABLE = ProblemType(
    "registry-unavailable",
    503,
    "The registry cannot take the write",
    "The registry did not answer or refuses writes now. Reads go on working. Repeat after `Retry-After` seconds.",
)

PROBLEM_TYPES: Sequence[ProblemType] = (
    INVALID,
    MALFORMED,
    BAD_REQUEST,
    CROSS_SITE,
    NOT_FOUND,
    UNKNOWN_SERVICE,
    UNKNOWN_HOLD,
    UNKNOWN_INSTANCE,
    UNKNOWN_PROXY,
    UNKNOWN_RESOURCE,
    METHOD_NOT_ALLOWED,
    ADDRESS_TAKEN,
    NAME_RESERVED,
    CONFLICT,
    PRECONDITION_FAILED,
    TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    INTERNAL,
    NONE_AVAILABLE,
    NOT_READY,
    REGISTRY_UNAVAILABLE,
)
_OF_AIOHTTP = {
    kind.status: kind for kind in (BAD_REQUEST, NOT_FOUND, METHOD_NOT_ALLOWED, TOO_LARGE, UNSUPPORTED_MEDIA_TYPE)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Say what is wrong with one field (`pointer`), query or path parameter, or header."""

    detail: str
    pointer: str | None = None
    parameter: str | None = None
    header: str | None = None
    choices: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Return where the fault is, for a sentence."""
        return self.pointer or self.parameter or self.header or "#"

    def document(self) -> dict[str, Any]:
        """Return the fault as it stands in `errors`."""
        members = {
            "pointer": self.pointer,
            "parameter": self.parameter,
            "header": self.header,
            "detail": self.detail,
            "choices": self.choices or None,
        }
        return {name: value for name, value in members.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemDocument:
    """Describe a problem document (RFC 9457) for the documentation; some kinds add members of their own."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: tuple[Fault, ...] = ()


ProblemMembers = Annotated[Mapping[str, Any], WithJsonSchema({"x-model": "ProblemDocument"})]
"""A problem document inside another document."""


class Problem(Exception):
    """Refuse a request. Raised anywhere in a handler; the middleware makes the answer."""

    def __init__(
        self,
        kind: ProblemType,
        detail: str,
        *,
        errors: Iterable[Fault] = (),
        headers: Mapping[str, str] | None = None,
        status: int | None = None,
        **members: object,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.status = status or kind.status
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.members = members

    def document(self, request_id: str | None = None) -> dict[str, Any]:
        """Return the members of the problem document; `request_id` becomes its `instance`."""
        document: dict[str, Any] = {
            "type": self.kind.url,
            "title": self.kind.title,
            "status": self.status,
            "detail": self.detail,
        }
        if request_id is not None:
            document["instance"] = request_id
        if self.errors:
            document["errors"] = [fault.document() for fault in self.errors[:_MAX_FAULTS]]
        return {**document, **self.members}

    def response(self, request_id: str | None) -> web.Response:
        """Return the answer that refuses the request, which has no id where it was never read."""
        return web.Response(
            status=self.status,
            body=orjson.dumps(self.document(request_id)),
            content_type=PROBLEM_JSON,
            headers={"Cache-Control": "no-store", **self.headers},
        )


def invalid(faults: Sequence[Fault]) -> Problem:
    """Return the problem that lists `faults`, all of them."""
    if len(faults) == 1:
        return Problem(INVALID, f"{faults[0].place}: {faults[0].detail}", errors=faults)
    places = ", ".join(fault.place for fault in faults[:8]) + (", …" if len(faults) > 8 else "")
    return Problem(INVALID, f"{len(faults)} faults: {places}", errors=faults)


def unknown_service(name: str) -> Problem:
    """Return the problem of a service that does not exist."""
    return Problem(UNKNOWN_SERVICE, f"no service is named {name!r}; GET /api/v1/services lists them, POST registers")


def unknown_proxy(node_id: str) -> Problem:
    """Return the problem of a proxy that is not connected."""
    return Problem(UNKNOWN_PROXY, f"no proxy with the node id {node_id!r} is connected; GET /api/v1/proxies lists them")


def unknown_instance(service: str, instance_id: str) -> Problem:
    """Return the problem of an instance that does not exist."""
    path = f"/api/v1/services/{service}/instances/{instance_id}"
    detail = f"service {service!r} has no instance {instance_id!r}; if its ttl ran out, register it again: PUT {path}"
    return Problem(UNKNOWN_INSTANCE, detail)


def from_aiohttp(error: web.HTTPException, request: web.BaseRequest, *, meant: str | None = None) -> Problem:
    """Return what aiohttp itself refused as one of our problems, with its `Allow` header.

    `meant` is the path of a resource that there is where none has this path, None where none is near.
    """
    kind = _OF_AIOHTTP.get(error.status, INTERNAL if error.status >= 500 else BAD_REQUEST)
    headers: dict[str, str] = {}
    match kind.status:
        case 404:
            hint = "GET /openapi.json lists what is" if meant is None else f"did you mean {meant}, without the slash?"
            detail = f"nothing is at {request.path}; {hint}"
        case 405:
            allow = headers["Allow"] = error.headers.get("Allow", "")
            detail = f"{request.method} is not allowed on {request.path}; allowed: {allow}"
            if request.method == "DELETE" and _SERVICE_PATH.fullmatch(request.path):
                detail += f". Instances are deregistered one by one: DELETE {request.path}/instances/{{id}}"
        case 413:
            detail = "the body is larger than 1 MiB; send it in parts"
        case _:
            detail = error.reason
    return Problem(kind, detail, headers=headers, status=error.status)
