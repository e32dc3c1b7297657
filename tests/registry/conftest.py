"""The registries that the contract suite is run against: one entry each."""

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from registry.cluster import Cluster, a_service, a_slice, an_endpoint
from registry.consul import consul_registry
from registry.harness import Subject, VirtualClock
from servers.consul import ConsulServer
from servers.etcd import EtcdServer

from controlplane.model import Instance
from controlplane.registry import Sharing, WritableRegistry
from controlplane.registry.etcd import Credentials, EtcdRegistry
from controlplane.registry.journal import Journal
from controlplane.registry.memory import MemoryRegistry


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Say how a registry is brought under test, and what it can.

    `takes_registrations`: its `put` works. `remembers`: a later start finds what an earlier one stored.
    `virtual`: a test lets its time pass; else it is a real server with its own clock.
    """

    subject: Callable[[pytest.FixtureRequest], Subject]
    mark: pytest.MarkDecorator
    takes_registrations: bool = True
    remembers: bool = True
    virtual: bool = False


def memory(_: pytest.FixtureRequest) -> Subject:
    clock = VirtualClock()
    held: list[MemoryRegistry] = []  # it remembers as long as it lives, so it is made once

    @asynccontextmanager
    async def start() -> AsyncIterator[WritableRegistry]:
        if not held:
            held.append(MemoryRegistry(journal=None, clock=clock, call_later=clock.call_later))
        yield held[0]

    return Subject(open=start, advance=clock.advance)


def memory_with_journal(request: pytest.FixtureRequest) -> Subject:
    clock = VirtualClock()
    folder: Path = request.getfixturevalue("tmp_path")

    @asynccontextmanager
    async def start() -> AsyncIterator[WritableRegistry]:
        async with Journal.open(folder / "data") as journal:
            yield MemoryRegistry(journal=journal, clock=clock, call_later=clock.call_later)

    return Subject(open=start, advance=clock.advance)


def etcd(request: pytest.FixtureRequest) -> Subject:
    server: EtcdServer = request.getfixturevalue("shared_etcd")
    prefix: str = request.getfixturevalue("etcd_prefix")
    members = itertools.count(1)

    @asynccontextmanager
    async def start() -> AsyncIterator[WritableRegistry]:
        async with EtcdRegistry(
            endpoints=[server.address],
            prefix=prefix,
            credentials=Credentials(),
            sharing=Sharing(member=f"member-{next(members)}", ttl_s=10.0),
            random=Random(1),
        ) as registry:
            yield registry

    return Subject(open=start, shared=True)


def consul(request: pytest.FixtureRequest) -> Subject:
    server: ConsulServer = request.getfixturevalue("consul")
    starts = itertools.count(1)

    @asynccontextmanager
    async def start() -> AsyncIterator[WritableRegistry]:
        async with consul_registry(server, member=f"start-{next(starts)}") as registry:
            yield registry

    return Subject(open=start, shared=True)


def kubernetes(request: pytest.FixtureRequest) -> Subject:
    server = request.getfixturevalue("shared_kubernetes")
    cluster = Cluster(server=server, namespace=request.getfixturevalue("kubernetes_namespace"))

    async def put(_: WritableRegistry, instance: Instance) -> None:
        endpoint = an_endpoint(instance.host, instance.id)
        endpoint["conditions"] = {"ready": not instance.draining, "serving": True, "terminating": instance.draining}
        await cluster.put(a_service(instance.name))
        port = {"name": "http", "port": instance.port, "protocol": "TCP"}
        await cluster.put(a_slice(instance.name, endpoint, name=instance.id, ports=[port]))

    async def delete(_: WritableRegistry, instance: Instance) -> None:
        await cluster.delete("EndpointSlice", instance.id)

    return Subject(open=cluster.registry, put=put, delete=delete, shared=True)


ENTRIES = {
    "memory": Entry(subject=memory, mark=pytest.mark.unit, remembers=False, virtual=True),
    "memory with a journal": Entry(subject=memory_with_journal, mark=pytest.mark.unit, virtual=True),
    "etcd": Entry(subject=etcd, mark=pytest.mark.etcd),
    "kubernetes": Entry(subject=kubernetes, mark=pytest.mark.k8s, takes_registrations=False),
    "consul": Entry(subject=consul, mark=pytest.mark.consul),
}


def _fixture(name: str, asked: Callable[[Entry], bool]) -> Any:
    """Make the fixture that brings, in turn, each registry that can what is asked of it."""

    @pytest.fixture(
        name=name, params=[pytest.param(each, id=each, marks=e.mark) for each, e in ENTRIES.items() if asked(e)]
    )
    def brought(request: pytest.FixtureRequest) -> Subject:
        return ENTRIES[request.param].subject(request)

    return brought


source = _fixture("source", lambda _: True)
subject = _fixture("subject", lambda entry: entry.takes_registrations)
durable = _fixture("durable", lambda entry: entry.takes_registrations and entry.remembers)
timed = _fixture("timed", lambda entry: entry.virtual)
timed_durable = _fixture("timed_durable", lambda entry: entry.virtual and entry.remembers)
embedded = _fixture("embedded", lambda entry: entry.virtual)
real = _fixture("real", lambda entry: entry.takes_registrations and not entry.virtual)
