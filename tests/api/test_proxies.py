"""Connected proxies over REST: what each holds, and what it refused, in its own words (Q-04, K-04, B6)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import (
    AggregatedConfigSource,
    ApiVersion,
    ConfigSource,
    DataSource,
    TransportSocket,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CommonTlsContext,
    SdsSecretConfig,
    Secret,
    TlsCertificate,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.service.status.v3 import (
    ClientConfigGenericXdsConfig,
    ClientStatusResponse,
    ConfigStatus,
)
from envoy_data_plane.google.protobuf import Any as AnyMessage

from controlplane.api.refusals import ChangeView, differences
from controlplane.local_envoy import envoy_binary
from tests.xds import test_real_envoy as real
from tests.xds.client import XdsClient, XdsStream
from xds.cache import SnapshotCache
from xds.csds import SERVICE, ClientStatus
from xds.protocol import Acked, Event, Nacked
from xds.server import StreamInfo, XdsServer
from xds.status import State, Status
from xds.types import CLUSTER, EXTENSION, SECRET, Resource, ResourceSet, Snapshot

EDGE = "/api/v1/proxies/edge-1"
NEVER = timedelta(0)  # Envoy waits for ever


def cluster(name: str, *, timeout_s: float = 1.0, **fields: Any) -> Resource:
    message = Cluster(name=name, connect_timeout=timedelta(seconds=timeout_s), **fields)
    return Resource.of(name, bytes(message))


def clusters(revision: str, *resources: Resource) -> Snapshot:
    return Snapshot({CLUSTER: ResourceSet(resources)}, revision)


@dataclass
class Fleet:
    """Serve real clients, and wait until the server has heard of them."""

    cache: SnapshotCache
    status: Status
    port: int = 0
    events: list[Event] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def heard(self, info: StreamInfo, event: Event) -> None:
        self.status.on_event(info, event)
        self.events.append(event)
        self.news.set()

    async def of(self, kind: type[Event], count: int = 1) -> None:
        await self._until(lambda: sum(isinstance(event, kind) for event in self.events) >= count, 5)

    async def lacks(self, *names: str) -> None:
        """Wait until these are all that the unacknowledged clusters of the one proxy refer to in vain."""

        def found() -> tuple[str, ...]:
            waiting = self.status.waiting("edge-1", CLUSTER)
            return () if waiting is None else tuple(lack.name for lack in waiting.lacks if lack.asked)

        await self._until(lambda: found() == names, 15)

    async def stand(self, **expected: State) -> None:
        """Wait until the clusters of the one proxy stand so."""

        def found() -> dict[str, State]:
            every = self.status.resources("edge-1", CLUSTER)
            return {each.standing.name: each.standing.state for each in every}

        await self._until(lambda: found() == expected, 15)

    async def _until(self, true: Callable[[], bool], within_s: float) -> None:
        async with asyncio.timeout(within_s):
            while not true():
                self.news.clear()
                await self.news.wait()

    @asynccontextmanager
    async def synced(self, type_url: str = CLUSTER, *names: str, node_id: str = "edge-1") -> AsyncIterator[XdsStream]:
        """Connect a client that has acknowledged everything of a type."""
        async with XdsClient(self.port, node_id=node_id) as client:
            stream = client.ads(delta=True)
            before = sum(isinstance(event, Acked) for event in self.events)
            await stream.subscribe(type_url, names)
            await stream.ack(await stream.expect(type_url))
            await self.of(Acked, before + 1)
            yield stream


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    times = iter(range(1_000, 100_000))
    it = Fleet(SnapshotCache(), Status(clock=lambda: float(next(times))))
    server = XdsServer(
        it.cache,
        group_of=lambda _: "all",
        ready=lambda: True,
        identifier="cp",
        on_event=it.heard,
        ack_timeout_s=2.0,
        handlers=[ClientStatus(it.status).handler()],
    )
    it.port = await server.start("127.0.0.1", 0)
    try:
        yield it
    finally:
        await server.stop(0.0)


async def test_a_refused_cluster_is_shown_with_the_words_the_write_and_the_difference(start, fleet):
    it = await start(proxies=fleet.status)
    await it.register("web")
    fleet.cache.set("all", clusters("e.1", cluster("api"), cluster("web")))
    async with fleet.synced() as stream:
        fleet.cache.set("all", clusters("e.2", cluster("api"), cluster("web", timeout_s=0)))
        await stream.nack(await stream.expect(CLUSTER), "web: connect timeout must be positive")
        await fleet.of(Nacked)
        (shown,) = (await it.json("GET", EDGE, 200))["types"]

        assert shown["state"] == "ERROR"
        (refused,) = shown["refusals"]
        assert refused["name"] == "web"
        assert refused["message"] == "web: connect timeout must be positive"
        assert (refused["revision"], refused["service"], refused["code"]) == ("e.2", "web", 13)
        assert refused["refused_version"] == cluster("web", timeout_s=0).version
        assert refused["good_version"] == cluster("web").version
        assert refused["since"].startswith("1970-01-01T00:")
        assert [change["pointer"] for change in refused["changes"]] == ["/connectTimeout"]
        assert refused["changes"][0]["was"] == "1s"
        assert refused["note"] is None

        fleet.cache.set("all", clusters("e.3", cluster("api"), cluster("web", timeout_s=2)))
        await stream.ack(await stream.expect(CLUSTER))
        await fleet.of(Acked, 2)
        (mended,) = (await it.json("GET", EDGE, 200))["types"]

        assert (mended["state"], mended["refusals"]) == ("SYNCED", [])
        assert mended["last_nack"]["revision"] == "e.2"


async def test_since_tells_when_the_content_was_first_refused_however_often_the_proxy_says_so(start, fleet):
    it = await start(proxies=fleet.status)
    fleet.cache.set("all", clusters("e.1", cluster("web")))
    async with fleet.synced() as stream:
        fleet.cache.set("all", clusters("e.2", cluster("web", timeout_s=0)))
        await stream.nack(await stream.expect(CLUSTER), "web: no")
        await fleet.of(Nacked)
        first = (await it.json("GET", EDGE, 200))["types"][0]["refusals"][0]
        await stream.subscribe(CLUSTER, ["web"])  # asks again by name, and so is told again
        await stream.nack(await stream.expect(CLUSTER), "web: still no")
        await fleet.of(Nacked, 2)
        second = (await it.json("GET", EDGE, 200))["types"][0]["refusals"][0]

        assert second["message"] == "web: still no"
        assert second["since"] == first["since"]


async def test_a_cluster_that_was_never_good_differs_from_nothing(start, fleet):
    it = await start(proxies=fleet.status)
    fleet.cache.set("all", clusters("e.1", cluster("web")))
    async with fleet.synced() as stream:
        fleet.cache.set("all", clusters("e.2", cluster("web"), cluster("bad", timeout_s=0)))
        await stream.nack(await stream.expect(CLUSTER), "bad: no")
        await fleet.of(Nacked)
        (refused,) = (await it.json("GET", EDGE, 200))["types"][0]["refusals"]

        assert (refused["name"], refused["good_version"], refused["service"]) == ("bad", None, None)
        assert {"pointer": "/name", "was": None, "now": "bad"} in refused["changes"]


async def test_proxies_are_listed_by_state(start, fleet):
    it = await start(proxies=fleet.status)
    fleet.cache.set("all", clusters("e.1", cluster("web")))
    async with fleet.synced(node_id="good"), fleet.synced(node_id="edge-1") as stream:
        fleet.cache.set("all", clusters("e.2", cluster("web", timeout_s=0)))
        await stream.nack(await stream.expect(CLUSTER), "web: no")
        await fleet.of(Nacked)

        for state, expected in (("ERROR", ["edge-1"]), ("error", ["edge-1"]), ("STALE", ["good"]), ("SYNCED", [])):
            listed = await it.json("GET", f"/api/v1/proxies?state={state}", 200)
            assert [item["node_id"] for item in listed["items"]] == expected
            assert listed["total"] == 2
        problem = await it.json("GET", "/api/v1/proxies?state=broken", 400)

        assert "ERROR" in problem["errors"][0]["detail"]


async def test_what_a_proxy_holds_is_shown_page_by_page(start, fleet):
    it = await start(proxies=fleet.status)
    fleet.cache.set("all", clusters("e.1", *(cluster(f"c{number}") for number in range(5))))
    async with fleet.synced():
        seen, path = [], f"{EDGE}/config?limit=2"
        while path is not None:
            page = await it.json("GET", path, 200)
            seen += page["items"]
            path = page["next"] and f"{EDGE}/config?limit=2&cursor={page['next']}"

        assert [item["name"] for item in seen] == ["c0", "c1", "c2", "c3", "c4"]
        assert seen[0]["content"] == {"name": "c0", "connectTimeout": "1s"}
        assert {item["state"] for item in seen} == {"SYNCED"}
        assert seen[0]["version"] == seen[0]["sent_version"] == cluster("c0").version
        assert seen[0]["updated_at"] is not None


@pytest.mark.parametrize("word", ["clusters", "CDS", "Cluster", "envoy.config.cluster.v3.Cluster"])
async def test_the_type_may_be_spelled_as_people_do(start, fleet, word):
    it = await start(proxies=fleet.status)
    fleet.cache.set("all", clusters("e.1", cluster("a"), cluster("b")))
    async with fleet.synced():
        page = await it.json("GET", f"{EDGE}/config?type={word}&name=b&contents=false", 200)

        assert [(item["name"], item["content"], item["base64"]) for item in page["items"]] == [("b", None, None)]
        assert (await it.json("GET", f"{EDGE}/config?type=secrets", 200))["items"] == []


async def test_a_proxy_goes_on_with_the_last_good_version_and_the_config_shows_that(start, fleet):
    it = await start(proxies=fleet.status)
    fleet.cache.set("all", clusters("e.1", cluster("a"), cluster("web")))
    async with fleet.synced() as stream:
        fleet.cache.set("all", clusters("e.2", cluster("a"), cluster("web", timeout_s=0)))
        await stream.nack(await stream.expect(CLUSTER), "web: no")
        await fleet.of(Nacked)
        (web,) = (await it.json("GET", f"{EDGE}/config?state=ERROR", 200))["items"]

        assert web["name"] == "web"
        assert web["content"]["connectTimeout"] == "1s"
        assert web["version"] != web["sent_version"]


async def test_secrets_and_keys_are_not_shown(start, fleet):
    it = await start(proxies=fleet.status)
    certificate = TlsCertificate(private_key=DataSource(inline_string="hush"))
    tls = UpstreamTlsContext(common_tls_context=CommonTlsContext(tls_certificates=[certificate]))
    inline = cluster("web", transport_socket=TransportSocket(name="tls", typed_config=AnyMessage.pack(tls)))
    secret = Resource.of("key", bytes(Secret(name="key", tls_certificate=certificate)))
    fleet.cache.set("all", Snapshot({CLUSTER: ResourceSet([inline]), SECRET: ResourceSet([secret])}, "e.1"))
    async with fleet.synced() as stream:
        await stream.subscribe(SECRET, ["key"])
        await stream.ack(await stream.expect(SECRET))
        await fleet.of(Acked, 2)
        web, key = (await it.json("GET", f"{EDGE}/config", 200))["items"]

        context = web["content"]["transportSocket"]["typedConfig"]["commonTlsContext"]
        assert context["tlsCertificates"] == [{"privateKey": {"inlineString": "[redacted]"}}]
        assert (key["type"], key["content"], key["base64"]) == ("Secret", None, None)
        assert key["version"] == secret.version
        assert "not shown" in key["note"]


async def test_a_refused_key_is_told_as_a_change_of_what_is_not_shown(start, fleet):
    def keyed(key: str) -> Resource:
        certificate = TlsCertificate(private_key=DataSource(inline_string=key))
        tls = UpstreamTlsContext(common_tls_context=CommonTlsContext(tls_certificates=[certificate]))
        return cluster("web", transport_socket=TransportSocket(name="tls", typed_config=AnyMessage.pack(tls)))

    it = await start(proxies=fleet.status)
    fleet.cache.set("all", clusters("e.1", keyed("one")))
    async with fleet.synced() as stream:
        fleet.cache.set("all", clusters("e.2", keyed("two")))
        await stream.nack(await stream.expect(CLUSTER), "web: bad key")
        await fleet.of(Nacked)
        (web,) = (await it.json("GET", EDGE, 200))["types"][0]["refusals"]

        assert web["changes"] == []
        assert "not shown" in web["note"]


async def test_what_cannot_be_read_is_shown_as_base64_with_the_reason(start, fleet):
    it = await start(proxies=fleet.status)
    unknown = TypedExtensionConfig(name="x", typed_config=AnyMessage(type_url="type.googleapis.com/acme.X", value=b"1"))
    fault = AnyMessage(type_url="type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault", value=b"")
    known = TypedExtensionConfig(name="y", typed_config=fault)
    resources = [
        Resource.of("broken", b"\x0a\xff"),
        Resource.of("unknown", bytes(unknown)),
        Resource.of("known", bytes(known)),
    ]
    fleet.cache.set("all", Snapshot({EXTENSION: ResourceSet(resources)}, "e.1"))
    async with fleet.synced(EXTENSION, "broken", "known", "unknown"):
        broken, shown, strange = (await it.json("GET", f"{EDGE}/config", 200))["items"]

        assert (broken["content"], broken["base64"]) == (None, "Cv8=")
        assert "cannot be read" in broken["note"]
        assert strange["content"] is None
        assert "acme.X" in strange["note"]
        assert shown["content"]["typedConfig"]["@type"] == fault.type_url


async def test_what_cannot_be_read_and_holds_a_private_key_is_not_shown(start, fleet):
    it = await start(proxies=fleet.status)
    key = b"-----BEGIN PRIVATE KEY-----"
    strange = TypedExtensionConfig(name="x", typed_config=AnyMessage(type_url="type.googleapis.com/acme.X", value=key))
    fleet.cache.set("all", Snapshot({EXTENSION: ResourceSet([Resource.of("x", bytes(strange))])}, "e.1"))
    async with fleet.synced(EXTENSION, "x"):
        (shown,) = (await it.json("GET", f"{EDGE}/config", 200))["items"]

        assert (shown["content"], shown["base64"]) == (None, None)
        assert "private key" in shown["note"]


async def test_a_name_that_is_asked_for_in_vain_is_listed_as_not_sent(start, fleet):
    it = await start(proxies=fleet.status)
    fleet.cache.set("all", clusters("e.1", cluster("web")))
    async with fleet.synced(SECRET, "missing"):
        (missing,) = (await it.json("GET", f"{EDGE}/config", 200))["items"]

        assert (missing["name"], missing["state"], missing["version"]) == ("missing", "NOT_SENT", None)
        assert missing["updated_at"] is None


@pytest.mark.parametrize(
    ("query", "words"),
    [("type=pods", "clusters"), ("state=x", "SYNCED"), ("contents=maybe", "true or false"), ("nme=a", "name")],
)
async def test_a_wrong_question_is_answered_with_the_choices(start, fleet, query, words):
    it = await start(proxies=fleet.status)
    fleet.cache.set("all", clusters("e.1", cluster("web")))
    async with fleet.synced():
        problem = await it.json("GET", f"{EDGE}/config?{query}", 400)

        assert words in problem["errors"][0]["detail"]


async def test_the_config_of_a_proxy_that_is_not_connected_is_not_found(start, fleet):
    it = await start(proxies=fleet.status)
    problem = await it.json("GET", f"{EDGE}/config", 404)

    assert "/api/v1/proxies" in problem["detail"]


async def client_status(port: int) -> dict[str, ClientConfigGenericXdsConfig]:
    """Ask over the xDS port where each cluster of the one client stands."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = await channel.unary_unary(f"/{SERVICE}/FetchClientStatus")(b"", timeout=5)
    (config,) = ClientStatusResponse.parse(answer).config
    return {each.name: each for each in config.generic_xds_configs if each.type_url == CLUSTER}


