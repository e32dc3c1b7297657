"""The fast encoder against envoy-data-plane's own: the same bytes, for every kind of field."""

import datetime  # the module: the library looks names up where a message class is first used
import time
from datetime import timedelta
from typing import Any

import pytest
from betterproto2 import Message
from envoy_data_plane.envoy.admin.v3 import ServerInfo, UpdateFailureState
from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap, Runtime
from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterCommonLbConfig,
    ClusterDiscoveryType,
    ClusterLbPolicy,
    OutlierDetection,
)
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    HealthStatus,
    Locality,
    Metadata,
    Node,
    RuntimeDouble,
    SocketAddress,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    EndpointLoadMetricStats,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.route.v3 import (
    RetryPolicy,
    Route,
    RouteAction,
    RouteMatch,
    VirtualHost,
    WeightedCluster,
    WeightedClusterClusterWeight,
)
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.service.discovery.v3 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource
from envoy_data_plane.envoy.type.v3 import DoubleRange, Int64Range, Percent
from envoy_data_plane.google.protobuf import (
    Any as ProtoAny,
)
from envoy_data_plane.google.protobuf import (
    BytesValue,
    Duration,
    FieldDescriptorProto,
    FileDescriptorProto,
    FloatValue,
    Int64Value,
    ListValue,
    NullValue,
    StringValue,
    Struct,
    UInt64Value,
    Value,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from xds.encode import Encoder, frame, varint

pytestmark = pytest.mark.unit


def assignment(endpoints: int) -> ClusterLoadAssignment:
    """Build an assignment as large and as deep as the real ones."""
    return ClusterLoadAssignment(
        cluster_name="web",
        endpoints=[
            LocalityLbEndpoints(
                locality=Locality(),
                lb_endpoints=[
                    LbEndpoint(
                        endpoint=Endpoint(
                            address=Address(socket_address=SocketAddress(address=f"10.0.0.{n % 256}", port_value=n))
                        ),
                        health_status=HealthStatus.HEALTHY,
                        load_balancing_weight=n % 3,
                        metadata=Metadata(filter_metadata={"envoy.lb": Struct(fields={"id": Value(string_value="a")})}),
                    )
                    for n in range(endpoints)
                ],
            )
        ],
    )


EVERY_JSON = Struct.from_dict(
    {
        "bool": False,
        "empty": "",
        "list": [1, "two", None, [], {}],
        "null": None,
        "number": -1.5,
        "struct": {"deep": {"deeper": True}},
        "zero": 0,
    }
)

MESSAGES = {
    "a message without any field": Router(),
    "a message with every field unset": Cluster(),
    "strings, enums, durations and messages": Cluster(
        name="web",
        type=ClusterDiscoveryType.EDS,
        lb_policy=ClusterLbPolicy.MAGLEV,
        connect_timeout=timedelta(milliseconds=250),
    ),
    "an explicit zero in a oneof of enums": Cluster(type=ClusterDiscoveryType.STATIC),
    "a zero duration": RouteAction(timeout=timedelta(0), idle_timeout=timedelta(0)),
    "a duration of whole seconds": RouteAction(timeout=timedelta(days=3)),
    "a duration of microseconds": RouteAction(timeout=timedelta(microseconds=1)),
    "a negative duration, as the library spells it": RouteAction(timeout=timedelta(seconds=-1.5)),
    "wrappers of zero, false and nothing": CircuitBreakersThresholds(max_connections=0, max_requests=None),
    "wrappers of numbers": CircuitBreakersThresholds(max_connections=1, max_requests=2**32 - 1),
    "a wrapper in a wrapper's class": UInt64Value(value=2**64 - 1),
    "a wrapper of false": VirtualHost(name="v", retry_policy=RetryPolicy(num_retries=0)),
    "a repeated message that is empty": CircuitBreakers(thresholds=[CircuitBreakersThresholds()]),
    "nested messages that are empty": OutlierDetection(base_ejection_time=timedelta(0)),
    "an empty message that is set": ClusterCommonLbConfig(healthy_panic_threshold=Percent()),
    "doubles": RuntimeDouble(default_value=-0.5, runtime_key="k"),
    "a double of minus zero": DoubleRange(start=-0.0, end=float("inf")),
    "a double that is no number": Percent(value=float("nan")),
    "a float": FloatValue(value=0.1),
    "a negative 64-bit integer": Int64Range(start=-(2**63), end=2**63 - 1),
    "a negative 32-bit integer": Duration(seconds=-1, nanos=-500_000_000),
    "a packed list": FileDescriptorProto(public_dependency=[0, 1, 300, 2**31 - 1], weak_dependency=[-1]),
    "an unpacked list of strings with an empty one": FileDescriptorProto(dependency=["", "a"]),
    "a repeated wrapper": FieldDescriptorProto(name="", number=-5),
    "bytes": BytesValue(value=b"\x00\xff"),
    "an any": ProtoAny.pack(StringValue(value="x")),
    "an empty any": ProtoAny(),
    "a negative wrapped integer": Int64Value(value=-1),
    "a null": Value(null_value=NullValue.NULL_VALUE),
    "an empty list in a value": Value(list_value=ListValue()),
    "any JSON": EVERY_JSON,
    "a map of messages": Metadata(filter_metadata={"a": Struct(), "b": EVERY_JSON}),
    "a map of anys": VirtualHost(typed_per_filter_config={"envoy.x": ProtoAny.pack(Router())}),
    "a map of strings": DeltaDiscoveryRequest(initial_resource_versions={"": "1", "b": ""}),
    "an explicit empty string in a oneof": RouteMatch(prefix=""),
    "a oneof of messages": Route(match=RouteMatch(path="/"), route=RouteAction(cluster="web")),
    "weights": RouteAction(
        weighted_clusters=WeightedCluster(
            clusters=[
                WeightedClusterClusterWeight(name="a", weight=0),
                WeightedClusterClusterWeight(name="b", weight=7),
            ]
        )
    ),
    "a timestamp": Bootstrap(node=Node(id="n", metadata=EVERY_JSON)),
    "optional scalars that are zero": EndpointLoadMetricStats(metric_name="m", total_metric_value=0.0),
    "a response with resources and removals": DeltaDiscoveryResponse(
        resources=[Resource(name="web", version="1", resource=ProtoAny.pack(Cluster(name="web")))],
        removed_resources=["old", ""],
        nonce="7",
    ),
    "a struct in a layer": Runtime(base=EVERY_JSON),
    "duration fields beside enums": ServerInfo(uptime_current_epoch=timedelta(seconds=5)),
    "letters beyond ASCII": Locality(region="ünï", zone="東京"),
    "a payload longer than 127 bytes": Locality(region="r" * 128, zone="z" * 20_000),
    "an assignment": assignment(300),
}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder()


@pytest.mark.parametrize("message", [pytest.param(message, id=name) for name, message in MESSAGES.items()])
def test_bytes_equal_the_librarys(encoder: Encoder, message: Message) -> None:
    assert encoder.encode(message) == bytes(message)


def test_unknown_fields_are_kept(encoder: Encoder) -> None:
    message = Locality.parse(bytes(Locality(region="r")) + frame(99, b"new"))
    assert encoder.encode(message) == bytes(message)
    assert encoder.encode(message).endswith(b"new")


def test_a_timestamp_is_spelled_as_the_library_does(encoder: Encoder) -> None:
    message = UpdateFailureState(last_update_attempt=datetime.datetime(2026, 1, 2, 3, 4, 5, 678_000, datetime.UTC))
    assert encoder.encode(message) == bytes(message)


def test_a_deprecated_field_warns_when_it_is_set_and_not_again(encoder: Encoder) -> None:
    with pytest.warns(DeprecationWarning, match="deprecated"):
        message = RouteAction(max_grpc_timeout=timedelta(0))
    encoded = encoder.encode(message)
    with pytest.warns(DeprecationWarning, match="deprecated"):
        assert encoded == bytes(message)


def test_maps_are_in_key_order_whatever_the_order_of_insertion(encoder: Encoder) -> None:
    one, other = (
        Struct(fields={key: Value(string_value=key) for key in keys}) for keys in (("b", "a", "c"), ("c", "b", "a"))
    )
    assert bytes(one) != bytes(other)
    assert encoder.encode(one) == encoder.encode(other)
    assert encoder.encode(one) == bytes(Struct(fields={key: Value(string_value=key) for key in "abc"}))


def test_packing_gives_the_librarys_any(encoder: Encoder) -> None:
    assert encoder.pack(Cluster(name="web")) == ProtoAny.pack(Cluster(name="web"))


@settings(deadline=None)  # a message class is slow when first used
@given(value=st.integers(-(2**63), 2**63 - 1))
def test_varints_equal_the_librarys(value: int) -> None:
    assert varint(value & (2**64 - 1)) == varint(value)
    assert b"\x08" + varint(value) == (bytes(Int64Value(value=value)) or b"\x08\x00")


@settings(deadline=None)  # a message class is slow when first used
@given(seconds=st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=3650)))
def test_durations_equal_the_librarys(seconds: timedelta) -> None:
    message = RouteAction(timeout=seconds)
    assert Encoder().encode(message) == bytes(message)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(each) for each in value] if isinstance(value, list) else value


@settings(deadline=None)  # a message class is slow when first used
@given(fields=st.dictionaries(st.text(), JSON_VALUES, max_size=3))
def test_structs_equal_the_librarys(fields: dict[str, Any]) -> None:
    message = Struct.from_dict(_sorted(fields))
    assert Encoder().encode(message) == bytes(message)


def test_it_is_ten_times_faster_than_the_library(encoder: Encoder) -> None:
    message = assignment(200)

    def best_of(runs: int, encode: Any) -> float:
        times = []
        for _ in range(runs):
            started = time.process_time()
            encode(message)
            times.append(time.process_time() - started)
        return min(times)

    assert best_of(5, encoder.encode) * 10 < best_of(2, bytes)
