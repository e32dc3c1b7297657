"""Numbers of proto3 JSON, in every spelling that it allows, and never one that the encoder cannot write."""

from typing import Any

import orjson
import pytest

from controlplane.model import RawResource
from controlplane.raw.compile import Compiler
from controlplane.raw.reading import Unreadable, read
from xds.types import CLUSTER

pytestmark = pytest.mark.unit

_WEIGHTED = "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin"


def cluster(**fields: Any) -> dict[str, Any]:
    return {"name": "a", "type": "STATIC", "load_assignment": {"cluster_name": "a"}, **fields}


def ratio(value: object) -> dict[str, Any]:
    return cluster(preconnect_policy={"per_upstream_preconnect_ratio": value})


def penalty(value: object) -> dict[str, Any]:
    typed = {"@type": f"type.googleapis.com/{_WEIGHTED}", "error_utilization_penalty": value}
    return cluster(
        load_balancing_policy={"policies": [{"typed_extension_config": {"name": "x", "typed_config": typed}}]}
    )


@pytest.mark.parametrize(("spelled", "value"), [("1.5", 1.5), ("2", 2.0), ("1e0", 1.0), ("-25E-1", -2.5), (3, 3.0)])
def test_a_number_may_be_spelled(spelled: object, value: float) -> None:
    message: Any = read(CLUSTER, ratio(spelled)).message

    assert message.preconnect_policy.per_upstream_preconnect_ratio == value


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(ratio("1" + "0" * 309), id="too great for a double, in digits"),
        pytest.param(ratio("1" + "0" * 5000), id="longer than any number"),
        pytest.param(ratio("1e999"), id="too great for a double, with an exponent"),
        pytest.param(penalty(1e300), id="too great for a float"),
        pytest.param(ratio("1_000"), id="Python's own spelling"),
        pytest.param(ratio("inf"), id="another word for infinity"),
    ],
)
def test_a_number_is_refused_that_is(document: dict[str, Any]) -> None:
    with pytest.raises(Unreadable, match="expected"):
        Compiler().compile(RawResource(type_url=CLUSTER, name="a", body=orjson.dumps(document).decode()))
