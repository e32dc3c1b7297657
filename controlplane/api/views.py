"""What answers look like: one frozen type for each kind of document, and how the catalog becomes one.

These types are what `/openapi.json` describes and what orjson writes. Times are RFC 3339 in UTC, durations seconds.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from controlplane.api.context import HealthDefaults
from controlplane.catalog import Catalog, Entry, Service
from controlplane.health import CheckReport
from controlplane.model import CheckType, Draining, HealthCheck, HealthStatus, Instance, Locality, MetadataValue, Ttl
from controlplane.policy import ConsistentHash, LeastConnections, PanicThreshold, Policy, Strategy
from controlplane.readiness import Health


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheckView:
    """Show how an instance is checked; `interval` and `timeout` are those in force."""

    enabled: bool
    type: CheckType
    http_path: str
    grpc_service: str
    script: tuple[str, ...]
    interval: float
    timeout: float
    healthy_threshold: int
    unhealthy_threshold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceView:
    """Show an instance: what was registered, and (read-only) what is known about it.

    `held`: its registry has lost it, and the mass-loss guard keeps it offered all the same.
    `address` is what proxies are given, null while the host has not been resolved. `since` is when the status was
    reached, null where it was never judged. `revision` is that of its last change, null where the write has not
    reached this process's catalog yet.
    """

    name: str
    host: str
    port: int
    id: str
    tags: tuple[str, ...]
    metadata: Mapping[str, MetadataValue]
    weight: int
    ttl: Ttl
    draining: Draining
    locality: Locality
    health_check: HealthCheckView | None
    status: HealthStatus
    since: str | None
    registry: str
    held: bool
    address: str | None
    revision: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceView:
    """Show a service with the instances that were asked for, by id."""

    name: str
    instances: tuple[InstanceView, ...]
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceItem:
    """Sum up a service: counts and tags are of all its instances, whatever was filtered by."""

    name: str
    instances: int
    healthy: int
    tags: tuple[str, ...]
    statuses: dict[str, int]
    strategy: Strategy
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceList:
    """Show one page of services, by name. `next` is the cursor of the page after, null on the last."""

    items: tuple[ServiceItem, ...]
    next: str | None
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Picked:
    """Say how an instance was chosen."""

    strategy: Strategy
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Say how long the lease runs from now, in seconds; null where the instance has no `ttl`."""

    expires_in: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceHealth:
    """Show what is known of an instance's health.

    `status`, `reason` and `since` are the verdict; where the host has not been resolved, `reason` says so instead,
    because such an instance is offered to nobody whatever its status. What follows `score` is the newest check, null
    where none has been made since this process started. `latency` is in seconds.
    """

    id: str
    host: str
    port: int
    checked: bool
    status: HealthStatus
    reason: str
    since: str | None
    score: int
    last_check: str | None
    passed: bool | None
    output: str | None
    latency: float | None
    consecutive_passes: int | None
    consecutive_failures: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceHealth:
    """Show the health of a service's instances, by id."""

    name: str
    instances: tuple[InstanceHealth, ...]
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyView:
    """Show the traffic policy in force. `default`: the service has none of its own."""

    service: str
    default: bool
    strategy: Strategy
    consistent_hash: ConsistentHash | None
    least_connections: LeastConnections | None
    panic_threshold: PanicThreshold
    connect_timeout: float
    timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthView:
    """Sum up the process: `starting` until ready for the first time, `degraded` while any check fails.

    `last_known_good`: a registry has not spoken since the start, and what a former process last knew is served.
    """

    status: Health
    last_known_good: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PutInstanceEvent:
    """Show the data of a `put` event about an instance."""

    instance: InstanceView
    kind: Literal["instance"] = "instance"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteInstanceEvent:
    """Show the data of a `delete` event about an instance."""

    service: str
    id: str
    reason: str
    kind: Literal["instance"] = "instance"


@dataclass(frozen=True, slots=True, kw_only=True)
class PutPolicyEvent:
    """Show the data of a `put` event about a service's own policy."""

    policy: PolicyView
    kind: Literal["policy"] = "policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletePolicyEvent:
    """Show the data of a `delete` event about a service's own policy."""

    service: str
    kind: Literal["policy"] = "policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class PutResourceEvent:
    """Show the data of a `put` event about a raw xDS resource: which one it is, never what it holds."""

    type: str
    name: str
    node_clusters: tuple[str, ...]
    node_zones: tuple[str, ...]
    kind: Literal["resource"] = "resource"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteResourceEvent:
    """Show the data of a `delete` event about a raw xDS resource."""

    type: str
    name: str
    kind: Literal["resource"] = "resource"


