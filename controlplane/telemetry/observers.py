"""What the core reports, turned into metrics and logs: it observes itself nowhere else."""

import time
from collections.abc import Hashable, Sequence

import structlog

from controlplane.guard import Notice
from controlplane.model import InstanceKey
from controlplane.telemetry.metrics import Metrics
from controlplane.views import NodeGroup
from xds.history import safe_words
from xds.protocol import Acked, Closed, Nacked, Regrouped, Sent, Subscribed
from xds.protocol import Event as StreamEvent
from xds.server import StreamInfo
from xds.status import Status

_MAX_NAMES = 20
_MAX_WORDS = 1000


_GRPC_TAKES_BYTES = 4 * 1024 * 1024


class PublicationObserver:
    """Turn what the publisher reports into metrics and logs."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log = structlog.get_logger("controlplane.publish")

    def published(self, reason: str, revision: str, duration_s: float) -> None:
        """Count a publication."""
        self._metrics.publication(reason)
        self._log.debug("published", reason=reason, revision=revision, duration_s=round(duration_s, 6))

    def refused(self, service: str, problems: list[str]) -> None:
        """Say loudly that a service is held back."""
        self._log.error("publish.refused", service=service, problems=problems)


class IntakeObserver:
    """Say loudly what registries do to us, and what the mass-loss guard does about it."""

    def __init__(self) -> None:
        self._log = structlog.get_logger("controlplane.registry")

    def registry_lost(self, registry: str, reason: str, *, heard: bool) -> None:
        """Warn that a registry cannot be heard, and say what that means."""
        meaning = "what it said last stands" if heard else "nothing has been heard of it yet; it is tried again"
        self._log.warning("registry.lost", registry=registry, reason=reason, message=meaning)

    def registry_synced(self, registry: str) -> None:
        """Say that a registry has said everything there is."""
        self._log.info("registry.synced", registry=registry)

    def let_go(self, registry: str, reason: str, keys: Sequence[InstanceKey]) -> None:
        """Say which instances are gone though nobody asked for it."""
        some = [str(key) for key in keys[:_MAX_NAMES]]
        self._log.info("guard.let_go", registry=registry, reason=reason, instances=len(keys), some=some)

    def held(self, notice: Notice) -> None:
        """Say whom the guard holds, and how to let go."""
        self._log.error(
            "guard.held",
            hold=notice.id,
            reason=notice.reason,
            instances=notice.instances,
            some=[str(key) for key in notice.keys[:_MAX_NAMES]],
            remedy=f"they stay offered; to let them go now: POST /api/v1/guard/{notice.id}/release",
        )

    def released(self, notice: Notice) -> None:
        """Say that a hold has ended."""
        self._log.warning("guard.released", hold=notice.id, instances=notice.instances)


class StreamObserver:
    """Turn what clients say on their streams into their status, metrics and logs."""

    def __init__(self, status: Status, metrics: Metrics) -> None:
        self._status = status
        self._metrics = metrics
        self._open: set[int] = set()
        self._log = structlog.get_logger("xds")

    def on_event(self, info: StreamInfo, event: StreamEvent) -> None:
        """Take in one event of one stream."""
        self._status.on_event(info, event)
        if info.id not in self._open:
            self._open.add(info.id)
            self._metrics.streams(1)
            self._log.info("xds.connected", node_id=info.node.id, peer=info.peer, delta=info.delta)
        match event:
            case Nacked():
                self._metrics.xds_request(event.type_url, "nack")
                self._log.warning(
                    "xds.nack",
                    node_id=info.node.id,
                    type=event.type_url,
                    names=event.names[:_MAX_NAMES],
                    refused=len(event.names),
                    version=event.version,
                    revision=event.revision,
                    error=safe_words(event.type_url, event.message)[:_MAX_WORDS],
                )
            case Acked():
                self._metrics.xds_request(event.type_url, "ack")
                if event.offered_at is not None:
                    self._metrics.xds_acked(event.type_url, time.monotonic() - event.offered_at)
            case Subscribed():
                self._metrics.xds_request(event.type_url, "subscribe")
            case Sent():
                self._metrics.xds_response(event.type_url)
                if event.size_bytes > _GRPC_TAKES_BYTES:
                    self._metrics.xds_oversized(event.type_url)
                    self._log.warning(
                        "xds.oversized",
                        node_id=info.node.id,
                        type=event.type_url,
                        size_bytes=event.size_bytes,
                        message="a gRPC client takes 4 MiB unless told otherwise; a delta client is sent parts",
                    )
            case Regrouped():
                self._log.info("xds.regrouped", node_id=info.node.id, peer=info.peer, **_told(info.group))
            case Closed():
                self._open.discard(info.id)
                self._metrics.streams(-1)
                self._log.info("xds.disconnected", node_id=info.node.id, peer=info.peer)
            case _:
                pass


def _told(group: Hashable) -> dict[str, object]:
    """Say in plain words what a node is told from now on: as which client, and which limited raw resources."""
    if not isinstance(group, NodeGroup):
        return {"group": str(group)}
    told: dict[str, object] = {"client": str(group.flavour.client), "transport": str(group.flavour.transport)}
    if group.gateway_port:
        told["gateway_port"] = group.gateway_port
    return told | {"raw_resources_for": sorted(str(limit) for limit in group.audience)}
