"""What a client would refuse in a raw resource, found before anything is stored (C-01 … C-16).

One refused resource makes a SotW client refuse the whole response that it came in, and the generated messages carry
none of Envoy's validation rules: here are those that people break most. Nothing is filled in or corrected.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

from betterproto2 import Message
from envoy_data_plane.envoy.config.cluster.v3 import Cluster, ClusterDiscoveryType, ClusterLbPolicy
from envoy_data_plane.envoy.config.core.v3 import ApiVersion, ConfigSource, DataSource, SocketAddress
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment, LocalityLbEndpoints
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.config.route.v3 import (
    Route,
    RouteConfiguration,
    RouteMatch,
    ScopedRouteConfiguration,
    VirtualHost,
    WeightedCluster,
)
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpFilter,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import Secret
from envoy_data_plane.envoy.type.matcher.v3 import RegexMatcher

from controlplane.raw.reading import Part, Path, RawFault
from controlplane.translate.lint import is_ip_address

_UINT32_MAX = 2**32 - 1
_MAX_PRIORITY = 128
_NOT_RE2 = re.compile(r"\(\?(?:=|!|<=|<!|>|\(|#)|\(\?P=|\\[1-9]|[*+?}]\+")
"""Look-around, atomic groups, conditionals, comments, back-references and possessive quantifiers: RE2 has none."""
_NOT_PYTHON = re.compile(
    r"\\Q.*?(?:\\E|$)|\\[pP](?:\{\^?\w+\}|[A-Z])|\\x\{[0-9A-Fa-f]+\}|\\C|\[:\^?[a-z]+:\]", re.DOTALL
)
"""Quotations, Unicode classes, long code points, bytes and POSIX classes, which Python lacks: one character each."""
_FLAGS = re.compile(r"\(\?[imsU]*(?:-[imsU]+)?([:)])")
_LITERAL = re.compile(r"\\[^A-Za-z1-9]|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
"""An escaped sign, or a class: what stands there is no operator."""

_MATCHERS = ("prefix", "path", "safe_regex", "connect_matcher", "path_separated_prefix", "path_match_policy")
_ACTIONS = ("route", "redirect", "direct_response", "filter_action", "non_forwarding_action")
_SECRETS = ("tls_certificate", "session_ticket_keys", "validation_context", "generic_secret")
_CONTENTS = ("filename", "inline_bytes", "inline_string", "environment_variable")
_CONFIGURED_CLUSTERS: Final = {
    "envoy.clusters.aggregate": "type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig",
    "envoy.clusters.dynamic_forward_proxy": "type.googleapis.com/"
    "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
}
"""Types of clusters that are nothing without a configuration, and balance by themselves."""

_SOURCES = ("path", "path_config_source", "api_config_source", "ads", "self")
_ADS = '{"ads": {}, "resource_api_version": "V3"}'
_NOT_SELF = f"Envoy knows no self here; {_ADS} is the same stream, and gRPC takes it too"

Check = Callable[[Any], Iterator[tuple[Path, str]]]


def faults(parts: Iterable[Part]) -> list[RawFault]:
    """Return what is wrong with a resource's messages, those inside an `Any` included; empty = publish it."""
    return [
        RawFault((*part.path, *path), detail)
        for part in parts
        for check in _CHECKS.get(type(part.message), ())
        for path, detail in check(part.message)
    ]


def _cluster(cluster: Cluster) -> Iterator[tuple[Path, str]]:
    if cluster.connect_timeout is not None and cluster.connect_timeout <= timedelta(0):
        yield ("connect_timeout",), "must be more than 0 s"
    if cluster.type == ClusterDiscoveryType.EDS:
        if cluster.eds_cluster_config is None or cluster.eds_cluster_config.eds_config is None:
            yield ("eds_cluster_config",), f"a cluster of type EDS needs eds_config, such as {_ADS}"
        elif cluster.eds_cluster_config.eds_config.self is not None:
            yield ("eds_cluster_config", "eds_config", "self"), _NOT_SELF
        if cluster.load_assignment is not None:
            yield ("load_assignment",), "a cluster of type EDS gets its endpoints as a resource of their own"
    elif cluster.eds_cluster_config is not None:
        yield ("eds_cluster_config",), "goes with type EDS only"
    if (
        cluster.type in (ClusterDiscoveryType.STATIC, ClusterDiscoveryType.STRICT_DNS, ClusterDiscoveryType.LOGICAL_DNS)
        and cluster.load_assignment is None
    ):
        yield ("load_assignment",), f"a cluster of type {cluster.type} needs its endpoints here"
    if cluster.type == ClusterDiscoveryType.STATIC and cluster.load_assignment is not None:
        for path, detail in host_names(cluster.load_assignment):
            yield ("load_assignment", *path), detail
    if cluster.type == ClusterDiscoveryType.LOGICAL_DNS and cluster.load_assignment is not None:
        groups = cluster.load_assignment.endpoints
        if len(groups) != 1 or len(groups[0].lb_endpoints) != 1:
            yield ("load_assignment",), "a cluster of type LOGICAL_DNS has exactly one endpoint (C-09)"


