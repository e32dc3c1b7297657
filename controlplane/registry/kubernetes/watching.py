"""One collection followed from its listing on: each change once, resumed where a watch ends.

A watch that ends without having said why (its time is over, a connection broke) is resumed from the last version. If
that fails, the whole registry is lost, or, where the version is too old, lists again; both are for `registry`.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus

from controlplane.registry.kubernetes.api import Api, Collection, Refused
from controlplane.registry.kubernetes.objects import Object
from controlplane.registry.kubernetes.remarks import Remarks

BOOKMARK = "BOOKMARK"
DELETED = "DELETED"

_SPIN_S = 0.5
"""How long the next watch waits where the last one brought nothing at all."""

_ASK_AGAIN_S = 60.0
"""How soon is tried again what we have no right to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Follower:
    """Say who wants to know of a collection. `list` takes everything, `changed` one object, and whether it is gone.

    `optional`: one that we have no right to leaves a remark, and counts as empty.
    """

    what: Collection
    list: Callable[[Iterable[Object]], None]
    changed: Callable[[Object, bool], None]
    optional: bool = False


async def follow(
    follower: Follower, api: Api, remarks: Remarks, listed: Callable[[Follower], None], heard: Callable[[], None]
) -> None:
    """Follow a collection until cancelled; call `listed` when it has been listed, `heard` at each sign of life.

    Raises Gone where it must be listed again, other ApiFailures where it cannot be followed.
    """
    place = f"right to {follower.what}"
    while True:
        try:
            listing = await api.list(follower.what)
            remarks.set(place, ())
            follower.list(listing.items)
            version = listing.version
            del listing
            listed(follower)
            while True:
                version = await _watch(follower, api, version, heard)
        except Refused as refused:
            if not follower.optional or refused.status != HTTPStatus.FORBIDDEN:
                raise
            remarks.set(place, [str(refused)])
        listed(follower)
        await asyncio.sleep(_ASK_AGAIN_S)


async def _watch(follower: Follower, api: Api, version: str, heard: Callable[[], None]) -> str:
    """Follow one watch to its end; return the version that it came to."""
    before = version
    async with aclosing(api.watch(follower.what, version)) as events:
        async for word, thing in events:
            version = str(thing["metadata"]["resourceVersion"])
            if word != BOOKMARK:
                follower.changed(thing, word == DELETED)
            heard()
    if version == before:
        await asyncio.sleep(_SPIN_S)
    return version
