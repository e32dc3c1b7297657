"""Several servers that elect a leader among themselves, with the verbs of one."""

import asyncio
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, Self, TypeVar

from servers.process import Server, ServerFailed

S = TypeVar("S", bound=Server)

ELECTION_PATIENCE_S = 15.0


class Cluster(ABC, Generic[S]):
    """Run a cluster: `async with …Cluster(folder) as cluster`; it has a leader when the block begins."""

    def __init__(self, members: Sequence[S]) -> None:
        self.members = members

    @abstractmethod
    async def leads(self, member: S) -> bool:
        """Ask a member that runs whether it is the leader."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self) -> None:
        """Start every member and wait until each knows a leader; one that fails takes the others with it."""
        try:
            for member in self.members:
                member.launch()
            await asyncio.gather(*(member.ready() for member in self.members))
        except BaseException:
            await self.kill()
            raise

    async def kill(self) -> None:
        """Crash every member."""
        await asyncio.gather(*(member.kill() for member in self.members))

    async def wipe(self) -> None:
        """Crash every member, lose all data, and start an empty cluster on the same ports."""
        await self.kill()
        for member in self.members:
            shutil.rmtree(member.data)
        await self.start()

    async def leader(self) -> S:
        """Return the member that leads, waiting for an election to end.

        Raises:
            ServerFailed: none led within `ELECTION_PATIENCE_S`.
        """
        try:
            async with asyncio.timeout(ELECTION_PATIENCE_S):
                while True:
                    for member in self.members:
                        if member.running and await self.leads(member):
                            return member
                    await asyncio.sleep(0.05)
        except TimeoutError:
            logs = "\n".join(f"{member.name}:\n{member.log()}" for member in self.members)
            raise ServerFailed(f"no leader in {ELECTION_PATIENCE_S} s; the logs:\n{logs}") from None
