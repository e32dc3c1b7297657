"""The wire format against the generated messages: theirs read by ours, ours read by theirs."""

import random
import tracemalloc
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
from envoy_data_plane.envoy.config.core.v3 import BuildVersion, Extension, Locality
from envoy_data_plane.envoy.config.core.v3 import Node as NodeMessage
from envoy_data_plane.envoy.service.discovery.v3 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from envoy_data_plane.envoy.type.v3 import SemanticVersion
from envoy_data_plane.google.protobuf import ListValue, NullValue, Struct, Value
from envoy_data_plane.google.rpc import Status
from envoy_data_plane.xds.core.v3 import ContextParams

from xds import requests
from xds.nodes import read_node
from xds.protocol import DeltaRequest, Error, Response, SotwRequest
from xds.requests import NamesPool, RequestReader
from xds.responses import ResponseWriter
from xds.types import CLUSTER, ENDPOINT, Resource
from xds.wire import WireError

pytestmark = pytest.mark.unit

NODE = NodeMessage(
    id="edge-1",
    cluster="edge",
    metadata=Struct(
        fields={
            "gateway_port": Value(number_value=10001.0),
            "transport": Value(string_value="grpc"),
            "on": Value(bool_value=True),
            "off": Value(bool_value=False),
            "nothing": Value(null_value=NullValue.NULL_VALUE),
            "list": Value(list_value=ListValue(values=[Value(number_value=1.0), Value(string_value="x")])),
            "nested": Value(struct_value=Struct(fields={"a": Value(struct_value=Struct())})),
        }
    ),
    locality=Locality(region="eu", zone="eu-1", sub_zone="rack-2"),
    user_agent_name="envoy",
    user_agent_build_version=BuildVersion(version=SemanticVersion(major_number=1, minor_number=40, patch=2)),
    extensions=[Extension(name=f"envoy.filters.{n}", category="envoy.filters") for n in range(500)],
    client_features=["envoy.lb.does_not_support_overprovisioning", "another"],
)


def test_a_node_is_read_whole_but_for_its_extensions() -> None:
    reader = RequestReader(delta=False)
    reader.read(bytes(DiscoveryRequest(node=NODE, type_url=CLUSTER)))
    node = reader.node

    assert node is not None
    assert (node.id, node.cluster) == ("edge-1", "edge")
    assert (node.region, node.zone, node.sub_zone) == ("eu", "eu-1", "rack-2")
    assert (node.user_agent_name, node.user_agent_version) == ("envoy", "1.40.2")
    assert node.client_features == {"envoy.lb.does_not_support_overprovisioning", "another"}
    assert dict(node.metadata) == {
        "gateway_port": 10001.0,
        "transport": "grpc",
        "on": True,
        "off": False,
        "nothing": None,
        "list": [1.0, "x"],
        "nested": {"a": {}},
    }


def test_a_plain_user_agent_version_is_read() -> None:
    reader = RequestReader(delta=True)
    node = NodeMessage(id="x", user_agent_name="gRPC Go", user_agent_version="1.80.0")
    reader.read(bytes(DeltaDiscoveryRequest(node=node, type_url=CLUSTER)))

    assert reader.node is not None
    assert reader.node.user_agent_version == "1.80.0"


@pytest.mark.parametrize(
    "message",
    [
        DiscoveryRequest(type_url=CLUSTER),
        DiscoveryRequest(type_url=ENDPOINT, resource_names=["a"], version_info="v", response_nonce="n"),
        DiscoveryRequest(type_url=ENDPOINT, resource_names=[f"service-{n}" for n in range(1000)]),
        DiscoveryRequest(resource_names=["a", "b", "a", "", "ünï"], error_detail=Status(code=13, message="kaputt")),
        DiscoveryRequest(type_url=ENDPOINT, error_detail=Status()),
        DiscoveryRequest(type_url=ENDPOINT, resource_names=["x" * 200, "y" * 20_000], node=NODE),
    ],
    ids=["empty", "an ACK", "a thousand names", "a NACK without a type", "an empty error", "long names"],
)
def test_sotw_requests_are_read_as_their_message_says(message: DiscoveryRequest) -> None:
    error = message.error_detail

    assert RequestReader(delta=False).read(bytes(message)) == SotwRequest(
        type_url=message.type_url,
        names=frozenset(message.resource_names),
        version=message.version_info,
        nonce=message.response_nonce,
        error=Error(error.code, error.message) if error is not None else None,
    )


