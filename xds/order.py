"""What sets the resource types apart, and the order in which they go to a client: make before break as a table.

Constants only. A further type is a `Kind` and its rows; a type without rows is served last and unordered.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Flag, auto
from types import MappingProxyType

from xds.types import (
    CLUSTER,
    ENDPOINT,
    EXTENSION,
    LISTENER,
    ROUTE,
    RUNTIME,
    SCOPED_ROUTE,
    SECRET,
    VIRTUAL_HOST,
    Resource,
)

ABSENT = "absent"
"""The version of what stands for a missing resource. Its content follows from the name, so there is nothing to hash;
and no resource that exists has it."""


def _empty_assignment(name: str) -> Resource:
    """Spell a ClusterLoadAssignment that has a name (field 1) and no endpoints."""
    raw = name.encode()
    length, size = len(raw), bytearray()
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return Resource(name, ABSENT, b"\x0a" + bytes(size) + bytes((length,)) + raw)


def _unknown_host(name: str) -> Resource:
    """Say that there is no virtual host of a name: the name, itself as the alias, and no resource (V-01)."""
    return Resource(name, ABSENT, b"", aliases=(name,), unset=True)


@dataclass(frozen=True, slots=True)
class Kind:
    """Describe what sets a resource type apart.

    `full`: a SotW response is the whole state, absence deletes, and an empty first request means everything
    (G-01, G-03, W-07). `parents`: the types that may refer to this one, so that nothing is removed from under
    them. `resent_with_parents`: a re-sent parent waits for this one again (O-01). `resent_below`: so it does for
    every name that begins with the parent's and a `/` (V-02). `empty`: how to spell the absence of a resource whose
    removal clients ignore (G-07, D-15). `empty_for_unknown`: a Delta client that asks in vain is told so, too.
    """

    type_url: str
    full: bool = False
    parents: tuple[str, ...] = ()
    resent_with_parents: bool = False
    resent_below: str = ""
    empty: Callable[[str], Resource] | None = None
    empty_for_unknown: bool = False

    def absent(self, name: str) -> Resource:
        """Make the empty resource that stands for a missing one."""
        return self.empty(name) if self.empty is not None else Resource(name, ABSENT, b"")


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.type_url: kind
        for kind in (
            Kind(CLUSTER, full=True, parents=(LISTENER, ROUTE, VIRTUAL_HOST)),
            Kind(ENDPOINT, parents=(CLUSTER,), resent_with_parents=True, empty=_empty_assignment),
            Kind(LISTENER, full=True),
            Kind(ROUTE, parents=(LISTENER, SCOPED_ROUTE)),
            # Envoy has no other way to ask for its scopes than an empty list.
            Kind(SCOPED_ROUTE, full=True),
            Kind(VIRTUAL_HOST, resent_below=ROUTE, empty=_unknown_host, empty_for_unknown=True),
            Kind(SECRET, parents=(CLUSTER, LISTENER)),
            Kind(EXTENSION, parents=(LISTENER,)),
            Kind(RUNTIME),
        )
    }
)


WITH_CHILDREN = frozenset(
    parent
    for kind in KINDS.values()
    for parent in (*(kind.parents if kind.resent_with_parents else ()), kind.resent_below)
    if parent
)
"""The types whose resources, when they are sent, are waited for by the client until their children are sent again."""


class Step(Flag):
    """Name the half of an update: what comes into being, or what goes."""

    MAKE = auto()
    BREAK = auto()


@dataclass(frozen=True, slots=True)
class Row:
    """Let a type take a step, once no response of the types in `after` is unanswered.

    Of the types in `first` it waits for no more than the first answer about each name. They may change without
    end, and a wait for their newest version would never be over.
    """

    type_url: str
    step: Step
    after: tuple[str, ...] = ()
    first: tuple[str, ...] = ()


_REST = (CLUSTER, LISTENER, ROUTE)

# Assignments and secrets follow clusters on the wire but do not wait for their ACK: Envoy withholds that ACK for as
# long as a cluster is warming, and the cluster warms until they arrive. The same goes for the configuration of a
# listener's extensions.
ORDER = (
    Row(RUNTIME, Step.MAKE | Step.BREAK),
    Row(CLUSTER, Step.MAKE),
    Row(ENDPOINT, Step.MAKE),
    Row(SECRET, Step.MAKE),
    Row(LISTENER, Step.MAKE, after=(CLUSTER,), first=(ENDPOINT,)),
    Row(EXTENSION, Step.MAKE),
    Row(SCOPED_ROUTE, Step.MAKE, after=(CLUSTER, LISTENER), first=(ENDPOINT,)),
    Row(ROUTE, Step.MAKE, after=(CLUSTER, LISTENER), first=(ENDPOINT,)),
    Row(VIRTUAL_HOST, Step.MAKE | Step.BREAK, after=(CLUSTER, LISTENER, ROUTE), first=(ENDPOINT,)),
    Row(LISTENER, Step.BREAK, after=_REST, first=(ENDPOINT,)),
    Row(SCOPED_ROUTE, Step.BREAK, after=_REST, first=(ENDPOINT,)),
    Row(ROUTE, Step.BREAK, after=(*_REST, SCOPED_ROUTE), first=(ENDPOINT,)),
    Row(EXTENSION, Step.BREAK, after=_REST),
    Row(SECRET, Step.BREAK, after=_REST),
    Row(CLUSTER, Step.BREAK, after=(*_REST, VIRTUAL_HOST), first=(ENDPOINT,)),
    Row(ENDPOINT, Step.BREAK, after=_REST),
)


def one_row(type_url: str) -> tuple[Row, ...]:
    """Return the order of a per-type stream: nothing to wait for, nothing else to protect (O-08)."""
    return (Row(type_url, Step.MAKE | Step.BREAK),)
