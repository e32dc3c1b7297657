"""Spell a service for gRPC clients without a proxy: listener, route configuration and cluster, each called `<service>`.

Only what gRPC reads and accepts is written (gRFC A27, A28, A31, A42, A52; C-09 to C-11, C-14). Assignments are spelled
by `endpoint`, from the plan in `proxyless` form.
"""

from datetime import timedelta
from functools import lru_cache

from envoy_data_plane.envoy.config.cluster.v3 import (
    Cluster,
    ClusterDiscoveryType,
    ClusterEdsClusterConfig,
    ClusterLbPolicy,
    ClusterRingHashLbConfig,
)
from envoy_data_plane.envoy.config.listener.v3 import ApiListener, Listener
from envoy_data_plane.envoy.config.route.v3 import (
    Route,
    RouteAction,
    RouteActionHashPolicy,
    RouteActionHashPolicyFilterState,
    RouteActionHashPolicyHeader,
    RouteActionMaxStreamDuration,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpFilter,
    Rds,
)
from envoy_data_plane.envoy.extensions.load_balancing_policies.ring_hash.v3 import RingHash, RingHashHashFunction
from envoy_data_plane.envoy.extensions.load_balancing_policies.round_robin.v3 import RoundRobin
from envoy_data_plane.envoy.extensions.load_balancing_policies.wrr_locality.v3 import WrrLocality

from controlplane import plan
from controlplane.policy import ConsistentHash, HashOn, Policy, Strategy
from controlplane.proxyless import hash_on
from controlplane.translate.loadbalancer import typed
from controlplane.translate.names import over_ads
from xds.encode import Encoder, frame
from xds.types import CLUSTER, ENDPOINT, ROUTE, Resource

_NAME_FIELD = 1
_CHANNEL_ID = "io.grpc.channel_id"
"""The filter state that stands for the client's channel: the one key that gRPC knows (gRFC A42)."""


# Field numbers from envoy/config/listener/v3, route/v3 and the connection manager's proto; the tests hold the bytes to
# envoy-data-plane's own encoding of the messages below.


def listener(name: str) -> Resource:
    """Spell the listener that `xds:///<name>` asks for: an API listener whose routes come by RDS (K-01)."""
    source, filters, type_url = _all_but_names()
    called = frame(2, name.encode())
    manager = frame(1, type_url) + frame(2, called + frame(3, source + called) + filters)
    body = frame(_NAME_FIELD, name.encode()) + frame(19, frame(1, manager))
    return Resource.of(name, body, refs=[(ROUTE, name)])


@lru_cache(maxsize=1)
def _all_but_names() -> tuple[bytes, bytes, bytes]:
    """Spell what all listeners share: the routes' source, the connection manager's filters, and its type."""
    encoder = Encoder()
    source = encoder.encode(Rds(config_source=over_ads()))
    filters = encoder.encode(HttpConnectionManager(http_filters=[_router(encoder)]))
    return source, filters, encoder.pack(HttpConnectionManager()).type_url.encode()


def listener_message(name: str, encoder: Encoder) -> Listener:
    """Build the listener's message."""
    rds = Rds(config_source=over_ads(), route_config_name=name)
    manager = HttpConnectionManager(stat_prefix=name, rds=rds, http_filters=[_router(encoder)])
    return Listener(name=name, api_listener=ApiListener(api_listener=encoder.pack(manager)))


def _router(encoder: Encoder) -> HttpFilter:
    return HttpFilter(name="envoy.filters.http.router", typed_config=encoder.pack(Router()))


def routes(planned: plan.Cluster) -> Resource:
    """Spell the route configuration: one route to the cluster, whatever the authority.

    The listener has been asked for by name, so nothing is left to tell apart by domain; a client may well set an
    authority of its own, for the instances' certificates.
    """
    called = frame(_NAME_FIELD, planned.name.encode())
    action = called + _action_but_cluster(planned.policy.timeout, hash_on(planned))
    route = frame(1, frame(1, b"")) + frame(2, action)  # the empty prefix matches every method
    body = called + frame(2, called + frame(2, b"*") + frame(3, route))
    return Resource.of(planned.name, body, refs=[(CLUSTER, planned.name)])


@lru_cache(maxsize=1024)
def _action_but_cluster(timeout_s: float, hashed: HashOn | None) -> bytes:
    return Encoder().encode(_action("", timeout_s, hashed))


def routes_message(planned: plan.Cluster) -> RouteConfiguration:
    """Build the route configuration's message."""
    action = _action(planned.name, planned.policy.timeout, hash_on(planned))
    host = VirtualHost(name=planned.name, domains=["*"], routes=[Route(match=RouteMatch(prefix=""), route=action)])
    return RouteConfiguration(name=planned.name, virtual_hosts=[host])


def _action(cluster_name: str, timeout_s: float, hashed: HashOn | None) -> RouteAction:
    # gRPC ignores a route's `timeout`; what bounds a call is this, or the caller's deadline if that is nearer (A31).
    longest = RouteActionMaxStreamDuration(max_stream_duration=timedelta(seconds=timeout_s)) if timeout_s else None
    return RouteAction(
        # In a oneof an empty name would be written, too: the bytes without it begin behind the cluster.
        cluster=cluster_name or None,
        max_stream_duration=longest,
        hash_policy=[] if hashed is None else [_hash_policy(hashed)],
    )


def _hash_policy(hashed: HashOn) -> RouteActionHashPolicy:
    if hashed.source == "header":
        return RouteActionHashPolicy(header=RouteActionHashPolicyHeader(header_name=hashed.name))
    return RouteActionHashPolicy(filter_state=RouteActionHashPolicyFilterState(key=_CHANNEL_ID))


def cluster(planned: plan.Cluster) -> Resource:
    """Spell the cluster; its load assignment has the same name."""
    body = frame(_NAME_FIELD, planned.name.encode()) + _all_but_name(planned.policy)
    return Resource.of(planned.name, body, refs=[(ENDPOINT, planned.name)])


@lru_cache(maxsize=1024)
def _all_but_name(policy: Policy) -> bytes:
    # The name is the first field that the encoder writes, so it can be put in front of the rest.
    encoder = Encoder()
    return encoder.encode(message("", policy, encoder))


def message(name: str, policy: Policy, encoder: Encoder) -> Cluster:
    """Build the cluster's message: ring hash for consistent hashing, round robin by locality for all the rest.

    Balancing is written twice over, as for Envoys: the typed form for clients since gRFC A52, the enum for older
    ones. Typed, round robin must be named inside `WrrLocality`, or the localities' weights would not count.
    """
    source = ClusterEdsClusterConfig(eds_config=over_ads())
    if policy.strategy is Strategy.CONSISTENT_HASH:
        size = (policy.consistent_hash or ConsistentHash()).minimum_ring_size
        ring = RingHash(hash_function=RingHashHashFunction.XX_HASH, minimum_ring_size=size)
        return Cluster(
            name=name,
            type=ClusterDiscoveryType.EDS,
            eds_cluster_config=source,
            lb_policy=ClusterLbPolicy.RING_HASH,
            ring_hash_lb_config=ClusterRingHashLbConfig(minimum_ring_size=size),
            load_balancing_policy=typed("ring_hash", ring, encoder),
        )
    inner = typed("round_robin", RoundRobin(), encoder)
    return Cluster(
        name=name,
        type=ClusterDiscoveryType.EDS,
        eds_cluster_config=source,
        lb_policy=ClusterLbPolicy.ROUND_ROBIN,
        load_balancing_policy=typed("wrr_locality", WrrLocality(endpoint_picking_policy=inner), encoder),
    )
