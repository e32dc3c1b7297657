"""What a client costs in our own code, in time and memory: all between the snapshot and grpc, without grpc."""

import gc
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from envoy_data_plane.envoy.config.core.v3 import Node
from envoy_data_plane.envoy.service.discovery.v3 import DeltaDiscoveryRequest, DiscoveryRequest
from structlog.testing import capture_logs

from controlplane.live import LiveCatalog
from controlplane.telemetry.metrics import Metrics
from controlplane.telemetry.observers import StreamObserver
from xds.messages import Response, Sent
from xds.protocol import Stream
from xds.requests import NamesPool, RequestReader
from xds.responses import ResponseWriter
from xds.status import Status, StreamInfo
from xds.types import CLUSTER, ENDPOINT, Resource, ResourceSet, Snapshot
from xds.types import Node as NodeValue

pytestmark = pytest.mark.benchmark

SERVICES, CLIENTS, ROUNDS, CHANGES = 1_000, 200, 12, 300
NAMES = [f"svc-{number}" for number in range(SERVICES)]


class Client:
    """Stand where the server stands, between a client's bytes and the machine."""

    def __init__(self, number: int, pool: NamesPool, writer: ResponseWriter, observer: StreamObserver, *, delta: bool):
        self.stream = Stream(delta=delta)
        self._reader = RequestReader(delta=delta, pool=pool)
        self._writer = writer
        self._observer = observer
        self._info = StreamInfo(
            id=number,
            node=NodeValue(id=f"edge-{number}"),
            group="edge",
            peer="",
            delta=delta,
            type_url="",
            held=lambda _: {},
            settled=lambda _: True,
        )

    def hear(self, data: bytes) -> None:
        for event in self.stream.receive(self._reader.read(data)):
            self._observer.on_event(self._info, event)

    def send(self) -> list[Response]:
        sent = list(self.stream.responses())
        for each in sent:
            told = Sent(
                type_url=each.type_url,
                version=each.version,
                nonce=each.nonce,
                revision=each.revision,
                resources=len(each.resources),
                removed=len(each.removed),
                size_bytes=len(self._writer.write(each)),
            )
            self._observer.on_event(self._info, told)
        return sent


def asking(type_url: str, names: list[str], *, delta: bool, answered: Response | None = None) -> bytes:
    nonce = answered.nonce if answered is not None else ""
    node = None if answered is not None else Node(id="edge", cluster="edge")
    if delta:
        new = names if answered is None else []
        message: Any = DeltaDiscoveryRequest(
            node=node, type_url=type_url, resource_names_subscribe=new, response_nonce=nonce
        )
    else:
        version = answered.version if answered is not None else ""
        message = DiscoveryRequest(
            node=node, type_url=type_url, resource_names=names, response_nonce=nonce, version_info=version
        )
    return bytes(message)


def timed(each: Callable[[Client], object], clients: list[Client]) -> float:
    """Return the microseconds that a client takes."""
    start = time.perf_counter()
    for client in clients:
        each(client)
    return (time.perf_counter() - start) / len(clients) * 1e6


@pytest.mark.parametrize("delta", [True, False], ids=["delta", "sotw"])
def test_what_a_change_costs_for_each_client(delta: bool, report: Callable[[str], None]) -> None:
    with capture_logs():
        report(measured(delta=delta))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("delta", [True, False], ids=["delta", "sotw"])
def test_what_each_client_keeps_in_memory(delta: bool, report: Callable[[str], None]) -> None:
    with capture_logs():
        report(kept(delta=delta))


class Fleet:
    """Bring many equal clients in step, and tell them one change after the other."""

    def __init__(self, *, delta: bool) -> None:
        self._delta = delta
        self._observer = StreamObserver(Status(clock=time.time), Metrics(LiveCatalog(epoch="e"), version="0"))
        self._pool, self._writer = NamesPool(), ResponseWriter("bench")
        self._clusters = ResourceSet(Resource.of(name, b"c" * 300, refs=[(ENDPOINT, name)]) for name in NAMES)
        self._assignments = ResourceSet(Resource.of(name, b"e" * 800) for name in NAMES)
        self._acks: dict[str, bytes] = {}
        self._asks = {CLUSTER: asking(CLUSTER, [], delta=delta), ENDPOINT: asking(ENDPOINT, NAMES, delta=delta)}
        self.now = self._snapshot(0)

    def _snapshot(self, number: int) -> Snapshot:
        return Snapshot({CLUSTER: self._clusters, ENDPOINT: self._assignments}, f"r{number}")

    def client(self, number: int) -> Client:
        return Client(number, self._pool, self._writer, self._observer, delta=self._delta)

    def sync(self, client: Client) -> None:
        client.stream.offer(self.now)
        for type_url, names in ((CLUSTER, []), (ENDPOINT, NAMES)):
            client.hear(self._asks[type_url])
            (response,) = client.send()
            if type_url not in self._acks:
                self._acks[type_url] = asking(type_url, names, delta=self._delta, answered=response)
            client.hear(self._acks[type_url])

    def change(self, number: int) -> str:
        """Change one assignment; return its name."""
        name = NAMES[number % SERVICES]
        self._assignments = self._assignments.replacing([Resource.of(name, b"%d" % number * 400)])
        self.now = self._snapshot(number)
        return name

    def ack(self, answered: Response) -> bytes:
        return asking(ENDPOINT, NAMES, delta=self._delta, answered=answered)


def kept(*, delta: bool) -> str:
    fleet = Fleet(delta=delta)
    fleet.sync(fleet.client(CLIENTS))  # what is kept for all together is there now
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        clients = [fleet.client(number) for number in range(CLIENTS)]
        for client in clients:
            fleet.sync(client)
        gc.collect()
        synced, _ = tracemalloc.get_traced_memory()
        for number in range(CHANGES):
            changed = {ENDPOINT: frozenset({fleet.change(number)})}
            answers = []
            for client in clients:
                client.stream.offer(fleet.now, changed, 0.0)
                answers += client.send()
            ack = fleet.ack(answers[0])
            for client in clients:
                client.hear(ack)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    each = [(now - before) / CLIENTS / 1024 for now in (synced, after)]
    which = "delta" if delta else "SotW"
    return f"{which}: a client in step keeps {each[0]:.1f} KiB of ours, after {CHANGES} changes {each[1]:.1f} KiB"


def measured(*, delta: bool) -> str:
    fleet = Fleet(delta=delta)
    clients = [fleet.client(number) for number in range(CLIENTS)]
    first = timed(fleet.sync, clients)
    gc.collect()
    best = [float("inf")] * 3
    for number in range(ROUNDS):
        changed = {ENDPOINT: frozenset({fleet.change(number)})}
        newest, answers = fleet.now, list[Response]()
        offer = timed(lambda client, to=newest, named=changed: client.stream.offer(to, named, 0.0), clients)
        push = timed(lambda client, into=answers: into.extend(client.send()), clients)
        ack = fleet.ack(answers[0])
        acked = timed(lambda client, data=ack: client.hear(data), clients)
        best = [min(pair) for pair in zip(best, (offer, push, acked), strict=True)]

        assert len(answers) == CLIENTS
        assert not any(client.stream.owes for client in clients)
    which = "delta" if delta else "SotW"
    return (
        f"{which}: first sync of {SERVICES} services {first:,.0f} µs a client; a change: take note {best[0]:.1f}, work "
        f"out, report and spell the response {best[1]:.1f}, recognise and report the ACK {best[2]:.1f} µs"
    )