def _own_type(cluster: Cluster) -> Iterator[tuple[Path, str]]:
    """Check a cluster whose type is an extension, and who balances: one without what its type needs never warms."""
    custom = cluster.cluster_type
    provided = cluster.lb_policy == ClusterLbPolicy.CLUSTER_PROVIDED
    if custom is not None and not custom.name:
        yield ("cluster_type", "name"), "required, but missing"
    if custom is not None and custom.typed_config is None and custom.name in _CONFIGURED_CLUSTERS:
        detail = f'required: an object with "@type": "{_CONFIGURED_CLUSTERS[custom.name]}"'
        yield ("cluster_type", "typed_config"), detail
    balances = (custom is not None and custom.name in _CONFIGURED_CLUSTERS) or (
        cluster.type == ClusterDiscoveryType.ORIGINAL_DST
    )
    if balances and not provided and cluster.load_balancing_policy is None:
        yield ("lb_policy",), "must be CLUSTER_PROVIDED: clusters of this type balance by themselves"
    if provided and custom is None and not balances:
        yield ("lb_policy",), "CLUSTER_PROVIDED goes with types that balance by themselves, such as ORIGINAL_DST"


def unplaced(assignment: ClusterLoadAssignment) -> Iterator[tuple[Path, str]]:
    """Find localities that gRPC would not take, in an assignment of its own: one inside a cluster is not for gRPC."""
    for index, group in enumerate(assignment.endpoints):
        if group.locality is None:
            detail = "required: gRPC refuses an assignment without it; {} will do (C-02)"
            yield ("endpoints", index, "locality"), detail
        if group.load_balancing_weight is None:
            yield ("endpoints", index, "load_balancing_weight"), "required: gRPC ignores a locality without it (C-02)"


def host_names(assignment: ClusterLoadAssignment) -> Iterator[tuple[Path, str]]:
    """Find names where nothing resolves them: in an assignment of its own, and in that of a STATIC cluster."""
    for index, group in enumerate(assignment.endpoints):
        for number, each in enumerate(group.lb_endpoints):
            address = None if each.endpoint is None else each.endpoint.address
            if address is not None and (detail := _host_name(address.socket_address)):
                yield ("endpoints", index, "lb_endpoints", number, "endpoint", "address", "socket_address"), detail


def _host_name(address: SocketAddress | None) -> str:
    if address is None or address.resolver_name or not address.address or is_ip_address(address.address):
        return ""
    return f"{address.address!r} is no IP address, and nothing resolves it here"


def _assignment(assignment: ClusterLoadAssignment) -> Iterator[tuple[Path, str]]:
    if not assignment.cluster_name:
        yield ("cluster_name",), "required, but missing"
    priorities = {group.priority for group in assignment.endpoints}
    if priorities and priorities != set(range(len(priorities))):
        yield ("endpoints",), f"priorities begin at 0 and leave no gap, found {sorted(priorities)} (C-03)"
    places: set[object] = set()
    addresses: set[object] = set()
    totals: dict[int, int] = {}
    for index, group in enumerate(assignment.endpoints):
        where: Path = ("endpoints", index)
        if group.priority > _MAX_PRIORITY:
            yield (*where, "priority"), f"must be at most {_MAX_PRIORITY} (C-03)"
        place = group.locality
        at = None if place is None else (place.region, place.zone, place.sub_zone)
        if (at, group.priority) in places:
            yield where, "another group has this locality and priority (C-04)"
        places.add((at, group.priority))
        totals[group.priority] = totals.get(group.priority, 0) + (group.load_balancing_weight or 0)
        for number, each in enumerate(group.lb_endpoints):
            address = None if each.endpoint is None else each.endpoint.address
            socket = None if address is None else address.socket_address
            key = None if socket is None else (socket.address, socket.port_value, socket.named_port)
            if key is not None and key in addresses:
                yield (*where, "lb_endpoints", number), f"{key[0]}:{key[1] or key[2]} stands here twice (C-04)"
            addresses.add(key)
    for priority, total in totals.items():
        if total > _UINT32_MAX:
            yield ("endpoints",), f"the localities of priority {priority} weigh more than 2³²-1 together (C-01)"
    policy = assignment.policy
    if policy is None:
        return
    if len(policy.drop_overloads) > 1:
        yield ("policy", "drop_overloads"), "Envoy takes one category at most (C-06)"
    if policy.endpoint_stale_after is not None:
        yield ("policy", "endpoint_stale_after"), "nothing repeats a raw resource in time, so they would vanish (C-07)"


