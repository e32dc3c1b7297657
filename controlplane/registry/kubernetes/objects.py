"""What is kept of Kubernetes objects: Services, EndpointSlices and Nodes, read from their JSON. Pure.

Plain dictionaries come in, as the watch delivers them: the client library's typed models cost four times as much,
which at ten thousand endpoints is the difference that is felt. What cannot be used is told as a fault, and where the
object was good before, its last good form stays (law 15).
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.model import INSTANCE_ID, Locality
from controlplane.policy import Strategy

Object = Mapping[str, Any]

SERVICE_OF_SLICE = "kubernetes.io/service-name"
WEIGHT = "service-discovery/weight"
STRATEGY = "service-discovery/strategy"
HEALTH_PATH = "service-discovery/health-path"
PORT = "service-discovery/port"

WEIGHT_MAX = 1000
_PORT_MAX = 65_535
_ZONE_MAX = 63
"""How long the value of a label may be, which zones are."""


class Fault(Exception):
    """Report what is wrong with an object, in words for its author."""


@dataclass(frozen=True, slots=True, order=True)
class Name:
    """Identify an object of one kind; `namespace` is empty for what lies in none."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Hold what counts of a Service. `ports` are the names of its TCP ports, `main` the one that bears its name.

    `families` are its address families, the preferred one first; empty where the API server does not say.
    """

    name: Name
    ports: tuple[str, ...]
    main: str
    families: tuple[str, ...] = ()
    weight: int = 1
    strategy: Strategy | None = None
    health_path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Hold one endpoint of a slice. `pod` is empty where it is none; `zone` where the slice does not say."""

    pod: str
    address: str
    node: str
    zone: str
    serving: bool
    terminating: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Hold what counts of an EndpointSlice. `revision` orders versions: of two slices the newer has the greater."""

    name: Name
    service: Name
    family: str
    revision: int
    ports: Mapping[str, int] = field(default_factory=dict)
    endpoints: tuple[Endpoint, ...] = ()


def name_of(thing: Object) -> Name:
    """Return how an object is called."""
    metadata = thing["metadata"]
    return Name(metadata.get("namespace", ""), metadata["name"])


def revision_of(thing: Object) -> int:
    """Return an object's resource version as a number; 0 where it is none.

    Kubernetes documents the versions of one kind as comparable numbers since 1.35 (KEP-5504), and etcd's revisions
    always were.
    """
    version = str(thing["metadata"].get("resourceVersion", ""))
    return int(version) if version.isdecimal() else 0


def read_service(thing: Object, before: Service | None) -> tuple[Service | None, list[str]]:
    """Read a Service; return it, or None where it has nothing to offer, and what is wrong with it.

    An annotation that cannot be used counts as it did `before`, or as if it were not there.
    """
    name = name_of(thing)
    spec = thing.get("spec") or {}
    if spec.get("type") == "ExternalName":
        return None, ["of type ExternalName: left out, because it has no endpoints; register the name elsewhere"]
    ports = tuple(
        str(port.get("name") or "") for port in spec.get("ports") or () if port.get("protocol", "TCP") == "TCP"
    )
    if not ports:
        return None, ["has no TCP port: left out"]
    given = (thing.get("metadata") or {}).get("annotations") or {}
    faults: list[str] = []

    def kept(annotation: str, error: str, last: Any) -> Any:
        faults.append(f"annotation {annotation}: {error}, found {str(given[annotation])[:80]!r}")
        return last

    weight = 1
    if WEIGHT in given:
        text = str(given[WEIGHT])
        if text.isdecimal() and 1 <= int(text[:5]) <= WEIGHT_MAX:
            weight = int(text)
        else:
            weight = kept(WEIGHT, f"must be a whole number from 1 to {WEIGHT_MAX}", before.weight if before else 1)
    strategy: Strategy | None = None
    if STRATEGY in given:
        if given[STRATEGY] in list(Strategy):
            strategy = Strategy(given[STRATEGY])
        else:
            strategy = kept(STRATEGY, f"must be one of {', '.join(Strategy)}", before.strategy if before else None)
    health_path: str | None = None
    if HEALTH_PATH in given:
        path = str(given[HEALTH_PATH])
        if path.startswith("/") and len(path) <= 2048 and not any(ch <= " " or ch == "\x7f" for ch in path):
            health_path = path
        else:
            last = before.health_path if before else None
            health_path = kept(HEALTH_PATH, "must begin with '/' and hold no spaces or control characters", last)
    main = ports[0]
    if PORT in given:
        if given[PORT] in ports:
            main = given[PORT]
        else:
            last_main = before.main if before is not None and before.main in ports else ports[0]
            main = kept(PORT, f"must name one of its TCP ports ({', '.join(ports)})", last_main)
    service = Service(
        name=name,
        ports=ports,
        main=main,
        families=tuple(spec.get("ipFamilies") or ()),
        weight=weight,
        strategy=strategy,
        health_path=health_path,
    )
    return service, faults


def read_slice(thing: Object, before: Slice | None) -> tuple[Slice | None, list[str]]:
    """Read an EndpointSlice; return it, or None where it has nothing to offer, and what is wrong with it.

    An endpoint that cannot be used stays as it was `before`, or is left out.
    """
    name = name_of(thing)
    owner = ((thing.get("metadata") or {}).get("labels") or {}).get(SERVICE_OF_SLICE)
    family = thing.get("addressType")
    if not owner or family == "FQDN":  # whose it is not said, or names: nothing that could be offered
        return None, []
    if family not in ("IPv4", "IPv6"):
        return before, [f"addressType: must be IPv4, IPv6 or FQDN, found {str(family)[:80]!r}"]
    faults: list[str] = []
    ports: dict[str, int] = {}
    for port in thing.get("ports") or ():
        number = port.get("port")
        if port.get("protocol", "TCP") != "TCP" or number is None:
            continue
        if type(number) is int and 1 <= number <= _PORT_MAX:
            ports[str(port.get("name") or "")] = number
        else:
            faults.append(f"port: must be a number from 1 to {_PORT_MAX}, found {str(number)[:80]!r}")
    if faults and before is not None:
        ports = {**before.ports, **ports}
    known = {endpoint.pod: endpoint for endpoint in before.endpoints if endpoint.pod} if before is not None else {}
    endpoints: list[Endpoint] = []
    for each in thing.get("endpoints") or ():
        try:
            endpoints.append(_endpoint(each, family))
        except Fault as fault:
            faults.append(str(fault))
            if (last := known.get(_pod(each))) is not None:
                endpoints.append(last)
    return (
        Slice(
            name=name,
            service=Name(name.namespace, str(owner)),
            family=family,
            revision=revision_of(thing),
            ports=ports,
            endpoints=tuple(endpoints),
        ),
        faults,
    )


def read_place(node: Object) -> Locality:
    """Return where a Node is, by its well-known labels."""
    labels = (node.get("metadata") or {}).get("labels") or {}
    return Locality(
        region=str(labels.get("topology.kubernetes.io/region", "")),
        zone=str(labels.get("topology.kubernetes.io/zone", "")),
    )


def family_of(service: Service, slices: Iterable[Slice]) -> str:
    """Return the address family by which a service is offered: the first it prefers of which there is a slice.

    A pod of a dual-stack service is listed once for each family, and is one instance all the same. Controllers keep a
    slice of each family even where it is empty, so that this does not change with the endpoints.
    """
    there = {each.family for each in slices}
    return next((family for family in (*service.families, "IPv4") if family in there), "IPv6")


def _pod(endpoint: Object) -> str:
    target = endpoint.get("targetRef") or {}
    return str(target.get("name", "")) if target.get("kind") == "Pod" else ""


def _endpoint(endpoint: Object, family: str) -> Endpoint:
    addresses = endpoint.get("addresses") or ()
    if not addresses:
        raise Fault("endpoint: must have an address, found none")
    first = str(addresses[0])  # the others are, by the API's own words, not for us
    try:
        address = ipaddress.ip_address(first)
    except ValueError:
        raise Fault(f"endpoint: must have an {family} address, found {first[:80]!r}") from None
    if f"IPv{address.version}" != family:
        raise Fault(f"endpoint: must have an {family} address, found {first}")
    pod = _pod(endpoint)
    if pod and not INSTANCE_ID.fullmatch(pod):
        raise Fault(f"endpoint {first}: targetRef must name a pod, found {pod[:80]!r}")
    conditions = endpoint.get("conditions") or {}
    ready = conditions.get("ready")
    serving = conditions.get("serving")
    terminating = conditions.get("terminating") is True
    return Endpoint(
        pod=pod,
        address=str(address),
        node=str(endpoint.get("nodeName") or ""),
        zone=str(endpoint.get("zone") or "")[:_ZONE_MAX],
        serving=ready is not False or serving is True,  # ready left out means ready, says the API
        terminating=terminating,
    )
