"""Client status over real gRPC: an operator asks what a client was sent, holds and refused (Q-01 to Q-04)."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio
import pytest
from envoy_data_plane.envoy.config.core.v3 import Locality
from envoy_data_plane.envoy.config.core.v3 import Node as NodeMessage
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import Secret
from envoy_data_plane.envoy.service.discovery.v3 import DiscoveryRequest, DiscoveryResponse
from envoy_data_plane.envoy.service.status.v3 import (
    ClientConfig,
    ClientConfigGenericXdsConfig,
    ClientStatusRequest,
    ClientStatusResponse,
    ConfigStatus,
)
from envoy_data_plane.envoy.type.matcher.v3 import (
    DoubleMatcher,
    ListMatcher,
    NodeMatcher,
    OrMatcher,
    RegexMatcher,
    StringMatcher,
    StructMatcher,
    StructMatcherPathSegment,
    ValueMatcher,
)
from envoy_data_plane.google import protobuf

from tests.xds.client import XdsClient
from xds.cache import SnapshotCache
from xds.csds import MAX_REQUEST_BYTES, SERVICE, ClientStatus
from xds.matching import any_node
from xds.protocol import Acked, Closed, Event, Ignored, Nacked
from xds.server import StreamInfo, XdsServer
from xds.status import Status
from xds.types import CLUSTER, SECRET, Node, Resource, ResourceSet, Snapshot

pytestmark = pytest.mark.integration

PATIENCE_S = 5.0
BOTH = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
EDGE = NodeMessage(
    id="edge-1",
    cluster="edge",
    locality=Locality(region="eu", zone="eu-1"),
    user_agent_name="envoy",
    user_agent_version="1.38.0",
    metadata=protobuf.Struct.from_dict({"tier": "gold", "port": 10001, "labels": {"canary": True}, "tags": ["a", "b"]}),
)


def snapshot(revision: str, /, **clusters: str) -> Snapshot:
    made = ResourceSet(Resource.of(name, body.encode()) for name, body in clusters.items())
    return Snapshot({CLUSTER: made, SECRET: ResourceSet([_secret()])}, revision)


def _secret() -> Resource:
    return Resource.of("key", bytes(Secret(name="key")) + b"\xfa\x01\x0bprivate-key")


class Heard:
    """Feed the picture, and let a test wait until the server has heard what a client did."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._events: list[Event] = []
        self._news = asyncio.Event()

    def __call__(self, info: StreamInfo, event: Event) -> None:
        self._status.on_event(info, event)
        self._events.append(event)
        self._news.set()

    async def of(self, kind: type[Event], count: int = 1) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while sum(isinstance(event, kind) for event in self._events) < count:
                self._news.clear()
                await self._news.wait()


