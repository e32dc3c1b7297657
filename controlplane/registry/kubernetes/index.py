"""Everything that is known of Services, slices and nodes, and what there is to tell since it was told last.

Objects are taken as they come and only note whose instances they touch; `changes` and `everything` work out the
events. No I/O, nothing waits: what is told is noted when the next event is asked for, so that a listing that is
broken off can be taken up by the next.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import TypeVar

from controlplane.model import (
    DeletePolicy,
    InstanceKey,
    Locality,
    PutAliases,
    PutPolicy,
    RegistryEvent,
    ServiceName,
)
from controlplane.policy import Policy
from controlplane.registry.kubernetes.objects import (
    Name,
    Object,
    Service,
    Slice,
    name_of,
    read_place,
    read_service,
    read_slice,
)
from controlplane.registry.kubernetes.reading import Offer, aliases_of, counting, names_of, offers_of
from controlplane.registry.kubernetes.remarks import Remarks
from controlplane.registry.reconcile import MISSING, Delivered

ReadT = TypeVar("ReadT")
Read = Callable[[Object, ReadT | None], tuple[ReadT | None, list[str]]]


class Policies:
    """Hold the services' policies: those stored as documents go before those that annotations ask for."""

    def __init__(self, registry: str) -> None:
        self._registry = registry
        self._stored: dict[ServiceName, Policy] = {}
        self._annotated: dict[ServiceName, Policy] = {}
        self._told: dict[ServiceName, Policy] = {}
        self._touched: set[ServiceName] = set()

    def store(self, service: ServiceName, policy: Policy | None) -> None:
        """Take the policy of a document; None: there is no such document."""
        self._set(self._stored, service, policy)

    def annotate(self, service: ServiceName, policy: Policy | None) -> None:
        """Take the policy that a Service's annotations ask for; None: they ask for none."""
        self._set(self._annotated, service, policy)

    def events(self) -> Iterator[RegistryEvent]:
        """Tell of the policies that have changed."""
        for service in sorted(self._touched):
            self._touched.discard(service)
            policy = self._stored.get(service) or self._annotated.get(service)
            if policy == self._told.get(service):
                continue
            if policy is None:
                del self._told[service]
                yield DeletePolicy(service=service, registry=self._registry)
            else:
                self._told[service] = policy
                yield PutPolicy(service=service, policy=policy, registry=self._registry)

    def _set(self, layer: MutableMapping[ServiceName, Policy], service: ServiceName, policy: Policy | None) -> None:
        if layer.get(service) == policy:
            return
        if policy is None:
            del layer[service]
        else:
            layer[service] = policy
        self._touched.add(service)


