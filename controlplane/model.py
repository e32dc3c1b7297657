"""What exists: instances, their checks and verdicts, and the events that change them.

Values only, and invalid ones cannot be built: the same definitions validate REST bodies, journal lines,
files for `render`, and feed `/openapi.json`. Field names are the ones the outside sees (JSON, snake_case);
every duration is in seconds. Nothing here reads a clock or does I/O.
"""

import dataclasses
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from typing import Annotated, Any, NewType

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict, model_validator
from pydantic.dataclasses import dataclass

from controlplane.policy import Policy

ServiceName = NewType("ServiceName", str)
InstanceId = NewType("InstanceId", str)

_CONFIG = ConfigDict(extra="forbid", use_enum_values=False)

SERVICE_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
INSTANCE_ID = re.compile(r"[A-Za-z0-9._:-]{1,253}")
_DNS_NAME = re.compile(
    r"(?=.{1,253}$)([a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?)(\.[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?)*\.?"
)


def _service_name(value: str) -> str:
    if len(value) > 253 or not SERVICE_NAME.fullmatch(value):
        raise ValueError(
            "must be a lower-case DNS name of at most 253 characters: letters, digits, '-' and '.', "
            "beginning and ending with a letter or digit"
        )
    return value


def _instance_id(value: str) -> str:
    if not INSTANCE_ID.fullmatch(value):
        raise ValueError("must be 1 to 253 characters out of letters, digits, '.', '_', ':' and '-'")
    return value


def _host(value: str) -> str:
    """Accept an IPv4 or IPv6 address (returned in its canonical form) or a DNS name (lower-cased)."""
    try:
        if "%" not in value:  # a scope such as %eth0 means something on one machine only
            address = ipaddress.ip_address(value)
            return str(getattr(address, "ipv4_mapped", None) or address)
    except ValueError:
        pass
    name = value.lower()
    if name.rpartition(".")[2].isdigit() or not _DNS_NAME.fullmatch(name):
        raise ValueError("must be an IPv4 or IPv6 address (without brackets or port) or a DNS name")
    return name.removesuffix(".")


def is_address(host: str) -> bool:
    """Tell an IP address from a DNS name; `host` has been validated."""
    return ":" in host or host.rpartition(".")[2].isdigit()


def _http_path(value: str) -> str:
    if not value.startswith("/") or any(ch <= " " or ch == "\x7f" for ch in value):
        raise ValueError("must begin with '/' and hold no spaces or control characters")
    return value


def _unique(values: Any) -> Any:
    if isinstance(values, (list, tuple)) and all(isinstance(value, str) for value in values):
        return list(dict.fromkeys(values))
    return values  # the faulty element itself is reported


def _as_tuple(values: Any) -> Any:
    return tuple(values) if isinstance(values, list) else values


ServiceNameField = Annotated[
    str,
    Strict(),
    AfterValidator(_service_name),
    Field(description="lower-case DNS name", examples=["user-service"]),
]
InstanceIdField = Annotated[str, Strict(), AfterValidator(_instance_id)]
HostField = Annotated[str, Strict(), AfterValidator(_host)]
PortField = Annotated[int, Strict(), Field(ge=1, le=65535)]
WeightField = Annotated[int, Strict(), Field(ge=1, le=1000)]
Seconds = Annotated[float, Strict(), Field(gt=0, le=86_400, allow_inf_nan=False)]
Ttl = Annotated[
    Seconds | None,
    Field(
        description="How long the registration lasts without a heartbeat, in seconds: after that the instance is "
        "deregistered. null = until it is deregistered by a request."
    ),
]
Draining = Annotated[
    bool,
    Strict(),
    Field(
        description="Whether the instance is on its way out: it is sent no new requests, and those under way are "
        "finished. Removes nothing by itself."
    ),
]
Tag = Annotated[str, Strict(), Field(min_length=1, max_length=128, pattern=r"^[^,\s]+$")]
Tags = Annotated[tuple[Tag, ...], BeforeValidator(_unique), BeforeValidator(_as_tuple), Field(max_length=64)]
MetadataKey = Annotated[str, Strict(), Field(min_length=1, max_length=128)]
MetadataValue = (
    Annotated[str, Strict(), Field(max_length=4096)]
    | Annotated[bool, Strict()]
    | Annotated[int, Strict(), Field(ge=-(2**53), le=2**53)]
    | Annotated[float, Strict(), Field(allow_inf_nan=False)]
)
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=64)]
Text = Annotated[str, Strict(), Field(max_length=253)]


