"""What clients really say, as bytes: the ground that mutations start from.

A conversation is the list of requests that a client sends on one stream. Nonces are the ones that a stream gives
(it counts), and versions the ones of the snapshot that is served, so that an unspoilt conversation is answered.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from envoy_data_plane.envoy.config.core.v3 import BuildVersion, Extension, Locality
from envoy_data_plane.envoy.config.core.v3 import Node as NodeMessage
from envoy_data_plane.envoy.service.discovery.v3 import DeltaDiscoveryRequest, DiscoveryRequest
from envoy_data_plane.envoy.type.v3 import SemanticVersion
from envoy_data_plane.google.protobuf import ListValue, Struct, Value
from envoy_data_plane.google.rpc import Status
from envoy_data_plane.xds.core.v3 import ContextParams

from tests.xds.client import method
from xds.types import (
    CLUSTER,
    ENDPOINT,
    EXTENSION,
    LISTENER,
    ROUTE,
    RUNTIME,
    SCOPED_ROUTE,
    SECRET,
    VIRTUAL_HOST,
    Resource,
    ResourceSet,
    Snapshot,
)

TYPES = (CLUSTER, ENDPOINT, LISTENER, ROUTE, SCOPED_ROUTE, VIRTUAL_HOST, SECRET, RUNTIME, EXTENSION)
NAMES = ("a", "b", "c", "gone", "", "*", "r/host", "é" * 40, "x" * 300)


@dataclass(frozen=True, slots=True)
class Method:
    """Name one way to open a stream."""

    path: str
    type_url: str
    delta: bool


def _methods() -> Iterator[Method]:
    for delta in (False, True):
        for type_url in ("", *TYPES):
            if delta or type_url != VIRTUAL_HOST:
                yield Method(method(type_url, delta=delta), type_url, delta)


STREAMS = tuple(_methods())
LOADS = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats"


def node(number: int, *, extensions: int = 0) -> NodeMessage:
    """Make a node like Envoy's; 500 extensions make the 61 kB of its first request."""
    inner = Struct(fields={"gateway_port": Value(number_value=10001.0), "canary": Value(bool_value=True)})
    values = ListValue(values=[Value(string_value="x"), Value(number_value=float("nan")), Value(struct_value=inner)])
    return NodeMessage(
        id=f"fuzz-{number}",
        cluster="fuzz",
        metadata=Struct(fields={"list": Value(list_value=values), "gateway_port": Value(number_value=10002.0)}),
        locality=Locality(region="eu", zone="eu-1"),
        user_agent_name="envoy",
        user_agent_build_version=BuildVersion(version=SemanticVersion(major_number=1, minor_number=40)),
        extensions=[
            Extension(name=f"envoy.filters.http.{n}", category="envoy.filters.http", type_urls=["x" * 70])
            for n in range(extensions)
        ],
        client_features=["envoy.lb.does_not_support_overprovisioning"],
        dynamic_parameters={CLUSTER: ContextParams(params={"canary": "yes"})},
    )


def snapshots() -> tuple[Snapshot, ...]:
    """Make a few states to move between, each with something of every type."""
    return tuple(_snapshot(edition) for edition in range(6))


def _snapshot(edition: int) -> Snapshot:
    names = "abc"[: 1 + edition % 3]
    clusters = [Resource.of(name, f"{name}{edition // 3}".encode(), refs=[(ENDPOINT, name)]) for name in names]
    return Snapshot(
        {
            CLUSTER: ResourceSet(clusters),
            ENDPOINT: ResourceSet(
                Resource.of(one.name, f"{one.name}{edition}".encode(), parent_version=one.version) for one in clusters
            ),
            LISTENER: ResourceSet([Resource.of("l", b"l", refs=[(ROUTE, "r")])]),
            ROUTE: ResourceSet([Resource.of("r", names.encode(), refs=[(CLUSTER, name) for name in names])]),
            SCOPED_ROUTE: ResourceSet([Resource.of("s", b"s", refs=[(ROUTE, "r")])]),
            VIRTUAL_HOST: ResourceSet([Resource.of("r/host", f"{edition}".encode(), aliases=("r/h",))]),
            **{url: ResourceSet([Resource.of("a", f"{edition}".encode())]) for url in (SECRET, RUNTIME, EXTENSION)},
        },
        str(edition),
    )


