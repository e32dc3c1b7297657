"""Read proto3 JSON into envoy-data-plane messages, strictly, and say of each fault where it is.

envoy-data-plane's own reader refuses some canonical names, takes numbers that do not fit their field, and does not
say where a fault is. This one takes canonical lowerCamelCase and the proto's own snake_case names; what stands inside
an `Any` is read as the message that its `@type` names, whose module is imported when it is first met.

Deviations from the canonical mapping: negative Durations and fractions below a microsecond are refused, as the
encoder cannot spell them.
"""

import base64
import binascii
import importlib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import cache
from typing import Any, Final

import betterproto2
from betterproto2 import FieldMetadata, Message
from envoy_data_plane.google import protobuf
from envoy_data_plane.message_pool import default_message_pool

from xds.encode import Encoder

Path = tuple[str | int, ...]

MAX_DEPTH = 100
"""How deeply messages may be nested; protobuf itself reads no deeper."""

_PREFIX = "type.googleapis.com/"
_TYPE_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*\.[A-Z][A-Za-z0-9_]*")
_NUMBER = re.compile(r"(-?\d{1,400})(\.\d+)?([eE][+-]?\d{1,4})?")
_DURATION = re.compile(r"(\d{1,12})(?:\.(\d{1,9}))?s")
_RANGES: Final = {
    betterproto2.TYPE_INT32: (-(2**31), 2**31 - 1),
    betterproto2.TYPE_SINT32: (-(2**31), 2**31 - 1),
    betterproto2.TYPE_SFIXED32: (-(2**31), 2**31 - 1),
    betterproto2.TYPE_UINT32: (0, 2**32 - 1),
    betterproto2.TYPE_FIXED32: (0, 2**32 - 1),
    betterproto2.TYPE_INT64: (-(2**63), 2**63 - 1),
    betterproto2.TYPE_SINT64: (-(2**63), 2**63 - 1),
    betterproto2.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    betterproto2.TYPE_UINT64: (0, 2**64 - 1),
    betterproto2.TYPE_FIXED64: (0, 2**64 - 1),
}
_FLOATS: Final = {betterproto2.TYPE_FLOAT: 3.4028234663852886e38, betterproto2.TYPE_DOUBLE: sys.float_info.max}
"""The greatest finite value of each."""

_NOT_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_WRAPPED: Final = {
    protobuf.BoolValue: betterproto2.TYPE_BOOL,
    protobuf.BytesValue: betterproto2.TYPE_BYTES,
    protobuf.DoubleValue: betterproto2.TYPE_DOUBLE,
    protobuf.FloatValue: betterproto2.TYPE_FLOAT,
    protobuf.Int32Value: betterproto2.TYPE_INT32,
    protobuf.Int64Value: betterproto2.TYPE_INT64,
    protobuf.StringValue: betterproto2.TYPE_STRING,
    protobuf.UInt32Value: betterproto2.TYPE_UINT32,
    protobuf.UInt64Value: betterproto2.TYPE_UINT64,
}
_FAULTY: Final = object()


@dataclass(frozen=True, slots=True)
class RawFault:
    """Say what is wrong at one place of a resource; the path's parts are those of an RFC 6901 pointer."""

    path: Path
    detail: str


