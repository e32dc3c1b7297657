"""Spell routes as the gateway's RouteConfiguration, from per-service bytes that are made once and joined.

Adding a service to a thousand costs its own encoding and a join, not a thousand encodings.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from envoy_data_plane.envoy.config.route.v3 import (
    Route,
    RouteAction,
    RouteActionHashPolicy,
    RouteActionHashPolicyConnectionProperties,
    RouteActionHashPolicyCookie,
    RouteActionHashPolicyHeader,
    RouteActionHashPolicyQueryParameter,
    RouteMatch,
    VirtualHost,
)

from controlplane import plan, routing
from controlplane.model import HashOn, Policy
from controlplane.translate.names import GATEWAY
from xds.encode import Encoder, frame
from xds.types import CLUSTER, Resource

STREAM_IDLE_S = 300.0
"""After how long without a byte either way the gateway ends a request (Envoy's own default)."""

ANY_HOST = "*"
"""The virtual host of all other hosts; no service can be called so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frames:
    """Hold a service's part of the route configuration, and the policy that it was made of."""

    policy: Policy
    virtual_host: bytes
    by_path: bytes


class GatewayRoutes:
    """Spell the route configuration `gateway`, remembering each service's part of it."""

    def __init__(self) -> None:
        self._encoder = Encoder()
        self._frames: dict[str, _Frames] = {}

    def resource(self, planned: Iterable[plan.Cluster]) -> Resource:
        """Spell the routes to these clusters, in any order; other services are forgotten."""
        clusters = sorted(planned, key=lambda cluster: cluster.name)
        self._frames = {cluster.name: self._part(cluster) for cluster in clusters}
        parts = self._frames.values()
        by_path = b"".join(part.by_path for part in parts)
        any_host = frame(1, ANY_HOST.encode()) + frame(2, ANY_HOST.encode()) + by_path
        body = b"".join(
            (frame(1, GATEWAY.encode()), *(part.virtual_host for part in parts), frame(2, any_host) if by_path else b"")
        )
        return Resource.of(GATEWAY, body, refs=[(CLUSTER, cluster.name) for cluster in clusters])

    def _part(self, cluster: plan.Cluster) -> _Frames:
        known = self._frames.get(cluster.name)
        if known is not None and (known.policy is cluster.policy or known.policy == cluster.policy):
            return known
        routes = routing.service_routes(cluster)
        return _Frames(
            policy=cluster.policy,
            virtual_host=frame(2, self._encoder.encode(virtual_host(routes))),
            by_path=frame(3, self._encoder.encode(route(routes.by_path))),
        )


def virtual_host(routes: routing.ServiceRoutes) -> VirtualHost:
    """Spell the virtual host of a service."""
    return VirtualHost(name=routes.service, domains=list(routes.domains), routes=[route(routes.by_host)])


def route(planned: routing.Route) -> Route:
    """Spell one route. A timeout of 0 is written out, as leaving it out would mean Envoy's 15 s."""
    return Route(
        match=RouteMatch(prefix=planned.prefix),
        route=RouteAction(
            cluster=planned.cluster,
            prefix_rewrite=planned.rewrite,
            timeout=timedelta(seconds=planned.timeout_s),
            # A request that may take longer than the listener's idle timeout may be silent for as long.
            idle_timeout=timedelta(seconds=planned.timeout_s) if planned.timeout_s > STREAM_IDLE_S else None,
            hash_policy=[] if planned.hash_on is None else [_hash_policy(planned.hash_on, planned.prefix)],
        ),
    )


def _hash_policy(hash_on: HashOn, path: str) -> RouteActionHashPolicy:
    match hash_on.source:
        case "header":
            return RouteActionHashPolicy(header=RouteActionHashPolicyHeader(header_name=hash_on.name))
        case "query":
            return RouteActionHashPolicy(query_parameter=RouteActionHashPolicyQueryParameter(name=hash_on.name))
        case "cookie":
            if hash_on.ttl is None:
                return RouteActionHashPolicy(cookie=RouteActionHashPolicyCookie(name=hash_on.name))
            # Envoy makes the cookie where the client sends none; its path keeps services behind one host apart.
            ttl = timedelta(seconds=hash_on.ttl)
            return RouteActionHashPolicy(cookie=RouteActionHashPolicyCookie(name=hash_on.name, ttl=ttl, path=path))
        case "source_address":
            return RouteActionHashPolicy(
                connection_properties=RouteActionHashPolicyConnectionProperties(source_ip=True)
            )
