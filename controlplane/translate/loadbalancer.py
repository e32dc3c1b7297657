"""Spell a policy's strategy as Envoy's load balancing.

Written twice over: as the typed `load_balancing_policy`, which wins wherever it is understood (gRPC since A52,
Envoy since 1.22), and as the old enum with its options for clients that know nothing else. Both say the same.
The typed form without `locality_lb_config` also switches off zone-aware routing, which the old form would have
on by default: endpoint weights are to count over all localities alike.
"""

from dataclasses import dataclass

import betterproto2
from envoy_data_plane.envoy.config.cluster.v3 import (
    ClusterLbPolicy,
    ClusterLeastRequestLbConfig,
    ClusterMaglevLbConfig,
    ClusterRingHashLbConfig,
    LoadBalancingPolicy,
    LoadBalancingPolicyPolicy,
)
from envoy_data_plane.envoy.config.core.v3 import TypedExtensionConfig
from envoy_data_plane.envoy.extensions.load_balancing_policies.least_request.v3 import LeastRequest
from envoy_data_plane.envoy.extensions.load_balancing_policies.maglev.v3 import Maglev
from envoy_data_plane.envoy.extensions.load_balancing_policies.random.v3 import Random
from envoy_data_plane.envoy.extensions.load_balancing_policies.ring_hash.v3 import RingHash, RingHashHashFunction
from envoy_data_plane.envoy.extensions.load_balancing_policies.round_robin.v3 import RoundRobin

from controlplane.policy import ConsistentHash, LeastConnections, Policy, Strategy
from xds.encode import Encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancing:
    """Hold the fields of a Cluster that say how it balances."""

    load_balancing_policy: LoadBalancingPolicy
    lb_policy: ClusterLbPolicy
    least_request_lb_config: ClusterLeastRequestLbConfig | None = None
    ring_hash_lb_config: ClusterRingHashLbConfig | None = None
    maglev_lb_config: ClusterMaglevLbConfig | None = None


def load_balancing(policy: Policy, encoder: Encoder) -> LoadBalancing:
    """Spell a policy's strategy; endpoint weights are the plan's business."""
    match policy.strategy:
        case Strategy.ROUND_ROBIN | Strategy.WEIGHTED_ROUND_ROBIN:
            return LoadBalancing(
                load_balancing_policy=typed("round_robin", RoundRobin(), encoder),
                lb_policy=ClusterLbPolicy.ROUND_ROBIN,
            )
        case Strategy.LEAST_CONNECTIONS | Strategy.HEALTH_BASED:
            choices = (policy.least_connections or LeastConnections()).choice_count
            return LoadBalancing(
                load_balancing_policy=typed("least_request", LeastRequest(choice_count=choices), encoder),
                lb_policy=ClusterLbPolicy.LEAST_REQUEST,
                least_request_lb_config=ClusterLeastRequestLbConfig(choice_count=choices),
            )
        case Strategy.RANDOM:
            return LoadBalancing(
                load_balancing_policy=typed("random", Random(), encoder), lb_policy=ClusterLbPolicy.RANDOM
            )
        case Strategy.CONSISTENT_HASH:
            return _consistent_hash(policy.consistent_hash or ConsistentHash(), encoder)


def _consistent_hash(options: ConsistentHash, encoder: Encoder) -> LoadBalancing:
    if options.algorithm == "maglev":
        return LoadBalancing(
            load_balancing_policy=typed("maglev", Maglev(table_size=options.table_size), encoder),
            lb_policy=ClusterLbPolicy.MAGLEV,
            maglev_lb_config=ClusterMaglevLbConfig(table_size=options.table_size),
        )
    ring_hash = RingHash(hash_function=RingHashHashFunction.XX_HASH, minimum_ring_size=options.minimum_ring_size)
    return LoadBalancing(
        load_balancing_policy=typed("ring_hash", ring_hash, encoder),
        lb_policy=ClusterLbPolicy.RING_HASH,
        # its hash_function is XX_HASH by default, the only one that gRPC knows
        ring_hash_lb_config=ClusterRingHashLbConfig(minimum_ring_size=options.minimum_ring_size),
    )


def typed(name: str, options: betterproto2.Message, encoder: Encoder) -> LoadBalancingPolicy:
    """Name one policy of Envoy's `load_balancing_policies` with its options."""
    extension = TypedExtensionConfig(name=f"envoy.load_balancing_policies.{name}", typed_config=encoder.pack(options))
    return LoadBalancingPolicy(policies=[LoadBalancingPolicyPolicy(typed_extension_config=extension)])