class Unreadable(Exception):
    """Report every fault that keeps a resource from being published."""

    def __init__(self, faults: Sequence[RawFault]) -> None:
        super().__init__("; ".join(f"/{'/'.join(map(str, fault.path))}: {fault.detail}" for fault in faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class Part:
    """Hold one message of a resource and where it stands in the JSON, messages inside an `Any` included."""

    path: Path
    message: Message


@dataclass(frozen=True, slots=True)
class Reading:
    """Hold a message that was read, and all the messages in it, the innermost first."""

    message: Message
    parts: tuple[Part, ...]


def read(type_url: str, document: Mapping[str, Any]) -> Reading:
    """Read a resource of a type; `@type` may be there, and then has to agree.

    Raises Unreadable with every fault.
    """
    reader = _Reader()
    named = document.get("@type", type_url)
    if named != type_url:
        reader.fault(("@type",), f"the path says {type_url}, found {named!r}; leave @type out or make them agree")
    cls = _message_class(type_url)
    assert cls is not None, type_url  # noqa: S101 - every type that is served has a class
    message = reader.message(cls, {name: value for name, value in document.items() if name != "@type"}, ())
    if reader.faults or not isinstance(message, Message):
        raise Unreadable(reader.faults)
    return Reading(message, tuple(reader.parts))


@cache
def _message_class(type_url: str) -> type[Message] | None:
    """Return the class of a type, importing its module by name; None where envoy-data-plane has none."""
    name = type_url.removeprefix(_PREFIX)
    if not _TYPE_NAME.fullmatch(name):
        return None
    try:
        importlib.import_module("envoy_data_plane." + name.rpartition(".")[0])
    except ModuleNotFoundError:
        return None
    return default_message_pool.url_to_type.get(_PREFIX + name)


@cache
def _names(cls: type[Message]) -> Mapping[str, str]:
    """Return the attribute of every spelling of a field's name: the proto's own, and lowerCamelCase."""
    described: Any = cls
    spelled: dict[str, str] = {}
    for attribute in described._betterproto.meta_by_field_name:
        name = attribute.removesuffix("_")  # added where the name is a word of Python's
        spelled[name] = attribute
        spelled[_camel(name)] = attribute
    return spelled


def _camel(name: str) -> str:
    """Spell a field as protobuf does: every underscore goes, and what follows it is upper case."""
    head, *tail = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in tail)


class _Reader:
    """Read values, collecting faults and parts on the way."""

    def __init__(self) -> None:
        self.faults: list[RawFault] = []
        self.parts: list[Part] = []
        self._encoder = Encoder()

    def fault(self, path: Path, detail: str) -> Any:
        self.faults.append(RawFault(path, detail))
        return _FAULTY

    def message(self, cls: type[Message], value: Any, path: Path) -> Any:
        if len(path) > MAX_DEPTH:
            return self.fault(path[:8], f"nested more than {MAX_DEPTH} deep")
        if cls is protobuf.Struct:
            return self._struct(value, path)
        if cls is protobuf.Value:
            return self._value(value, path)
        if cls is protobuf.ListValue:
            return self._list_value(value, path)
        if cls is protobuf.Any:
            return self._any(value, path)
        if not isinstance(value, dict):
            return self.fault(path, f"expected an object, a {cls.__name__}, found {_found(value)}")
        made = self._fields(cls, value, path)
        if made is _FAULTY:
            return made
        try:
            message = cls(**made)
        except ValueError as error:
            first = str(error).splitlines()[0]
            return self.fault(path, f"not a valid {cls.__name__}: {first}")
        self.parts.append(Part(path, message))
        return message

    def _fields(self, cls: type[Message], value: Mapping[str, Any], path: Path) -> Any:
        described: Any = cls
        proto, names = described._betterproto, _names(cls)
        made: dict[str, Any] = {}
        members: dict[str, str] = {}
        before = len(self.faults)
        for name, inner in value.items():
            here = (*path, name)
            attribute = names.get(name)
            if attribute is None:
                self.fault(here, f"unknown field {name!r} of {cls.__name__}; {_meant(name, names)}")
                continue
            if attribute in made:
                self.fault(here, "stands here twice, in both spellings of its name")
                continue
            meta = proto.meta_by_field_name[attribute]
            if inner is None and proto.cls_by_field[attribute] is not protobuf.Value:
                continue  # null is "not set" in proto3 JSON
            if meta.group is not None and (other := members.setdefault(meta.group, name)) != name:
                self.fault(here, f"only one of the fields of {meta.group!r} can be set, and {other!r} is")
                continue
            made[attribute] = self._field(proto, attribute, meta, inner, here)
        return _FAULTY if len(self.faults) > before else made

    def _field(self, proto: Any, attribute: str, meta: FieldMetadata, value: Any, path: Path) -> Any:
        cls = proto.cls_by_field[attribute]
        if meta.map_meta is not None:
            if not isinstance(value, dict):
                return self.fault(path, f"expected an object, found {_found(value)}")
            key, inner = meta.map_meta
            inner_cls = proto.cls_by_field[f"{attribute}.value"]
            return {
                self._key(key, name, (*path, name)): self._single(inner, inner_cls, each, (*path, name))
                for name, each in value.items()
            }
        if meta.repeated:
            if not isinstance(value, list):
                return self.fault(path, f"expected a list, found {_found(value)}")
            return [self._single(meta, cls, each, (*path, index)) for index, each in enumerate(value)]
        return self._single(meta, cls, value, path)

    def _key(self, meta: FieldMetadata, name: str, path: Path) -> Any:
        if meta.proto_type == betterproto2.TYPE_STRING:
            return name
        if meta.proto_type == betterproto2.TYPE_BOOL:
            return name == "true"
        return self._number(meta.proto_type, name, path)

    def _single(self, meta: FieldMetadata, cls: Any, value: Any, path: Path) -> Any:
        if meta.proto_type == betterproto2.TYPE_ENUM:
            return self._enum(cls, value, path)
        if meta.proto_type != betterproto2.TYPE_MESSAGE:
            return self._scalar(meta.proto_type, value, path)
        wrapper: Any = None if meta.unwrap is None else meta.unwrap()
        if wrapper is None:
            return self.message(cls, value, path)
        if wrapper in _WRAPPED:
            return self._scalar(_WRAPPED[wrapper], value, path)
        if wrapper is protobuf.Duration:
            return self._duration(value, path)
        return self._timestamp(value, path)

    def _enum(self, cls: Any, value: Any, path: Path) -> Any:
        names = {member.proto_name or member.name: member for member in cls}
        if isinstance(value, str) and value in names:
            return names[value]
        if isinstance(value, int) and not isinstance(value, bool) and any(member == value for member in cls):
            return cls(value)
        return self.fault(path, f"expected one of {', '.join(names)}, found {_found(value)}")

    def _scalar(self, proto_type: str, value: Any, path: Path) -> Any:
        if proto_type == betterproto2.TYPE_BOOL:
            return (
                value if isinstance(value, bool) else self.fault(path, f"expected true or false, found {_found(value)}")
            )
        if proto_type == betterproto2.TYPE_STRING:
            return value if isinstance(value, str) else self.fault(path, f"expected a string, found {_found(value)}")
        if proto_type == betterproto2.TYPE_BYTES:
            return self._bytes(value, path)
        return self._number(proto_type, value, path)

    def _bytes(self, value: Any, path: Path) -> Any:
        try:
            text = value.replace("-", "+").replace("_", "/")
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (AttributeError, binascii.Error, ValueError):
            return self.fault(path, "expected a string in base64")

    def _number(self, proto_type: str, value: Any, path: Path) -> Any:
        number = value
        if isinstance(value, str):
            spelled = _NUMBER.fullmatch(value)
            if spelled is not None:
                number = float(value) if spelled[2] or spelled[3] else int(value)
            elif value in _NOT_FINITE:
                number = _NOT_FINITE[value]
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            return self.fault(path, f"expected a number, found {_found(value)}")
        if proto_type in _FLOATS:
            if abs(number) > _FLOATS[proto_type] and value not in _NOT_FINITE:
                return self.fault(path, f"expected at most {_FLOATS[proto_type]}, found {_found(value)}")
            return float(number)
        low, high = _RANGES[proto_type]
        if not low <= number <= high or number != int(number):
            return self.fault(path, f"expected a whole number from {low} to {high}, found {_found(value)}")
        return int(number)

    def _duration(self, value: Any, path: Path) -> Any:
        found = _DURATION.fullmatch(value) if isinstance(value, str) else None
        if found is None or int(found[1]) > 315_576_000_000:
            return self.fault(path, f'expected a duration of at least 0 such as "1.5s", found {_found(value)}')
        nanos = int((found[2] or "").ljust(9, "0"))
        if nanos % 1_000:
            return self.fault(path, f"expected whole microseconds, found {_found(value)}")
        try:
            return timedelta(seconds=int(found[1]), microseconds=nanos // 1_000)
        except OverflowError:
            return self.fault(path, f"too long to be kept: {_found(value)}")

    def _timestamp(self, value: Any, path: Path) -> Any:
        try:
            moment = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            return self.fault(path, f"expected a time as of RFC 3339, found {_found(value)}")
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)

    def _any(self, value: Any, path: Path) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("@type"), str):
            return self.fault(path, f'expected an object with "@type", found {_found(value)}')
        type_url = value["@type"]
        cls = _message_class(type_url) if type_url.startswith(_PREFIX) else None
        if cls is None:
            detail = f"unknown type {type_url!r}: expected {_PREFIX}<package>.<Message> of Envoy's API"
            return self.fault((*path, "@type"), detail)
        inner = {name: each for name, each in value.items() if name != "@type"}
        if cls in (protobuf.Struct, protobuf.Value, protobuf.ListValue, protobuf.Any):
            # Those whose JSON is not an object of their fields stand under "value" (proto3 JSON, Any).
            inner = inner.get("value", {})
        message = self.message(cls, inner, path)
        if message is _FAULTY:
            return message
        return protobuf.Any(type_url=type_url, value=self._encoder.encode(message))

    def _struct(self, value: Any, path: Path) -> Any:
        if not isinstance(value, dict):
            return self.fault(path, f"expected an object, found {_found(value)}")
        fields = {name: self._value(each, (*path, name)) for name, each in value.items()}
        return _FAULTY if any(each is _FAULTY for each in fields.values()) else protobuf.Struct(fields=fields)

    def _list_value(self, value: Any, path: Path) -> Any:
        if not isinstance(value, list):
            return self.fault(path, f"expected a list, found {_found(value)}")
        values = [self._value(each, (*path, index)) for index, each in enumerate(value)]
        return _FAULTY if any(each is _FAULTY for each in values) else protobuf.ListValue(values=values)

    def _value(self, value: Any, path: Path) -> Any:
        if len(path) > MAX_DEPTH:
            return self.fault(path[:8], f"nested more than {MAX_DEPTH} deep")
        match value:
            case None:
                return protobuf.Value(null_value=protobuf.NullValue.NULL_VALUE)
            case bool():
                return protobuf.Value(bool_value=value)
            case int() | float():
                return protobuf.Value(number_value=float(value))
            case str():
                return protobuf.Value(string_value=value)
            case dict():
                inner = self._struct(value, path)
                return inner if inner is _FAULTY else protobuf.Value(struct_value=inner)
            case _:
                inner = self._list_value(value, path)
                return inner if inner is _FAULTY else protobuf.Value(list_value=inner)


def _found(value: Any) -> str:
    """Describe a value; a long text by its length."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case str():
            return f"{value!r}" if len(value) <= 32 else f"a string of {len(value)} characters"
        case list():
            return "a list"
        case _:
            return "an object"


def _meant(name: str, names: Mapping[str, str]) -> str:
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known are: {', '.join(sorted(set(names.values())))}"
