"""What an Envoy is started with: a bootstrap, as commented YAML, that says where everything else comes from.

And what a gRPC client without a proxy is started with: the same in a few lines of JSON.

Envoy's is text rather than a message, because people read it, copy it and change it; `envoy/bootstrap-*.yaml` are two
of its outputs. Everything that comes from outside is quoted: to YAML, a node id of `n` is false and `1e3` is a number.
"""

import ipaddress
import json
from collections.abc import Mapping, Sequence
from typing import Literal

import yaml

_HEAD = """\
# Envoy's bootstrap: who it is, and where it takes everything else from.
# {protocol_words}
{node}\
admin:
  # Statistics, readiness (/ready) and the configuration in force. It can stop Envoy: keep it off public networks.
  address: {admin_address}
  ignore_global_conn_limit: true # to be reached when the limit below is

"""

_ADS = """\
dynamic_resources:
  # One stream for everything keeps the order of changes: a cluster before the routes to it, and gone after them.
  ads_config:
    api_type: {api_type}
    transport_api_version: V3
    set_node_on_first_message_only: true # the node description is 60 kB; once a stream is enough
    grpc_services:
    - envoy_grpc:
        cluster_name: xds_cluster
        retry_policy:
          # Left to itself Envoy pauses for up to 30 s before it looks for a control plane that has come back.
          retry_back_off: {{ base_interval: 0.5s, max_interval: 10s }}
  # A timeout of 0 waits for ever. With Envoy's default, 15 s, an Envoy that cannot reach the control plane would
  # call itself ready while it has no listener, and whatever balances over Envoys would send it traffic.
  cds_config: {{ ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s }}
  lds_config: {{ ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s }}

"""

_REST = """\
dynamic_resources:
  # Each of these, and each cluster for its endpoints, asks again after so long; unchanged is answered by an empty 304.
  # A timeout of 0 waits for ever: without a control plane this Envoy is not ready rather than without a listener.
  cds_config: {{ {polled}, resource_api_version: V3, initial_fetch_timeout: 0s }}
  lds_config: {{ {polled}, resource_api_version: V3, initial_fetch_timeout: 0s }}

"""

_FILES = """\
dynamic_resources:
  # Envoy reads a file again when another is moved over it, which is how it is exported.
  cds_config: {{ path_config_source: {{ path: {clusters} }}, resource_api_version: V3 }}
  lds_config: {{ path_config_source: {{ path: {listeners} }}, resource_api_version: V3 }}

"""

_LOAD_REPORTS = """\
cluster_manager:
  # Where the control plane can ask for load reports (LRS); it gets none that it does not ask for.
  load_stats_config:
    api_type: GRPC
    transport_api_version: V3
    grpc_services:
    - envoy_grpc: {{ cluster_name: xds_cluster }}

"""

_CONTROL_PLANE = """\
static_resources:
  clusters:
  # The control plane. No service can have this name: service names hold no underscore.
  - name: xds_cluster
{discovery}\
    connect_timeout: 5s
    load_assignment:
      cluster_name: xds_cluster
      endpoints:
      - lb_endpoints:
{xds_endpoints}"""

_ENDPOINT = """\
        - endpoint:
            address: {address}
"""

_HTTP2 = """\
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config:
          http2_protocol_options:
            # Finds out within 35 s that the control plane's machine is gone, when no packet says so.
            connection_keepalive: {{ interval: 30s, timeout: 5s }}

"""

_TAIL = """\
overload_manager:
  resource_monitors:
  # Without a limit, connections end where memory or file descriptors do.
  - name: envoy.resource_monitors.global_downstream_max_connections
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig
      max_active_downstream_connections: 50000
"""  # noqa: E501 - a type URL cannot be broken

# As `translate.names` spells it for clusters and listeners, which takes a second to import; a test compares them.
_POLLED = (
    "api_config_source: { api_type: REST, transport_api_version: V3, cluster_names: [xds_cluster], "
    "refresh_delay: 3s, request_timeout: 5s }"
)

_RUNTIME = """\
layered_runtime:
  layers:
  # Kill switches and feature flags from the control plane. One that nobody has set must not keep Envoy from starting.
  - name: {layer}
    rtds_layer:
      name: {layer}
      rtds_config: {{ {source}, resource_api_version: V3, initial_fetch_timeout: 5s }}
  # Above it, what an operator sets on the admin page of this one Envoy.
  - name: admin
    admin_layer: {{}}

"""

_PROTOCOLS = {
    "delta": ("DELTA_GRPC", "Delta xDS: only what changed is sent."),
    "sotw": ("GRPC", "State of the world: each response holds all resources of its type."),
    "rest": ("REST", "REST-JSON: every resource is polled, for networks that gRPC does not pass."),
}


