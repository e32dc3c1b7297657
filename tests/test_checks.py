"""What the monitor and the resolver are told of."""

import random

import pytest
from builders import key, put

from controlplane.checks import Checks
from controlplane.health import Outcome, OutcomeKind
from controlplane.health.monitor import HealthMonitor
from controlplane.live import LiveCatalog
from controlplane.model import CheckType, DeleteInstance, Instance, Resolved
from controlplane.registry.memory import MemoryRegistry
from controlplane.resolver import Resolver
from controlplane.shares import Shares
from controlplane.verdicts import VerdictWriter

pytestmark = pytest.mark.unit

CHECK = {"type": "tcp"}


async def never(_instance: Instance, _address: str, _timeout_s: float) -> Outcome:
    return Outcome(kind=OutcomeKind.PASS, output="", latency_s=0.0)


async def nowhere(_host: str) -> tuple[str, ...]:
    return ()


@pytest.fixture
def live() -> LiveCatalog:
    return LiveCatalog(epoch="e", call_later=lambda _delay, _callback: None)


@pytest.fixture
def monitor() -> HealthMonitor:
    return HealthMonitor(
        probes=dict.fromkeys(CheckType, never),
        default_interval_s=1,
        default_timeout_s=1,
        emit=lambda _event: None,
        on_check=lambda _kind, _outcome: None,
        random=random.Random(1),
        clock=lambda: 0.0,
        wall_clock=lambda: 0.0,
    )


@pytest.fixture
def resolver(live: LiveCatalog, monitor: HealthMonitor) -> Resolver:
    resolver = Resolver(emit=lambda _event: None, resolve=nowhere, clock=lambda: 0.0)
    checks = Checks(
        live,
        monitor,
        resolver,
        shares=Shares("me"),
        verdicts=VerdictWriter(MemoryRegistry(journal=None), lambda _error: None),
        call_later=lambda _delay, _call: None,
    )
    live.subscribe(checks.on_change)
    return resolver


def test_a_checked_instance_is_watched_until_it_goes(
    live: LiveCatalog, monitor: HealthMonitor, resolver: Resolver
) -> None:
    live.apply(put("web", "a", health_check=CHECK))
    live.apply(put("web", "plain", port=2))
    assert monitor.pending() == 1

    live.apply(DeleteInstance(key=key("web", "a"), registry="memory"))
    assert monitor.pending() == 0


def test_a_name_is_looked_up_once_for_all_its_instances_and_checked_when_known(
    live: LiveCatalog, monitor: HealthMonitor, resolver: Resolver
) -> None:
    live.apply(put("web", "a", host="api.internal", health_check=CHECK))
    live.apply(put("web", "b", host="api.internal", port=2, health_check=CHECK))
    assert resolver.pending() == 1
    assert monitor.pending() == 0

    live.apply(Resolved(host="api.internal", addresses=("10.0.0.1",)))
    assert monitor.pending() == 2


def test_a_name_that_nobody_uses_is_forgotten(live: LiveCatalog, monitor: HealthMonitor, resolver: Resolver) -> None:
    live.apply(put("web", "a", host="api.internal"))
    live.apply(put("web", "b", host="api.internal", port=2))
    live.apply(Resolved(host="api.internal", addresses=("10.0.0.1",)))

    live.apply(put("web", "a", host="10.0.0.9"))
    assert "api.internal" in live.current.resolutions
    live.apply(DeleteInstance(key=key("web", "b"), registry="memory"))
    assert resolver.pending() == 0
    assert live.current.resolutions == {}

    # Registered again, it is not offered at its old address before it has been looked up.
    live.apply(put("web", "b", host="api.internal", port=2))
    entry = live.current.entry(key("web", "b"))
    assert entry is not None
    assert live.current.address_of(entry.instance) is None
