"""What the REST edge is given: views to read from, a registry to write to, and who listens.

The edge builds none of this and reaches for nothing else (law 11). Protocols stand here for parts that the
edge may not import, so that each can be replaced in a test or left out by a setting.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from controlplane.catalog import Entry, Service
from controlplane.guard import Hold
from controlplane.health import HealthReports
from controlplane.live import LiveCatalog
from controlplane.model import HealthCheck
from controlplane.policy import Strategy
from controlplane.raw.compile import Compiler
from controlplane.readiness import Readiness
from controlplane.registry import WritableRegistry
from xds.standing import Waiting
from xds.status import ProxyStatus, ResourceStatus
from xds.types import Node, Snapshot


class Pick(Protocol):
    """Hold one instance that a strategy chose, and why."""

    @property
    def entry(self) -> Entry:
        """Return the chosen instance."""
        ...

    @property
    def strategy(self) -> Strategy:
        """Return the strategy that was used."""
        ...

    @property
    def reason(self) -> str:
        """Return why this one, for a person."""
        ...


class Picker(Protocol):
    """Choose an instance the way a proxy would."""

    def pick(
        self,
        service: Service,
        *,
        offered: Callable[[Entry], bool],
        strategy: Strategy | None,
        key: str | None,
        client: str,
    ) -> Pick | None:
        """Return one instance of `service` by `strategy` (None = the service's own); None where none can serve.

        `offered` tells who may be chosen at all; its answers may change only when the service does.
        `key` is what a consistent hash is computed from; where absent, `client` is (the caller's address).
        """
        ...


class Proxies(Protocol):
    """Give a view of the connected proxies."""

    def proxies(self) -> tuple[ProxyStatus, ...]:
        """List them by node id."""
        ...

    def proxy(self, node_id: str) -> ProxyStatus | None:
        """Return one, None where it is not connected."""
        ...

    def waiting(self, node_id: str, type_url: str) -> Waiting | None:
        """Tell what a type waits for on a proxy, None where it is not connected or does not ask for it."""
        ...

    def resources(self, node_id: str, type_url: str, *, after: str = "") -> Iterator[ResourceStatus]:
        """List by name where each resource of a type stands on a proxy, behind the name `after`.

        Nothing where the proxy is not connected.
        """
        ...


class Metrics(Protocol):
    """Count what happens at the edge. Every method returns at once and raises nothing."""

    def registry_operation(self, registry: str, operation: str, outcome: str) -> None:
        """Count a write.

        `operation` is register, deregister, drain, heartbeat, put_policy, delete_policy, put_resource,
        delete_resource or release; `outcome` is
        success, refused (the request's fault: taken address, conflict, unknown instance) or failure.
        """
        ...

    def cache_read(self, hit: bool) -> None:
        """Count a read of the catalog: `hit` where memory answered it, else it had to wait for a registry."""
        ...

    def http_request(self, method: str, route: str, status: int, duration_s: float) -> None:
        """Count a request. `route` is the path's template, "unmatched" where there is none.

        `duration_s` leaves out the time a client asked to wait for a change.
        """
        ...

    def exposition(self, accept: str | None) -> tuple[bytes, str]:
        """Return all metrics and their content type, by the `Accept` header. Called in a worker thread."""
        ...


class Guard(Protocol):
    """Give a view of what the mass-loss guard holds."""

    def holds(self) -> tuple[Hold, ...]:
        """List what is held, by id."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """Say how current the catalog is: `age_s` of its oldest part, and whether every registry can be heard.

    `known` is false while no registry has said anything since the start: then there is nothing to answer from.
    `stale`: what a former process last knew is served in place of a registry that has not.
    """

    age_s: float
    connected: bool
    known: bool
    stale: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthDefaults:
    """Hold what a health check uses where the instance does not say, in seconds."""

    interval: float
    timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Hold everything the edge works with.

    `discovery` gives what a node is to be told, None before there is anything; it is None where no xDS is served.
    `proxies` is None where no xDS server runs, `metrics` where METRICS_ENABLED=false. `script_problem` says why a
    script check cannot run here, None where it can. `report_error` hears of an unexpected exception with the
    request's id. `monotonic` gives seconds, `wall_clock` those since the epoch, `random` a number in [0, 1),
    `request_id` a fresh id.
    A write answers 202 where the catalog does not show it after `visible_within_s` (contract, section 3).
    """

    live: LiveCatalog
    registry: WritableRegistry
    guard: Guard
    freshness: Callable[[], Freshness]
    picker: Picker
    reports: HealthReports
    readiness: Readiness
    proxies: Proxies | None
    metrics: Metrics | None
    script_problem: Callable[[HealthCheck], str | None]
    health_defaults: HealthDefaults
    version: str
    report_error: Callable[[Exception, str], None]
    monotonic: Callable[[], float]
    wall_clock: Callable[[], float]
    random: Callable[[], float]
    request_id: Callable[[], str]
    discovery: Callable[[Node], Awaitable[Snapshot | None]] | None = None
    visible_within_s: float = 2.0
    compiler: Compiler = field(default_factory=Compiler)
