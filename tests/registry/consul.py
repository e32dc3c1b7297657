"""How tests open the registry in a real Consul."""

import random
import time
from typing import Any

from servers.consul import ConsulServer

from controlplane.registry import Sharing
from controlplane.registry.consul import ConsulRegistry


def consul_registry(
    server: ConsulServer, *, member: str = "one", ttl_s: float = 30.0, **changes: Any
) -> ConsulRegistry:
    """Return the registry of a control plane called `member` on a server, with the server's own token if it has one."""
    values: dict[str, Any] = {
        "host": server.address,
        "port": 8500,
        "token": server.token,
        "sharing": Sharing(member=member, ttl_s=ttl_s),
        "clock": time.monotonic,
        "wall_clock": time.time,
        "random": random.Random(member),
    }
    return ConsulRegistry(**{**values, **changes})
