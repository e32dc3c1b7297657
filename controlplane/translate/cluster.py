"""Spell a planned cluster as an Envoy Cluster whose endpoints come by EDS.

A cluster's bytes depend on its name and its policy only, and a thousand services share a handful of policies:
everything but the name is spelled once a policy.
"""

from dataclasses import fields
from datetime import timedelta
from functools import lru_cache

from envoy_data_plane.envoy.config.cluster.v3 import (
    Cluster,
    ClusterCommonLbConfig,
    ClusterDiscoveryType,
    ClusterEdsClusterConfig,
)
from envoy_data_plane.envoy.type.v3 import Percent

from controlplane import plan
from controlplane.policy import Policy
from controlplane.translate.loadbalancer import load_balancing
from controlplane.translate.names import ADS, Source, Transport
from xds.encode import Encoder, frame
from xds.types import ENDPOINT, Resource

_NAME_FIELD = 1


def cluster(planned: plan.Cluster, source: Source = ADS) -> Resource:
    """Spell a cluster; its load assignment has the same name and comes from `source`."""
    if source.transport is Transport.FILES:  # each assignment has a file of its own, so nothing is shared
        encoder = Encoder()
        body = encoder.encode(message(planned.name, planned.policy, encoder, source))
    else:
        body = frame(_NAME_FIELD, planned.name.encode()) + _all_but_name(planned.policy, source)
    return Resource.of(planned.name, body, refs=[(ENDPOINT, planned.name)])


@lru_cache(maxsize=1024)
def _all_but_name(policy: Policy, source: Source) -> bytes:
    # The name is the first field that the encoder writes, so it can be put in front of the rest.
    encoder = Encoder()
    return encoder.encode(message("", policy, encoder, source))


def message(name: str, policy: Policy, encoder: Encoder, source: Source = ADS) -> Cluster:
    """Build the message.

    Not set, on purpose: `ignore_health_on_host_removal`, for Envoy keeps a removed host only while an active health
    check of its own says it lives, and these clusters have none, so a deregistered instance is gone at once; and
    `locality_weighted_lb_config`, for the instances' weights alone decide.
    """
    balancing = load_balancing(policy, encoder)
    return Cluster(
        name=name,
        type=ClusterDiscoveryType.EDS,
        eds_cluster_config=ClusterEdsClusterConfig(eds_config=source.of(ENDPOINT, name)),
        connect_timeout=timedelta(seconds=policy.connect_timeout),
        common_lb_config=ClusterCommonLbConfig(
            healthy_panic_threshold=Percent(value=policy.panic_threshold),
            # Envoy would hold back changes of health and weight for up to a second to merge them. They have been
            # merged before they are sent, and an instance found unhealthy must not get that second's requests.
            update_merge_window=timedelta(0),
        ),
        **{field.name: getattr(balancing, field.name) for field in fields(balancing)},
    )
