"""The registries that the settings name, made and opened; each one's code is imported only where it is used."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from controlplane.registry import Registry, Sharing, WritableRegistry
from controlplane.registry.journal import Journal, JournalError
from controlplane.registry.memory import MemoryRegistry
from controlplane.settings import Settings

EMBEDDED = "memory"

MEMBER_TTL_S = 10.0
"""How long a control plane may be silent before others take over what it checks; less where checks are closer."""

SHORTEST_MEMBER_TTL_S = 2.0


class SourceError(Exception):
    """Report why a registry cannot be opened, and what would help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Hold the registries in the order of REGISTRY_TYPE.

    `store` takes the writes, and keeps what control planes share: policies, raw resources, verdicts, members. It is
    the first that takes registrations, else the first. `journal` is that of the embedded one, where it has one.
    """

    registries: tuple[Registry, ...]
    store: WritableRegistry
    journal: Journal | None

    @property
    def shared(self) -> bool:
        """Tell whether other control planes may be at work on the store."""
        return self.store.name != EMBEDDED


async def open_sources(settings: Settings, member: str, stack: AsyncExitStack) -> Sources:
    """Make every registry that REGISTRY_TYPE names; `stack` closes them. Raises SourceError.

    Only what needs no network is waited for: a registry that is down is no reason not to start (law 1).
    """
    names = settings.registry_type
    store = next((name for name in names if name != "kubernetes"), names[0])
    ttl_s = max(SHORTEST_MEMBER_TTL_S, min(MEMBER_TTL_S, settings.health_check_interval))
    opened: list[WritableRegistry] = []
    journal: Journal | None = None
    for name in names:
        sharing = Sharing(member=member, ttl_s=ttl_s) if name == store else None
        match name:
            case "memory":
                journal = await _journal(settings, stack)
                opened.append(MemoryRegistry(journal=journal))
            case _:
                raise SourceError(f"REGISTRY_TYPE: {name} is not part of this version ({sharing})")
    return Sources(registries=tuple(opened), store=opened[names.index(store)], journal=journal)


async def _journal(settings: Settings, stack: AsyncExitStack) -> Journal | None:
    if settings.data_dir is None:
        return None
    try:
        opened = await asyncio.to_thread(Journal.open, settings.data_dir)
    except JournalError as error:
        raise SourceError(str(error)) from error
    return await stack.enter_async_context(opened)


def required(settings: Settings) -> Sequence[str]:
    """Return the registries that must have spoken before anything is published (law 2)."""
    return [name for name in settings.registry_type if name not in settings.registry_optional]
