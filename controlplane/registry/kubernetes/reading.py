"""From Services, their slices and the nodes to instances: the rules of who is offered, by which name, as what. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from controlplane.model import (
    HealthCheck,
    HealthStatus,
    Instance,
    InstanceId,
    InstanceKey,
    Locality,
    ServiceName,
    Verdict,
)
from controlplane.registry.kubernetes.objects import Endpoint, Service, Slice, family_of

READY = "ready, says Kubernetes"
NOT_READY = "not ready, says Kubernetes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Hold an instance with what Kubernetes states of its health, and what both were made of."""

    instance: Instance
    stated: Verdict
    source: tuple[Endpoint, int, int, str | None, Locality]


def names_of(service: Service, own_namespace: str) -> dict[str, ServiceName]:
    """Return by which name each port of a service is offered.

    The main port bears the service's name: `<service>.<namespace>`, in our own namespace `<service>` alone. The
    others are `<port>.<service>.<namespace>` everywhere: shortened they could be told from a service of another
    namespace by nothing.
    """
    long = f"{service.name.name}.{service.name.namespace}"
    main = service.name.name if service.name.namespace == own_namespace else long
    return {port: ServiceName(main if port == service.main else f"{port}.{long}") for port in service.ports}


def aliases_of(service: Service, own_namespace: str) -> tuple[ServiceName, ...]:
    """Return by which names the main port is reached besides its own: the long one, where it has the short."""
    if service.name.namespace != own_namespace:
        return ()
    return (ServiceName(f"{service.name.name}.{service.name.namespace}"),)


def offers_of(
    service: Service,
    its_slice: Slice,
    places: Mapping[str, Locality],
    *,
    own_namespace: str,
    before: Mapping[InstanceKey, Offer],
    now: Callable[[], float],
) -> dict[InstanceKey, Offer]:
    """Return the instances of a service that one of its slices holds, by key.

    `places` says where nodes are, `now` is in seconds since the epoch. What has not changed since `before` is the same
    object.
    """
    names = names_of(service, own_namespace)
    offers: dict[InstanceKey, Offer] = {}
    for port, number in its_slice.ports.items():
        if (name := names.get(port)) is None:
            continue
        for endpoint in its_slice.endpoints:
            offer = _offer(service, name, endpoint, number, _place(endpoint, places), before, now)
            offers[offer.instance.key] = offer
    return offers


def counting(service: Service, slices: Iterable[Slice]) -> list[Slice]:
    """Return those slices of a service that count: the ones of its family, the newest last.

    Of an endpoint that is moving from one slice to another, and is in both, the newer slice is right.
    """
    ordered = sorted(slices, key=lambda each: (each.revision, each.name))
    family = family_of(service, ordered)
    return [each for each in ordered if each.family == family]


def _place(endpoint: Endpoint, places: Mapping[str, Locality]) -> Locality:
    """Say where an endpoint runs. Its own zone is its node's when it was made, and needs no right on nodes."""
    node = places.get(endpoint.node, _NOWHERE)
    if not endpoint.zone or endpoint.zone == node.zone:
        return node
    return Locality(region=node.region, zone=endpoint.zone)


_NOWHERE = Locality()


def _offer(
    service: Service,
    name: ServiceName,
    endpoint: Endpoint,
    port: int,
    place: Locality,
    before: Mapping[InstanceKey, Offer],
    now: Callable[[], float],
) -> Offer:
    source = endpoint, port, service.weight, service.health_path, place
    key = InstanceKey(name, _id(endpoint, port))
    last = before.get(key)
    if last is not None and last.source == source:
        return last
    instance = Instance(
        name=name,
        id=key.id,
        host=endpoint.address,
        port=port,
        weight=service.weight,
        draining=endpoint.terminating,
        locality=place,
        health_check=None if service.health_path is None else HealthCheck(http_path=service.health_path),
    )
    return Offer(instance=instance, stated=_stated(endpoint, last, now), source=source)


def _id(endpoint: Endpoint, port: int) -> InstanceId:
    return InstanceId(endpoint.pod or f"{endpoint.address}-{port}")


def _stated(endpoint: Endpoint, last: Offer | None, now: Callable[[], float]) -> Verdict:
    status = HealthStatus.HEALTHY if endpoint.serving else HealthStatus.UNHEALTHY
    if last is not None and last.stated.status is status:
        return last.stated
    return Verdict(
        status=status,
        passed=True,
        since=now(),
        score=100 if endpoint.serving else 0,
        reason=READY if endpoint.serving else NOT_READY,
    )
