"""The process's metrics: counted as things happen, or read off the catalog when somebody scrapes.

Owns its Prometheus registry, so that two control planes in one process, as in tests, do not mix. What each
metric means stands in `families`. Counting is called in the event loop; `exposition` may run in a thread, for
all it reads of the catalog is immutable.
"""

import platform
from collections import Counter as Counts
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, exposition
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from controlplane.catalog import Catalog
from controlplane.live import LiveCatalog
from controlplane.model import CheckType, HealthStatus
from controlplane.telemetry import families
from controlplane.telemetry.families import FAMILIES, Family
from xds.status import State, Tally

OPERATIONS = (
    "register",
    "deregister",
    "drain",
    "heartbeat",
    "put_policy",
    "delete_policy",
    "put_resource",
    "delete_resource",
)
OUTCOMES = ("success", "refused", "failure")
MEANINGS = ("subscribe", "ack", "nack", "outdated")
REASONS = ("start", "endpoints", "clusters", "resources")
SERVED = ("CDS", "EDS", "LDS", "RDS")
OTHER = "other"

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})

_SHORT_NAMES = {
    "type.googleapis.com/" + name: short
    for name, short in {
        "envoy.config.cluster.v3.Cluster": "CDS",
        "envoy.config.endpoint.v3.ClusterLoadAssignment": "EDS",
        "envoy.config.endpoint.v3.LbEndpoint": "LEDS",
        "envoy.config.listener.v3.Listener": "LDS",
        "envoy.config.route.v3.RouteConfiguration": "RDS",
        "envoy.config.route.v3.ScopedRouteConfiguration": "SRDS",
        "envoy.config.route.v3.VirtualHost": "VHDS",
        "envoy.config.core.v3.TypedExtensionConfig": "ECDS",
        "envoy.extensions.transport_sockets.tls.v3.Secret": "SDS",
        "envoy.service.runtime.v3.Runtime": "RTDS",
    }.items()
}


