"""Spell discovery responses: the join of bytes that the resources already are, once for all who are told the same.

No sockets, no protocol decisions; the tests hold it against the generated messages. Field numbers are those of
`envoy/service/discovery/v3/discovery.proto`.
"""

from collections import OrderedDict
from dataclasses import dataclass

from xds.messages import Response
from xds.types import Resource
from xds.wire import any_of, block, encoded_varint, string_field

_RESPONSE_BYTES = 500  # what a remembered response costs beside its bytes
_NAME_BYTES = 100  # and a removed name beside its letters
_MANY = 16  # resources: from here on a response's tuple of them is worth being recognised as an object
_LARGE_BYTES = 64 * 1024  # from here on appending a nonce is worth being done once


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
        control_plane = string_field(0x0A, identifier)
        self._sotw_tail = block(0x32, control_plane)
        self._delta_tail = block(0x3A, control_plane)
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
            whole = ready.body + string_field(0x2A, response.nonce)
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
        parts = [string_field(0x0A, response.version), string_field(0x22, response.type_url), self._sotw_tail]
        url = string_field(0x0A, response.type_url)
        for resource in response.resources:
            body = resource.body
            if body:
                size = encoded_varint(len(body))
                total = len(url) + 1 + len(size) + len(body)
                parts += (b"\x12", encoded_varint(total), url, b"\x12", size, body)
            else:
                parts.append(block(0x12, url))
        return b"".join(parts)

    def _delta(self, response: Response) -> bytes:
        parts = [string_field(0x0A, response.version), string_field(0x22, response.type_url), self._delta_tail]
        parts += (block(0x32, name.encode()) for name in response.removed)
        for resource in response.resources:
            head = string_field(0x0A, resource.version) + string_field(0x1A, resource.name)
            head += b"".join(block(0x22, alias.encode()) for alias in resource.aliases)
            if resource.unset:
                parts += (b"\x12", encoded_varint(len(head)), head)
                continue
            packed = any_of(response.type_url, resource.body)
            size = encoded_varint(len(packed))
            total = len(head) + 1 + len(size) + len(packed)
            parts += (b"\x12", encoded_varint(total), head, b"\x12", size, packed)
        return b"".join(parts)
