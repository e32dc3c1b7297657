"""Read a Node, as a client's request tells it, stepping over what nobody here reads.

Envoy's first request has 61 kB of node extensions. Field numbers are those of `envoy/config/core/v3/base.proto`.
"""

import struct
from collections.abc import Mapping
from types import MappingProxyType

from xds.types import Node
from xds.wire import FIXED64, WireError, number_of, span_of, text_of, walk

_MAX_STRUCT_DEPTH = 100  # as protobuf's own parsers
_MAX_EXACT = 2**53  # up to here a double tells every whole number from the next


def string_pair(data: bytes, start: int, end: int) -> tuple[str, str]:
    key = value = ""
    for field in walk(data, start, end):
        if field[0] == 1:
            key = text_of(data, field)
        elif field[0] == 2:
            value = text_of(data, field)
    return key, value


def _struct(data: bytes, start: int, end: int, depth: int) -> dict[str, object]:
    if depth > _MAX_STRUCT_DEPTH:
        raise WireError(f"node metadata is nested deeper than {_MAX_STRUCT_DEPTH}")
    found: dict[str, object] = {}
    for field in walk(data, start, end):
        if field[0] != 1:
            continue
        key, value = "", None
        for part in walk(data, *span_of(field)):
            if part[0] == 1:
                key = text_of(data, part)
            elif part[0] == 2:
                value = _value(data, *span_of(part), depth)
        found[key] = value
    return found


def _value(data: bytes, start: int, end: int, depth: int) -> object:
    """Read a google.protobuf.Value as the JSON value it stands for."""
    value: object = None
    for field in walk(data, start, end):
        match field[0]:
            case 1:
                value = None
            case 2:
                if field[1] != FIXED64:
                    raise WireError("a number in node metadata is not a double")
                value = _number(struct.unpack_from("<d", data, field[2])[0])
            case 3:
                value = text_of(data, field)
            case 4:
                value = bool(number_of(field))
            case 5:
                value = _struct(data, *span_of(field), depth + 1)
            case 6:
                if depth > _MAX_STRUCT_DEPTH:
                    raise WireError(f"node metadata is nested deeper than {_MAX_STRUCT_DEPTH}")
                items = (part for part in walk(data, *span_of(field)) if part[0] == 1)
                value = [_value(data, *span_of(part), depth + 1) for part in items]
    return value


def _number(value: float) -> int | float:
    """Return a whole number as one: a Struct knows doubles only, and a port is shown as its author wrote it."""
    return int(value) if value.is_integer() and abs(value) <= _MAX_EXACT else value


def _build_version(data: bytes, start: int, end: int) -> str:
    """Read a BuildVersion's semantic version as `major.minor.patch`."""
    numbers = [0, 0, 0]
    for field in walk(data, start, end):
        if field[0] == 1:
            for part in walk(data, *span_of(field)):
                if 1 <= part[0] <= 3:
                    numbers[part[0] - 1] = number_of(part)
    return ".".join(map(str, numbers))


def read_node(data: bytes, start: int, end: int) -> tuple[Node, int, int]:
    """Read a Node and step over its extensions (field 9); tell where those begin and end."""
    texts = {1: "", 2: "", 6: "", 7: ""}
    metadata: dict[str, object] = {}
    place = {1: "", 2: "", 3: ""}
    features = set()
    dynamic: dict[str, Mapping[str, str]] = {}
    before, skipped_from, skipped_to = start, end, end
    for field in walk(data, start, end):
        match field[0]:
            case 1 | 2 | 6 | 7:
                texts[field[0]] = text_of(data, field)
            case 3:
                metadata |= _struct(data, *span_of(field), 0)
            case 4:
                for part in walk(data, *span_of(field)):
                    if part[0] in place:
                        place[part[0]] = text_of(data, part)
            case 8:
                texts[7] = _build_version(data, *span_of(field))
            case 9:
                skipped_from, skipped_to = min(skipped_from, before), field[3]
            case 10:
                features.add(text_of(data, field))
            case 12:
                type_url, parameters = _context_parameters(data, *span_of(field))
                dynamic[type_url] = MappingProxyType(parameters)
        before = field[3]
    node = Node(
        id=texts[1],
        cluster=texts[2],
        metadata=MappingProxyType(metadata),
        region=place[1],
        zone=place[2],
        sub_zone=place[3],
        user_agent_name=texts[6],
        user_agent_version=texts[7],
        client_features=frozenset(features),
        dynamic_parameters=MappingProxyType(dynamic),
    )
    return node, skipped_from, skipped_to


def _context_parameters(data: bytes, start: int, end: int) -> tuple[str, dict[str, str]]:
    """Read an entry of `Node.dynamic_parameters`: a type, and the parameters that its resources are found by."""
    type_url, parameters = "", {}
    for field in walk(data, start, end):
        if field[0] == 1:
            type_url = text_of(data, field)
        elif field[0] == 2:
            pairs = (part for part in walk(data, *span_of(field)) if part[0] == 1)
            parameters = dict(string_pair(data, *span_of(part)) for part in pairs)
    return type_url, parameters
