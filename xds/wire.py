"""Spell discovery requests and responses: protobuf bytes on one side, `xds.protocol` dataclasses on the other.

A scanner and an assembler by hand, not a protobuf library: Envoy's first request is 61 kB of node extensions
that nobody here reads, a request that repeats a thousand names is recognised without parsing them again, and a
response is the join of bytes that the resources already are. No sockets, no protocol decisions; the tests hold
both directions against the generated messages.

Field numbers are those of `envoy/service/discovery/v3/discovery.proto` and `envoy/config/core/v3/base.proto`.
"""

import struct
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from xds.protocol import DeltaRequest, Error, Request, Response, SotwRequest
from xds.types import Node, Resource

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_NAMES_TAG = 0x1A  # DiscoveryRequest.resource_names
_MAX_STRUCT_DEPTH = 100  # as protobuf's own parsers
_POOL_BYTES = 16 * 1024 * 1024
_RESPONSE_BYTES = 500  # what a remembered response costs beside its bytes
_NAME_BYTES = 100  # what a name costs beside its letters: the string object, and its place in the set
_MANY = 16  # resources: from here on a response's tuple of them is worth being recognised as an object
_LARGE_BYTES = 64 * 1024  # from here on appending a nonce is worth being done once
_NO_NAMES: frozenset[str] = frozenset()
_MAX_SHAPES = 12  # ACKs of a type differ in length as their nonces grow: those of a few types, and the newest
_MAX_SHAPE_BYTES = 512  # beside the names; an ACK that repeats a whole node costs more to keep than to read

Field = tuple[int, int, int, int]  # number, wire type, where the value starts (a varint: the value), where it ends


class WireError(Exception):
    """Say why bytes are not the message they should be."""


# Reading -------------------------------------------------------------------------------------------------


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
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


def _fields(data: bytes, at: int, end: int) -> Iterator[Field]:
    """Walk the fields of a message that lies in `data[at:end]`, without copying any of it."""
    while at < end:
        tag = data[at]
        at += 1
        if tag >= 0x80:
            tag, at = _varint(data, at - 1, end)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise WireError(f"field number 0 at byte {at}")
        if wire_type == _BYTES:
            size, start = _varint(data, at, end)
            at = start + size
        elif wire_type == _VARINT:
            value, at = _varint(data, at, end)
            yield number, wire_type, value, at
            continue
        elif wire_type == _FIXED64:
            start, at = at, at + 8
        elif wire_type == _FIXED32:
            start, at = at, at + 4
        else:
            raise WireError(f"field {number} at byte {at} has the unknown wire type {wire_type}")
        if at > end:
            raise WireError(f"field {number} is {at - end} bytes longer than the message")
        yield number, wire_type, start, at


def _sized(field: Field) -> tuple[int, int]:
    number, wire_type, start, end = field
    if wire_type != _BYTES:
        raise WireError(f"field {number} should be length-delimited, its wire type is {wire_type}")
    return start, end


def _text(data: bytes, field: Field) -> str:
    start, end = _sized(field)
    try:
        return data[start:end].decode()
    except UnicodeDecodeError as error:
        raise WireError(f"field {field[0]} is not UTF-8: {error}") from error


def _number(field: Field) -> int:
    number, wire_type, value, _ = field
    if wire_type != _VARINT:
        raise WireError(f"field {number} should be a varint, its wire type is {wire_type}")
    return value


def _error(data: bytes, start: int, end: int) -> Error:
    code, message = 0, ""
    for field in _fields(data, start, end):
        if field[0] == 1:
            code = _number(field)
        elif field[0] == 2:
            message = _text(data, field)
    return Error(code, message)


def _string_pair(data: bytes, start: int, end: int) -> tuple[str, str]:
    key = value = ""
    for field in _fields(data, start, end):
        if field[0] == 1:
            key = _text(data, field)
        elif field[0] == 2:
            value = _text(data, field)
    return key, value


def _struct(data: bytes, start: int, end: int, depth: int) -> dict[str, object]:
    if depth > _MAX_STRUCT_DEPTH:
        raise WireError(f"node metadata is nested deeper than {_MAX_STRUCT_DEPTH}")
    found: dict[str, object] = {}
    for field in _fields(data, start, end):
        if field[0] != 1:
            continue
        key, value = "", None
        for part in _fields(data, *_sized(field)):
            if part[0] == 1:
                key = _text(data, part)
            elif part[0] == 2:
                value = _value(data, *_sized(part), depth)
        found[key] = value
    return found