class Corpus:
    """Keep conversations that are spelled already, some for each way to open a stream and each state served.

    Spelling them takes twenty times as long as reading them, and there are a million to read.
    """

    def __init__(self, rng: Random, states: Sequence[Snapshot], *, each: int = 3, inventions: int = 300) -> None:
        self._conversations = {
            (method, state): [_conversation(rng, method, served) for _ in range(each)]
            for method in STREAMS
            for state, served in enumerate(states)
        }
        self._inventions = {
            method: [_invention(rng, method) for _ in range(inventions if not method.type_url else inventions // 10)]
            for method in STREAMS
        }

    def conversation(self, rng: Random, method: Method, state: int) -> list[bytes]:
        """Say what a well-behaved client says, with the choices that such clients have."""
        return list(rng.choice(self._conversations[method, state]))

    def invention(self, rng: Random, method: Method) -> bytes:
        """Say something that can be read and that no sane client would say here."""
        return rng.choice(self._inventions[method])


_NODES = [bytes(node(number, extensions=extensions)) for number in (1, 2) for extensions in (0, 3, 500)]


def _conversation(rng: Random, method: Method, served: Snapshot) -> list[bytes]:
    types = [method.type_url] if method.type_url else rng.sample(TYPES, rng.randint(1, 4))
    messages = [bytes(each) for each in (_delta(rng, types) if method.delta else _sotw(rng, types, served))]
    who = block(0x0A if method.delta else 0x12, rng.choices(_NODES, (10, 10, 1) * 2)[0])
    always = rng.random() < 0.2  # as Envoy does on delta streams
    return [who + message if always or at == 0 else message for at, message in enumerate(messages)]


def block(tag: int, value: bytes) -> bytes:
    """Spell a length-delimited field."""
    size, length = bytearray(), len(value)
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes((tag, *size, length)) + value


def _sotw(rng: Random, types: list[str], served: Snapshot) -> Iterator[DiscoveryRequest]:
    for number, type_url in enumerate(types, 1):
        names = rng.sample(NAMES, rng.randint(0, 4))
        version = served.of_type(type_url).version
        yield DiscoveryRequest(type_url=type_url, resource_names=names)
        yield DiscoveryRequest(
            type_url=type_url,
            resource_names=names,
            version_info=version if rng.random() < 0.8 else "",
            response_nonce=str(number),
            error_detail=Status(code=13, message="no: a: b") if rng.random() < 0.3 else None,
        )
        if rng.random() < 0.5:
            yield DiscoveryRequest(
                type_url=type_url,
                resource_names=rng.sample(NAMES, 2),
                version_info=version,
                response_nonce=str(number),
            )


def _delta(rng: Random, types: list[str]) -> Iterator[DeltaDiscoveryRequest]:
    for number, type_url in enumerate(types, 1):
        initial = dict.fromkeys(rng.sample(NAMES, 2), "1") if rng.random() < 0.3 else {}
        yield DeltaDiscoveryRequest(
            type_url=type_url,
            resource_names_subscribe=rng.sample(NAMES, rng.randint(0, 4)),
            initial_resource_versions=initial,
        )
        yield DeltaDiscoveryRequest(
            type_url=type_url,
            response_nonce=str(number),
            error_detail=Status(code=13, message="no: a: b") if rng.random() < 0.3 else None,
        )
        if rng.random() < 0.5:
            yield DeltaDiscoveryRequest(
                type_url=type_url,
                resource_names_subscribe=rng.sample(NAMES, 2),
                resource_names_unsubscribe=rng.sample(NAMES, 2),
            )


def _invention(rng: Random, method: Method) -> bytes:
    type_url = method.type_url if method.type_url and rng.random() < 0.9 else rng.choice((*TYPES, "", "acme.Foo"))
    if rng.random() < 0.05:
        type_url = f"type.googleapis.com/acme.Type{rng.randint(0, 10_000)}"
    error = Status(code=rng.randint(0, 20), message=rng.choice(NAMES)) if rng.random() < 0.3 else None
    names = [rng.choice(NAMES) for _ in range(rng.choice((0, 1, 2, 5, 20)))]
    nonce = rng.choice(("", "0", "1", "2", "3", "7", "x"))
    if method.delta:
        return bytes(
            DeltaDiscoveryRequest(
                type_url=type_url,
                resource_names_subscribe=names,
                resource_names_unsubscribe=[rng.choice(NAMES) for _ in range(rng.randint(0, 3))],
                initial_resource_versions={name: rng.choice(("", "1")) for name in names[:3]},
                response_nonce=nonce,
                error_detail=error,
            )
        )
    return bytes(
        DiscoveryRequest(
            type_url=type_url,
            resource_names=names,
            version_info=rng.choice(("", "1", "f" * 32)),
            response_nonce=nonce,
            error_detail=error,
        )
    )
