"""Encode envoy-data-plane messages fast: the same bytes as `bytes(message)`, some thirty times sooner.

The stock encoder builds a fresh validator for every nested message and looks every field's metadata up again;
here each class is compiled once, to one small writer a field, from the metadata that betterproto2 keeps.
Messages are validated when they are constructed and not once more here.

Not a decoder, and not a judge: what Envoy would refuse is the business of who builds the message. The one
difference from the stock encoder: maps are written in key order, so that equal messages have equal bytes
(the stock one keeps the order of insertion; conformance item C-17).
"""

import struct
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, Final

import betterproto2
from betterproto2 import FieldMetadata, Message
from envoy_data_plane.google import protobuf
from envoy_data_plane.message_pool import default_message_pool

Write = Callable[[Any], bytes]

_ONE_BYTE: Final = tuple(bytes((n,)) for n in range(0x80))

_VARINTS: Final = frozenset(
    {
        betterproto2.TYPE_ENUM,
        betterproto2.TYPE_BOOL,
        betterproto2.TYPE_INT32,
        betterproto2.TYPE_INT64,
        betterproto2.TYPE_UINT32,
        betterproto2.TYPE_UINT64,
    }
)
_ZIGZAGS: Final = frozenset({betterproto2.TYPE_SINT32, betterproto2.TYPE_SINT64})
_FIXED: Final = {
    betterproto2.TYPE_FLOAT: (5, "<f"),
    betterproto2.TYPE_FIXED32: (5, "<I"),
    betterproto2.TYPE_SFIXED32: (5, "<i"),
    betterproto2.TYPE_DOUBLE: (1, "<d"),
    betterproto2.TYPE_FIXED64: (1, "<Q"),
    betterproto2.TYPE_SFIXED64: (1, "<q"),
}
_DELIMITED = 2
_MICROSECOND: Final = timedelta(microseconds=1)
_VALUE_WRAPPERS: Final = {
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


def varint(value: int) -> bytes:
    """Encode an integer as a base-128 varint; a negative one as its 64-bit two's complement."""
    if 0 <= value < 0x80:
        return _ONE_BYTE[value]
    if value < 0:
        value += 1 << 64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def frame(number: int, payload: bytes) -> bytes:
    """Encode a length-delimited field: a message, string or bytes of that field number, empty ones too."""
    return varint(number << 3 | _DELIMITED) + varint(len(payload)) + payload


class Encoder:
    """Encode messages, keeping one compiled writer a class. Hold one and pass it on; it is safe to share."""

    def __init__(self) -> None:
        self._compiled: dict[type[Message], tuple[tuple[str, bool, Write], ...]] = {}

    def encode(self, message: Message) -> bytes:
        """Return what `bytes(message)` returns, with maps in key order."""
        fields = self._compiled.get(type(message)) or self._compile(type(message))
        values = message.__dict__  # by-passes the warnings that reading a deprecated field gives
        parts = [
            write(value)
            for name, explicit, write in fields
            if (value := values[name]) is not None and (explicit or value)  # a message's own truth is slow to tell
        ]
        parts.append(message._unknown_fields)
        return b"".join(parts)

    def pack(self, message: Message) -> protobuf.Any:
        """Wrap a message in an `Any`, for typed extension configurations."""
        return protobuf.Any(type_url=default_message_pool.type_to_url[type(message)], value=self.encode(message))

    def _compile(self, cls: type[Message]) -> tuple[tuple[str, bool, Write], ...]:
        """Turn a class's metadata into (attribute, whether zero is written too, writer), in the stock order."""
        fields = []
        described: Any = cls  # betterproto2's annotation of this class property admits no class
        for name, meta in described._betterproto.meta_by_field_name.items():
            explicit = bool(meta.optional or meta.group) or (
                meta.proto_type == betterproto2.TYPE_MESSAGE and not meta.repeated
            )
            fields.append((name, explicit, self._field(meta)))
        self._compiled[cls] = compiled = tuple(fields)
        return compiled

    def _field(self, meta: FieldMetadata) -> Write:
        if meta.map_meta is not None:
            key, value = (self._single(part) for part in meta.map_meta)
            return partial(_write_map, meta.number, key, value)
        if meta.repeated and meta.proto_type in betterproto2.PACKED_TYPES:
            return partial(_write_packed, meta.number, self._payload(meta))
        write = self._single(meta)
        return partial(_write_repeated, write) if meta.repeated else write

    def _single(self, meta: FieldMetadata) -> Write:
        """Return the writer of one value with its tag."""
        payload = self._payload(meta)
        if meta.proto_type in _VARINTS or meta.proto_type in _ZIGZAGS:
            return partial(_write_scalar, varint(meta.number << 3), payload)
        if meta.proto_type in _FIXED:
            return partial(_write_scalar, varint(meta.number << 3 | _FIXED[meta.proto_type][0]), payload)
        return partial(_write_delimited, varint(meta.number << 3 | _DELIMITED), payload)

    def _payload(self, meta: FieldMetadata) -> Write:
        """Return the writer of one value without its tag."""
        if meta.proto_type != betterproto2.TYPE_MESSAGE:
            return _scalar(meta.proto_type)
        if meta.unwrap is None:
            return self.encode
        wrapper: Any = meta.unwrap()
        if wrapper in _VALUE_WRAPPERS:
            value = self._single(FieldMetadata(1, _VALUE_WRAPPERS[wrapper]))
            return lambda wrapped: value(wrapped) if wrapped else b""
        if wrapper is protobuf.Duration:
            return _write_duration
        return lambda wrapped: self.encode(wrapper.from_wrapped(wrapped))


def _scalar(proto_type: str) -> Write:
    if proto_type in _VARINTS:
        return varint
    if proto_type in _ZIGZAGS:
        return lambda value: varint(value << 1 if value >= 0 else ~(value << 1))
    if proto_type in _FIXED:
        return struct.Struct(_FIXED[proto_type][1]).pack
    return str.encode if proto_type == betterproto2.TYPE_STRING else bytes


def _write_scalar(tag: bytes, payload: Write, value: Any) -> bytes:
    return tag + payload(value)


def _write_delimited(tag: bytes, payload: Write, value: Any) -> bytes:
    body = payload(value)
    return tag + varint(len(body)) + body


def _write_repeated(write: Write, values: list[Any]) -> bytes:
    return b"".join(map(write, values))


def _write_packed(number: int, payload: Write, values: list[Any]) -> bytes:
    return frame(number, b"".join(map(payload, values)))


def _write_map(number: int, key: Write, value: Write, entries: dict[Any, Any]) -> bytes:
    return b"".join(frame(number, key(k) + value(entries[k])) for k in sorted(entries))


def _write_duration(value: timedelta) -> bytes:
    """Spell a Duration as the library does, in whole microseconds."""
    microseconds = value // _MICROSECOND
    seconds, nanos = int(microseconds / 1e6), microseconds % 1_000_000 * 1_000
    return (b"\x08" + varint(seconds) if seconds else b"") + (b"\x10" + varint(nanos) if nanos else b"")