def _locality(group: LocalityLbEndpoints) -> Iterator[tuple[Path, str]]:
    if group.load_balancing_weight is not None and group.load_balancing_weight < 1:
        yield ("load_balancing_weight",), "must be at least 1 (C-01)"
    if group.lb_endpoints and group.leds_cluster_locality_config is not None:
        yield ("leds_cluster_locality_config",), "excludes lb_endpoints (C-08)"
    total = 0
    for index, each in enumerate(group.lb_endpoints):
        weight = 1 if each.load_balancing_weight is None else each.load_balancing_weight
        if weight < 1:
            yield ("lb_endpoints", index, "load_balancing_weight"), "must be at least 1; leave the endpoint out (C-01)"
        total += weight
        if each.endpoint is None or each.endpoint.address is None:
            yield ("lb_endpoints", index, "endpoint"), "required: an endpoint with an address"
    if total > _UINT32_MAX:
        yield ("lb_endpoints",), "the endpoints weigh more than 2³²-1 together (C-01)"


def _socket_address(address: SocketAddress) -> Iterator[tuple[Path, str]]:
    if not address.address:
        yield ("address",), "required, but missing"
    if address.port_value is not None and address.port_value > 65535:
        yield ("port_value",), "must be at most 65535"
    if address.port_value is None and address.named_port is None:
        yield ("port_value",), "required, but missing"


def _listener(listener: Listener) -> Iterator[tuple[Path, str]]:
    if listener.address is None and listener.api_listener is None and listener.internal_listener is None:
        yield ("address",), "required, but missing"
    if listener.address is not None and (detail := _host_name(listener.address.socket_address)):
        yield ("address", "socket_address"), detail
    if listener.api_listener is None and not listener.filter_chains and listener.default_filter_chain is None:
        yield ("filter_chains",), "required: without one the listener closes every connection"


def _manager(manager: HttpConnectionManager) -> Iterator[tuple[Path, str]]:
    if not manager.stat_prefix:
        yield ("stat_prefix",), "required, but missing"
    if manager.rds is None and manager.route_config is None and manager.scoped_routes is None:
        yield (), "one of rds, route_config and scoped_routes is required"
    if manager.rds is not None and not manager.rds.route_config_name:
        yield ("rds", "route_config_name"), "required, but missing"
    if manager.rds is not None and manager.rds.config_source is not None and manager.rds.config_source.self is not None:
        yield ("rds", "config_source", "self"), _NOT_SELF
    if not manager.http_filters:
        yield ("http_filters",), "required: the router has to be the last"


def _http_filter(filter_: HttpFilter) -> Iterator[tuple[Path, str]]:
    if not filter_.name:
        yield ("name",), "required, but missing"
    if filter_.config_discovery is not None and not filter_.config_discovery.type_urls:
        yield ("config_discovery", "type_urls"), "required: the types that the configuration may have"


def _route_configuration(routes: RouteConfiguration) -> Iterator[tuple[Path, str]]:
    source = None if routes.vhds is None else routes.vhds.config_source
    if source is not None and source.initial_fetch_timeout == timedelta(0):
        # Envoy names no host before a request asks for one, and an answer that holds none does not end its wait.
        yield ("vhds", "config_source", "initial_fetch_timeout"), "with 0 s the listener is never ready; 1 s will do"
    names: set[str] = set()
    domains: set[str] = set()
    for index, host in enumerate(routes.virtual_hosts):
        if host.name in names:
            yield ("virtual_hosts", index, "name"), f"{host.name!r} is another virtual host's (C-16)"
        names.add(host.name)
        for number, domain in enumerate(host.domains):
            if domain.lower() in domains:
                yield ("virtual_hosts", index, "domains", number), f"{domain!r} stands in this configuration twice"
            domains.add(domain.lower())