def bootstrap(
    *,
    node_id: str | None,
    cluster: str | None,
    xds: Sequence[tuple[str, int]],
    protocol: Literal["delta", "sotw", "rest"],
    admin_host: str,
    admin_port: int,
    gateway_port: int | None,
    runtime_layer: str | None = None,
) -> str:
    """Write a bootstrap that takes everything from a control plane.

    `xds` has host and port of each control plane's xDS port, for `rest` of its REST API; when one is gone the next
    is asked.
    `node_id` and `cluster` None leave them to Envoy's command line (--service-node, --service-cluster).
    `gateway_port` makes this Envoy's gateway listen there in place of the control plane's GATEWAY_PORT.
    `runtime_layer` names a Runtime resource (RTDS) that this Envoy takes its runtime values from.

    Raises ValueError where `admin_host` is neither an IP address nor `localhost`: Envoy resolves no names there.
    """
    api_type, words = _PROTOCOLS[protocol]
    polled = protocol == "rest"
    metadata: dict[str, object] = {"gateway_port": gateway_port} if gateway_port is not None else {}
    if polled:
        metadata["xds_transport"] = "rest"
    discovery = _REST if polled else _ADS + _LOAD_REPORTS
    template = _HEAD + discovery + "{runtime}" + _CONTROL_PLANE + ("\n" if polled else _HTTP2) + _TAIL
    return template.format(
        protocol_words=words,
        node=_node(node_id, cluster, metadata),
        admin_address=_admin_address(admin_host, admin_port),
        api_type=api_type,
        polled=_POLLED,
        runtime="" if runtime_layer is None else _runtime(runtime_layer, _POLLED if polled else "ads: {}"),
        discovery=_discovery(xds),
        xds_endpoints="".join(_ENDPOINT.format(address=_address(host, port)) for host, port in xds),
    )


def bootstrap_from_files(*, clusters: str, listeners: str, admin_host: str, admin_port: int) -> str:
    """Write a bootstrap that takes clusters and listeners from two files, given by their absolute paths.

    Its node id and cluster are `files`, unless Envoy's command line says otherwise: Envoy wants some.

    Raises ValueError as `bootstrap` does.
    """
    return (_HEAD + _FILES + _TAIL).format(
        protocol_words="Exported files: no control plane is asked.",
        node=_node("files", "files", {}),
        admin_address=_admin_address(admin_host, admin_port),
        clusters=_quoted(clusters),
        listeners=_quoted(listeners),
    )


def _runtime(layer: str, source: str) -> str:
    return _RUNTIME.format(layer=_quoted(layer), source=source)


def _admin_address(host: str, port: int) -> str:
    if host == "localhost":
        host = "127.0.0.1"
    if not _is_ip_address(host):
        raise ValueError(f"Envoy's admin page needs an IP address to listen on, not {host!r}")
    return _address(host, port)


def _node(node_id: str | None, cluster: str | None, metadata: Mapping[str, object]) -> str:
    lines = []
    if node_id is not None:
        lines.append(f"  id: {_quoted(node_id)}\n")
    if cluster is not None:
        lines.append(f"  cluster: {_quoted(cluster)}\n")
    if metadata:
        if "gateway_port" in metadata:
            lines.append("  # where this Envoy's gateway listens, so that several can share a machine\n")
        lines.append(f"  metadata: {{ {', '.join(f'{name}: {value}' for name, value in metadata.items())} }}\n")
    return (
        "".join(("\nnode:\n", *lines, "\n"))
        if lines
        else "# Its node id and cluster come from Envoy's command line.\n\n"
    )


def _discovery(xds: Sequence[tuple[str, int]]) -> str:
    if all(_is_ip_address(host) for host, _ in xds):
        return "    type: STATIC\n"
    # The addresses of a name are looked up again and again: a control plane that has moved is found.
    return "    type: STRICT_DNS\n    dns_lookup_family: V4_PREFERRED\n"


def _address(host: str, port: int) -> str:
    return f"{{ socket_address: {{ address: {_quoted(host)}, port_value: {port} }} }}"


def _quoted(text: str) -> str:
    """Quote a scalar; the emitter knows what must be escaped."""
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf")).rstrip("\n")


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def grpc_bootstrap(*, node_id: str, cluster: str | None = None, xds: Sequence[tuple[str, int]]) -> str:
    """Write the bootstrap of a gRPC client without a proxy, as JSON (gRFC A27).

    `xds` has host and port of each control plane; the next is asked when one cannot be reached (gRFC A71).
    `cluster` lets it have raw resources that are limited to node clusters.
    For a file named by GRPC_XDS_BOOTSTRAP, or for GRPC_XDS_BOOTSTRAP_CONFIG as it is. Plaintext, as the port is.
    """
    targets = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in xds)
    servers = [
        {"server_uri": target, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}
        for target in targets
    ]
    node = {"id": node_id} if cluster is None else {"id": node_id, "cluster": cluster}
    return json.dumps({"xds_servers": servers, "node": node}, indent=2, ensure_ascii=False) + "\n"