def timestamp(seconds: float) -> str | None:
    """Return seconds since the epoch as RFC 3339 in UTC, None where they are no time a calendar knows."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return None


def instance_view(entry: Entry, *, address: str | None, revision: str | None, defaults: HealthDefaults) -> InstanceView:
    """Show an instance."""
    instance = entry.instance
    judged = entry.checked and entry.verdict is not None
    return InstanceView(
        name=instance.name,
        host=instance.host,
        port=instance.port,
        id=instance.id,
        tags=instance.tags,
        metadata=instance.metadata,
        weight=instance.weight,
        ttl=instance.ttl,
        draining=instance.draining,
        locality=instance.locality,
        health_check=None if instance.health_check is None else _check_view(instance.health_check, defaults),
        status=entry.status,
        since=timestamp(entry.verdict.since) if judged and entry.verdict is not None else None,
        registry=entry.registry,
        held=bool(entry.held),
        address=address,
        revision=revision,
    )


def _check_view(check: HealthCheck, defaults: HealthDefaults) -> HealthCheckView:
    return HealthCheckView(
        enabled=check.enabled,
        type=check.type,
        http_path=check.http_path,
        grpc_service=check.grpc_service,
        script=check.script,
        interval=defaults.interval if check.interval is None else check.interval,
        timeout=defaults.timeout if check.timeout is None else check.timeout,
        healthy_threshold=check.healthy_threshold,
        unhealthy_threshold=check.unhealthy_threshold,
    )


def service_item(service: Service, revision: str) -> ServiceItem:
    """Sum up a service."""
    statuses = Counter(entry.status for entry in service.entries.values())
    return ServiceItem(
        name=service.name,
        instances=len(service.entries),
        healthy=statuses[HealthStatus.HEALTHY],
        tags=tuple(sorted({tag for entry in service.entries.values() for tag in entry.instance.tags})),
        statuses={status.value: statuses[status] for status in HealthStatus if statuses[status]},
        strategy=service.policy.strategy,
        revision=revision,
    )


def unresolved(catalog: Catalog, instance: Instance) -> str | None:
    """Return why an instance is not offered to anyone for want of an address; None where it has one."""
    if catalog.address_of(instance) is not None:
        return None
    resolved = catalog.resolutions.get(instance.host)
    why = f": {resolved.error}" if resolved is not None and resolved.error else ""
    return f"left out: {instance.host} has not been resolved{why}"


def instance_health(entry: Entry, report: CheckReport | None, left_out: str | None) -> InstanceHealth:
    """Show an instance's health: the verdict, and the newest check where there is one.

    `left_out` says why it is not offered to anyone, whatever its health; None where nothing stands against it.
    """
    instance = entry.instance
    verdict = entry.verdict if entry.checked else None
    return InstanceHealth(
        id=instance.id,
        host=instance.host,
        port=instance.port,
        checked=entry.checked,
        status=entry.status,
        reason=_health_reason(entry) if left_out is None else left_out,
        since=None if verdict is None else timestamp(verdict.since),
        score=entry.score if report is None else report.score,
        last_check=None if report is None else timestamp(report.checked_at),
        passed=None if report is None else report.passed,
        output=None if report is None else report.output,
        latency=None if report is None else report.latency_s,
        consecutive_passes=None if report is None else report.consecutive_passes,
        consecutive_failures=None if report is None else report.consecutive_failures,
    )


def _health_reason(entry: Entry) -> str:
    if entry.stated is not None and entry.stated.status is not HealthStatus.HEALTHY:
        return f"{entry.registry} says {entry.stated.reason or entry.stated.status}"
    if not entry.checked:
        return "not checked"
    return "awaiting first check" if entry.verdict is None else entry.verdict.reason


def policy_view(service: Service) -> PolicyView:
    """Show the policy in force."""
    policy: Policy = service.policy
    return PolicyView(
        service=service.name,
        default=service.own_policy is None,
        strategy=policy.strategy,
        consistent_hash=policy.consistent_hash,
        least_connections=policy.least_connections,
        panic_threshold=policy.panic_threshold,
        connect_timeout=policy.connect_timeout,
        timeout=policy.timeout,
    )
