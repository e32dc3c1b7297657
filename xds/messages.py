"""What goes into the protocol machine and what comes out: requests, responses, events. Values only.

`xds.requests` and `xds.responses` spell the first two as bytes; `xds.status`, metrics and logs listen to the events.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from xds.types import Resource


@dataclass(frozen=True, slots=True)
class Error:
    """Hold the `error_detail` of a request: its presence, not the version, makes it a NACK (S-05)."""

    code: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SotwRequest:
    """Ask for exactly `names` of a type, and answer the response with `nonce`."""

    type_url: str
    names: frozenset[str] = frozenset()
    version: str = ""
    nonce: str = ""
    error: Error | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaRequest:
    """Add and remove names of a type, and answer the response with `nonce`."""

    type_url: str
    subscribe: Collection[str] = frozenset()
    unsubscribe: Collection[str] = ()
    initial_versions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    nonce: str = ""
    error: Error | None = None


Request = SotwRequest | DeltaRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """Tell a client resources of one type; `removed` exists on the wire in Delta only.

    `version` is the version of the whole content in SotW, and for the eye only in Delta.
    """

    type_url: str
    version: str
    nonce: str
    resources: tuple[Resource, ...] = ()
    removed: tuple[str, ...] = ()
    delta: bool
    revision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribed:
    """Say that a client changed what it asks for; `names` counts the explicit ones."""

    type_url: str
    added: Collection[str]
    dropped: Collection[str]
    wildcard: bool
    names: int
    known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Say that a response is on its way; built by whoever sends it. `size_bytes` is that of the whole message."""

    type_url: str
    version: str
    nonce: str
    revision: str
    resources: int
    removed: int
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Acked:
    """Say that a client applied a response.

    `names` are the resources that the response changed or removed. `offered_at` is the time that was given to
    `offer` with the oldest change in it, or None where it answered a request. `settled` says that the type
    owes nothing more; `refused` names what stays quarantined, and `splitting` says that parts of a refused batch are
    still to be tried.
    """

    type_url: str
    version: str
    nonce: str
    revision: str
    names: Collection[str]
    offered_at: float | None
    settled: bool
    refused: tuple[str, ...]
    splitting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Nacked:
    """Say that a client rejected a response, in its own words; `names` are the suspects.

    `splitting` says that parts of a refused batch, of this one or an earlier one, are still to be tried.
    """

    type_url: str
    version: str
    nonce: str
    revision: str
    names: tuple[str, ...]
    code: int
    message: str
    splitting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """Say that a client took note of a response without applying it: old version, new nonce, no error (S-06)."""

    type_url: str
    version: str
    nonce: str
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outdated:
    """Say that a request answers a response which is not the last one (S-07, D-11)."""

    type_url: str
    nonce: str


@dataclass(frozen=True, slots=True)
class Regrouped:
    """Say that a client's node or group is another one now: both are in the `StreamInfo` that comes along (N-04)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """Say that the stream is over; `unanswered` are the types whose last response had no answer."""

    unanswered: tuple[str, ...]


Event = Subscribed | Sent | Acked | Nacked | Ignored | Outdated | Regrouped | Closed
