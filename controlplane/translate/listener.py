"""Spell the listener that every Envoy is given: an HTTP gateway whose routes come by RDS.

Its address faces clients that nobody vouches for, so what Envoy recommends for edge proxies is set here, each
with its reason. There is no access log: it would be Envoy's largest cost, and statistics and traces say more.
"""

import ipaddress
from datetime import timedelta

from envoy_data_plane.envoy.config.core.v3 import Address, Http2ProtocolOptions, HttpProtocolOptions, SocketAddress
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerPathWithEscapedSlashesAction,
    HttpConnectionManagerServerHeaderTransformation,
    HttpConnectionManagerUpgradeConfig,
    HttpFilter,
    Rds,
)

from controlplane.translate.names import ADS, GATEWAY, Source
from controlplane.translate.route import STREAM_IDLE_S
from xds.encode import Encoder
from xds.types import ROUTE, Resource


def gateway(host: str, port: int, source: Source = ADS) -> Resource:
    """Spell the listener on that address, its routes from `source`; `::` takes IPv4, too.

    Raises ValueError where `host` is no IP address: Envoy resolves no names for listeners and would refuse it.
    """
    ipaddress.ip_address(host)
    encoder = Encoder()
    body = encoder.encode(message(host, port, encoder, source))
    return Resource.of(GATEWAY, body, refs=[(ROUTE, GATEWAY)])


def message(host: str, port: int, encoder: Encoder, source: Source = ADS) -> Listener:
    """Build the message."""
    manager = Filter(
        name="envoy.filters.network.http_connection_manager",
        typed_config=encoder.pack(_connection_manager(encoder, source)),
    )
    return Listener(
        name=GATEWAY,
        address=Address(socket_address=SocketAddress(address=host, port_value=port, ipv4_compat=host == "::")),
        filter_chains=[FilterChain(filters=[manager])],
        # Envoy buffers up to 1 MiB a direction for a slow reader unless told less; many slow ones would add up.
        per_connection_buffer_limit_bytes=32 * 1024,
    )


def _connection_manager(encoder: Encoder, source: Source) -> HttpConnectionManager:
    escaped_slashes = HttpConnectionManagerPathWithEscapedSlashesAction.UNESCAPE_AND_REDIRECT
    return HttpConnectionManager(
        stat_prefix=GATEWAY,
        rds=Rds(config_source=source.of(ROUTE, GATEWAY), route_config_name=GATEWAY),
        http_filters=[HttpFilter(name="envoy.filters.http.router", typed_config=encoder.pack(Router()))],
        # Routes and instances must read a path alike, or `/a/..%2Fb` reaches what its route did not mean.
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action=escaped_slashes,
        # The peer's address is the client's: what it writes into X-Forwarded-For is not believed, so that hashing
        # on the source address cannot be steered.
        use_remote_address=True,
        # The instance's own `server` header goes through; Envoy would put "envoy" in its place.
        server_header_transformation=HttpConnectionManagerServerHeaderTransformation.PASS_THROUGH,
        common_http_protocol_options=HttpProtocolOptions(
            idle_timeout=timedelta(minutes=15)  # an idle connection holds memory; Envoy's default is an hour
        ),
        # By default one HTTP/2 connection may open 2³¹ streams and have 256 MiB in flight.
        http2_protocol_options=Http2ProtocolOptions(
            max_concurrent_streams=100,
            initial_stream_window_size=64 * 1024,
            initial_connection_window_size=1024 * 1024,
        ),
        stream_idle_timeout=timedelta(seconds=STREAM_IDLE_S),
        # A client that sends its headers a byte a minute is cut off. Bodies may take the route's time.
        request_headers_timeout=timedelta(seconds=10),
        upgrade_configs=[HttpConnectionManagerUpgradeConfig(upgrade_type="websocket")],
    )
