"""Verdicts on their way to the registry, which keeps them so that a restart takes nobody out.

Only the newest verdict of each instance waits, so a registry that is slow or down costs bounded memory.
"""

import asyncio
from collections.abc import Callable

from controlplane.model import Instance, InstanceKey, Judged
from controlplane.registry import RegistryError, WritableRegistry

_RETRY_S = 1.0


class VerdictWriter:
    """Write verdicts to a registry in the background, the newest of each instance, until it took them."""

    def __init__(self, registry: WritableRegistry, on_failure: Callable[[RegistryError], None]) -> None:
        self._registry = registry
        self._on_failure = on_failure
        self._waiting: dict[InstanceKey, tuple[Judged, Instance] | None] = {}
        self._wake = asyncio.Event()

    def add(self, judged: Judged, instance: Instance) -> None:
        """Note a verdict about `instance`, as it was judged; it replaces an older one that still waits."""
        self._waiting[judged.key] = (judged, instance)
        self._wake.set()

    def forget(self, key: InstanceKey) -> None:
        """Have the verdict of an instance dropped that is gone."""
        self._waiting[key] = None
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled, then write what still waits."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if not await self._write_all():
                    await asyncio.sleep(_RETRY_S)
                    self._wake.set()
        finally:
            await self._write_all()

    async def _write_all(self) -> bool:
        while self._waiting:
            key, waiting = next(iter(self._waiting.items()))
            try:
                if waiting is None:
                    await self._registry.forget(key)
                else:
                    judged, instance = waiting
                    await self._registry.record(key, judged.verdict, instance)
            except RegistryError as error:
                self._on_failure(error)
                return False
            if self._waiting.get(key) is waiting:
                del self._waiting[key]
        return True