class Metrics:
    """Count what happens and show it in Prometheus' formats.

    `ages` gives the age of each registry in use, in seconds; their counters are shown from the start: an alert on a
    series that does not exist yet never fires. `stale` names those in whose place the disk speaks. `tally` counts the
    xDS clients when somebody scrapes.
    """

    def __init__(
        self,
        live: LiveCatalog,
        *,
        version: str,
        registry: CollectorRegistry | None = None,
        ages: Mapping[str, Callable[[], float]] = MappingProxyType({"memory": lambda: 0.0}),
        stale: Callable[[], frozenset[str]] = frozenset,
        tally: Callable[[], Tally] = lambda: Tally(clients={}, refused={}),
    ) -> None:
        self.families = FAMILIES
        self._registry = registry or CollectorRegistry()
        self._operations = self._counter(families.REGISTRY_OPERATIONS)
        self._checks = self._histogram(families.HEALTH_CHECK_DURATION)
        self._reads = self._counter(families.CACHE_READS)
        self._publications = self._counter(families.PUBLICATIONS)
        self._streams = Gauge(families.XDS_STREAMS.name, families.XDS_STREAMS.help, registry=self._registry)
        self._requests = self._counter(families.XDS_REQUESTS)
        self._responses = self._counter(families.XDS_RESPONSES)
        self._oversized = self._counter(families.XDS_OVERSIZED)
        self._acks = self._histogram(families.XDS_ACK)
        self._http = self._histogram(families.HTTP_REQUESTS)
        for name in ages:
            for operation in OPERATIONS:
                for outcome in OUTCOMES:
                    self._operations.labels(name, operation, outcome)
        for check_type in CheckType:
            self._checks.labels(check_type)
        for reason in REASONS:
            self._publications.labels(reason)
        for short in SERVED:
            self._responses.labels(short)
            self._acks.labels(short)
            self._oversized.labels(short)
            for meaning in MEANINGS:
                self._requests.labels(short, meaning)
        # Looking labels up costs more than counting, and these are counted for every client of every change or read.
        self._requests_by: dict[tuple[str, str], Counter] = {}
        self._http_by: dict[tuple[str, str, int], Histogram] = {}
        self._responses_by = {url: self._responses.labels(short) for url, short in _SHORT_NAMES.items()}
        self._acks_by = {url: self._acks.labels(short) for url, short in _SHORT_NAMES.items()}
        self._hits = self._reads.labels("hit")
        self._misses = self._reads.labels("miss")
        self._hit_count = 0
        self._read_count = 0
        self._registry.register(_FromCatalog(live, version, self.cache_hit_ratio))
        self._registry.register(_FromRegistries(ages, live, stale))
        self._registry.register(_FromStreams(tally))
        ProcessCollector(registry=self._registry)

    def registry_operation(self, registry: str, operation: str, outcome: str) -> None:
        """Count a write; for the words see OPERATIONS and OUTCOMES."""
        self._operations.labels(registry, operation, outcome).inc()

    def health_check(self, check_type: str, duration_s: float) -> None:
        """Note how long a check of a CheckType took."""
        self._checks.labels(check_type).observe(duration_s)

    def cache_read(self, hit: bool) -> None:
        """Count a read of the catalog: answered from memory, or only once a registry had spoken."""
        self._read_count += 1
        if hit:
            self._hit_count += 1
            self._hits.inc()
        else:
            self._misses.inc()

    def cache_hit_ratio(self) -> float:
        """Return the share of reads that were answered from memory; 1 before the first."""
        return self._hit_count / self._read_count if self._read_count else 1.0

    def http_request(self, method: str, route: str, status: int, duration_s: float) -> None:
        """Note a request; `route` is the path's template, never the path."""
        key = (method, route, status)
        if (histogram := self._http_by.get(key)) is None:
            histogram = self._http.labels(method if method in _METHODS else OTHER, route, status)
            if method in _METHODS:
                self._http_by[key] = histogram
        histogram.observe(duration_s)

    def publication(self, reason: str) -> None:
        """Count a publication; for the words see REASONS."""
        self._publications.labels(reason).inc()

    def xds_request(self, type_url: str, meaning: str) -> None:
        """Count a client's request; for the words see MEANINGS."""
        key = (type_url, meaning)
        if (counter := self._requests_by.get(key)) is None:
            counter = self._requests.labels(_short(type_url), meaning if meaning in MEANINGS else OTHER)
            if type_url in _SHORT_NAMES:
                self._requests_by[key] = counter
        counter.inc()

    def xds_response(self, type_url: str) -> None:
        """Count a response to a client."""
        (self._responses_by.get(type_url) or self._responses.labels(OTHER)).inc()

    def xds_oversized(self, type_url: str) -> None:
        """Count a response that is larger than what gRPC clients take by default."""
        self._oversized.labels(_short(type_url)).inc()

    def xds_acked(self, type_url: str, seconds: float) -> None:
        """Note how long it took until a client had acknowledged what there was to tell."""
        (self._acks_by.get(type_url) or self._acks.labels(OTHER)).observe(seconds)

    def streams(self, delta: int) -> None:
        """Count streams that opened (+1) or ended (-1)."""
        self._streams.inc(delta)

    def exposition(self, accept: str | None = None) -> tuple[bytes, str]:
        """Return all metrics and their content type: OpenMetrics where `accept` names it, else the text format.

        Decided here, for the library's own negotiation raises where a client asks for a version that is none.
        """
        shown = _WithoutCreated(self._registry)
        if "application/openmetrics-text" in (accept or "").lower():
            body: bytes = openmetrics.generate_latest(shown)  # type: ignore[no-untyped-call]  # it has no annotations
            return body, openmetrics.CONTENT_TYPE_LATEST
        return exposition.generate_latest(shown), exposition.CONTENT_TYPE_PLAIN_0_0_4

    def _counter(self, family: Family) -> Counter:
        return Counter(family.name, family.help, tuple(family.labels), registry=self._registry)

    def _histogram(self, family: Family) -> Histogram:
        return Histogram(
            family.name, family.help, tuple(family.labels), buckets=family.buckets, registry=self._registry
        )


def _short(type_url: str) -> str:
    return _SHORT_NAMES.get(type_url, OTHER)  # clients choose the type: unknown ones must not make series


