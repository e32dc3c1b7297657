"""The common state of several control planes as documents: what a registry of keys and values keeps besides instances.

A document has a kind, a name of one or more parts, and a JSON body. Each backend decides where documents lie; what
they say is decided here, once, so that policies can be read by a person with the backend's own tools and every
backend tells the same events. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar, assert_never
from urllib.parse import quote, unquote

import orjson
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from controlplane.model import (
    DeletePolicy,
    DeleteResource,
    Instance,
    InstanceId,
    InstanceKey,
    PutPolicy,
    PutResource,
    RawResource,
    Recorded,
    RegistryEvent,
    Release,
    ResourceKey,
    ServiceName,
    Verdict,
    target_of,
)
from controlplane.policy import Policy

ValueT = TypeVar("ValueT")


class Unreadable(Exception):
    """Report that a value in the registry is not what it should be; the message says what is wrong with it."""


class Kind(StrEnum):
    """Name the kinds of documents; the words are part of the paths under which backends keep them."""

    POLICY = "policies"
    """<service>: its policy."""
    RESOURCE = "resources"
    """<type URL>/<name>: a raw xDS resource."""
    VERDICT = "verdicts"
    """<service>/<instance id>: the newest health verdict and what was judged."""
    REMOVAL = "removals"
    """<service>/<instance id>: when a draining instance is to be removed."""
    MEMBER = "members"
    """<member id>: a control plane that is alive."""
    RELEASE = "releases"
    """<hold id>: a person let go what the mass-loss guard held. Short-lived."""


@with_config(ConfigDict(extra="ignore"))
@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Hold a verdict and what it speaks of (`target_of`)."""

    target: str
    verdict: Verdict


@with_config(ConfigDict(extra="ignore"))
@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Hold when a draining instance is to be removed, in seconds since the epoch."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Hold one document. `name` has the parts that its kind names."""

    kind: Kind
    name: tuple[str, ...]
    body: bytes

    @property
    def path(self) -> str:
        """Return `<kind>/<part>/…`, each part percent-encoded, so that a part may hold any character."""
        return path_of(self.kind, *self.name)


_INSTANCE: TypeAdapter[Instance] = TypeAdapter(Instance)
_POLICY: TypeAdapter[Policy] = TypeAdapter(Policy)
_RESOURCE: TypeAdapter[RawResource] = TypeAdapter(RawResource)
_JUDGEMENT: TypeAdapter[Judgement] = TypeAdapter(Judgement)
_REMOVAL: TypeAdapter[Removal] = TypeAdapter(Removal)


def path_of(kind: Kind, *name: str) -> str:
    """Return the path of a document, as `Document.path` does."""
    return "/".join((kind, *(_spelled(part) for part in name)))


def _spelled(part: str) -> str:
    """Encode a part; `.` and `..` too, which as steps of a URL's path would lead elsewhere (RFC 3986, 5.2.4)."""
    return part.replace(".", "%2E") if part in (".", "..") else quote(part, safe="@:+~")


def parse_path(path: str) -> tuple[Kind, tuple[str, ...]]:
    """Return kind and name of a path. Raises Unreadable for a path that no document can have."""
    word, *parts = path.split("/")
    try:
        kind = Kind(word)
    except ValueError:
        raise Unreadable(f"no kind of document is called {word!r}") from None
    wanted = 2 if kind in (Kind.RESOURCE, Kind.VERDICT, Kind.REMOVAL) else 1
    if len(parts) != wanted or not all(parts):
        raise Unreadable(f"a path of {kind} has {wanted} parts behind it, and this one {len(parts)}")
    return kind, tuple(unquote(part) for part in parts)


def instance_body(instance: Instance) -> bytes:
    """Spell an instance as JSON, the way the REST API does, without what is observed."""
    return orjson.dumps(instance)


def read_instance(body: bytes, key: InstanceKey) -> Instance:
    """Read an instance that lies under `key`; what its JSON does not say of name and id, the key does.

    Read-only fields of the REST API are ignored, so that a REST answer can be stored as it is.

    Raises Unreadable for anything that is not a valid instance, or is one of another name or id.
    """
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Unreadable(f"not JSON: {error}") from None
    if not isinstance(values, dict):
        raise Unreadable("must be a JSON object")
    kept = {name: value for name, value in values.items() if name not in _READ_ONLY}
    instance = _validated(_INSTANCE, {"name": key.service, "id": key.id, **kept})
    if instance.key != key:
        raise Unreadable(f"says that it is {instance.key}, and lies under {key}")
    return instance


_READ_ONLY = frozenset(
    {"status", "held", "registry", "revision", "address", "expires_in", "last_check", "score", "since", "reason"}
)


def policy_document(service: ServiceName, policy: Policy) -> Document:
    """Return the document of a service's policy."""
    return Document(kind=Kind.POLICY, name=(service,), body=orjson.dumps(policy))


def resource_document(resource: RawResource) -> Document:
    """Return the document of a raw resource."""
    return Document(kind=Kind.RESOURCE, name=(resource.type_url, resource.name), body=orjson.dumps(resource))


def verdict_document(verdict: Verdict, of: Instance) -> Document:
    """Return the document of a verdict about an instance as it was judged."""
    body = orjson.dumps(Judgement(target=target_of(of), verdict=verdict))
    return Document(kind=Kind.VERDICT, name=(of.name, of.id), body=body)


def removal_document(key: InstanceKey, at: float) -> Document:
    """Return the document of a removal that is due at `at`, in seconds since the epoch."""
    return Document(kind=Kind.REMOVAL, name=(key.service, key.id), body=orjson.dumps(Removal(at=at)))


def read_removal(body: bytes) -> float:
    """Return when a removal is due, in seconds since the epoch. Raises Unreadable."""
    return _validated(_REMOVAL, _json(body)).at


def event_of(kind: Kind, name: tuple[str, ...], body: bytes | None, registry: str) -> RegistryEvent | None:
    """Return what a document, put or (`body` None) deleted, tells; None for kinds that tell nothing by themselves.

    Those are removals and members: the backend acts on them. Raises Unreadable.
    """
    match kind:
        case Kind.POLICY:
            service = ServiceName(name[0])
            if body is None:
                return DeletePolicy(service=service, registry=registry)
            return PutPolicy(service=service, policy=_validated(_POLICY, _json(body)), registry=registry)
        case Kind.RESOURCE:
            if body is None:
                return DeleteResource(key=ResourceKey(*name), registry=registry)
            resource = _validated(_RESOURCE, _json(body))
            if resource.key != ResourceKey(*name):
                raise Unreadable(f"says that it is {resource.key}, and lies under {ResourceKey(*name)}")
            return PutResource(resource=resource, registry=registry)
        case Kind.VERDICT:
            key = InstanceKey(ServiceName(name[0]), InstanceId(name[1]))
            if body is None:
                return Recorded(key=key, target="", verdict=None, registry=registry)
            judgement = _validated(_JUDGEMENT, _json(body))
            return Recorded(key=key, target=judgement.target, verdict=judgement.verdict, registry=registry)
        case Kind.RELEASE:
            return None if body is None else Release(hold=name[0], registry=registry)
        case Kind.REMOVAL | Kind.MEMBER:
            return None
        case _:
            assert_never(kind)


def _json(body: bytes) -> Mapping[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Unreadable(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Unreadable("must be a JSON object")
    return value


def _validated(adapter: TypeAdapter[ValueT], values: Mapping[str, Any]) -> ValueT:
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        said = (
            f"{'.'.join(str(part) for part in fault['loc']) or 'value'}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_context=False, include_input=False)[:3]
        )
        raise Unreadable("; ".join(said)) from None