def _virtual_host(host: VirtualHost) -> Iterator[tuple[Path, str]]:
    if not host.name:
        yield ("name",), "required, but missing (C-16)"
    if not host.domains:
        yield ("domains",), "required: at least one"
    for index, domain in enumerate(host.domains):
        if not domain or any(ch <= " " or ch == "\x7f" for ch in domain):
            yield ("domains", index), "must not be empty or hold spaces or control characters"
        elif "*" in domain.strip("*") or (domain != "*" and domain.startswith("*") and domain.endswith("*")):
            yield ("domains", index), "a * stands at the beginning or at the end only"


def _route(route: Route) -> Iterator[tuple[Path, str]]:
    if route.match is None:
        yield ("match",), "required, but missing"
    if all(getattr(route, name) is None for name in _ACTIONS):
        yield (), f"an action is required: one of {', '.join(_ACTIONS)} (C-12)"
    action = route.route
    if action is not None and all(
        not getattr(action, name)
        for name in (
            "cluster",
            "cluster_header",
            "weighted_clusters",
            "cluster_specifier_plugin",
            "inline_cluster_specifier_plugin",
        )
    ):
        yield ("route",), "a cluster is required: cluster, cluster_header, weighted_clusters or a specifier (C-12)"


def _match(match: RouteMatch) -> Iterator[tuple[Path, str]]:
    if all(getattr(match, name) is None for name in _MATCHERS):
        yield (), f"a path specifier is required: one of {', '.join(_MATCHERS)} (C-12)"


def _weighted(weighted: WeightedCluster) -> Iterator[tuple[Path, str]]:
    total = sum(each.weight or 0 for each in weighted.clusters)
    if not 0 < total <= _UINT32_MAX:
        yield ("clusters",), f"the weights sum up to {total}, must be 1 to 2³²-1 (C-12)"


def _regex(matcher: RegexMatcher) -> Iterator[tuple[Path, str]]:
    """Check that RE2 would compile it, as far as Python can tell."""
    if not matcher.regex:
        yield ("regex",), "required, but missing"
        return
    regex = _NOT_PYTHON.sub("a", matcher.regex)
    regex = _FLAGS.sub(lambda found: "(?:" if found[1] == ":" else "", regex)
    if _NOT_RE2.search(_LITERAL.sub("a", regex)):
        yield ("regex",), "RE2 knows no look-around, back-references or possessive quantifiers (C-12)"
        return
    try:
        re.compile(regex.replace(r"\z", r"\Z").replace("(?<", "(?P<"))
    except (re.error, OverflowError, RecursionError) as error:
        yield ("regex",), f"not a regular expression: {error} (C-12)"


def _scope(scope: ScopedRouteConfiguration) -> Iterator[tuple[Path, str]]:
    if scope.key is None or not scope.key.fragments:
        yield ("key",), "required: at least one fragment"
    if bool(scope.route_configuration_name) == (scope.route_configuration is not None):
        yield (), "exactly one of route_configuration_name and route_configuration is required"


def _secret(secret: Secret) -> Iterator[tuple[Path, str]]:
    if all(getattr(secret, name) is None for name in _SECRETS):
        yield (), f"one of {', '.join(_SECRETS)} is required"


def _data_source(source: DataSource) -> Iterator[tuple[Path, str]]:
    if all(getattr(source, name) is None for name in _CONTENTS):
        yield (), f"required: one of {', '.join(_CONTENTS)}"


def _config_source(source: ConfigSource) -> Iterator[tuple[Path, str]]:
    """Check C-14: where from is said, and in the only version that is left."""
    if all(getattr(source, name) is None for name in _SOURCES):
        yield (), f"a source is required, such as {_ADS}"
    if (source.ads is not None or source.self is not None) and source.resource_api_version != ApiVersion.V3:
        yield ("resource_api_version",), 'must be "V3" (C-14)'


_CHECKS: Final[Mapping[type[Message], tuple[Check, ...]]] = {
    Cluster: (_cluster, _own_type),
    ClusterLoadAssignment: (_assignment,),
    LocalityLbEndpoints: (_locality,),
    SocketAddress: (_socket_address,),
    Listener: (_listener,),
    HttpConnectionManager: (_manager,),
    HttpFilter: (_http_filter,),
    RouteConfiguration: (_route_configuration,),
    VirtualHost: (_virtual_host,),
    Route: (_route,),
    RouteMatch: (_match,),
    WeightedCluster: (_weighted,),
    RegexMatcher: (_regex,),
    ScopedRouteConfiguration: (_scope,),
    Secret: (_secret,),
    ConfigSource: (_config_source,),
    DataSource: (_data_source,),
}
