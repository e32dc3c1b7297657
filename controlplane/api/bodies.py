"""Request bodies: read with a bound, parsed strictly, validated once, every fault reported.

Strict means: UTF-8, one JSON value, no NaN, and no name twice in an object (RFC 8259 leaves open which one counts,
so that two readers may disagree about what was registered). The content type is not trusted to be right: curl
sends `application/x-www-form-urlencoded` unless told otherwise, and what parses as JSON is taken.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, TypeVar

import orjson
from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from controlplane.api.faults import faults, found, pointer, unknown_field
from controlplane.api.problems import (
    BAD_REQUEST,
    MALFORMED,
    TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    Fault,
    Problem,
    invalid,
)
from controlplane.model import HealthCheck, Instance, Locality
from controlplane.policy import ConsistentHash, HashOn, LeastConnections, Policy

MAX_BODY_BYTES = 1024 * 1024
READ_ONLY = frozenset(
    {
        "address",
        "addresses",
        "expires_in",
        "held",
        "last_check",
        "latency",
        "output",
        "reason",
        "registry",
        "revision",
        "score",
        "since",
        "status",
        "strategy",
    }
)
"""Fields that answers carry and writes ignore, so that what was read can be sent back."""

POLICY_READ_ONLY = frozenset({"default", "revision", "service"})

_READ_AS_JSON = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded", "text/plain"})
_ENCODINGS = frozenset({"", "deflate", "gzip", "identity"})
"""The content encodings that aiohttp undoes wherever it is installed; others would depend on what else is."""

_MALFORMED = "the body is not valid JSON"

T = TypeVar("T")


async def read_object(request: web.Request) -> dict[str, Any]:
    """Return the request's body, a JSON object.

    Raises Problem as `read_body` does, and 400 for what is no JSON object.
    """
    return parse_object(await read_body(request))


async def read_body(request: web.Request) -> bytes:
    """Return the request's body as bytes that may be JSON.

    Raises Problem: 413 over 1 MiB, 415 for what is clearly not JSON or not decoded here, 400 where it breaks off.
    """
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if not (media_type in _READ_AS_JSON or media_type.endswith(("/json", "+json"))):
        detail = f"expected application/json, found {media_type}"
        raise Problem(UNSUPPORTED_MEDIA_TYPE, detail, headers={"Accept": "application/json"})
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        detail = f"expected a body that is not encoded, or gzip or deflate, found Content-Encoding: {encoding}"
        raise Problem(UNSUPPORTED_MEDIA_TYPE, detail, headers={"Accept-Encoding": "gzip, deflate"})
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise Problem(TOO_LARGE, f"the body has {request.content_length} bytes; at most {MAX_BODY_BYTES} are read")
    try:
        return await request.read()
    except web.RequestPayloadError:
        encoded = f"; it is not the {encoding} that Content-Encoding says" if encoding not in {"", "identity"} else ""
        raise Problem(BAD_REQUEST, f"the body cannot be read{encoded}") from None


def parse_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in `data`; raises Problem where there is none, saying where it breaks off."""
    if not data.strip():
        raise Problem(MALFORMED, "the body is empty; expected a JSON object", errors=[_whole("expected an object")])
    try:
        value = orjson.loads(data)
        json.loads(data, object_pairs_hook=_no_duplicates)
    except orjson.JSONDecodeError as error:
        # json.JSONDecodeError is the base of orjson's, so this speaks for both parsers.
        raise Problem(MALFORMED, f"{_MALFORMED}: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except _DuplicateName as error:
        detail = f"the name {error.args[0]!r} stands twice in one object; which one counts is not defined"
        raise Problem(MALFORMED, detail) from None
    except RecursionError:
        raise Problem(MALFORMED, f"{_MALFORMED} that is read here: nested too deeply") from None
    if not isinstance(value, dict):
        raise invalid([_whole(f"expected an object, found {found(value)}")])
    return value


class _DuplicateName(Exception):
    """Report that an object has two members of one name."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for name, _ in pairs:
        if name in seen:
            raise _DuplicateName(name)
        seen.add(name)


def _whole(detail: str) -> Fault:
    return Fault(pointer="#", detail=detail)


@dataclass(frozen=True, slots=True)
class Shape(Generic[T]):
    """Hold how one kind of body is validated: its model, the fields of its objects, and what is ignored."""

    adapter: TypeAdapter[T]
    fields: Mapping[tuple[str, ...], frozenset[str]]
    ignored: frozenset[str]

    def build(self, body: Mapping[str, Any], *, at: tuple[str | int, ...] = ()) -> T:
        """Return the value that `body` describes; `at` is where it stands in the request's body.

        Raises Problem listing every fault.
        """
        known = {name: value for name, value in body.items() if name not in self.ignored}
        try:
            return self.adapter.validate_python(known)
        except ValidationError as error:
            raise invalid(_moved(_without_default_id(faults(error, body, self.fields), body), at)) from None

    def unknown(self, body: Mapping[str, Any]) -> list[Fault]:
        """Return the faults of the body's top-level names that are neither fields nor ignored."""
        known = self.fields[()]
        return [unknown_field((name,), known) for name in body if name not in known and name not in self.ignored]


def _moved(found_faults: list[Fault], at: tuple[str | int, ...]) -> list[Fault]:
    if not at:
        return found_faults
    prefix = pointer(*at)
    return [
        Fault(detail=fault.detail, pointer=prefix + (fault.pointer or "#")[1:], choices=fault.choices)
        for fault in found_faults
    ]


def _without_default_id(found_faults: list[Fault], body: Mapping[str, Any]) -> list[Fault]:
    """Leave out what is said about an id that was not sent but made of faulty fields; explain it if they are good."""
    if body.get("id") is not None:
        return found_faults
    others = [fault for fault in found_faults if fault.pointer != "#/id"]
    if others or not found_faults:
        return others
    detail = (
        "the default id, <name>-<host>-<port>, is longer than 253 characters or holds others than allowed: give one"
    )
    return [Fault(pointer="#/id", detail=detail)]


def _fields(model: Any, nested: Mapping[str, Any]) -> dict[tuple[str, ...], frozenset[str]]:
    """Return the field names of a model and of the models nested in it, by path."""
    assert is_dataclass(model)  # noqa: S101 - a fault of this module, not of a request
    result: dict[tuple[str, ...], frozenset[str]] = {(): frozenset(item.name for item in fields(model))}
    for path, inner in nested.items():
        result[tuple(path.split("."))] = frozenset(item.name for item in fields(inner))
    return result


INSTANCE: Shape[Instance] = Shape(
    TypeAdapter(Instance), _fields(Instance, {"locality": Locality, "health_check": HealthCheck}), READ_ONLY
)
POLICY: Shape[Policy] = Shape(
    TypeAdapter(Policy),
    _fields(
        Policy,
        {
            "consistent_hash": ConsistentHash,
            "consistent_hash.hash_on": HashOn,
            "least_connections": LeastConnections,
        },
    ),
    POLICY_READ_ONLY,
)


def merged(target: Any, patch: Any) -> Any:
    """Return `target` after a JSON merge patch (RFC 7396): null removes, objects merge, the rest replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


ScriptProblem = Callable[[HealthCheck], str | None]


def refuse_script(instance: Instance, problem: ScriptProblem, *, at: tuple[str | int, ...] = ()) -> None:
    """Raise Problem where the instance asks for a script check that cannot run here."""
    check = instance.health_check
    if check is None or not check.script:
        return
    why = problem(check)
    if why is not None:
        raise invalid([Fault(pointer=pointer(*at, "health_check", "script"), detail=why)])
