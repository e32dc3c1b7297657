"""What is said aloud of what clients do."""

from dataclasses import replace

import pytest
from builders import key
from structlog.testing import capture_logs

from controlplane.guard import Notice
from controlplane.live import LiveCatalog
from controlplane.raw.overlay import Limit
from controlplane.telemetry.metrics import Metrics
from controlplane.telemetry.observers import IntakeObserver, StreamObserver
from controlplane.views import GRPC, NodeGroup
from xds.messages import Nacked, Regrouped, Sent, Subscribed
from xds.status import Status, StreamInfo
from xds.types import CLUSTER, SECRET, Node

pytestmark = pytest.mark.unit

INFO = StreamInfo(
    id=1,
    node=Node(id="edge-1"),
    group="edge",
    peer="ipv4:127.0.0.1:1",
    delta=True,
    type_url="",
    held=lambda _: {},
    settled=lambda _: True,
)


def refused(type_url: str, message: str, *names: str) -> list[dict[str, object]]:
    """Return the lines that one refusal makes."""
    live = LiveCatalog(epoch="e", call_later=lambda *_: None)
    asked = Subscribed(type_url=type_url, added=(), dropped=(), wildcard=True, names=0)
    nack = Nacked(type_url=type_url, version="v2", nonce="2", revision="e.2", names=names, code=13, message=message)
    with capture_logs() as lines:
        observer = StreamObserver(Status(clock=lambda: 1.0), Metrics(live, version="1"))
        for event in (asked, nack):
            observer.on_event(INFO, event)
    return [dict(line) for line in lines if line["log_level"] == "warning"]


def test_a_refusal_is_one_line_that_leads_to_the_write() -> None:
    (line,) = refused(CLUSTER, "web: no", "web")

    assert line == {
        "event": "xds.nack",
        "log_level": "warning",
        "node_id": "edge-1",
        "type": CLUSTER,
        "names": ("web",),
        "refused": 1,
        "version": "v2",
        "revision": "e.2",
        "error": "web: no",
    }


def test_a_refusal_of_everything_is_still_one_short_line() -> None:
    (line,) = refused(CLUSTER, "x" * 100_000, *(f"service-{number}" for number in range(5_000)))

    assert line["refused"] == 5_000
    assert len(str(line)) < 2_000


def test_a_refusal_of_a_secret_does_not_log_the_secret() -> None:
    (line,) = refused(SECRET, 'value: private_key { inline_string: "hush" }', "key")

    assert "hush" not in str(line)


def test_f_01_a_response_that_a_grpc_client_may_not_take_is_counted_and_said() -> None:
    metrics = Metrics(LiveCatalog(epoch="e", call_later=lambda *_: None), version="1")
    observer = StreamObserver(Status(clock=lambda: 1.0), metrics)
    with capture_logs() as lines:
        for size_bytes in (4 * 1024 * 1024, 4 * 1024 * 1024 + 1):
            observer.on_event(
                INFO,
                Sent(
                    type_url=CLUSTER,
                    version="v",
                    nonce="1",
                    revision="e.1",
                    resources=9,
                    removed=0,
                    size_bytes=size_bytes,
                ),
            )
    exposition = metrics.exposition()[0].decode()

    assert 'xds_oversized_responses_total{type="CDS"} 1.0' in exposition
    assert 'xds_responses_total{type="CDS"} 2.0' in exposition
    assert [line["size_bytes"] for line in lines if line["event"] == "xds.oversized"] == [4 * 1024 * 1024 + 1]


@pytest.mark.parametrize(
    ("group", "told"),
    [
        pytest.param(
            NodeGroup(gateway_port=10001, audience=frozenset({Limit(("edge",), ("eu-1", "eu-2")), Limit(("edge",))})),
            {
                "client": "envoy",
                "transport": "ads",
                "gateway_port": 10001,
                "raw_resources_for": ["clusters edge", "clusters edge in zones eu-1, eu-2"],
            },
            id="an Envoy",
        ),
        pytest.param(
            NodeGroup(flavour=GRPC),
            {"client": "grpc", "transport": "ads", "raw_resources_for": []},
            id="a gRPC client, which has no gateway",
        ),
    ],
)
def test_what_a_node_is_told_from_now_on_is_said_in_plain_words(group: NodeGroup, told: dict[str, object]) -> None:
    live = LiveCatalog(epoch="e", call_later=lambda *_: None)
    with capture_logs() as lines:
        observer = StreamObserver(Status(clock=lambda: 1.0), Metrics(live, version="1"))
        observer.on_event(replace(INFO, group=group), Regrouped())

    (line,) = (line for line in lines if line["event"] == "xds.regrouped")
    assert line.items() >= told.items()
    assert "(" not in str(line["raw_resources_for"])


def test_a_hold_is_said_loudly_with_why_whom_and_what_to_do() -> None:
    keys = tuple(key("web", f"i{number:03}") for number in range(200))
    with capture_logs() as lines:
        observer = IntakeObserver()
        observer.held(Notice(id="web", reason="200 of 300 instances of web were lost", instances=250, keys=keys))
        observer.released(Notice(id="web", reason="", instances=250, keys=keys))
    begun, ended = lines
    assert (begun["event"], begun["log_level"], begun["instances"]) == ("guard.held", "error", 250)
    assert "POST /api/v1/guard/web/release" in begun["remedy"]
    assert begun["some"][0] == "web/i000"
    assert len(begun["some"]) < len(keys), "a line stays readable"
    assert (ended["event"], ended["log_level"], ended["instances"]) == ("guard.released", "warning", 250)


def test_a_loss_that_is_let_go_is_said_with_why_and_some_of_whom() -> None:
    keys = [key("web", f"i{number:03}") for number in range(200)]
    with capture_logs() as lines:
        IntakeObserver().let_go("etcd", "ttl expired", keys)
    (line,) = lines
    assert (line["event"], line["log_level"], line["registry"]) == ("guard.let_go", "info", "etcd")
    assert (line["reason"], line["instances"], line["some"][0]) == ("ttl expired", 200, "web/i000")
    assert len(line["some"]) < len(keys), "a line stays readable"


def test_a_registry_that_is_lost_is_a_warning_that_says_what_stands() -> None:
    with capture_logs() as lines:
        observer = IntakeObserver()
        observer.registry_lost("etcd", "connection refused", heard=False)
        observer.registry_synced("etcd")
        observer.registry_lost("etcd", "connection refused", heard=True)
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("registry.lost", "warning"),
        ("registry.synced", "info"),
        ("registry.lost", "warning"),
    ]
    never, _, later = lines
    assert (never["registry"], never["reason"]) == ("etcd", "connection refused")
    assert "stands" not in never["message"], "there is nothing that it said"
    assert "stands" in later["message"]
