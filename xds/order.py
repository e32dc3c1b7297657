"""What sets the resource types apart, and the order in which they go to a client: make before break as a table.

Constants only. A further type is a `Kind` and its rows; a type without rows is served last and unordered.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Flag, auto
from types import MappingProxyType

from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource


def _empty_assignment(name: str) -> bytes:
    """Spell a ClusterLoadAssignment that has a name (field 1) and no endpoints."""
    raw = name.encode()
    length, size = len(raw), bytearray()
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return b"\x0a" + bytes(size) + bytes((length,)) + raw


@dataclass(frozen=True, slots=True)
class Kind:
    """Describe what sets a resource type apart.

    `full`: a SotW response is the whole state, absence deletes, and an empty first request means everything
    (G-01, G-03, W-07). `parents`: the types that may refer to this one, so that nothing is removed from under
    them. `resent_with_parents`: a re-sent parent waits for this one again (O-01). `empty`: how to spell the
    absence of a resource whose removal clients ignore (G-07, D-15).
    """

    type_url: str
    full: bool = False
    parents: tuple[str, ...] = ()
    resent_with_parents: bool = False
    empty: Callable[[str], bytes] | None = None

    def absent(self, name: str) -> Resource:
        """Make the empty resource that stands for a missing one."""
        return Resource.of(name, self.empty(name) if self.empty is not None else b"")


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        CLUSTER: Kind(CLUSTER, full=True, parents=(LISTENER, ROUTE)),
        ENDPOINT: Kind(ENDPOINT, parents=(CLUSTER,), resent_with_parents=True, empty=_empty_assignment),
        LISTENER: Kind(LISTENER, full=True),
        ROUTE: Kind(ROUTE, parents=(LISTENER,)),
    }
)


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

# Assignments follow clusters on the wire but do not wait for their ACK: Envoy withholds that ACK for as long
# as a cluster is warming, and the cluster warms until its assignment arrives.
ORDER = (
    Row(CLUSTER, Step.MAKE),
    Row(ENDPOINT, Step.MAKE),
    Row(LISTENER, Step.MAKE, after=(CLUSTER,), first=(ENDPOINT,)),
    Row(ROUTE, Step.MAKE, after=(CLUSTER, LISTENER), first=(ENDPOINT,)),
    Row(LISTENER, Step.BREAK, after=_REST, first=(ENDPOINT,)),
    Row(ROUTE, Step.BREAK, after=_REST, first=(ENDPOINT,)),
    Row(CLUSTER, Step.BREAK, after=_REST, first=(ENDPOINT,)),
    Row(ENDPOINT, Step.BREAK, after=_REST),
)


def one_row(type_url: str) -> tuple[Row, ...]:
    """Return the order of a per-type stream: nothing to wait for, nothing else to protect (O-08)."""
    return (Row(type_url, Step.MAKE | Step.BREAK),)
