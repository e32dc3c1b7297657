"""Query, path and header parameters: one definition each, which both reads and documents it.

A query parameter that is not known is refused: a misspelt `healty_only=true` would otherwise answer with what was
not asked for. One that is empty counts as not given, except where that would do more than was meant.
"""

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import web

from controlplane.api.faults import nearest, suggestion
from controlplane.api.problems import Fault, invalid
from controlplane.policy import Strategy
from xds.status import State
from xds.typenames import WORDS, type_url_of

DEFAULT_LIMIT = 100
MAX_LIMIT = 1_000
MAX_DRAIN_S = 86_400.0
MAX_WAIT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """Describe one parameter. `read` turns its text into a value; it raises ValueError with what was expected.

    `reads_empty`: an empty text is read too, and so can be refused, rather than counted as not given.
    """

    name: str
    place: Literal["query", "path", "header"]
    description: str
    schema: Mapping[str, Any]
    read: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()
    repeatable: bool = False
    reads_empty: bool = False


def _flag(text: str) -> bool:
    match text.lower():  # True and False are what Python's HTTP clients send
        case "true" | "1":
            return True
        case "false" | "0":
            return False
    msg = f"expected true or false, found {text!r}"
    raise ValueError(msg)


def _limit(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_LIMIT:
        return int(text)
    msg = f"expected a whole number from 1 to {MAX_LIMIT}, found {text!r}"
    raise ValueError(msg)


def _drain(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if 0 <= value <= MAX_DRAIN_S:
        return value
    msg = f"expected seconds from 0 to {MAX_DRAIN_S:g}, found {text!r}"
    raise ValueError(msg)


def _names(text: str) -> frozenset[str]:
    return frozenset(name for name in (part.strip() for part in text.split(",")) if name)


def _strategy(text: str) -> Strategy:
    try:
        return Strategy(text)
    except ValueError:
        near = nearest(text, Strategy)
        meant = "" if near is None else f"did you mean {near!r}? "
        msg = f"unknown strategy {text!r}; {meant}known are: {', '.join(Strategy)}"
        raise ValueError(msg) from None


def _state(text: str) -> State:
    try:
        return State(text.upper())
    except ValueError:
        msg = f"unknown state {text!r}; known are: {', '.join(state.value for state in State)}"
        raise ValueError(msg) from None


def _type(text: str) -> str:
    if (found := type_url_of(text)) is None:
        msg = f"unknown type {text!r}; known are: {', '.join(WORDS.values())}"
        raise ValueError(msg)
    return found


def cursor_after(name: str) -> str:
    """Return the opaque cursor of the page that begins after `name`."""
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def _cursor(text: str) -> str:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        msg = f"expected the `next` of an earlier page, found {text!r}"
        raise ValueError(msg) from None


def _text(text: str) -> str:
    return text


SERVICE = Parameter(
    name="name",
    place="path",
    description="The service's name, a lower-case DNS name.",
    schema={"type": "string", "examples": ["user-service"]},
)
INSTANCE_ID = Parameter(
    name="id",
    place="path",
    description="The instance's id, unique within its service.",
    schema={"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,253}$", "examples": ["user-service-10.0.1.100-8080"]},
)
HOLD = Parameter(
    name="id",
    place="path",
    description="The hold's id: a service's name, or `_everything`.",
    schema={"type": "string", "examples": ["user-service"]},
)
NODE_ID = Parameter(
    name="node_id",
    place="path",
    description="The node id that the proxy was started with.",
    schema={"type": "string", "examples": ["edge-7"]},
)
RESOURCE_TYPE = Parameter(
    name="type",
    place="path",
    description=f"The xDS type: {', '.join(WORDS.values())}; or its abbreviation, message or type URL.",
    schema={"type": "string", "examples": ["secrets", "SDS"]},
)
RESOURCE_NAME = Parameter(
    name="name",
    place="path",
    description="The resource's name; it may hold slashes.",
    schema={"type": "string", "minLength": 1, "maxLength": 1024, "examples": ["rtds_layer"]},
)
NODE_CLUSTERS = Parameter(
    name="node_clusters",
    place="query",
    description="Only nodes of these clusters are told of the resource, separated by commas; none given = all.",
    schema={"type": "string", "examples": ["edge,internal"]},
    read=_names,
    repeatable=True,
)
NODE_ZONES = Parameter(
    name="node_zones",
    place="query",
    description="Only nodes in these zones are told of the resource, separated by commas; none given = all.",
    schema={"type": "string", "examples": ["eu-1"]},
    read=_names,
    repeatable=True,
)
TAGS = Parameter(
    name="tags",
    place="query",
    description="Only instances that have all of these tags, separated by commas.",
    schema={"type": "string", "examples": ["api,v1"]},
    read=_names,
    repeatable=True,
)
HEALTHY_ONLY = Parameter(
    name="healthy_only",
    place="query",
    description="Only instances whose status is `healthy`.",
    schema={"type": "boolean", "default": False},
    read=_flag,
)
LIMIT = Parameter(
    name="limit",
    place="query",
    description="How many items a page holds at most.",
    schema={"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
    read=_limit,
)
CURSOR = Parameter(
    name="cursor",
    place="query",
    description="Where the page begins: the `next` of the page before. Opaque.",
    schema={"type": "string"},
    read=_cursor,
)
DRAIN = Parameter(
    name="drain",
    place="query",
    description="Mark the instance draining now and remove it after so many seconds; 0 removes it at once.",
    schema={"type": "number", "minimum": 0, "maximum": MAX_DRAIN_S},
    read=_drain,
    reads_empty=True,  # `?drain=$SECONDS` with the variable unset must not remove the instance at once
)
STRATEGY = Parameter(
    name="strategy",
    place="query",
    description="How to choose; where not given, as the service's policy says.",
    schema={"type": "string", "enum": list(Strategy)},
    read=_strategy,
    choices=tuple(Strategy),
)
KEY = Parameter(
    name="key",
    place="query",
    description="What a consistent hash is computed from; where not given, the caller's address.",
    schema={"type": "string"},
    read=_text,
)
STATE = Parameter(
    name="state",
    place="query",
    description="Only what is in this state: `ERROR` (refused), `STALE` (not acknowledged), `NOT_SENT` or `SYNCED`.",
    schema={"type": "string", "enum": [state.value for state in State]},
    read=_state,
    choices=tuple(state.value for state in State),
)
ONLY_TYPE = Parameter(
    name="type",
    place="query",
    description="Only resources of this type: a word such as `clusters`, a service's abbreviation such as `CDS`, the "
    "message's name or the type URL.",
    schema={"type": "string", "examples": list(WORDS.values())},
    read=_type,
    choices=tuple(WORDS.values()),
)
ONLY_NAME = Parameter(
    name="name",
    place="query",
    description="Only resources of this name.",
    schema={"type": "string", "examples": ["user-service"]},
)
CONTENTS = Parameter(
    name="contents",
    place="query",
    description="`false`: leave the contents out.",
    schema={"type": "boolean", "default": True},
    read=_flag,
)
SERVICES = Parameter(
    name="service",
    place="query",
    description="Only events of these services, separated by commas.",
    schema={"type": "string", "examples": ["user-service"]},
    read=_names,
    repeatable=True,
)
VERBOSE = Parameter(
    name="verbose",
    place="query",
    description="Where present (and not `false`), list every check, one to a line.",
    schema={"type": "boolean"},
    read=lambda text: text.lower() not in {"false", "0"},
)

IF_NONE_MATCH = Parameter(
    name="If-None-Match",
    place="header",
    description="`ETag`s that the client has: 304 where the resource still is one of them.",
    schema={"type": "string"},
)
PREFER = Parameter(
    name="Prefer",
    place="header",
    description=f"`wait=30`, with `If-None-Match`: wait so many seconds (at most {MAX_WAIT_S:g}) for a change of this "
    "resource before answering 304.",
    schema={"type": "string", "examples": ["wait=30"]},
)
IF_MATCH = Parameter(
    name="If-Match",
    place="header",
    description="The `ETag` that the resource must have, else 412; `*` = it must exist.",
    schema={"type": "string"},
)
CREATE_ONLY = Parameter(
    name="If-None-Match",
    place="header",
    description="`*`: only where the resource does not exist yet, else 412.",
    schema={"type": "string", "examples": ["*"]},
)
LAST_EVENT_ID = Parameter(
    name="Last-Event-ID",
    place="header",
    description="The id of the last event that was received; the stream goes on after it, or begins with `reset`.",
    schema={"type": "string"},
)
ACCEPT = Parameter(
    name="Accept",
    place="header",
    description="`application/openmetrics-text` for OpenMetrics, else the Prometheus text format.",
    schema={"type": "string"},
)


def read_query(request: web.Request, known: tuple[Parameter, ...]) -> dict[str, Any]:
    """Return the values of the query's parameters by name; those not given are absent.

    So are empty ones, but for those with `reads_empty`.

    Raises Problem listing every fault.
    """
    query = request.query
    if not query:
        return {}
    by_name = {parameter.name: parameter for parameter in known if parameter.place == "query"}
    result: dict[str, Any] = {}
    faults: list[Fault] = []
    for name in dict.fromkeys(query):
        parameter = by_name.get(name)
        if parameter is None:
            hint = suggestion(name, by_name) if by_name else "this resource has none"
            faults.append(Fault(parameter=name, detail=f"unknown query parameter; {hint}"))
            continue
        values = [text for text in query.getall(name) if text or parameter.reads_empty]
        if len(values) > 1 and not parameter.repeatable:
            faults.append(Fault(parameter=name, detail=f"expected once, found {len(values)} times"))
            continue
        try:
            read = [parameter.read(text) for text in values]
        except ValueError as error:
            faults.append(Fault(parameter=name, detail=str(error), choices=parameter.choices))
            continue
        if read:
            result[name] = frozenset().union(*read) if parameter.repeatable else read[0]
    if faults:
        raise invalid(faults)
    return result
