"""One stream of the server while it is open: what its reader and its writer share, and how either ends it."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import grpc

from xds.protocol import Stream
from xds.requests import RequestReader
from xds.standing import Standing, Waiting, names_in_play, standing, waiting
from xds.status import StreamInfo
from xds.types import EMPTY, Resource, ResourceSet

Context = Any  # grpc.aio.ServicerContext: grpcio ships no types


class Refusal(Exception):
    """End a stream with a status."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(slots=True)
class Call:
    """Keep what reader and writer of one stream share."""

    context: Context
    reader: RequestReader
    stream: Stream
    type_url: str
    delta: bool
    opened_at: float
    lasts_s: float
    info: StreamInfo | None = None
    unwatch: Callable[[], None] | None = None
    half_closed: bool = False
    ending: bool = False
    refusal: Refusal | None = None
    retires_by: float | None = None
    responded: bool = False
    awaited: dict[str, tuple[str, float]] = field(default_factory=dict)  # type -> nonce, when it was sent
    writing_since: float | None = None
    writing: asyncio.Task[None] | None = None
    timed_out: bool = False
    asleep: asyncio.Future[None] | None = None

    @property
    def over(self) -> bool:
        """Say whether nothing more is to be sent."""
        return self.ending or self.half_closed or self.refusal is not None

    def refuse(self, refusal: Refusal) -> None:
        """Have the writer end the stream with a status, once it is not writing: grpc sends none beside a message."""
        self.refusal = refusal
        self.wake()

    def wake(self) -> None:
        """Have the writer look again; one that does not sleep will look before it does."""
        if self.asleep is not None and not self.asleep.done():
            self.asleep.set_result(None)

    # What whoever listens may look at

    def held(self, type_url: str) -> Mapping[str, Resource]:
        """Show what the client has acknowledged of a type, to read only."""
        subscription = self.stream.subscriptions.get(type_url)
        return MappingProxyType(subscription.held if subscription is not None else {})

    def settled(self, type_url: str) -> bool:
        """Say whether the client is owed nothing of a type."""
        subscription = self.stream.subscriptions.get(type_url)
        return subscription is None or subscription.settled

    def names(self, type_url: str) -> list[str]:
        """List what the client asks for by name, was told of, or is about to be told of."""
        subscription = self.stream.subscriptions.get(type_url)
        return [] if subscription is None else names_in_play(subscription, self._target(type_url))

    def standing(self, type_url: str, name: str) -> Standing | None:
        """Tell where a resource stands; None for a type that is not asked for."""
        subscription = self.stream.subscriptions.get(type_url)
        return None if subscription is None else standing(subscription, self._target(type_url), name)

    def waiting(self, type_url: str) -> Waiting | None:
        """Tell what a type waits for; None for a type that is not asked for."""
        return waiting(self.stream, type_url)

    def _target(self, type_url: str) -> ResourceSet:
        return EMPTY if self.stream.target is None else self.stream.target.of_type(type_url)