class Index:
    """Hold what is known, and tell what follows from it. `now` is in seconds since the epoch."""

    def __init__(
        self, *, registry: str, own_namespace: str, policies: Policies, remarks: Remarks, now: Callable[[], float]
    ) -> None:
        self._registry = registry
        self._own_namespace = own_namespace
        self._policies = policies
        self._remarks = remarks
        self._now = now
        self._delivered = Delivered(registry)
        self._services: dict[Name, Service] = {}
        self._slices: dict[Name, Slice] = {}
        self._slices_of: dict[Name, set[Name]] = {}
        self._places: dict[str, Locality] = {}
        self._places_version = 0
        self._offered: dict[Name, dict[InstanceKey, Offer]] = {}
        self._worked_out: dict[Name, tuple[Slice, Service, int, Mapping[InstanceKey, Offer]]] = {}
        self._aliases: dict[ServiceName, tuple[ServiceName, ...]] = {}
        self._touched: set[Name] = set()

    @property
    def delivered(self) -> Delivered:
        """Return the instances as they were told."""
        return self._delivered

    def list_services(self, namespace: str, things: Iterable[Object]) -> None:
        """Take all Services of a namespace; empty: of all."""
        listed = {self._take_service(thing) for thing in things}
        for name in [each for each in self._services if namespace in ("", each.namespace) and each not in listed]:
            self._drop_service(name)

    def list_slices(self, namespace: str, things: Iterable[Object]) -> None:
        """Take all EndpointSlices of a namespace; empty: of all."""
        listed = {self._take_slice(thing) for thing in things}
        for name in [each for each in self._slices if namespace in ("", each.namespace) and each not in listed]:
            self._drop_slice(name)

    def list_nodes(self, things: Iterable[Object]) -> None:
        """Take all Nodes."""
        places = {name_of(thing).name: read_place(thing) for thing in things}
        if places != self._places:
            self._places = places
            self._places_version += 1
            self._touched.update(self._services)

    def service(self, thing: Object, gone: bool) -> None:
        """Take a Service as it is now, or that it is gone."""
        if gone:
            self._drop_service(name_of(thing))
        else:
            self._take_service(thing)

    def endpoint_slice(self, thing: Object, gone: bool) -> None:
        """Take an EndpointSlice as it is now, or that it is gone."""
        if gone:
            self._drop_slice(name_of(thing))
        else:
            self._take_slice(thing)

    def node(self, thing: Object, gone: bool) -> None:
        """Take a Node as it is now, or that it is gone."""
        name, place = name_of(thing).name, None if gone else read_place(thing)
        if self._places.get(name) == place:
            return
        if place is None:
            del self._places[name]
        else:
            self._places[name] = place
        self._places_version += 1
        self._touched.update(
            each.service for each in self._slices.values() if any(endpoint.node == name for endpoint in each.endpoints)
        )

    def everything(self) -> Iterator[RegistryEvent]:
        """Tell what differs after a listing; what it does not hold, all in one `Missing` (law 14).

        Instances that were on their way out are not missed: they were to go anyway.
        """
        self._touched.clear()
        for name in sorted({*self._services, *self._offered}):
            offers = self._offers(name)
            yield from self._tell_aliases(name)
            for offer in offers.values():
                yield from self._delivered.put(offer.instance, offer.stated)
            self._remember(name, offers)
        held = {key for offers in self._offered.values() for key in offers}
        missed = [key for key in self._delivered.keys() if key not in held]  # noqa: SIM118 - no mapping
        lost = []
        for key in missed:
            known = self._delivered.get(key)
            if known is not None and known.draining:
                yield from self._delivered.delete(key)
            else:
                lost.append(key)
        yield from self._delivered.lose(lost, MISSING)

    def changes(self) -> Iterator[RegistryEvent]:
        """Tell what differs after live changes: a deletion that a live watch saw is meant (law 14)."""
        while self._touched:
            name = self._touched.pop()
            offers = self._offers(name)
            before = self._offered.get(name, {})
            self._remember(name, offers)
            for key in before:
                if key not in offers:
                    yield from self._delivered.delete(key)
            yield from self._tell_aliases(name)
            for key, offer in offers.items():
                if before.get(key) is not offer:
                    yield from self._delivered.put(offer.instance, offer.stated)

    def _offers(self, name: Name) -> dict[InstanceKey, Offer]:
        service = self._services.get(name)
        if service is None:
            return {}
        offers: dict[InstanceKey, Offer] = {}
        for each in counting(service, [self._slices[known] for known in self._slices_of.get(name, ())]):
            offers.update(self._offers_of(service, each))
        return offers

    def _offers_of(self, service: Service, its_slice: Slice) -> Mapping[InstanceKey, Offer]:
        """Return what a slice offers, worked out once: of a service with a hundred of them one changes at a time."""
        known = self._worked_out.get(its_slice.name)
        if known is not None and known[0] is its_slice and known[1] is service and known[2] == self._places_version:
            return known[3]
        offers = offers_of(
            service,
            its_slice,
            self._places,
            own_namespace=self._own_namespace,
            before=self._offered.get(service.name, {}),
            now=self._now,
        )
        self._worked_out[its_slice.name] = its_slice, service, self._places_version, offers
        return offers

    def _tell_aliases(self, name: Name) -> Iterator[RegistryEvent]:
        if name.namespace != self._own_namespace:
            return
        short = ServiceName(name.name)
        service = self._services.get(name)
        aliases = () if service is None else aliases_of(service, self._own_namespace)
        if self._aliases.get(short, ()) == aliases:
            return
        if aliases:
            self._aliases[short] = aliases
        else:
            del self._aliases[short]
        yield PutAliases(service=short, aliases=aliases, registry=self._registry)

    def _remember(self, name: Name, offers: dict[InstanceKey, Offer]) -> None:
        if offers:
            self._offered[name] = offers
        else:
            self._offered.pop(name, None)

    def _take_service(self, thing: Object) -> Name:
        name = name_of(thing)
        before = self._services.get(name)
        service = self._read("service", read_service, thing, before)
        if service == before:
            return name
        self._annotate(before, service)
        if service is None:
            self._services.pop(name, None)
        else:
            self._services[name] = service
        self._touched.add(name)
        return name

    def _drop_service(self, name: Name) -> None:
        self._remarks.set(f"service {name}", ())
        self._annotate(self._services.pop(name, None), None)
        self._touched.add(name)

    def _annotate(self, before: Service | None, service: Service | None) -> None:
        old = {} if before is None else names_of(before, self._own_namespace)
        new = {} if service is None else names_of(service, self._own_namespace)
        for name in set(old.values()) - set(new.values()):
            self._policies.annotate(name, None)
        policy = None if service is None or service.strategy is None else Policy(strategy=service.strategy)
        for name in new.values():
            self._policies.annotate(name, policy)

    def _take_slice(self, thing: Object) -> Name:
        name = name_of(thing)
        before = self._slices.get(name)
        read = self._read("endpointslice", read_slice, thing, before)
        if read is None:
            self._forget_slice(name)
            return name
        if before is not None and before.service != read.service:
            self._forget_slice(name)
        self._slices[name] = read
        self._slices_of.setdefault(read.service, set()).add(name)
        self._touched.add(read.service)
        return name

    def _drop_slice(self, name: Name) -> None:
        self._remarks.set(f"endpointslice {name}", ())
        self._forget_slice(name)

    def _forget_slice(self, name: Name) -> None:
        self._worked_out.pop(name, None)
        gone = self._slices.pop(name, None)
        if gone is None:
            return
        siblings = self._slices_of[gone.service]
        siblings.discard(name)
        if not siblings:
            del self._slices_of[gone.service]
        self._touched.add(gone.service)

    def _read(self, kind: str, read: Read[ReadT], thing: Object, before: ReadT | None) -> ReadT | None:
        try:
            result, faults = read(thing, before)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            result, faults = before, [f"not shaped as the API says: {type(error).__name__}: {str(error)[:80]}"]
        self._remarks.set(f"{kind} {name_of(thing)}", faults)
        return result