class HealthStatus(StrEnum):
    """Say what an instance is known to be; the words of Envoy's HealthStatus."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    TIMEOUT = "timeout"
    DRAINING = "draining"


class CheckType(StrEnum):
    """Name the ways of checking an instance."""

    HTTP = "http"
    TCP = "tcp"
    GRPC = "grpc"
    SCRIPT = "script"


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Locality:
    """Say where an instance runs, from the widest place to the narrowest."""

    region: Text = ""
    zone: Text = ""
    sub_zone: Text = ""


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class HealthCheck:
    """Say how an instance is checked. `interval` and `timeout` left out mean the HEALTH_CHECK_* settings.

    `script` is an argv: its first element names an executable inside HEALTH_CHECK_SCRIPTS_DIR, and no shell
    is involved. `grpc_service` is the service name that grpc.health.v1 is asked for; empty = the server.
    """

    enabled: Annotated[
        bool,
        Strict(),
        Field(description="false keeps these settings but checks nothing: the instance counts as healthy."),
    ] = True
    type: Annotated[
        CheckType,
        Field(
            description="http: a GET of `http_path` must answer 2xx (429 = degraded); tcp: the port must accept a "
            "connection; grpc: grpc.health.v1 must say SERVING; script: it must exit with 0 (1 = degraded)."
        ),
    ] = CheckType.HTTP
    http_path: Annotated[
        str,
        Strict(),
        AfterValidator(_http_path),
        Field(max_length=2048, description="What an http check asks for: a path, with a query if need be."),
    ] = "/health"
    grpc_service: Annotated[
        Text, Field(description="The service that a grpc check asks about; empty = the server as a whole.")
    ] = ""
    script: Annotated[
        tuple[Annotated[str, Strict(), Field(min_length=1, max_length=4096)], ...],
        BeforeValidator(_as_tuple),
        Field(
            max_length=32,
            description="What a script check runs, without a shell: the name of an executable inside "
            "HEALTH_CHECK_SCRIPTS_DIR, then its arguments.",
        ),
    ] = ()
    interval: Annotated[
        Seconds | None, Field(description="Seconds from one check to the next; null = HEALTH_CHECK_INTERVAL.")
    ] = None
    timeout: Annotated[
        Seconds | None, Field(description="Seconds after which a check has failed; null = HEALTH_CHECK_TIMEOUT.")
    ] = None
    healthy_threshold: Annotated[
        int, Strict(), Field(ge=1, le=100, description="How many checks in a row must pass before it is healthy again.")
    ] = 1
    unhealthy_threshold: Annotated[
        int, Strict(), Field(ge=1, le=100, description="How many checks in a row must fail before it is unhealthy.")
    ] = 3

    @model_validator(mode="after")
    def _script_has_argv(self) -> "HealthCheck":
        if self.type is CheckType.SCRIPT and not self.script:
            raise ValueError("a script check needs `script`: a list of the executable and its arguments")
        if self.type is not CheckType.SCRIPT and self.script:
            raise ValueError("`script` goes with type = script only")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Instance:
    """Hold what was registered about one instance of a service: the durable facts, no observation."""

    name: ServiceNameField
    host: HostField
    port: PortField
    id: InstanceIdField = ""
    tags: Tags = ()
    metadata: Metadata = field(default_factory=dict)
    weight: WeightField = 1
    ttl: Ttl = None
    draining: Draining = False
    locality: Locality = field(default_factory=Locality)
    health_check: HealthCheck | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_id(cls, values: Any) -> Any:
        given = getattr(values, "kwargs", values)  # ArgsKwargs when called as a constructor
        if isinstance(given, Mapping) and given.get("id") is None:
            try:
                host = _host(given["host"])
                filled = {**given, "id": f"{_service_name(given['name'])}-{host}-{given['port']}"}
            except (KeyError, TypeError, ValueError, AttributeError):
                filled = {**given, "id": "invalid"}  # the faulty field itself is reported
            return filled
        return values

    @property
    def key(self) -> "InstanceKey":
        """Return what identifies this instance among all."""
        return InstanceKey(ServiceName(self.name), InstanceId(self.id))

    @property
    def checked(self) -> bool:
        """Tell whether a health check is asked for."""
        return self.health_check is not None and self.health_check.enabled


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Verdict:
    """Hold what the health checks concluded about an instance: durable, and all that planning reads of them.

    `passed` says whether any check has ever passed: before that an instance is not offered to proxies.
    `since` is in seconds since the epoch. `score` is 0–100, in coarse steps so that noise changes nothing.
    `reason` is a person's explanation: "HTTP 503, 3 of 3".
    """

    status: HealthStatus
    passed: bool
    since: float
    score: int = 100
    reason: str = ""


def target_of(instance: Instance) -> str:
    """Name what a verdict about `instance` speaks of: where it is checked, and what is asked there."""
    where = f"{instance.host} {instance.port}"
    if (check := instance.health_check) is None:
        return where
    return f"{where} {check.type} {check.http_path} {check.grpc_service} {list(check.script)}"


def same_target(old: Instance, new: Instance) -> bool:
    """Tell whether a verdict about `old` still speaks of `new`: the same thing is checked at the same place."""
    return target_of(old) == target_of(new)


def same_instance(a: Instance, b: Instance) -> bool:
    """Tell whether two instances are equal to JSON and Envoy as well, to whom 1, 1.0 and true in metadata differ."""
    return a == b and all(type(value) is type(b.metadata[name]) for name, value in a.metadata.items())


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class InstanceKey:
    """Identify an instance: its id is unique within its service.

    Made a dozen times on the way of each write, of parts that are valid already: so it is not validated.
    """

    service: ServiceName
    id: InstanceId

    def __str__(self) -> str:
        return f"{self.service}/{self.id}"


@dataclass(frozen=True, slots=True, order=True)
class ResourceKey:
    """Identify a raw xDS resource: its name is unique within its type."""

    type_url: str
    name: str

    def __str__(self) -> str:
        return f"{self.type_url.rpartition('.')[2]} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class RawResource:
    """Hold one xDS resource as its author wrote it; empty limits = every node may have it.

    `body` is its proto3 JSON without `@type`, keys sorted: the form in which it is compared, kept and read again. It
    may hold a private key, so it is left out of what is printed.
    """

    type_url: Annotated[str, Strict(), Field(min_length=1, max_length=253)]
    name: Annotated[str, Strict(), Field(min_length=1, max_length=1024)]
    body: Annotated[str, Strict()] = field(repr=False)
    node_clusters: Annotated[tuple[Text, ...], BeforeValidator(_as_tuple)] = ()
    node_zones: Annotated[tuple[Text, ...], BeforeValidator(_as_tuple)] = ()

    @property
    def key(self) -> ResourceKey:
        """Return what identifies this resource among all."""
        return ResourceKey(self.type_url, self.name)


# Events: what registries and checks tell the catalog. Each is the whole new value, never a difference.


@dataclass(frozen=True, slots=True, kw_only=True)
class PutInstance:
    """Say that a registry holds this instance.

    `verdict` is the last known one of our checks, where the registry keeps it with the instance; `stated` is what
    the registry itself says of its health (Consul's checks, Kubernetes' readiness), whether or not we check it.
    """

    instance: Instance
    registry: str
    verdict: Verdict | None = None
    stated: Verdict | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteInstance:
    """Say that a registry no longer holds an instance, and that this is meant: trusted, even for the last one.

    A request asked for it, a watch that was live and in sync saw it, or the mass-loss guard let it go.
    `reason`: "deregistered", "ttl expired", "missing after a reconnect".
    """

    key: InstanceKey
    registry: str
    reason: str = "deregistered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Say that instances are gone though nobody asked for it: the guard has a second look (law 14).

    All that one occasion took comes in one event, so that they are judged together. `reason`: "ttl expired" for
    leases that ran out, "missing after a reconnect" for what a new listing does not hold. `hold` is the id of the
    hold under which a former process kept all of them; else "".
    """

    keys: tuple[InstanceKey, ...]
    registry: str
    reason: str
    hold: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Say that the mass-loss guard keeps offering instances that their registry has lost. `hold` is its id."""

    keys: tuple[InstanceKey, ...]
    hold: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PutPolicy:
    """Say that a service has this policy."""

    service: ServiceName
    policy: Policy
    registry: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletePolicy:
    """Say that a service has no policy of its own any more."""

    service: ServiceName
    registry: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PutAliases:
    """Say by which names a service is reached besides its own: all of them now; empty = none any more."""

    service: ServiceName
    aliases: tuple[ServiceName, ...]
    registry: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PutResource:
    """Say that a registry holds this raw resource."""

    resource: RawResource
    registry: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteResource:
    """Say that a registry no longer holds a raw resource."""

    key: ResourceKey
    registry: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """Say that a registry has delivered everything it held when it was asked (law 2); again after each `Lost`."""

    registry: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Say that a registry cannot be heard; what it has delivered stands (law 1). `reason` is for a person."""

    registry: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Say which verdict the registry keeps about an instance, whoever reached it; None = none any more.

    `target` says what was judged (`target_of`): of anything else the verdict says nothing. It may come before the
    instance, which may be in another registry.
    """

    key: InstanceKey
    target: str
    verdict: Verdict | None
    registry: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """Say which control planes share the registry now, this one among them: the whole new set of their ids."""

    ids: frozenset[str]
    registry: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Say that a person let go what the mass-loss guard holds, here or at another control plane.

    `hold` is a service's name, the key of one instance, or `_everything`.
    """

    hold: str
    registry: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Say that the health checks concluded something about an instance."""

    key: InstanceKey
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """Say what a DNS name stands for now. No addresses = it could not be resolved; `error` says why."""

    host: str
    addresses: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraceOver:
    """Say that a service whose last instance went at revision `emptied_at` need not keep its cluster longer."""

    service: ServiceName
    emptied_at: int


RegistryEvent = (
    PutInstance
    | DeleteInstance
    | Missing
    | PutPolicy
    | DeletePolicy
    | PutAliases
    | PutResource
    | DeleteResource
    | Synced
    | Lost
    | Recorded
    | Members
    | Release
)
Event = (
    PutInstance
    | DeleteInstance
    | Held
    | PutPolicy
    | DeletePolicy
    | PutAliases
    | PutResource
    | DeleteResource
    | Synced
    | Lost
    | Judged
    | Resolved
    | GraceOver
)
