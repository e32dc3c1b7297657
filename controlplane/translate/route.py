"""Spell routes as the gateway's RouteConfiguration, from per-service bytes that are made once and joined.

A service's bytes depend on its name and its policy only, and a thousand services share a handful of policies:
what does not hold the name is spelled once a policy. Adding a service to a thousand costs a join.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache

from envoy_data_plane.envoy.config.route.v3 import (
    RouteAction,
    RouteActionHashPolicy,
    RouteActionHashPolicyConnectionProperties,
    RouteActionHashPolicyCookie,
    RouteActionHashPolicyHeader,
    RouteActionHashPolicyQueryParameter,
)

from controlplane import plan, routing
from controlplane.model import ServiceName
from controlplane.policy import HashOn, Policy
from controlplane.translate.names import GATEWAY
from xds.encode import Encoder, frame
from xds.types import CLUSTER, Resource

STREAM_IDLE_S = 300.0
"""After how long without a byte either way the gateway ends a request (Envoy's own default)."""

ANY_HOST = "*"
"""The virtual host of all other hosts; no service can be called so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frames:
    """Hold a service's part of the route configuration, and the policy and aliases that it was made of."""

    policy: Policy
    aliases: tuple[ServiceName, ...]
    virtual_host: bytes
    by_path: bytes


class GatewayRoutes:
    """Spell the route configuration `gateway`, remembering each service's part of it."""

    def __init__(self) -> None:
        self._frames: dict[str, _Frames] = {}

    def resource(self, planned: Iterable[plan.Cluster]) -> Resource:
        """Spell the routes to these clusters, in any order; other services are forgotten."""
        clusters = sorted(planned, key=lambda cluster: cluster.name)
        aliases = routing.free_aliases(clusters)
        self._frames = {cluster.name: self._part(cluster, aliases.get(cluster.name, ())) for cluster in clusters}
        parts = self._frames.values()
        by_path = b"".join(part.by_path for part in parts)
        any_host = frame(1, ANY_HOST.encode()) + frame(2, ANY_HOST.encode()) + by_path
        body = b"".join(
            (frame(1, GATEWAY.encode()), *(part.virtual_host for part in parts), frame(2, any_host) if by_path else b"")
        )
        return Resource.of(GATEWAY, body, refs=[(CLUSTER, cluster.name) for cluster in clusters])

    def _part(self, cluster: plan.Cluster, aliases: tuple[ServiceName, ...]) -> _Frames:
        known = self._frames.get(cluster.name)
        if (
            known is not None
            and known.aliases == aliases
            and (known.policy is cluster.policy or known.policy == cluster.policy)
        ):
            return known
        routes = routing.service_routes(cluster, aliases)
        return _Frames(
            policy=cluster.policy,
            aliases=aliases,
            virtual_host=frame(2, virtual_host(routes)),
            by_path=b"".join(frame(3, route(each)) for each in routes.by_path),
        )


# Field numbers from envoy/config/route/v3/route.proto and route_components.proto; the tests hold the bytes to
# envoy-data-plane's own encoding of the same messages.


def virtual_host(routes: routing.ServiceRoutes) -> bytes:
    """Spell the virtual host of a service."""
    domains = b"".join(frame(2, domain.encode()) for domain in routes.domains)
    return frame(1, routes.service.encode()) + domains + frame(3, route(routes.by_host))


def route(planned: routing.Route) -> bytes:
    """Spell one route."""
    match = frame(1, planned.prefix.encode())
    # A cookie that Envoy makes holds for the route's path, which keeps services behind one host apart.
    makes_cookie = planned.hash_on is not None and planned.hash_on.ttl is not None
    path = planned.prefix if makes_cookie else ""
    action = _action_but_cluster(planned.rewrite, planned.timeout_s, planned.hash_on, path)
    return frame(1, match) + frame(2, frame(1, planned.cluster.encode()) + action)


@lru_cache(maxsize=1024)
def _action_but_cluster(rewrite: str, timeout_s: float, hash_on: HashOn | None, cookie_path: str) -> bytes:
    # The cluster is the first field that the encoder writes, so it can be put in front of the rest.
    return Encoder().encode(
        RouteAction(
            prefix_rewrite=rewrite,
            # 0 is written out: leaving it out would mean Envoy's 15 s.
            timeout=timedelta(seconds=timeout_s),
            # A request that may take longer than the listener's idle timeout may be silent for as long.
            idle_timeout=timedelta(seconds=timeout_s) if timeout_s > STREAM_IDLE_S else None,
            hash_policy=[] if hash_on is None else [_hash_policy(hash_on, cookie_path)],
        )
    )


def _hash_policy(hash_on: HashOn, cookie_path: str) -> RouteActionHashPolicy:
    match hash_on.source:
        case "header":
            return RouteActionHashPolicy(header=RouteActionHashPolicyHeader(header_name=hash_on.name))
        case "query":
            return RouteActionHashPolicy(query_parameter=RouteActionHashPolicyQueryParameter(name=hash_on.name))
        case "cookie":
            # With a ttl, be it 0, Envoy makes the cookie where the client sends none.
            ttl = None if hash_on.ttl is None else timedelta(seconds=hash_on.ttl)
            cookie = RouteActionHashPolicyCookie(name=hash_on.name, ttl=ttl, path=cookie_path)
            return RouteActionHashPolicy(cookie=cookie)
        case "source_address":
            source = RouteActionHashPolicyConnectionProperties(source_ip=True)
            return RouteActionHashPolicy(connection_properties=source)