def _value(data: bytes, start: int, end: int, depth: int) -> object:
    """Read a google.protobuf.Value as the JSON value it stands for."""
    value: object = None
    for field in _fields(data, start, end):
        match field[0]:
            case 1:
                value = None
            case 2:
                if field[1] != _FIXED64:
                    raise WireError("a number in node metadata is not a double")
                value = struct.unpack_from("<d", data, field[2])[0]
            case 3:
                value = _text(data, field)
            case 4:
                value = bool(_number(field))
            case 5:
                value = _struct(data, *_sized(field), depth + 1)
            case 6:
                if depth > _MAX_STRUCT_DEPTH:
                    raise WireError(f"node metadata is nested deeper than {_MAX_STRUCT_DEPTH}")
                items = (part for part in _fields(data, *_sized(field)) if part[0] == 1)
                value = [_value(data, *_sized(part), depth + 1) for part in items]
    return value


def _build_version(data: bytes, start: int, end: int) -> str:
    """Read a BuildVersion's semantic version as `major.minor.patch`."""
    numbers = [0, 0, 0]
    for field in _fields(data, start, end):
        if field[0] == 1:
            for part in _fields(data, *_sized(field)):
                if 1 <= part[0] <= 3:
                    numbers[part[0] - 1] = _number(part)
    return ".".join(map(str, numbers))


def _node(data: bytes, start: int, end: int) -> tuple[Node, int, int]:
    """Read a Node and step over its extensions (field 9); tell where those begin and end."""
    texts = {1: "", 2: "", 6: "", 7: ""}
    metadata: dict[str, object] = {}
    place = {1: "", 2: "", 3: ""}
    features = set()
    dynamic: dict[str, Mapping[str, str]] = {}
    before, skipped_from, skipped_to = start, end, end
    for field in _fields(data, start, end):
        match field[0]:
            case 1 | 2 | 6 | 7:
                texts[field[0]] = _text(data, field)
            case 3:
                metadata |= _struct(data, *_sized(field), 0)
            case 4:
                for part in _fields(data, *_sized(field)):
                    if part[0] in place:
                        place[part[0]] = _text(data, part)
            case 8:
                texts[7] = _build_version(data, *_sized(field))
            case 9:
                skipped_from, skipped_to = min(skipped_from, before), field[3]
            case 10:
                features.add(_text(data, field))
            case 12:
                type_url, parameters = _context_parameters(data, *_sized(field))
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
    for field in _fields(data, start, end):
        if field[0] == 1:
            type_url = _text(data, field)
        elif field[0] == 2:
            pairs = (part for part in _fields(data, *_sized(field)) if part[0] == 1)
            parameters = dict(_string_pair(data, *_sized(part)) for part in pairs)
    return type_url, parameters


class _Seen(NamedTuple):
    """Recognise a node that comes again by all of its bytes but its extensions, without keeping either (N-03)."""

    size: int
    head: int
    tail: int
    hashes: tuple[int, int]

    @classmethod
    def of(cls, data: bytes, start: int, end: int, head: int, tail: int) -> "_Seen":
        """Look at the first `head` and the last `tail` bytes of a node: Envoy's 61 kB of extensions lie between."""
        return cls(end - start, head, tail, (hash(data[start : start + head]), hash(data[end - tail : end])))


def parse_names(raw: bytes) -> frozenset[str]:
    """Read consecutive `resource_names` fields."""
    return frozenset(_text(raw, field) for field in _fields(raw, 0, len(raw)))


class NamesPool:
    """Remember lists of names: equal clients ask for equal lists, and may share one copy of bytes and set.

    What is remembered is bounded by `budget_bytes`, not by the number of lists: those may be of any length. A
    list that is larger than that is read, and not remembered.
    """

    __slots__ = ("_budget_bytes", "_ready", "remembered_bytes")

    def __init__(self, *, budget_bytes: int = _POOL_BYTES) -> None:
        self._budget_bytes = budget_bytes
        self._ready: OrderedDict[bytes, tuple[bytes, frozenset[str]]] = OrderedDict()
        self.remembered_bytes = 0

    def find(self, raw: bytes) -> tuple[bytes, frozenset[str]]:
        """Read consecutive `resource_names` fields; return their bytes and the names, the same objects for all."""
        if (ready := self._ready.get(raw)) is not None:
            self._ready.move_to_end(raw)
            return ready
        names = parse_names(raw)
        if _cost(raw, names) <= self._budget_bytes:
            self._ready[raw] = raw, names
            self.remembered_bytes += _cost(raw, names)
        while self.remembered_bytes > self._budget_bytes:
            _, oldest = self._ready.popitem(last=False)
            self.remembered_bytes -= _cost(*oldest)
        return raw, names