@pytest.mark.e2e
@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
async def test_the_cluster_that_a_real_envoy_refuses_is_shown_in_its_words_until_it_is_mended(
    start, fleet, tmp_path, delta
):
    it = await start(proxies=fleet.status)
    good = [real.cluster("a"), real.cluster("web")]
    fleet.cache.set("all", real.snapshot("e.1", good, "a", "web"))

    async def types() -> dict[str, Any]:
        shown = await it.json("GET", EDGE, 200)
        return {each["type"]: each for each in shown["types"]}

    async with real.envoy(envoy_binary(), tmp_path, fleet.port, delta=delta):
        await fleet.stand(a=State.SYNCED, web=State.SYNCED)
        bad = [real.cluster("a"), real.cluster("b"), real.cluster("web", connect_ms=0)]
        fleet.cache.set("all", real.snapshot("e.2", bad, "a", "web", "b"))
        # One of three is refused, and what is good of them is not kept from the proxy.
        await fleet.stand(a=State.SYNCED, b=State.SYNCED, web=State.ERROR)
        (refused,) = (await types())["Cluster"]["refusals"]

        assert (refused["name"], refused["revision"]) == ("web", "e.2")
        assert "ConnectTimeout" in refused["message"]
        assert [(each["pointer"], each["was"]) for each in refused["changes"]] == [("/connectTimeout", "0.500s")]
        seen = await client_status(fleet.port)
        assert seen["web"].config_status is ConfigStatus.ERROR
        assert seen["web"].error_state is not None
        assert seen["web"].error_state.details == refused["message"]
        assert {seen["a"].config_status, seen["b"].config_status} == {ConfigStatus.SYNCED}

        mended = [real.cluster("a"), real.cluster("b"), real.cluster("web", connect_ms=700)]
        fleet.cache.set("all", real.snapshot("e.3", mended, "a", "web", "b"))
        await fleet.stand(a=State.SYNCED, b=State.SYNCED, web=State.SYNCED)

        assert (await types())["Cluster"]["refusals"] == []
        assert (await client_status(fleet.port))["web"].config_status is ConfigStatus.SYNCED


