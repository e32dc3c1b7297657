"""Protobuf's wire format, as far as discovery messages need it: fields that are walked and spelled by hand.

No message is known here: `nodes` and `requests` read with it, `responses` writes with it. By hand and not by a
protobuf library, for a message whose fields are walked can be recognised, or stepped over, without being parsed.
"""

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Field = tuple[int, int, int, int]  # number, wire type, where the value starts (a varint: the value), where it ends


class WireError(Exception):
    """Say why bytes are not the message they should be."""


def read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Read a base-128 varint at `at`; return it and where it ends."""
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
        if shift > 63:
            raise WireError(f"a varint at byte {at} has more than ten bytes")
    raise WireError(f"the message ends inside a varint at byte {at}")


def walk(data: bytes, at: int, end: int) -> Iterator[Field]:
    """Walk the fields of a message that lies in `data[at:end]`, without copying any of it."""
    while at < end:
        tag = data[at]
        at += 1
        if tag >= 0x80:
            tag, at = read_varint(data, at - 1, end)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise WireError(f"field number 0 at byte {at}")
        if wire_type == BYTES:
            size, start = read_varint(data, at, end)
            at = start + size
        elif wire_type == VARINT:
            value, at = read_varint(data, at, end)
            yield number, wire_type, value, at
            continue
        elif wire_type == FIXED64:
            start, at = at, at + 8
        elif wire_type == FIXED32:
            start, at = at, at + 4
        else:
            raise WireError(f"field {number} at byte {at} has the unknown wire type {wire_type}")
        if at > end:
            raise WireError(f"field {number} is {at - end} bytes longer than the message")
        yield number, wire_type, start, at


def span_of(field: Field) -> tuple[int, int]:
    """Return where a length-delimited field's value starts and ends."""
    number, wire_type, start, end = field
    if wire_type != BYTES:
        raise WireError(f"field {number} should be length-delimited, its wire type is {wire_type}")
    return start, end


def text_of(data: bytes, field: Field) -> str:
    """Read a string field."""
    start, end = span_of(field)
    try:
        return data[start:end].decode()
    except UnicodeDecodeError as error:
        raise WireError(f"field {field[0]} is not UTF-8: {error}") from error


def number_of(field: Field) -> int:
    """Read a varint field."""
    number, wire_type, value, _ = field
    if wire_type != VARINT:
        raise WireError(f"field {number} should be a varint, its wire type is {wire_type}")
    return value


def encoded_varint(value: int) -> bytes:
    """Spell a varint."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def block(tag: int, value: bytes) -> bytes:
    """Spell a length-delimited field whose tag is one byte."""
    return bytes((tag,)) + encoded_varint(len(value)) + value


def string_field(tag: int, value: str) -> bytes:
    """Spell a string field; nothing for an empty one."""
    return block(tag, value.encode()) if value else b""


def any_of(type_url: str, body: bytes) -> bytes:
    """Wrap a message's bytes in a google.protobuf.Any."""
    return string_field(0x0A, type_url) + (block(0x12, body) if body else b"")