def _cost(raw: bytes, names: frozenset[str]) -> int:
    return 2 * len(raw) + _NAME_BYTES * len(names)


class _Shape:
    """Remember an ACK by where its version and nonce stand: the next one differs in nothing else.

    Recognising it costs comparisons of bytes. The bytes of a list of names are the pool's, shared with other clients.
    """

    __slots__ = ("_constant", "_names", "_nonce", "_type_url", "_version")

    def __init__(
        self,
        data: bytes,
        *,
        type_url: str,
        version: tuple[int, int] | None,
        nonce: tuple[int, int],
        run: tuple[int, bytes] | None,
        names: frozenset[str],
    ) -> None:
        self._type_url = type_url
        self._version = version
        self._nonce = nonce
        self._names = names
        self._constant: list[tuple[int, bytes]] = []
        known = [(start, end, b"") for start, end in (version or (0, 0), nonce)]
        if run is not None:
            known.append((run[0], run[0] + len(run[1]), run[1]))
        at = 0
        for start, end, shared in sorted(known):
            if at < start:
                self._constant.append((at, data[at:start]))
            if shared:
                self._constant.append((start, shared))
            at = max(at, end)
        if at < len(data):
            self._constant.append((at, data[at:]))

    def fits(self, data: bytes) -> bool:
        """Say whether a message of the same length is the same but for version and nonce."""
        return all(data.startswith(part, at) for at, part in self._constant)

    def outdates(self, older: "_Shape") -> bool:
        """Say whether this one asks for other names of the same type: then the older one does not come again."""
        return self._type_url == older._type_url and self._names is not older._names

    def sotw(self, data: bytes) -> SotwRequest:
        """Read an ACK that fits."""
        version = "" if self._version is None else data[slice(*self._version)].decode()
        nonce = data[slice(*self._nonce)].decode()
        return SotwRequest(type_url=self._type_url, names=self._names, version=version, nonce=nonce)

    def delta(self, data: bytes) -> DeltaRequest:
        """Read an ACK that fits."""
        return DeltaRequest(type_url=self._type_url, nonce=data[slice(*self._nonce)].decode())


