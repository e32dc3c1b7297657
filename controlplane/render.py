"""From a file to what Envoys would be told: the whole path from Catalog to Snapshot, without a network or a clock.

For `controlplane render -f`, for reviews of a change before it is made, and for the golden tests. The file:

    services:
      web:
        policy: {strategy: least_connections}
        instances:
        - {host: 10.0.0.1, port: 8080, weight: 3}
        - {host: api.internal, port: 8080, health_check: {http_path: /live}, status: unhealthy}
    resolutions:
      api.internal: [10.0.0.9]

`policy` and the instances are as in the REST API, without the service's name. `status` is what the checks are to
have found (healthy where left out), or `verdict` says it in full. A DNS name counts as unresolved unless
`resolutions` says what it stands for. Every service in the file has a cluster, one without instances an empty one.
"""

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from controlplane.catalog import Catalog, Service
from controlplane.model import (
    Event,
    HealthStatus,
    Instance,
    PutInstance,
    PutPolicy,
    Resolved,
    ServiceName,
    Synced,
    Verdict,
)
from controlplane.model import ServiceNameField as _ServiceNameField
from controlplane.plan import plan
from controlplane.policy import Policy
from controlplane.translate import lint
from controlplane.translate.listener import gateway
from controlplane.translate.names import ADS, Source
from controlplane.translate.snapshot import snapshot
from xds.types import Snapshot

REGISTRY = "file"

_T = TypeVar("_T")


