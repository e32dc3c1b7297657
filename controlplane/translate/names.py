"""What the resources are called, and how they refer to each other: over ADS, unless the client takes another way.

The names are fixed by the contract with the outside (section 4): dashboards, bootstraps and gRPC clients use them.
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from hashlib import blake2b
from pathlib import PurePath
from typing import Final

from envoy_data_plane.envoy.config.core.v3 import (
    AggregatedConfigSource,
    ApiConfigSource,
    ApiConfigSourceApiType,
    ApiVersion,
    ConfigSource,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    PathConfigSource,
)

from xds.types import ENDPOINT, ROUTE

GATEWAY = "gateway"
"""The listener for Envoys, its route configuration, and its statistics' prefix."""

XDS_CLUSTER = "xds_cluster"
"""What bootstraps call the control plane, over whichever protocol they reach it."""

REFRESH_S = 3.0
"""After how long an Envoy that polls asks again: a change takes so long at most, and each cluster asks for itself."""

_REQUEST_S = 5.0
_FOLDERS: Final = {ENDPOINT: "eds", ROUTE: "rds"}
_FILE_NAME_MAX = 200
"""Characters of a name that can be a file's as it is; with what goes around it, file systems end at 255."""


class Transport(StrEnum):
    """Name the ways on which Envoy takes resources."""

    ADS = "ads"
    GRPC = "grpc"
    REST = "rest"
    FILES = "files"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Say where Envoy takes what a resource refers to. `directory` is where files are, absolute as Envoy sees it."""

    transport: Transport = Transport.ADS
    directory: str = ""

    def of(self, type_url: str, name: str) -> ConfigSource:
        """Spell the source of one resource; all wait for ever for their first answer, as `over_ads` explains."""
        api, path = None, None
        match self.transport:
            case Transport.ADS:
                return over_ads()
            case Transport.GRPC:
                api = _grpc()
            case Transport.REST:
                api = _rest()
            case Transport.FILES:
                # Nothing but the path: the file's own folder is watched for moves to that very name.
                path = PathConfigSource(path=str(PurePath(self.directory, file_of(type_url, name))))
        return ConfigSource(
            api_config_source=api,
            path_config_source=path,
            resource_api_version=ApiVersion.V3,
            initial_fetch_timeout=timedelta(0),
        )


def over_ads() -> ConfigSource:
    """Spell the source of everything that comes over the one stream.

    `initial_fetch_timeout` 0 waits for ever, where Envoy's default goes on without an answer after 15 s. Going on
    would be worse: a cluster whose update arrived just before the control plane went away would be replaced by an
    empty one, and a listener without its routes would answer 404 to everybody. Waiting keeps what is in service,
    and a starting Envoy not ready; the server answers every assignment and route that is referred to, be it empty.
    """
    return ConfigSource(
        ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3, initial_fetch_timeout=timedelta(0)
    )


def _grpc() -> ApiConfigSource:
    """Spell a stream for one type: delta, so that one change among a thousand clusters repeats no names."""
    service = GrpcService(envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=XDS_CLUSTER))
    return ApiConfigSource(
        api_type=ApiConfigSourceApiType.DELTA_GRPC,
        transport_api_version=ApiVersion.V3,
        grpc_services=[service],
        set_node_on_first_message_only=True,
    )


def _rest() -> ApiConfigSource:
    return ApiConfigSource(
        api_type=ApiConfigSourceApiType.REST,
        transport_api_version=ApiVersion.V3,
        cluster_names=[XDS_CLUSTER],
        refresh_delay=timedelta(seconds=REFRESH_S),
        request_timeout=timedelta(seconds=_REQUEST_S),
    )


def file_of(type_url: str, name: str) -> PurePath:
    """Return where an exported assignment or route configuration is, below the export's folder.

    One file each, for Envoy refuses a file with other than the one that it looks for. Raises KeyError for other types.
    """
    stem = name if len(name) <= _FILE_NAME_MAX else blake2b(name.encode(), digest_size=16).hexdigest()
    return PurePath(_FOLDERS[type_url], f"{stem}.json")


ADS = Source()
"""The default: one stream keeps the order of changes."""
