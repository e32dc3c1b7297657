"""Resources as ready JSON, rendered once for everybody who polls.

Reading an encoded message back costs from a fraction of a millisecond to, for a thousand services' routes, a second:
too much for the event loop, and far too much for each of a fleet.
"""

import asyncio
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import orjson

from controlplane.translate.decode import as_json
from xds.types import Resource

_CACHE_BYTES = 32 * 1024 * 1024


class RenderedResources:
    """Keep resources as ready JSON, the least recently used leaving first, bounded in bytes.

    Keyed by content, so that what is kept is never outdated.
    """

    def __init__(self, limit_bytes: int = _CACHE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._size = 0
        self._known: OrderedDict[tuple[str, str, str], bytes] = OrderedDict()
        self._rendering = asyncio.Lock()

    @property
    def size(self) -> int:
        """Return how many bytes of JSON are kept."""
        return self._size

    async def render(self, type_url: str, resources: Sequence[Resource]) -> list[bytes]:
        """Return resources as JSON, in the same order; what is not known yet is rendered in a thread.

        By one caller at a time: a fleet that polls after a change waits for the first and finds everything there.
        """
        async with self._rendering:
            keys = [(type_url, each.name, each.version) for each in resources]
            ready = {key: text for key in keys if (text := self._known.get(key)) is not None}
            missing = [(key, each) for key, each in zip(keys, resources, strict=True) if key not in ready]
            if missing:
                made = await asyncio.to_thread(lambda: {key: _rendered(type_url, each) for key, each in missing})
                ready |= made
                self._keep(made)
            for key in keys:
                if key in self._known:
                    self._known.move_to_end(key)
            return [ready[key] for key in keys]

    def _keep(self, made: Mapping[tuple[str, str, str], bytes]) -> None:
        for key, text in made.items():
            self._known[key] = text
            self._size += len(text)
        while self._size > self._limit_bytes:
            _, dropped = self._known.popitem(last=False)
            self._size -= len(dropped)


def _rendered(type_url: str, resource: Resource) -> bytes:
    # The reader leaves the bytes of a wrapper in an `Any` as they are; proto3 JSON has them in base64.
    return orjson.dumps({"@type": type_url, **as_json(type_url, resource.body)}, default=_base64)


def _base64(value: bytes) -> str:
    return b64encode(value).decode()
