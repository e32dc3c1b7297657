"""Every metric of ours as data: name, type, labels, meaning, and a query that answers a question.

`metrics` builds the instruments from this table and `reference` the page in docs/, so neither can forget one.
No label ever holds a node, stream or instance id; whatever a client can choose freely is mapped to a known value.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Describe a metric. `labels` maps each label to its values; `query` is PromQL; `buckets` in seconds.

    `fixed`: the name is a promise to dashboards outside this repository.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    query: str
    labels: Mapping[str, str] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    fixed: bool = False


_TYPES = "`CDS`, `EDS`, `LDS`, `RDS` and the other xDS types by their short names; `other`"
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

REGISTERED_SERVICES = Family(
    name="service_discovery_registered_services_total",
    kind="gauge",
    fixed=True,
    help="Services that have at least one registered instance.",
    query="service_discovery_registered_services_total",
)
HEALTHY_RATIO = Family(
    name="service_discovery_healthy_instances_ratio",
    kind="gauge",
    fixed=True,
    help="Share of all instances that count as healthy, 0 to 1; 1 where there are none.",
    query="service_discovery_healthy_instances_ratio < 0.8",
)
REGISTRY_OPERATIONS = Family(
    name="service_discovery_registry_operations_total",
    kind="counter",
    fixed=True,
    help="Writes that the registry was asked for.",
    labels={
        "registry": "`memory`, `consul`, `etcd`, `kubernetes`",
        "operation": "`register`, `deregister`, `drain`, `heartbeat`, `put_policy`, `delete_policy`, `put_resource`, "
        "`delete_resource`",
        "outcome": "`success`; `refused`: the request's fault; `failure`: the registry's",
    },
    query='sum by (registry) (rate(service_discovery_registry_operations_total{outcome="failure"}[5m])) > 0',
)
HEALTH_CHECK_DURATION = Family(
    name="service_discovery_health_check_duration_seconds",
    kind="histogram",
    fixed=True,
    help="How long health checks took, whatever they found.",
    labels={"type": "`http`, `tcp`, `grpc`, `script`"},
    buckets=(*_FAST, 30.0),
    query="histogram_quantile(0.99, sum by (type, le) "
    "(rate(service_discovery_health_check_duration_seconds_bucket[5m])))",
)
CACHE_HIT_RATIO = Family(
    name="service_discovery_cache_hit_ratio",
    kind="gauge",
    fixed=True,
    help="Share of REST reads of the catalog since the start that were answered from memory, 0 to 1; the others had to "
    "wait for a registry. 1 before the first.",
    query="service_discovery_cache_hit_ratio",
)
CACHE_READS = Family(
    name="sd_cache_reads_total",
    kind="counter",
    help="REST reads of the catalog: answered from memory (hit), or only once a registry had spoken (miss).",
    labels={"outcome": "`hit`, `miss`"},
    query='sum(rate(sd_cache_reads_total{outcome="hit"}[5m])) / sum(rate(sd_cache_reads_total[5m]))',
)
REGISTRY_CONNECTED = Family(
    name="sd_registry_connected",
    kind="gauge",
    help="1 once a registry has said everything and while it can be heard; 0 before, and while what it said stands.",
    labels={"registry": "`memory`, `consul`, `etcd`, `kubernetes`"},
    query="sd_registry_connected == 0",
)
REGISTRY_AGE = Family(
    name="sd_registry_age_seconds",
    kind="gauge",
    help="How long ago a registry was last heard; where it never was, for how long it has been tried.",
    labels={"registry": "`memory`, `consul`, `etcd`, `kubernetes`"},
    query="max by (registry) (sd_registry_age_seconds) > 60",
)
REGISTRY_STALE = Family(
    name="sd_registry_last_known_good",
    kind="gauge",
    help="Whether a former process's state is served in place of a registry that has not spoken since the start.",
    labels={"registry": "`memory`, `consul`, `etcd`, `kubernetes`"},
    query="sd_registry_last_known_good == 1",
)
HELD_INSTANCES = Family(
    name="sd_guard_held_instances",
    kind="gauge",
    help="Instances that their registry has lost and the mass-loss guard keeps offering.",
    query="sd_guard_held_instances > 0",
)
REVISION = Family(
    name="sd_revision",
    kind="gauge",
    help="The catalog's newest revision; begins anew with each start of the process.",
    query="changes(sd_revision[10m]) == 0",
)
INSTANCES = Family(
    name="sd_instances",
    kind="gauge",
    help="Instances by what they count as.",
    labels={"status": "`unknown`, `healthy`, `degraded`, `unhealthy`, `timeout`, `draining`"},
    query='sum(sd_instances{status=~"unhealthy|timeout"})',
)
PUBLICATIONS = Family(
    name="sd_publish_total",
    kind="counter",
    help="Times that something new was published to proxies.",
    labels={"reason": "`start`, `endpoints`, `clusters`, `resources`"},
    query="sum by (reason) (rate(sd_publish_total[5m]))",
)
BUILD_INFO = Family(
    name="sd_build_info",
    kind="gauge",
    help="Always 1; the labels say what is running.",
    labels={"version": "this product's version", "python": "the interpreter's version"},
    query="count by (version) (sd_build_info)",
)
XDS_STREAMS = Family(
    name="xds_streams",
    kind="gauge",
    help="Open xDS streams.",
    query="sum(xds_streams)",
)
XDS_CLIENTS = Family(
    name="xds_clients",
    kind="gauge",
    help="Open xDS streams by how each type stands on them.",
    labels={
        "type": _TYPES,
        "state": "`not_sent`, `stale` (not acknowledged), `synced`, `error` (the newest was refused)",
    },
    query='sum by (type) (xds_clients{state="error"}) > 0',
)
XDS_REFUSED = Family(
    name="xds_refused_resources",
    kind="gauge",
    help="Resources that at least one xDS client refuses now; `/api/v1/proxies?state=ERROR` leads to them.",
    labels={"type": _TYPES},
    query="sum by (type) (xds_refused_resources) > 0",
)
XDS_REQUESTS = Family(
    name="xds_requests_total",
    kind="counter",
    help="Requests of xDS clients, by what they meant.",
    labels={"type": _TYPES, "meaning": "`subscribe`, `ack`, `nack`, `outdated`, `other`"},
    query='sum by (type) (increase(xds_requests_total{meaning="nack"}[5m])) > 0',
)
XDS_RESPONSES = Family(
    name="xds_responses_total",
    kind="counter",
    help="Responses sent to xDS clients.",
    labels={"type": _TYPES},
    query="sum by (type) (rate(xds_responses_total[5m]))",
)
XDS_OVERSIZED = Family(
    name="xds_oversized_responses_total",
    kind="counter",
    help="Responses of more than 4 MiB, which gRPC clients refuse unless they are told to take them. Whatever can be "
    "split is; the whole state of clusters or listeners in SotW, and one single resource, cannot.",
    labels={"type": _TYPES},
    query="sum by (type) (rate(xds_oversized_responses_total[5m])) > 0",
)
XDS_ACK = Family(
    name="xds_ack_seconds",
    kind="histogram",
    help="Time from having something to tell a client until the client acknowledged it.",
    labels={"type": _TYPES},
    buckets=(*_FAST, 30.0, 60.0),
    query="histogram_quantile(0.99, sum by (type, le) (rate(xds_ack_seconds_bucket[5m])))",
)
HTTP_REQUESTS = Family(
    name="http_server_request_duration_seconds",
    kind="histogram",
    help="How long REST requests took, without the time that a client asked to wait for a change.",
    labels={
        "method": "the HTTP method; `other` for one that HTTP does not define",
        "route": "the path's template; `unmatched` where there is none",
        "status": "the status code",
    },
    buckets=_FAST,
    query='sum by (route) (rate(http_server_request_duration_seconds_count{status=~"5.."}[5m])) > 0',
)

FAMILIES: tuple[Family, ...] = (
    REGISTERED_SERVICES,
    HEALTHY_RATIO,
    REGISTRY_OPERATIONS,
    HEALTH_CHECK_DURATION,
    CACHE_HIT_RATIO,
    CACHE_READS,
    REGISTRY_CONNECTED,
    REGISTRY_AGE,
    REGISTRY_STALE,
    HELD_INSTANCES,
    REVISION,
    INSTANCES,
    PUBLICATIONS,
    BUILD_INFO,
    XDS_STREAMS,
    XDS_CLIENTS,
    XDS_REFUSED,
    XDS_REQUESTS,
    XDS_RESPONSES,
    XDS_OVERSIZED,
    XDS_ACK,
    HTTP_REQUESTS,
)