class _FromCatalog(Collector):
    """Read off the catalog what can be read off it; counted once per catalog, however often it is scraped."""

    def __init__(self, live: LiveCatalog, version: str, hit_ratio: Callable[[], float]) -> None:
        self._live = live
        self._hit_ratio = hit_ratio
        self._version = version
        self._counted: tuple[Catalog, int, dict[HealthStatus, int]] | None = None

    def describe(self) -> Iterator[Metric]:
        for family in (
            families.REGISTERED_SERVICES,
            families.HEALTHY_RATIO,
            families.CACHE_HIT_RATIO,
            families.REVISION,
            families.INSTANCES,
            families.BUILD_INFO,
        ):
            yield _gauge(family)

    def collect(self) -> Iterator[Metric]:
        catalog = self._live.current
        services, by_status = self._count(catalog)
        total = sum(by_status.values())
        yield _gauge(families.REGISTERED_SERVICES, services)
        yield _gauge(families.HEALTHY_RATIO, by_status[HealthStatus.HEALTHY] / total if total else 1.0)
        yield _gauge(families.CACHE_HIT_RATIO, self._hit_ratio())
        yield _gauge(families.REVISION, catalog.revision)
        instances = _gauge(families.INSTANCES)
        for status, count in by_status.items():
            instances.add_metric((status,), count)
        yield instances
        build = _gauge(families.BUILD_INFO)
        build.add_metric((self._version, platform.python_version()), 1)
        yield build

    def _count(self, catalog: Catalog) -> tuple[int, dict[HealthStatus, int]]:
        counted = self._counted
        if counted is None or counted[0] is not catalog:
            by_status = dict.fromkeys(HealthStatus, 0)
            services = 0
            for service in catalog.services.values():
                services += bool(service.entries)
                for entry in service.entries.values():
                    by_status[entry.status] += 1
            counted = self._counted = (catalog, services, by_status)
        return counted[1], counted[2]


class _FromRegistries(Collector):
    """Read off the registries how they are."""

    def __init__(
        self, ages: Mapping[str, Callable[[], float]], live: LiveCatalog, stale: Callable[[], frozenset[str]]
    ) -> None:
        self._ages = ages
        self._live = live
        self._stale = stale

    def describe(self) -> Iterator[Metric]:
        for family in (families.REGISTRY_CONNECTED, families.REGISTRY_AGE, families.REGISTRY_STALE):
            yield _gauge(family)
        yield _gauge(families.HELD_INSTANCES)

    def collect(self) -> Iterator[Metric]:
        catalog, stale = self._live.current, self._stale()
        connected, age, from_disk = (
            _gauge(family) for family in (families.REGISTRY_CONNECTED, families.REGISTRY_AGE, families.REGISTRY_STALE)
        )
        for name, age_s in self._ages.items():
            connected.add_metric((name,), float(name in catalog.synced and name not in catalog.lost))
            age.add_metric((name,), age_s())
            from_disk.add_metric((name,), float(name in stale))
        yield from (connected, age, from_disk)
        yield _gauge(families.HELD_INSTANCES, sum(bool(entry.held) for entry in catalog.entries()))


class _FromStreams(Collector):
    """Count the xDS clients by what they made of what they were told; a millisecond or two per thousand streams."""

    def __init__(self, tally: Callable[[], Tally]) -> None:
        self._tally = tally

    def describe(self) -> Iterator[Metric]:
        for family in (families.XDS_CLIENTS, families.XDS_REFUSED):
            yield _gauge(family)

    def collect(self) -> Iterator[Metric]:
        tally = self._tally()
        clients = Counts({(short, state): 0 for short in SERVED for state in State})
        for (type_url, state), count in tally.clients.items():
            clients[_short(type_url), state] += count
        refused = Counts(dict.fromkeys(SERVED, 0))
        for type_url, count in tally.refused.items():
            refused[_short(type_url)] += count
        shown = _gauge(families.XDS_CLIENTS)
        for (short, state), count in clients.items():
            shown.add_metric((short, state.value.lower()), count)
        yield shown
        shown = _gauge(families.XDS_REFUSED)
        for short, count in refused.items():
            shown.add_metric((short,), count)
        yield shown


def _gauge(family: Family, value: float | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily(family.name, family.help, value=value, labels=tuple(family.labels) or None)


class _WithoutCreated(Collector):
    """Leave out the `_created` series, which double the number of counters; the library's own switch is global."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