class RequestReader:
    """Read the requests of one stream, with a memory of what the stream said before.

    It remembers the node, which comes with the first request and may come with each (N-01, N-03), and what its
    latest ACKs looked like, so that the next costs comparisons of bytes whatever it repeats. Lists of names are
    looked up in the pool before they are parsed. `node` is another object once the client has told something else of
    itself.
    """

    __slots__ = ("_delta", "_pool", "_seen", "_shapes", "node")

    def __init__(self, *, delta: bool, pool: NamesPool | None = None) -> None:
        self._delta = delta
        self._pool = pool if pool is not None else NamesPool(budget_bytes=0)
        self._shapes: dict[int, _Shape] = {}
        self._seen: _Seen | None = None
        self.node: Node | None = None

    def read(self, data: bytes) -> Request:
        """Read one request.

        Raises:
            WireError: the bytes are no such request, or the node became another one (N-04).
        """
        shape = self._shapes.get(len(data))
        if shape is not None and shape.fits(data):
            try:
                return shape.delta(data) if self._delta else shape.sotw(data)
            except UnicodeDecodeError as error:
                raise WireError(f"version or nonce is not UTF-8: {error}") from error
        return self._read_delta(data) if self._delta else self._read_sotw(data)

    def _see_node(self, data: bytes, start: int, end: int) -> None:
        seen = self._seen
        if seen is not None and seen == _Seen.of(data, start, end, seen.head, seen.tail):
            return
        node, skipped_from, skipped_to = _node(data, start, end)
        if self.node is not None:
            was, now = (self.node.id, self.node.cluster), (node.id, node.cluster)
            if not any(now):
                return
            if now != was:
                raise WireError(f"the node changed from {was} to {now}; a node keeps id and cluster for a stream")
        if node != self.node:
            self.node = node
            self._shapes.clear()  # one of them may repeat the node that was
        self._seen = _Seen.of(data, start, end, skipped_from - start, end - skipped_to)

    def _remember(self, data: bytes, shape: _Shape) -> None:
        # A list may have any length: only the newest of a type is kept, which the subscription keeps as well.
        self._shapes = {size: older for size, older in self._shapes.items() if not shape.outdates(older)}
        if len(self._shapes) >= _MAX_SHAPES and len(data) not in self._shapes:
            del self._shapes[next(iter(self._shapes))]
        self._shapes[len(data)] = shape

    def _read_sotw(self, data: bytes) -> SotwRequest:
        version = type_url = nonce = ""
        version_at: tuple[int, int] | None = None
        nonce_at: tuple[int, int] | None = None
        error = None
        runs: list[tuple[int, bytes]] = []
        at, end = 0, len(data)
        while at < end:
            if data[at] == _NAMES_TAG:
                after = _end_of_names(data, at, end)
                runs.append((at, data[at:after]))
                at = after
                continue
            field = next(_fields(data, at, end))
            match field[0]:
                case 1:
                    version, version_at = _text(data, field), (field[2], field[3])
                case 2:
                    self._see_node(data, *_sized(field))
                case 4:
                    type_url = _text(data, field)
                case 5:
                    nonce, nonce_at = _text(data, field), (field[2], field[3])
                case 6:
                    error = _error(data, *_sized(field))
            at = field[3]
        raw, names = self._pool.find(b"".join(run for _, run in runs)) if runs else (b"", _NO_NAMES)
        small = len(data) - len(raw) <= _MAX_SHAPE_BYTES
        if nonce and nonce_at is not None and error is None and len(runs) <= 1 and small:
            run = (runs[0][0], raw) if runs else None
            shape = _Shape(data, type_url=type_url, version=version_at, nonce=nonce_at, run=run, names=names)
            self._remember(data, shape)
        return SotwRequest(type_url=type_url, names=names, version=version, nonce=nonce, error=error)

    def _read_delta(self, data: bytes) -> DeltaRequest:
        type_url = nonce = ""
        nonce_at: tuple[int, int] | None = None
        error = None
        runs: list[bytes] = []
        unsubscribe: list[str] = []
        versions: dict[str, str] = {}
        at, end = 0, len(data)
        while at < end:
            if data[at] == _NAMES_TAG:
                after = _end_of_names(data, at, end)
                runs.append(data[at:after])
                at = after
                continue
            field = next(_fields(data, at, end))
            match field[0]:
                case 1:
                    self._see_node(data, *_sized(field))
                case 2:
                    type_url = _text(data, field)
                case 4:
                    unsubscribe.append(_text(data, field))
                case 5:
                    name, version = _string_pair(data, *_sized(field))
                    versions[name] = version
                case 6:
                    nonce, nonce_at = _text(data, field), (field[2], field[3])
                case 7:
                    error = _error(data, *_sized(field))
            at = field[3]
        asks = runs or unsubscribe or versions
        if nonce and nonce_at is not None and error is None and not asks and len(data) <= _MAX_SHAPE_BYTES:
            shape = _Shape(data, type_url=type_url, version=None, nonce=nonce_at, run=None, names=_NO_NAMES)
            self._remember(data, shape)
        return DeltaRequest(
            type_url=type_url,
            subscribe=self._pool.find(b"".join(runs))[1] if runs else _NO_NAMES,
            unsubscribe=tuple(unsubscribe),
            initial_versions=MappingProxyType(versions),
            nonce=nonce,
            error=error,
        )


def _end_of_names(data: bytes, at: int, end: int) -> int:
    """Find the end of a run of `resource_names` fields that begins at `at`."""
    while at < end and data[at] == _NAMES_TAG:
        size = data[at + 1] if at + 1 < end else 0x80
        at += 2
        if size >= 0x80:
            size, at = _varint(data, at - 1, end)
        at += size
    if at > end:
        raise WireError(f"field 3 is {at - end} bytes longer than the message")
    return at


# Writing -------------------------------------------------------------------------------------------------