@pytest.mark.e2e
async def test_a_cluster_that_a_real_envoy_cannot_warm_shows_what_it_waits_for(start, fleet, tmp_path):
    it = await start(proxies=fleet.status)
    source = ConfigSource(ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3, initial_fetch_timeout=NEVER)
    secret = SdsSecretConfig(name="edge-cert", sds_config=source)
    tls = UpstreamTlsContext(common_tls_context=CommonTlsContext(tls_certificate_sds_secret_configs=[secret]))
    plain = real.cluster("web")
    message = replace(
        Cluster.parse(plain.body), transport_socket=TransportSocket(name="tls", typed_config=AnyMessage.pack(tls))
    )
    cold = Resource.of("web", bytes(message), refs=[*plain.refs, (SECRET, "edge-cert")])
    fleet.cache.set("all", real.snapshot("e.1", [real.cluster("a")], "a"))

    async def waits() -> list[str]:
        shown = await it.json("GET", EDGE, 200)
        return next(each["waits_for"] for each in shown["types"] if each["type"] == "Cluster")

    # SotW has no way to say that a secret does not exist; a delta client is told, and goes on without.
    async with real.envoy(envoy_binary(), tmp_path, fleet.port, delta=False):
        await fleet.stand(a=State.SYNCED)
        assert await waits() == []

        fleet.cache.set("all", real.snapshot("e.2", [real.cluster("a"), cold], "a", "web"))
        await fleet.lacks("edge-cert")
        assert await waits() == [
            "Cluster 'web' refers to Secret 'edge-cert', which does not exist",
            "the proxy has not acknowledged Cluster 'web', which Envoy does once they are warm",
        ]

        fleet.cache.set("all", real.snapshot("e.3", [real.cluster("a"), plain], "a", "web"))
        await fleet.stand(a=State.SYNCED, web=State.SYNCED)
        assert await waits() == []


@pytest.mark.parametrize(
    ("was", "now", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, [("/a", 1, 2)]),
        ({"a": 1}, {"b": 1}, [("/a", 1, None), ("/b", None, 1)]),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3, 4]}}, [("/a/b/1", 2, 3), ("/a/b/2", None, 4)]),
        ({"a/b~": 1}, {"a/b~": 2}, [("/a~1b~0", 1, 2)]),
        ({"a": [1]}, {"a": {"x": 1}}, [("/a", [1], {"x": 1})]),
    ],
    ids=["equal", "a value", "a key", "lists by place", "escaped keys", "another kind"],
)
def test_differences_are_told_by_place(was, now, expected):
    assert list(differences(was, now)) == [ChangeView(pointer=p, was=a, now=b) for p, a, b in expected]
