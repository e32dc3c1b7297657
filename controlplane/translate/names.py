"""What the resources are called, and how they refer to each other: over ADS, always.

The names are fixed by the contract with the outside (section 4): dashboards, bootstraps and gRPC clients use them.
"""

from datetime import timedelta

from envoy_data_plane.envoy.config.core.v3 import AggregatedConfigSource, ApiVersion, ConfigSource

GATEWAY = "gateway"
"""The listener for Envoys, its route configuration, and its statistics' prefix."""


def over_ads() -> ConfigSource:
    """Return the source that every resource names for those it refers to.

    `initial_fetch_timeout` 0 waits for ever, where Envoy's default goes on without an answer after 15 s. Going on
    would be worse: a cluster whose update arrived just before the control plane went away would be replaced by an
    empty one, and a listener without its routes would answer 404 to everybody. Waiting keeps what is in service,
    and a starting Envoy not ready; the server answers every assignment and route that is referred to, be it empty.
    """
    return ConfigSource(
        ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3, initial_fetch_timeout=timedelta(0)
    )
