"""Read discovery requests: protobuf bytes to `xds.messages` values, with a memory of what a stream said before.

A request that repeats a thousand names is recognised without parsing them again, and so is a node. No sockets, no
protocol decisions; the tests hold it against the generated messages. Field numbers are those of
`envoy/service/discovery/v3/discovery.proto`.
"""

from collections import OrderedDict
from types import MappingProxyType
from typing import NamedTuple

from xds.messages import DeltaRequest, Error, Request, SotwRequest
from xds.nodes import read_node, string_pair
from xds.types import Node
from xds.wire import WireError, number_of, read_varint, span_of, text_of, walk

_NAMES_TAG = 0x1A  # DiscoveryRequest.resource_names
_POOL_BYTES = 16 * 1024 * 1024
_NAME_BYTES = 100  # what a name costs beside its letters: the string object, and its place in the set
_NO_NAMES: frozenset[str] = frozenset()
_MAX_SHAPES = 12  # ACKs of a type differ in length as their nonces grow: those of a few types, and the newest
_MAX_SHAPE_BYTES = 512  # beside the names; an ACK that repeats a whole node costs more to keep than to read


def _error(data: bytes, start: int, end: int) -> Error:
    code, message = 0, ""
    for field in walk(data, start, end):
        if field[0] == 1:
            code = number_of(field)
        elif field[0] == 2:
            message = text_of(data, field)
    return Error(code, message)


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
    return frozenset(text_of(raw, field) for field in walk(raw, 0, len(raw)))


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
        node, skipped_from, skipped_to = read_node(data, start, end)
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
            field = next(walk(data, at, end))
            match field[0]:
                case 1:
                    version, version_at = text_of(data, field), (field[2], field[3])
                case 2:
                    self._see_node(data, *span_of(field))
                case 4:
                    type_url = text_of(data, field)
                case 5:
                    nonce, nonce_at = text_of(data, field), (field[2], field[3])
                case 6:
                    error = _error(data, *span_of(field))
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
            field = next(walk(data, at, end))
            match field[0]:
                case 1:
                    self._see_node(data, *span_of(field))
                case 2:
                    type_url = text_of(data, field)
                case 4:
                    unsubscribe.append(text_of(data, field))
                case 5:
                    name, version = string_pair(data, *span_of(field))
                    versions[name] = version
                case 6:
                    nonce, nonce_at = text_of(data, field), (field[2], field[3])
                case 7:
                    error = _error(data, *span_of(field))
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
            size, at = read_varint(data, at - 1, end)
        at += size
    if at > end:
        raise WireError(f"field 3 is {at - end} bytes longer than the message")
    return at
