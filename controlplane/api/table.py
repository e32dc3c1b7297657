"""Every route of the REST edge, in the order in which the documentation shows them."""

from controlplane.api import batch, documentation, events, instances, policies, probes, proxies, reading, resources
from controlplane.api.operations import Operation

OPERATIONS: tuple[Operation, ...] = (
    *reading.OPERATIONS,
    *instances.OPERATIONS,
    *batch.OPERATIONS,
    *policies.OPERATIONS,
    *resources.OPERATIONS,
    *events.OPERATIONS,
    *proxies.OPERATIONS,
    *probes.OPERATIONS,
    *documentation.OPERATIONS,
)