class RenderError(Exception):
    """Report everything that is wrong with a file; `faults` holds one line each, with the path of the field."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def load(text: str) -> Catalog:
    """Read a file's text into a catalog.

    Raises RenderError with all faults at once.
    """
    try:
        document = yaml.safe_load(text)
        twice = list(_given_twice(yaml.compose(text, Loader=yaml.SafeLoader)))
    except yaml.YAMLError as error:
        raise RenderError([f"not YAML: {error}"]) from error
    reader = _Reader(twice)
    catalog = reader.catalog(document)
    if reader.faults:
        raise RenderError(reader.faults)
    return catalog


def render(catalog: Catalog, gateway_host: str, gateway_port: int, source: Source = ADS) -> Snapshot:
    """Return what Envoys are told of a catalog; resources take what they refer to from `source`.

    Raises RenderError where a resource would be refused, with the service's name, and where the gateway's host is
    no IP address.
    """
    planned = [plan(service, catalog) for _, service in sorted(catalog.services.items()) if service.has_cluster]
    faults = [f"services.{each.name}: {problem}" for each in planned for problem in lint.problems(each)]
    if faults:
        raise RenderError(faults)
    try:
        listener = gateway(gateway_host, gateway_port, source)
    except ValueError as error:
        raise RenderError([f"the gateway's host: {error}"]) from error
    return snapshot(planned, gateway=listener, source=source)


class _Reader:
    """Turn a parsed document into a catalog, collecting faults instead of stopping at the first."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults

    def catalog(self, document: Any) -> Catalog:
        top = self._mapping(document, "", {"services", "resolutions"})
        events: list[Event] = [Synced(registry=REGISTRY)]
        names = []
        for name, value in self._mapping(top.get("services", {}), "services").items():
            if self._value(_ServiceNameField, name, f"services.{name}") is not None:
                names.append(ServiceName(name))
                events += self._service(ServiceName(name), value, f"services.{name}")
        for host, addresses in self._mapping(top.get("resolutions", {}), "resolutions").items():
            events.append(self._resolution(host, addresses, f"resolutions.{host}"))
        catalog = Catalog()
        for event in events:
            catalog, _ = catalog.apply(event)
        return _with_empty_clusters(catalog, names)

    def _service(self, name: ServiceName, value: Any, path: str) -> list[Event]:
        fields = self._mapping(value, path, {"policy", "instances"})
        events: list[Event] = []
        if fields.get("policy") is not None:
            policy = self._value(Policy, fields["policy"], f"{path}.policy")
            if policy is not None:
                events.append(PutPolicy(service=name, policy=policy, registry=REGISTRY))
        ids: set[str] = set()
        for number, each in enumerate(self._list(fields.get("instances"), f"{path}.instances")):
            where = f"{path}.instances[{number}]"
            if not isinstance(each, Mapping):
                self.faults.append(f"{where}: expected a mapping, found {type(each).__name__}")
                continue
            event = self._instance(name, self._mapping(each, where), where)
            if event is None:
                continue
            if event.instance.id in ids:
                self.faults.append(f"{where}.id: {event.instance.id!r} is another instance's id already")
            ids.add(event.instance.id)
            events.append(event)
        return events

    def _instance(self, service: ServiceName, fields: Mapping[str, Any], path: str) -> PutInstance | None:
        given = {key: value for key, value in fields.items() if key not in {"status", "verdict"}}
        if given.setdefault("name", service) != service:
            self.faults.append(f"{path}.name: is {given['name']!r}, but the instance stands under {service!r}")
            return None
        instance = self._value(Instance, given, path)
        if instance is None:
            return None
        verdict = self._verdict(instance, fields, path)
        return PutInstance(instance=instance, registry=REGISTRY, verdict=verdict)

    def _verdict(self, instance: Instance, fields: Mapping[str, Any], path: str) -> Verdict | None:
        if "verdict" in fields:
            if "status" in fields:
                self.faults.append(f"{path}: give `status` or `verdict`, not both")
                return None
            given = {"since": 0.0, **self._mapping(fields["verdict"], f"{path}.verdict")}
            return self._value(Verdict, given, f"{path}.verdict")
        status = self._value(HealthStatus, fields.get("status", "healthy"), f"{path}.status")
        if status is None or status is HealthStatus.UNKNOWN:
            return None
        if status is HealthStatus.DRAINING:
            if not instance.draining:
                self.faults.append(f"{path}.status: no check finds an instance draining; say `draining: true`")
            return None
        if not instance.checked:
            if status is not HealthStatus.HEALTHY:
                self.faults.append(f"{path}.status: an instance without a `health_check` is healthy")
            return None
        return Verdict(status=status, passed=True, since=0.0, reason="as the file says")

    def _resolution(self, host: str, value: Any, path: str) -> Resolved:
        addresses = []
        for number, each in enumerate(self._list(value, path)):
            try:
                addresses.append(str(ipaddress.ip_address(each)))
            except ValueError:
                self.faults.append(f"{path}[{number}]: {each!r} is not an IP address")
        return Resolved(host=host.lower().removesuffix("."), addresses=tuple(addresses))

    def _value(self, kind: type[_T], value: Any, path: str) -> _T | None:
        try:
            return TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
                self.faults.append(f"{path}{where}: {fault['msg'].removeprefix('Value error, ')}")
            return None

    def _mapping(self, value: Any, path: str, keys: set[str] | None = None) -> Mapping[str, Any]:
        """Return `value` if it is a mapping with text for keys (out of `keys`, where given), else complain."""
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.faults.append(f"{path or 'the file'}: expected a mapping, found {type(value).__name__}")
            return {}
        for key in value:
            if not isinstance(key, str):
                self.faults.append(f"{path}.{key}: a key must be text; put it in quotes")
            elif keys is not None and key not in keys:
                prefix = f"{path}." if path else ""
                self.faults.append(f"{prefix}{key}: unknown field; expected one of {', '.join(sorted(keys))}")
        return {key: each for key, each in value.items() if isinstance(key, str)}

    def _list(self, value: Any, path: str) -> list[Any]:
        if value is None:
            return []
        if not isinstance(value, list):
            self.faults.append(f"{path}: expected a list, found {type(value).__name__}")
            return []
        return value


def _given_twice(node: yaml.Node | None, path: str = "") -> Iterator[str]:
    """Find the keys that a mapping holds twice: the reader would take the last and say nothing."""
    match node:
        case yaml.MappingNode():
            seen = set()
            for key, value in node.value:
                where = f"{path}.{key.value}" if path else str(key.value)
                if key.value in seen:
                    yield f"{where}: given twice, again in line {key.start_mark.line + 1}"
                seen.add(key.value)
                yield from _given_twice(value, where)
        case yaml.SequenceNode():
            for number, each in enumerate(node.value):
                yield from _given_twice(each, f"{path}[{number}]")


def _with_empty_clusters(catalog: Catalog, names: list[ServiceName]) -> Catalog:
    """Give the services without instances the cluster that they would have in their grace period."""
    services = dict(catalog.services)
    for name in names:
        service = services.get(name, Service(name=name, revision=catalog.revision))
        if not service.entries:
            services[name] = replace(service, emptied_at=catalog.revision)
    return replace(catalog, services=MappingProxyType(services))