def _encoded_varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _block(tag: int, value: bytes) -> bytes:
    return bytes((tag,)) + _encoded_varint(len(value)) + value


def _string(tag: int, value: str) -> bytes:
    return _block(tag, value.encode()) if value else b""


def any_of(type_url: str, body: bytes) -> bytes:
    """Wrap a message's bytes in a google.protobuf.Any."""
    return _string(0x0A, type_url) + (_block(0x12, body) if body else b"")


@dataclass(slots=True)
class _Ready:
    """Keep the bytes of a response without its nonce and, of a large one, with the nonce that it had last."""

    body: bytes
    resources: tuple[Resource, ...]
    overhead: int
    nonce: str = ""
    whole: bytes = b""

    @property
    def cost(self) -> int:
        """Return what remembering it costs, in bytes."""
        return len(self.body) + len(self.whole) + self.overhead


class ResponseWriter:
    """Assemble responses, once for all streams that are told the same.

    Everything but the nonce is shared; the nonce is appended, since protobuf lets fields come in any order.
    What is remembered is bounded by `budget_bytes`.
    """

    def __init__(self, identifier: str, *, budget_bytes: int = 32 * 1024 * 1024) -> None:
        control_plane = _string(0x0A, identifier)
        self._sotw_tail = _block(0x32, control_plane)
        self._delta_tail = _block(0x3A, control_plane)
        self._budget_bytes = budget_bytes
        self.remembered_bytes = 0
        # The key holds identities of resources; the value keeps those resources alive, so they stay theirs.
        self._ready: OrderedDict[tuple[object, ...], _Ready] = OrderedDict()

    def write(self, response: Response) -> bytes:
        """Spell a response."""
        resources = response.resources
        # A long tuple is the one of all that hold the same set; short ones are made anew for each client.
        content = tuple(map(id, resources)) if len(resources) < _MANY else id(resources)
        key = (content, response.type_url, response.version, response.removed, response.delta)
        ready = self._ready.get(key)
        if ready is None:
            body = self._delta(response) if response.delta else self._sotw(response)
            overhead = _RESPONSE_BYTES + _NAME_BYTES * len(response.removed)
            ready = self._ready[key] = _Ready(body, resources, overhead)
            self._remembered(ready.cost)
        elif self._ready:
            self._ready.move_to_end(key)
        if ready.nonce != response.nonce:
            whole = ready.body + _string(0x2A, response.nonce)
            if len(whole) < _LARGE_BYTES:
                return whole
            grown = len(whole) - len(ready.whole)
            ready.nonce, ready.whole = response.nonce, whole  # the first answers to equal clients have one nonce, too
            if key in self._ready:  # one that is larger than the budget is not remembered
                self._remembered(grown)
        return ready.whole

    def _remembered(self, more_bytes: int) -> None:
        self.remembered_bytes += more_bytes
        while self.remembered_bytes > self._budget_bytes and self._ready:
            _, dropped = self._ready.popitem(last=False)
            self.remembered_bytes -= dropped.cost

    def _sotw(self, response: Response) -> bytes:
        parts = [_string(0x0A, response.version), _string(0x22, response.type_url), self._sotw_tail]
        url = _string(0x0A, response.type_url)
        for resource in response.resources:
            body = resource.body
            if body:
                size = _encoded_varint(len(body))
                total = len(url) + 1 + len(size) + len(body)
                parts += (b"\x12", _encoded_varint(total), url, b"\x12", size, body)
            else:
                parts.append(_block(0x12, url))
        return b"".join(parts)

    def _delta(self, response: Response) -> bytes:
        parts = [_string(0x0A, response.version), _string(0x22, response.type_url), self._delta_tail]
        parts += (_block(0x32, name.encode()) for name in response.removed)
        for resource in response.resources:
            head = _string(0x0A, resource.version) + _string(0x1A, resource.name)
            head += b"".join(_block(0x22, alias.encode()) for alias in resource.aliases)
            if resource.unset:
                parts += (b"\x12", _encoded_varint(len(head)), head)
                continue
            packed = any_of(response.type_url, resource.body)
            size = _encoded_varint(len(packed))
            total = len(head) + 1 + len(size) + len(packed)
            parts += (b"\x12", _encoded_varint(total), head, b"\x12", size, packed)
        return b"".join(parts)
