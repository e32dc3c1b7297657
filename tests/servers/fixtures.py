"""The pytest fixtures of the real servers; `tests/conftest.py` loads them for all tests.

One server of a kind serves a whole session, and a test keeps to a part of it that is its own. Do not kill, pause or
wipe such a server, nor switch its passwords on: a test that does so runs one of its own, with the classes beside this.
"""

import itertools
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from servers.binaries import missing
from servers.consul import ConsulServer
from servers.etcd import EtcdServer
from servers.kubernetes import KubernetesServer

_NUMBERS = itertools.count(1)

_NEEDED = {"etcd": "etcd", "consul": "Consul", "k8s": "kube-apiserver"}
"""What a marker says of a test: the server that it cannot do without."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run, naming the remedy."""
    lacking = missing()
    for marker, server in _NEEDED.items():
        if server in lacking and item.get_closest_marker(marker):
            pytest.skip(f"{server}: {lacking[server]}")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EtcdServer]:
    """Run one etcd for all tests; keep to `etcd_prefix` in it."""
    async with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def etcd_prefix() -> str:
    """Name a key prefix that no other test uses."""
    return f"/test-{next(_NUMBERS)}/"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_consul(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ConsulServer]:
    """Run one Consul for all tests; ask for `consul`, which gives it to one test at a time."""
    async with ConsulServer(tmp_path_factory.mktemp("consul")) as server:
        yield server


@pytest.fixture
async def consul(shared_consul: ConsulServer) -> AsyncIterator[ConsulServer]:
    """Give a test the shared Consul, empty. It has no part of its own, so it is emptied behind each test."""
    yield shared_consul
    await shared_consul.empty()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_kubernetes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KubernetesServer]:
    """Run one Kubernetes API for all tests; keep to `kubernetes_namespace` in it."""
    async with KubernetesServer(tmp_path_factory.mktemp("kubernetes")) as server:
        yield server


@pytest.fixture
async def kubernetes_namespace(shared_kubernetes: KubernetesServer) -> AsyncIterator[str]:
    """Make a namespace of the test's own in the shared Kubernetes, and empty it behind the test."""
    name = f"test-{next(_NUMBERS)}"
    await shared_kubernetes.add_namespace(name)
    yield name
    await shared_kubernetes.empty(name)