@pytest.mark.parametrize(
    "message",
    [
        DeltaDiscoveryRequest(type_url=CLUSTER),
        DeltaDiscoveryRequest(type_url=CLUSTER, initial_resource_versions={"a": "1", "b": "", "": "3"}, node=NODE),
        DeltaDiscoveryRequest(resource_names_subscribe=["a", "*"], resource_names_unsubscribe=["b"]),
        DeltaDiscoveryRequest(response_nonce="7", error_detail=Status(code=3, message="no")),
    ],
    ids=["empty", "a reconnect", "an edit", "a NACK"],
)
def test_delta_requests_are_read_as_their_message_says(message: DeltaDiscoveryRequest) -> None:
    error = message.error_detail

    assert RequestReader(delta=True).read(bytes(message)) == DeltaRequest(
        type_url=message.type_url,
        subscribe=frozenset(message.resource_names_subscribe),
        unsubscribe=tuple(message.resource_names_unsubscribe),
        initial_versions=message.initial_resource_versions,
        nonce=message.response_nonce,
        error=Error(error.code, error.message) if error is not None else None,
    )


def names_parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Note every list of names that is really parsed."""
    parsed: list[bytes] = []
    real = requests.parse_names

    def noting(raw: bytes) -> frozenset[str]:
        parsed.append(raw)
        return real(raw)

    monkeypatch.setattr(requests, "parse_names", noting)
    return parsed


@pytest.mark.parametrize("pool", [None, NamesPool()], ids=["alone", "with a pool"])
def test_an_ack_that_repeats_a_thousand_names_is_recognised_and_not_parsed_again(
    pool: NamesPool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = names_parsed(monkeypatch)
    reader = RequestReader(delta=False, pool=pool)
    names = [f"repeated-{n}" for n in range(1000)]

    def read(version: str, nonce: str, more: Sequence[str] = (), error: Status | None = None) -> SotwRequest:
        message = DiscoveryRequest(
            version_info=version,
            resource_names=[*names, *more],
            type_url=ENDPOINT,
            response_nonce=nonce,
            error_detail=error,
        )
        request = reader.read(bytes(message))
        assert isinstance(request, SotwRequest)
        assert (request.type_url, request.version, request.nonce) == (ENDPOINT, version, nonce)
        assert request.names == {*names, *more}
        return request

    first = read("aa", "1")
    later = [read(version, nonce) for version, nonce in (("ab", "2"), ("ac", "3"), ("ad", "9"))]

    assert len(parsed) == 1
    assert all(request.names is first.names and request.error is None for request in later)
    assert read("ae", "10", error=Status(code=13, message="no")).error == Error(13, "no")
    read("af", "11", ["one-more"])
    read("ag", "12")


@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
def test_a_request_as_long_as_an_ack_is_read_for_what_it_is(delta: bool) -> None:
    """Take the short cut for nothing but an ACK: any other byte that differs means another request."""
    reader = RequestReader(delta=delta)
    message = DeltaDiscoveryRequest if delta else DiscoveryRequest
    ack = bytes(message(type_url=CLUSTER, response_nonce="1"))
    reader.read(ack)
    for at in range(len(ack)):
        for value in (0x1A, 0x22, 0x00, 0xFF, ord("Z")):
            data = ack[:at] + bytes((value,)) + ack[at + 1 :]
            fresh = RequestReader(delta=delta)
            try:
                expected: object = fresh.read(data)
            except WireError as error:
                expected = str(error)
            try:
                seen: object = reader.read(data)
            except WireError as error:
                seen = str(error)
            if isinstance(expected, str):
                assert isinstance(seen, str)
            else:
                assert seen == expected
            reader = RequestReader(delta=delta)
            reader.read(ack)


def test_streams_that_ask_for_the_same_share_one_set() -> None:
    pool = NamesPool()
    for delta, message in (
        (False, DiscoveryRequest(type_url=ENDPOINT, resource_names=["a", "b"])),
        (True, DeltaDiscoveryRequest(type_url=ENDPOINT, resource_names_subscribe=["a", "b"])),
    ):
        one, other = (RequestReader(delta=delta, pool=pool).read(bytes(message)) for _ in range(2))
        first, second = (r.names if isinstance(r, SotwRequest) else r.subscribe for r in (one, other))

        assert first == {"a", "b"}
        assert first is second


def test_what_the_pool_remembers_is_bounded_by_bytes_and_the_newest_lists_stay() -> None:
    pool = NamesPool(budget_bytes=50_000)

    def read(number: int, names: int = 100) -> frozenset[str]:
        asked = [f"service-{number}-{n}" for n in range(names)]
        request = RequestReader(delta=False, pool=pool).read(
            bytes(DiscoveryRequest(type_url=ENDPOINT, resource_names=asked))
        )
        assert isinstance(request, SotwRequest)
        assert request.names == set(asked)
        return request.names

    first = read(0)
    for number in range(1, 50):
        newest = read(number)

        assert 0 < pool.remembered_bytes <= 50_000
    assert read(49) is newest
    assert read(0) is not first
    before = pool.remembered_bytes
    read(50, names=1000)

    assert pool.remembered_bytes == before, "one list of its own must not push out all others"


def test_types_without_end_are_read_and_not_remembered() -> None:
    reader = RequestReader(delta=False)
    message = DiscoveryRequest(resource_names=["n" * 100], response_nonce="1")

    def read_many(first: int) -> None:
        for number in range(first, first + 300):
            message.type_url = f"acme.{'T' * number}"
            request = reader.read(bytes(message))
            assert request.type_url == message.type_url

    read_many(1)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    read_many(301)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    assert grown < 50_000, "each would keep a kilobyte"


def test_of_the_lists_that_a_client_acknowledges_with_only_the_newest_is_kept() -> None:
    reader = RequestReader(delta=False)

    def read(names: int) -> None:
        asked = [f"service-{number}" for number in range(names)]
        reader.read(bytes(DiscoveryRequest(type_url=ENDPOINT, resource_names=asked, response_nonce="1")))

    read(5_000)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for names in range(5_001, 5_011):
        read(names)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    assert grown < 1_500_000, "ten would be several megabytes"


def test_names_that_are_scattered_over_a_message_are_collected() -> None:
    parts = [
        DiscoveryRequest(resource_names=["a"]),
        DiscoveryRequest(type_url=CLUSTER),
        DiscoveryRequest(resource_names=["b"]),
    ]
    request = RequestReader(delta=False).read(b"".join(map(bytes, parts)))

    assert isinstance(request, SotwRequest)
    assert request.names == {"a", "b"}


def test_a_whole_number_in_node_metadata_is_read_as_one() -> None:
    numbers = {"port": 10001.0, "ratio": 0.5, "vast": 1e300, "never": float("inf")}
    struct = Struct(fields={name: Value(number_value=value) for name, value in numbers.items()})
    data = bytes(NodeMessage(id="n", metadata=struct))

    node, _, _ = read_node(data, 0, len(data))

    assert {name: repr(value) for name, value in node.metadata.items()} == {
        "port": "10001",
        "ratio": "0.5",
        "vast": "1e+300",
        "never": "inf",
    }


def test_n_03_a_repeated_node_is_no_news_n_04_another_one_is_refused() -> None:
    reader = RequestReader(delta=True)
    reader.read(bytes(DeltaDiscoveryRequest(node=NODE)))
    node = reader.node
    reader.read(bytes(DeltaDiscoveryRequest(node=NODE)))
    reader.read(bytes(DeltaDiscoveryRequest(node=NodeMessage())))

    assert reader.node is node
    with pytest.raises(WireError, match="the node changed"):
        reader.read(bytes(DeltaDiscoveryRequest(node=NodeMessage(id="another", cluster="edge"))))


def test_n_03_of_a_repeated_node_the_extensions_are_not_even_looked_at() -> None:
    first = bytes(DeltaDiscoveryRequest(node=NODE))
    at = first.index(b"envoy.filters.250")
    reader = RequestReader(delta=True)
    reader.read(first)
    node = reader.node
    reader.read(first[: at - 2] + b"\xff\xff" + first[at:])

    assert reader.node is node


@pytest.mark.parametrize(
    "changed",
    [
        replace(NODE, metadata=Struct(fields={"gateway_port": Value(number_value=10002.0)})),
        replace(NODE, locality=Locality(region="eu", zone="eu-2", sub_zone="rack-2")),
        replace(NODE, dynamic_parameters={CLUSTER: ContextParams(params={"canary": "yes"})}),
        replace(NODE, client_features=["envoy.lb.does_not_support_overprovisioning", "one more"]),
    ],
    ids=["other metadata", "another zone", "other dynamic parameters", "another feature"],
)
def test_n_04_what_a_node_says_of_itself_may_change(changed: NodeMessage) -> None:
    reader = RequestReader(delta=True)
    reader.read(bytes(DeltaDiscoveryRequest(node=NODE)))
    first = reader.node
    reader.read(bytes(DeltaDiscoveryRequest(node=changed)))
    second = reader.node
    reader.read(bytes(DeltaDiscoveryRequest(node=changed)))

    assert second != first
    assert reader.node is second


def test_n_04_a_node_may_change_back() -> None:
    reader = RequestReader(delta=True)
    places = [NodeMessage(id="edge-1", locality=Locality(zone=zone)) for zone in "aba"]
    seen = []
    for place in places:
        reader.read(bytes(DeltaDiscoveryRequest(node=place, type_url=CLUSTER, response_nonce="1")))
        assert reader.node is not None
        seen.append(reader.node.zone)

    assert seen == ["a", "b", "a"]


def test_dynamic_parameters_are_read_by_type() -> None:
    reader = RequestReader(delta=False)
    parameters = {CLUSTER: ContextParams(params={"canary": "yes", "cell": "7"}), ENDPOINT: ContextParams()}
    reader.read(bytes(DiscoveryRequest(node=NodeMessage(id="x", dynamic_parameters=parameters))))

    assert reader.node is not None
    assert reader.node.dynamic_parameters == {CLUSTER: {"canary": "yes", "cell": "7"}, ENDPOINT: {}}


@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\xff", "ends inside a varint"),
        (b"\xff" * 11, "more than ten bytes"),
        (b"\x0a\x05ab", "longer than the message"),
        (b"\x1a\x05ab", "longer than the message"),
        (b"\x22\x02\xff\xfe", "not UTF-8"),
        (b"\x0b", "unknown wire type 3"),
        (b"\x02\x01a", "field number 0"),
        (b"\x20\x01", "should be length-delimited"),
        (b"\x11\x00", "longer than the message"),
    ],
)
def test_malformed_bytes_are_one_clear_error(delta: bool, data: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        RequestReader(delta=delta).read(data)


def test_deeply_nested_metadata_is_refused_before_the_stack_is() -> None:
    def block(tag: int, value: bytes) -> bytes:
        size = len(value)
        return bytes((tag, size & 0x7F | 0x80, size >> 7)) + value

    struct = b""
    for _ in range(120):
        entry = b"\x0a\x01a" + block(0x12, block(0x2A, struct))  # key, and a value that is a struct
        struct = block(0x0A, entry)
    deep = block(0x12, b"\x0a\x01x" + block(0x1A, struct))
    with pytest.raises(WireError, match="nested deeper"):
        RequestReader(delta=False).read(deep)


@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
def test_any_bytes_are_read_or_refused_and_nothing_else(delta: bool) -> None:
    rng = random.Random(7)
    seed = bytes(
        DeltaDiscoveryRequest(node=NODE, type_url=CLUSTER, resource_names_subscribe=["a"])
        if delta
        else DiscoveryRequest(node=NODE, type_url=CLUSTER, resource_names=["a", "b"])
    )
    seed = seed[:400] + seed[-200:]
    for _ in range(3000):
        data = bytearray(seed[rng.randrange(len(seed)) :][: rng.randrange(1, 300)])
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        with suppress(WireError):
            RequestReader(delta=delta).read(bytes(data))


RESOURCES = (
    Resource.of("a", b"\x0a\x01a"),
    Resource.of("empty", b""),
    Resource.of("large", b"\x0a\xa0\x9c\x01" + b"x" * 20_000),
)


def test_sotw_responses_are_read_by_the_generated_message() -> None:
    response = Response(type_url=CLUSTER, version="v1", nonce="n7", resources=RESOURCES, delta=False)
    message = DiscoveryResponse.parse(ResponseWriter("cp-1").write(response))

    assert (message.type_url, message.version_info, message.nonce) == (CLUSTER, "v1", "n7")
    assert message.control_plane is not None
    assert message.control_plane.identifier == "cp-1"
    assert [(each.type_url, each.value) for each in message.resources] == [(CLUSTER, one.body) for one in RESOURCES]


def test_delta_responses_are_read_by_the_generated_message() -> None:
    response = Response(type_url=CLUSTER, version="v1", nonce="n7", resources=RESOURCES, removed=("x", "y"), delta=True)
    message = DeltaDiscoveryResponse.parse(ResponseWriter("cp-1").write(response))

    assert (message.type_url, message.system_version_info, message.nonce) == (CLUSTER, "v1", "n7")
    assert message.control_plane is not None
    assert message.control_plane.identifier == "cp-1"
    assert message.removed_resources == ["x", "y"]
    got = []
    for each in message.resources:
        assert each.resource is not None
        got.append((each.name, each.version, each.resource.type_url, each.resource.value))

    assert got == [(one.name, one.version, CLUSTER, one.body) for one in RESOURCES]


def test_equal_responses_are_assembled_once_and_differ_by_nonce_only() -> None:
    writer = ResponseWriter("cp-1", budget_bytes=50_000)
    answer = Response(type_url=CLUSTER, version="v1", nonce="1", resources=RESOURCES, delta=False)
    first = writer.write(answer)
    second = writer.write(Response(type_url=CLUSTER, version="v1", nonce="2", resources=RESOURCES, delta=False))

    assert first[:-1] == second[:-1]
    assert (first[-1:], second[-1:]) == (b"1", b"2")
    other = Response(type_url=CLUSTER, version="v1", nonce="1", resources=RESOURCES[:2], delta=False)

    assert len(writer.write(other)) < len(first)


def test_what_the_writer_remembers_is_bounded() -> None:
    writer = ResponseWriter("cp-1", budget_bytes=10_000)
    for version in range(100):
        resource = Resource.of("a", b"\x0a\x01a" * 500 + str(version).encode())
        response = Response(type_url=CLUSTER, version=str(version), nonce="1", resources=(resource,), delta=False)

        assert DiscoveryResponse.parse(writer.write(response)).version_info == str(version)
    assert writer.remembered_bytes <= 10_000


def test_small_responses_without_end_take_no_more_memory_than_the_budget_says() -> None:
    writer = ResponseWriter("cp-1", budget_bytes=1_000_000)
    tracemalloc.start()
    try:
        for number in range(10_000):
            gone = tuple(f"name-{number}-{part}" for part in range(3))
            writer.write(Response(type_url=CLUSTER, version="v", nonce="1", removed=gone, delta=True))
        taken_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert 100_000 < taken_bytes < 2_000_000


def test_responses_larger_than_the_budget_do_not_use_it_up() -> None:
    writer = ResponseWriter("cp-1", budget_bytes=300_000)
    for number in range(10):
        large = Response(
            type_url=CLUSTER, version="v", nonce=str(number), resources=(Resource.of("a", b"x" * 200_000),), delta=True
        )
        writer.write(large)
    small = Response(type_url=CLUSTER, version="v", nonce="1", resources=RESOURCES, delta=True)
    writer.write(small)

    assert 0 < writer.remembered_bytes < 300_000
