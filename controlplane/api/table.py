"""Every route of the REST edge, in the order in which the documentation shows them."""

from controlplane.api import (
    batch,
    discovery,
    documentation,
    events,
    guard,
    instances,
    policies,
    probes,
    proxies,
    proxy_config,
    reading,
    resources,
)
from controlplane.api.operations import Operation

OPERATIONS: tuple[Operation, ...] = (
    *reading.OPERATIONS,
    *instances.OPERATIONS,
    *batch.OPERATIONS,
    *policies.OPERATIONS,
    *resources.OPERATIONS,
    *events.OPERATIONS,
    *guard.OPERATIONS,
    *proxies.OPERATIONS,
    *proxy_config.OPERATIONS,
    *discovery.OPERATIONS,
    *probes.OPERATIONS,
    *documentation.OPERATIONS,
)
