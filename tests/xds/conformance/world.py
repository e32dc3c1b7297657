"""The fixture behind a real server, and how a test changes it; what a test reads off the wire, decoded."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from envoy_data_plane.envoy.config.core.v3 import Node as NodeMessage
from envoy_data_plane.envoy.service.discovery.v3 import DeltaDiscoveryResponse

from tests.xds.client import Response, XdsClient, XdsStream
from tests.xds.conformance.fixture import FIXTURE, MESSAGES, ROUTED, Key, resource
from tests.xds.serving import Heard
from xds.cache import SnapshotCache
from xds.messages import Subscribed
from xds.server import XdsServer
from xds.types import (
    CLUSTER,
    ENDPOINT,
    EXTENSION,
    LISTENER,
    ROUTE,
    RUNTIME,
    SCOPED_ROUTE,
    SECRET,
    Resource,
    ResourceSet,
    Snapshot,
)

GROUP = "all"
BOTH = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
WAYS = pytest.mark.parametrize("own", [False, True], ids=["ads", "own service"])
NAMED = pytest.mark.parametrize(
    ("type_url", "name", "other"),
    [
        pytest.param(ENDPOINT, "c1", "c2", id="EDS"),
        pytest.param(ROUTE, "r1", "r2", id="RDS"),
        pytest.param(SECRET, "s1", "s2", id="SDS"),
        pytest.param(RUNTIME, "rt", "rt2", id="RTDS"),
        pytest.param(EXTENSION, "f1", "f2", id="ECDS"),
    ],
)
"""The types that are asked for by name alone: a resource of the fixture, and another that a test may add."""
FULL = pytest.mark.parametrize(
    ("type_url", "name", "other"),
    [
        pytest.param(CLUSTER, "c1", "c2", id="CDS"),
        pytest.param(LISTENER, "l1", "l2", id="LDS"),
        pytest.param(SCOPED_ROUTE, "sc", "sc2", id="SRDS"),
    ],
)
"""The types of which an empty list means everything, and absence from a SotW response deletes."""

EITHER = pytest.mark.parametrize(
    ("type_url", "wanted"), [pytest.param(CLUSTER, (), id="CDS"), pytest.param(ENDPOINT, ("c1", "c2"), id="EDS")]
)
"""One type of either sort, and how to ask for what the fixture has of it."""


@dataclass(kw_only=True)
class World:
    """Serve the fixture, and let a test change it: what a mutation names changes in one publication."""

    cache: SnapshotCache
    server: XdsServer
    port: int
    heard: Heard
    client: XdsClient
    editions: dict[Key, int] = field(default_factory=dict)
    routed: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(ROUTED))
    made: dict[Key, Resource] = field(default_factory=dict)

    def open(self, type_url: str = "", *, delta: bool, own: bool = False, node: NodeMessage | None = None) -> XdsStream:
        """Open a stream: ADS, or the type's own service."""
        return self.client.open(type_url if own else "", delta=delta, node=node)

    def mutate(
        self, *changed: Key, removed: Iterable[Key] = (), routed: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        """Add or change resources, take others out, and publish the whole at once."""
        for key in changed:
            self.editions[key] = self.editions.get(key, 0) + 1
        for key in removed:
            del self.editions[key]
        self.routed.update(routed or {})
        touched = {*changed, *((ENDPOINT, name) for type_url, name in changed if type_url == CLUSTER)}
        touched |= {(ROUTE, name) for name in routed or ()}
        self.made = {key: made for key, made in self.made.items() if key in self.editions and key not in touched}
        for key in sorted(self.editions.keys() - self.made.keys()):  # clusters come before their assignments
            type_url, name = key
            cluster = self.made.get((CLUSTER, name)) if type_url == ENDPOINT else None
            self.made[key] = resource(
                *(type_url, name, self.editions[key]),
                routed=self.routed.get(name, ()) if type_url == ROUTE else (),
                parent=cluster.version if cluster is not None else "",
            )
        self.cache.set(GROUP, self.snapshot())

    async def asked(self, type_url: str, names: int) -> None:
        """Wait until the server has read that so many names of a type are asked for."""

        def read() -> bool:
            news = [event for event in self.heard.of(Subscribed) if event.type_url == type_url]
            return bool(news) and news[-1].names == names

        await self.heard.until(read)

    def snapshot(self) -> Snapshot:
        """Return all that is served now."""
        return Snapshot({url: ResourceSet(r for (of, _), r in self.made.items() if of == url) for url in MESSAGES})

    def version(self, type_url: str, name: str) -> str:
        """Return the version of a resource as it is now."""
        return self.made[type_url, name].version

    def versions(self, type_url: str) -> dict[str, str]:
        """Return the versions of all resources of a type."""
        return {name: made.version for (of, name), made in self.made.items() if of == type_url}


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[World]:
    """Run a server with the fixture, and a client of it; `options` are the server's."""
    cache, heard = SnapshotCache(), Heard()
    given: dict[str, Any] = {"group_of": lambda _: GROUP, "ready": lambda: True, "identifier": "cp-1", **options}
    server = XdsServer(cache, on_event=heard, **given)
    port = await server.start("127.0.0.1", 0)
    try:
        async with XdsClient(port) as client:
            world = World(cache=cache, server=server, port=port, heard=heard, client=client)
            world.mutate(*((url, name) for url, names in FIXTURE.items() for name in names))
            yield world
    finally:
        await server.stop(0.0)


def contents(response: Response) -> dict[str, Any]:
    """Decode what a response carries: name -> message, None for a resource that is unset.

    Nothing may be there twice, and the name inside, the name outside and the type must agree.
    """
    found: dict[str, Any] = {}
    for each in response.resources:
        wrapped = each.resource if isinstance(response, DeltaDiscoveryResponse) else each
        message = None
        if wrapped is not None:
            assert wrapped.type_url == response.type_url
            message = MESSAGES[wrapped.type_url].parse(wrapped.value)
        inside = getattr(message, "cluster_name", None) or getattr(message, "name", None)
        name = each.name if isinstance(response, DeltaDiscoveryResponse) else inside
        assert inside in (name, None)
        assert name not in found
        found[name] = message
    return found


def names(response: Response) -> list[str]:
    """List the names of what a response carries, in order."""
    return sorted(contents(response))


def ports(assignment: Any) -> list[int]:
    """List the ports of an assignment's endpoints; none where there is no assignment."""
    groups = assignment.endpoints if assignment is not None else ()
    return [each.endpoint.address.socket_address.port_value for group in groups for each in group.lb_endpoints]


async def until_quiet(stream: XdsStream) -> list[Response]:
    """Acknowledge whatever comes until nothing does."""
    seen: list[Response] = []
    while (response := await stream.maybe()) is not None:
        await stream.ack(response)
        seen.append(response)
    return seen


async def settle(stream: XdsStream, type_url: str, wanted: Iterable[str] = (), **more: Any) -> Response:
    """Subscribe, acknowledge the answer, and return it."""
    await stream.subscribe(type_url, wanted, **more)
    response = await stream.expect(type_url)
    await stream.ack(response)
    return response
