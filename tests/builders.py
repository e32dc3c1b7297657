"""Short ways to say what a test is about; everything not named gets a sensible value."""

from typing import Any

from controlplane.catalog import Catalog
from controlplane.model import (
    Event,
    HealthStatus,
    Instance,
    InstanceId,
    InstanceKey,
    PutInstance,
    ServiceName,
    Synced,
    Verdict,
)


def instance(name: str = "web", id: str | None = None, **changes: Any) -> Instance:
    """Build an instance of `name`; without an id it gets the default one."""
    values: dict[str, Any] = {"name": name, "host": "10.0.0.1", "port": 8080, **changes}
    if id is not None:
        values["id"] = id
    return Instance(**values)


def put(name: str = "web", id: str | None = None, *, verdict: Verdict | None = None, **changes: Any) -> PutInstance:
    """Build the event of a memory registry that holds an instance."""
    return PutInstance(instance=instance(name, id, **changes), registry="memory", verdict=verdict)


def key(service: str, id: str) -> InstanceKey:
    """Build an instance's key."""
    return InstanceKey(ServiceName(service), InstanceId(id))


def verdict(status: HealthStatus = HealthStatus.HEALTHY, *, passed: bool = True, **changes: Any) -> Verdict:
    """Build a verdict reached at second 1,000."""
    return Verdict(status=status, passed=passed, **{"since": 1000.0, "reason": "HTTP 200", **changes})


def catalog(*events: Event, checks_enabled: bool = True) -> Catalog:
    """Build the catalog that these events lead to, in sync with the memory registry."""
    result = Catalog(checks_enabled=checks_enabled)
    for event in (Synced(registry="memory"), *events):
        result, _ = result.apply(event)
    return result