class Operator:
    """Ask for client status, as Envoy's and gRPC's tools do."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._fetch = channel.unary_unary(f"/{SERVICE}/FetchClientStatus")
        self._stream = channel.stream_stream(f"/{SERVICE}/StreamClientStatus")

    async def raw(self, data: bytes) -> bytes:
        return bytes(await self._fetch(data, timeout=PATIENCE_S))

    async def ask(self, *matchers: NodeMatcher, exclude: bool = False) -> list[ClientConfig]:
        request = ClientStatusRequest(node_matchers=list(matchers), exclude_resource_contents=exclude)
        return ClientStatusResponse.parse(await self.raw(bytes(request))).config

    async def refusal(self, data: bytes) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.raw(data)
        return caught.value.code(), caught.value.details() or ""

    def stream(self) -> Any:
        return self._stream(timeout=PATIENCE_S)

    async def of(self, node_id: str = "edge-1") -> dict[str, ClientConfigGenericXdsConfig]:
        """Return what one client has, by name."""
        (config,) = await self.ask(exactly(node_id))
        return {each.name: each for each in config.generic_xds_configs}


@dataclass
class Running:
    port: int
    cache: SnapshotCache
    status: Status
    heard: Heard
    csds: ClientStatus
    operator: Operator


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Running]:
    cache, times = SnapshotCache(), iter(range(1_000, 1_000_000))
    status = Status(clock=lambda: float(next(times)))
    heard = Heard(status)
    csds = ClientStatus(status, **options)
    server = XdsServer(
        cache,
        group_of=lambda _: "all",
        ready=lambda: True,
        identifier="cp",
        on_event=heard,
        handlers=[csds.handler()],
    )
    port = await server.start("127.0.0.1", 0)
    wide = (("grpc.max_receive_message_length", -1),)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=wide) as channel:
            yield Running(port, cache, status, heard, csds, Operator(channel))
    finally:
        csds.stop()
        await server.stop(0.0)


@pytest.fixture
async def it() -> AsyncIterator[Running]:
    async with running() as found:
        found.cache.set("all", snapshot("r1", a="1", b="1"))
        yield found


def exactly(node_id: str) -> NodeMatcher:
    return NodeMatcher(node_id=StringMatcher(exact=node_id))


def metadata(value: ValueMatcher, *path: str) -> NodeMatcher:
    keys = [StructMatcherPathSegment(key=key) for key in path]
    return NodeMatcher(node_metadatas=[StructMatcher(path=keys, value=value)])


@BOTH
async def test_q_02_a_resource_is_stale_until_acknowledged_then_synced(it: Running, delta: bool) -> None:
    async with XdsClient(it.port) as client:
        stream = client.ads(delta=delta, node=EDGE)
        await stream.subscribe(CLUSTER)
        response = await stream.expect(CLUSTER)
        held_back = await it.operator.of()

        assert {name: each.config_status for name, each in held_back.items()} == {
            "a": ConfigStatus.STALE,
            "b": ConfigStatus.STALE,
        }
        assert held_back["a"].last_updated is None

        await stream.ack(response)
        await it.heard.of(Acked)
        a = (await it.operator.of())["a"]

        assert a.config_status is ConfigStatus.SYNCED
        assert a.last_updated is not None
        assert a.error_state is None
        assert a.type_url == CLUSTER
        assert a.version_info == Resource.of("a", b"1").version
        assert a.xds_config is not None
        assert (a.xds_config.type_url, a.xds_config.value) == (CLUSTER, b"1")


@BOTH
async def test_q_02_s_05_a_refused_resource_shows_what_the_client_said_until_it_is_mended(
    it: Running, delta: bool
) -> None:
    async with XdsClient(it.port) as client:
        stream = client.ads(delta=delta, node=EDGE)
        await stream.subscribe(CLUSTER)
        await stream.ack(await stream.expect(CLUSTER))
        it.cache.set("all", snapshot("r2", a="2", b="1"))
        await stream.nack(await stream.expect(CLUSTER), "a: kaputt")
        await it.heard.of(Nacked)
        found = await it.operator.of()
        a, refused = found["a"], Resource.of("a", b"2")

        assert a.config_status is ConfigStatus.ERROR
        assert a.error_state is not None
        assert a.error_state.details == "a: kaputt"
        assert a.error_state.version_info == a.version_info == refused.version
        assert a.error_state.last_update_attempt is not None
        assert a.last_updated is not None
        assert a.last_updated < a.error_state.last_update_attempt
        assert a.xds_config is not None
        assert a.xds_config.value == refused.body
        assert found["b"].config_status is ConfigStatus.SYNCED
        assert found["b"].error_state is None

        it.cache.set("all", snapshot("r3", a="3", b="1"))  # S-13: the good one goes out at once
        response = await stream.expect(CLUSTER)
        while b"3" not in bytes(response):
            response = await stream.expect(CLUSTER)
        assert (await it.operator.of())["a"].config_status is ConfigStatus.STALE

        await stream.ack(response)
        await it.heard.of(Acked, 2)
        a = (await it.operator.of())["a"]

        assert (a.config_status, a.error_state) == (ConfigStatus.SYNCED, None)
        assert a.version_info == Resource.of("a", b"3").version


async def test_a_refusal_outlives_the_corrective_response_that_restores_the_last_good_version(it: Running) -> None:
    async with XdsClient(it.port) as client:
        stream = client.ads(node=EDGE)
        await stream.subscribe(CLUSTER)
        await stream.ack(await stream.expect(CLUSTER))
        it.cache.set("all", snapshot("r2", a="2", b="2"))
        words = "Error adding/updating cluster(s) a: kaputt"
        await stream.nack(await stream.expect(CLUSTER), words)
        await stream.ack(await stream.expect(CLUSTER))
        await it.heard.of(Acked, 2)
        found = await it.operator.of()

        assert found["b"].config_status is ConfigStatus.SYNCED
        assert found["a"].config_status is ConfigStatus.ERROR
        assert found["a"].error_state is not None
        assert found["a"].error_state.details == words
        assert found["a"].xds_config is not None
        assert found["a"].xds_config.value == b"2"
        (resource,) = [each for each in it.status.resources("edge-1", CLUSTER) if each.standing.name == "a"]

        assert resource.standing.held == Resource.of("a", b"1")
        assert resource.refusal is not None
        assert resource.refusal.revision == "r2"


async def test_s_06_what_a_client_leaves_unapplied_without_a_word_is_stale_and_not_refused(it: Running) -> None:
    async with XdsClient(it.port) as client:
        stream = client.ads(node=EDGE)
        await stream.subscribe(CLUSTER)
        first = await stream.expect(CLUSTER)
        await stream.ack(first)
        it.cache.set("all", snapshot("r2", a="2", b="1"))
        second = await stream.expect(CLUSTER)
        assert isinstance(first, DiscoveryResponse)
        await stream.send(
            DiscoveryRequest(type_url=CLUSTER, version_info=first.version_info, response_nonce=second.nonce)
        )
        await it.heard.of(Ignored)
        a = (await it.operator.of())["a"]

        assert (a.config_status, a.error_state) == (ConfigStatus.STALE, None)


@BOTH
async def test_q_02_e_03_what_is_asked_for_and_does_not_exist_is_not_sent(it: Running, delta: bool) -> None:
    async with XdsClient(it.port) as client:
        stream = client.ads(delta=delta, node=EDGE)
        await stream.subscribe(SECRET, ["key", "missing"])
        await stream.ack(await stream.expect(SECRET))
        await it.heard.of(Acked)
        found = await it.operator.of()

        assert found["missing"].config_status is ConfigStatus.NOT_SENT
        assert (found["missing"].version_info, found["missing"].xds_config) == ("", None)


async def test_q_03_a_secret_is_told_by_its_version_and_never_by_its_content(it: Running) -> None:
    async with XdsClient(it.port) as client:
        stream = client.ads(node=EDGE)
        await stream.subscribe(SECRET, ["key"])
        response = await stream.expect(SECRET)
        quoted = 'value: private_key { inline_string: "private-key" }'
        await stream.nack(response, f"key: Proto constraint validation failed {quoted}")
        await it.heard.of(Nacked)
        answer = await it.operator.raw(b"")
        (config,) = ClientStatusResponse.parse(answer).config
        (key,) = config.generic_xds_configs

        assert b"private-key" in bytes(response)
        assert b"private-key" not in answer
        assert (key.version_info, key.xds_config) == (_secret().version, None)
        assert key.error_state is not None
        assert "Proto constraint validation failed" in key.error_state.details
        assert "withheld" in key.error_state.details


async def test_q_03_a_private_key_that_stands_inline_in_another_type_is_not_told_either(it: Running) -> None:
    it.cache.set("all", snapshot("r.1", web="web", inline="-----BEGIN RSA PRIVATE KEY-----"))
    async with XdsClient(it.port) as client:
        stream = client.ads(node=EDGE)
        await stream.subscribe(CLUSTER)
        await stream.ack(await stream.expect(CLUSTER))
        await it.heard.of(Acked)
        found = await it.operator.of()

        assert found["web"].xds_config is not None
        assert found["inline"].xds_config is None
        assert found["inline"].version_info != ""


async def test_q_01_a_client_is_described_as_it_told_itself_and_the_old_form_stays_empty(it: Running) -> None:
    async with XdsClient(it.port) as client:
        stream = client.ads(node=EDGE)
        await stream.subscribe(CLUSTER)
        await stream.expect(CLUSTER)
        (config,) = await it.operator.ask(exactly("edge-1"))

        assert config.node is not None
        assert config.node == EDGE
        assert config.xds_config == []
        assert len(config.generic_xds_configs) == 2


async def test_q_03_contents_are_left_out_on_request(it: Running) -> None:
    async with XdsClient(it.port) as client:
        stream = client.ads(node=EDGE)
        await stream.subscribe(CLUSTER)
        await stream.expect(CLUSTER)
        (config,) = await it.operator.ask(exclude=True)

        assert [each.xds_config for each in config.generic_xds_configs] == [None, None]
        assert all(each.version_info for each in config.generic_xds_configs)


def text(**how: Any) -> ValueMatcher:
    return ValueMatcher(string_match=StringMatcher(**how))


@pytest.mark.parametrize(
    ("matchers", "expected"),
    [
        ([], ["edge-1", "other"]),
        ([exactly("edge-1")], ["edge-1"]),
        ([exactly("edge-1"), exactly("other")], ["edge-1", "other"]),
        ([exactly("EDGE-1")], []),
        ([NodeMatcher(node_id=StringMatcher(exact="EDGE-1", ignore_case=True))], ["edge-1"]),
        ([NodeMatcher(node_id=StringMatcher(prefix="edge"))], ["edge-1"]),
        ([NodeMatcher(node_id=StringMatcher(suffix="er"))], ["other"]),
        ([NodeMatcher(node_id=StringMatcher(contains="dge"))], ["edge-1"]),
        ([NodeMatcher(node_id=StringMatcher(safe_regex=RegexMatcher(regex="edge-[0-9]+")))], ["edge-1"]),
        ([NodeMatcher(node_id=StringMatcher(safe_regex=RegexMatcher(regex="edge")))], []),
        ([metadata(text(exact="gold"), "tier")], ["edge-1"]),
        ([metadata(text(exact="iron"), "tier")], []),
        ([metadata(ValueMatcher(bool_match=True), "labels", "canary")], ["edge-1"]),
        ([metadata(ValueMatcher(bool_match=True), "tier", "canary")], []),
        ([metadata(ValueMatcher(double_match=DoubleMatcher(exact=10001)), "port")], ["edge-1"]),
        ([metadata(ValueMatcher(present_match=True), "port")], ["edge-1"]),
        ([metadata(ValueMatcher(present_match=False), "port")], ["other"]),
        ([metadata(ValueMatcher(list_match=ListMatcher(one_of=text(exact="b"))), "tags")], ["edge-1"]),
        (
            [metadata(ValueMatcher(or_match=OrMatcher(value_matchers=[text(exact="x"), text(prefix="g")])), "tier")],
            ["edge-1"],
        ),
        (
            [replace(metadata(text(exact="gold"), "tier"), node_id=StringMatcher(exact="other"))],
            [],
        ),
    ],
    ids=[
        "no matcher is every node",
        "an id",
        "several are or",
        "case counts",
        "unless it does not",
        "a prefix",
        "a suffix",
        "a part",
        "a regular expression",
        "which has to match the whole id",
        "metadata",
        "other metadata",
        "nested metadata",
        "a path through a text",
        "a number",
        "present",
        "absent",
        "an item of a list",
        "one of several values",
        "id and metadata are and",
    ],
)
async def test_q_01_q_03_node_matchers_choose_the_nodes(
    it: Running, matchers: list[NodeMatcher], expected: list[str]
) -> None:
    async with XdsClient(it.port) as client:
        for node in (EDGE, NodeMessage(id="other", cluster="edge")):
            stream = client.ads(node=node)
            await stream.subscribe(CLUSTER)
            await stream.expect(CLUSTER)
        found = await it.operator.ask(*matchers)

        assert [config.node.id for config in found if config.node is not None] == expected


async def test_q_03_an_unknown_node_is_an_empty_list_and_no_error(it: Running) -> None:
    assert await it.operator.ask(exactly("nobody")) == []


async def test_a_client_that_left_is_no_longer_listed(it: Running) -> None:
    async with XdsClient(it.port) as client:
        stream = client.ads(node=EDGE)
        await stream.subscribe(CLUSTER)
        await stream.expect(CLUSTER)

        assert len(await it.operator.ask()) == 1
    await it.heard.of(Closed)

    assert await it.operator.ask() == []


async def test_q_01_a_stream_gives_one_answer_per_request_and_pushes_nothing(it: Running) -> None:
    async with XdsClient(it.port) as client:
        call = it.operator.stream()
        await call.write(b"")

        assert ClientStatusResponse.parse(await call.read()).config == []

        stream = client.ads(node=EDGE)
        await stream.subscribe(CLUSTER)
        await stream.ack(await stream.expect(CLUSTER))
        await it.heard.of(Acked)
        await call.write(bytes(ClientStatusRequest(node_matchers=[exactly("edge-1")])))
        (config,) = ClientStatusResponse.parse(await call.read()).config

        assert {each.config_status for each in config.generic_xds_configs} == {ConfigStatus.SYNCED}

        await call.done_writing()

        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_a_bad_request_ends_a_stream_with_the_reason(it: Running) -> None:
    call = it.operator.stream()
    await call.write(bytes(ClientStatusRequest(node_matchers=[NodeMatcher()])))

    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "node_matchers[0]" in await call.details()


def regex(pattern: str) -> NodeMatcher:
    return NodeMatcher(node_id=StringMatcher(safe_regex=RegexMatcher(regex=pattern)))


def test_an_expression_is_not_tried_on_a_text_of_any_length() -> None:
    matches = any_node([regex("a*a*b")])

    assert matches(Node(id="a" * 100 + "b"))
    assert not matches(Node(id="a" * 1_000_000))  # half an hour


def deep() -> ValueMatcher:
    value = text(exact="x")
    for _ in range(20):
        value = ValueMatcher(list_match=ListMatcher(one_of=value))
    return value


@pytest.mark.parametrize(
    ("matcher", "words"),
    [
        (NodeMatcher(), "node_matchers[0]: set node_id"),
        (NodeMatcher(node_id=StringMatcher()), "node_matchers[0].node_id: set exact"),
        (metadata(text(exact="x")), "node_metadatas[0].path"),
        (NodeMatcher(node_metadatas=[StructMatcher(path=[StructMatcherPathSegment(key="a")])]), "[0].value"),
        (metadata(ValueMatcher(), "a"), "[0].value: set one"),
        (metadata(deep(), "a"), "nested deeper"),
        (regex("("), "no regular expression"),
        (regex("(a+)+"), "no group may be repeated"),
        (regex("a*a*a*b"), "at most 2 repetitions"),
        (regex("(?=a)"), "(?:"),
        (regex("a" * 300), "256 characters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_matcher_that_cannot_be_used_is_refused_by_field(it: Running, matcher: NodeMatcher, words: str) -> None:
    code, detail = await it.operator.refusal(bytes(ClientStatusRequest(node_matchers=[matcher])))

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in detail


async def test_a_request_may_hold_a_few_expressions_and_no_more(it: Running) -> None:
    nested = ValueMatcher(or_match=OrMatcher(value_matchers=[ValueMatcher(string_match=regex("a").node_id)] * 9))
    for matchers in ([regex(f"a{number}.*") for number in range(9)], [metadata(nested, "a")]):
        code, detail = await it.operator.refusal(bytes(ClientStatusRequest(node_matchers=matchers)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "at most 8 regular expressions" in detail

    assert await it.operator.ask(*(regex(f"a{number}.*") for number in range(8))) == []


async def test_bytes_that_are_no_request_are_refused_and_nothing_else_happens(it: Running) -> None:
    dice = random.Random(7)
    codes = set()
    for data in [b"x" * (MAX_REQUEST_BYTES + 1), *(dice.randbytes(dice.randrange(1, 60)) for _ in range(300))]:
        try:
            await it.operator.raw(data)
        except grpc.aio.AioRpcError as error:
            codes.add(error.code())

    assert codes == {grpc.StatusCode.INVALID_ARGUMENT}
    assert await it.operator.ask() == []


async def test_an_answer_that_is_too_large_is_refused_with_the_remedy() -> None:
    async with running(max_answer_bytes=10_000) as it, XdsClient(it.port) as client:
        it.cache.set("all", snapshot("r1", a="1" * 20_000))
        stream = client.ads(node=EDGE)
        await stream.subscribe(CLUSTER)
        await stream.expect(CLUSTER)
        code, detail = await it.operator.refusal(b"")

        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "exclude_resource_contents" in detail
        assert len(await it.operator.ask(exclude=True)) == 1


async def test_of_a_fleet_that_is_too_much_for_one_answer_a_few_can_be_asked_for() -> None:
    async with running(max_answer_bytes=60_000) as it:
        it.cache.set("all", snapshot("r1", a="1" * 20_000))
        async with AsyncExitStack() as stack:
            for number in range(4):
                client = await stack.enter_async_context(XdsClient(it.port))
                stream = client.ads(node=replace(EDGE, id=f"edge-{number}"))
                await stream.subscribe(CLUSTER)
                await stream.expect(CLUSTER)
            code, detail = await it.operator.refusal(b"")

            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "node_matchers" in detail
            two = await it.operator.ask(exactly("edge-1"), exactly("edge-3"))
            assert [config.node.id for config in two if config.node is not None] == ["edge-1", "edge-3"]


async def test_an_answer_may_be_larger_than_grpc_takes_by_default(it: Running) -> None:
    it.cache.set("all", snapshot("r1", **{f"c{number}": "x" * 50_000 for number in range(120)}))
    async with XdsClient(it.port) as client:
        stream = client.ads(node=EDGE)
        await stream.subscribe(CLUSTER)
        await stream.expect(CLUSTER)

        assert len(await it.operator.raw(b"")) > 6_000_000


async def test_streams_end_when_the_service_stops(it: Running) -> None:
    call = it.operator.stream()
    await call.write(b"")
    await call.read()
    it.csds.stop()

    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK
