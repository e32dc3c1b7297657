"""Files for `render`: what they say, and what is wrong with them."""

import pytest

from controlplane.model import HealthStatus, InstanceId, Resolved, ServiceName
from controlplane.policy import Policy, Strategy
from controlplane.render import RenderError, load, render
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE

pytestmark = pytest.mark.unit

WEB = ServiceName("web")


def test_a_file_is_read_as_the_registries_would_deliver_it() -> None:
    catalog = load(
        """
        services:
          web:
            policy: {strategy: random}
            instances:
            - {id: a, host: 10.0.0.1, port: 80, weight: 3, tags: [x]}
            - {id: b, host: api.internal, port: 80, health_check: {}, status: timeout}
        resolutions:
          API.internal.: [10.0.0.9]
        """
    )
    service = catalog.services[WEB]
    one, two = service.sorted_entries()
    assert service.policy == Policy(strategy=Strategy.RANDOM)
    assert (one.instance.weight, one.instance.tags, one.status) == (3, ("x",), HealthStatus.HEALTHY)
    assert two.status is HealthStatus.TIMEOUT
    assert catalog.address_of(two.instance) == "10.0.0.9"


def test_a_verdict_can_be_given_in_full() -> None:
    catalog = load(
        """
        services:
          web:
            instances:
            - {id: a, host: 10.0.0.1, port: 80, health_check: {}, verdict: {status: degraded, passed: true, score: 7}}
        """
    )
    entry = catalog.services[WEB].entries[InstanceId("a")]
    assert (entry.status, entry.score) == (HealthStatus.DEGRADED, 7)


@pytest.mark.parametrize("text", ["services: {web: {instances: []}}", "services: {web: {}}", "services: {web: }"])
def test_a_service_without_instances_has_an_empty_cluster(text: str) -> None:
    snapshot = render(load(text), "127.0.0.1", 10000)
    assert list(snapshot.of_type(CLUSTER)) == list(snapshot.of_type(ENDPOINT)) == ["web"]


@pytest.mark.parametrize("text", ["", "services:", "services: {}"])
def test_an_empty_file_is_a_gateway_without_routes(text: str) -> None:
    snapshot = render(load(text), "127.0.0.1", 10000)
    assert [len(snapshot.of_type(url)) for url in (CLUSTER, ENDPOINT, LISTENER, ROUTE)] == [0, 0, 1, 1]


def test_the_same_file_gives_the_same_versions_whatever_its_order() -> None:
    one = "services: {a: {instances: [{id: x, host: 10.0.0.1, port: 1}, {id: y, host: 10.0.0.2, port: 1}]}, b: {}}"
    two = "services: {b: {}, a: {instances: [{id: y, host: 10.0.0.2, port: 1}, {id: x, host: 10.0.0.1, port: 1}]}}"
    snapshots = [render(load(text), "127.0.0.1", 10000) for text in (one, two)]
    assert snapshots[0].by_type == snapshots[1].by_type


def web(fields: str) -> str:
    return f"services: {{web: {{instances: [{{host: 10.0.0.1, port: 80, {fields}}}]}}}}"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        pytest.param("services: [", "not YAML: ", id="no YAML"),
        pytest.param(
            "services:\n  web: {}\n  web: {}", "services.web: given twice, again in line 3", id="a service twice"
        ),
        pytest.param(web("weight: 1, weight: 2"), "services.web.instances[0].weight: given twice", id="a field twice"),
        pytest.param("[]", "the file: expected a mapping, found list", id="a list at the top"),
        pytest.param(
            "service: {}", "service: unknown field; expected one of resolutions, services", id="a typo on top"
        ),
        pytest.param("services: 1", "services: expected a mapping, found int", id="services that are a number"),
        pytest.param("services: {1: {}}", "services.1: a key must be text", id="a service name that YAML takes for 1"),
        pytest.param("services: {Web: {}}", "services.Web: must be a lower-case DNS name", id="a name in capitals"),
        pytest.param(
            "services: {web: {instance: []}}", "services.web.instance: unknown field", id="a typo in a service"
        ),
        pytest.param(
            "services: {web: {instances: {}}}",
            "services.web.instances: expected a list, found dict",
            id="instances that are no list",
        ),
        pytest.param(
            "services: {web: {instances: [7]}}",
            "services.web.instances[0]: expected a mapping, found int",
            id="an instance that is a number",
        ),
        pytest.param(
            "services: {web: {policy: {strategy: fastest}}}",
            "services.web.policy.strategy: Input should be 'round_robin'",
            id="an unknown strategy",
        ),
        pytest.param(
            "services: {web: {policy: {least_connections: {}}}}",
            "services.web.policy: `least_connections` options go with",
            id="options of another strategy",
        ),
        pytest.param(web("weight: 0"), "services.web.instances[0].weight: Input should be", id="a weight of 0"),
        pytest.param(web("colour: red"), "services.web.instances[0].colour: ", id="an unknown field of an instance"),
        pytest.param(
            web("health_check: {type: ping}"),
            "services.web.instances[0].health_check.type: Input should be 'http'",
            id="an unknown check",
        ),
        pytest.param(
            web("name: api"),
            "services.web.instances[0].name: is 'api', but the instance stands under 'web'",
            id="another service's name",
        ),
        pytest.param(
            web("status: unhealthy"),
            "services.web.instances[0].status: an instance without a `health_check` is healthy",
            id="an unchecked instance that is unhealthy",
        ),
        pytest.param(
            web("health_check: {}, status: draining"),
            "services.web.instances[0].status: no check finds an instance draining",
            id="a check that finds an instance draining",
        ),
        pytest.param(
            web("health_check: {}, status: ill"), "services.web.instances[0].status: Input should be", id="no status"
        ),
        pytest.param(
            web("health_check: {}, verdict: {status: healthy}"),
            "services.web.instances[0].verdict.passed: ",
            id="half a verdict",
        ),
        pytest.param(
            web("health_check: {}, status: healthy, verdict: {status: healthy, passed: true}"),
            "services.web.instances[0]: give `status` or `verdict`, not both",
            id="a status and a verdict",
        ),
        pytest.param(
            "services: {web: {instances: [{id: a, host: 10.0.0.1, port: 80}, {id: a, host: 10.0.0.2, port: 80}]}}",
            "services.web.instances[1].id: 'a' is another instance's id already",
            id="an id twice",
        ),
        pytest.param(
            "resolutions: {api.internal: [elsewhere]}",
            "resolutions.api.internal[0]: 'elsewhere' is not an IP address",
            id="a name that stands for a name",
        ),
    ],
)
def test_a_fault_is_named_with_its_path(text: str, fault: str) -> None:
    with pytest.raises(RenderError) as raised:
        load(text)
    (only,) = raised.value.faults
    assert only.startswith(fault)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(RenderError) as raised:
        load("{services: {web: {instances: [{port: 80}, {host: 10.0.0.1, port: x}]}, Api: {}}, extra: 1}")
    assert [fault.partition(":")[0] for fault in raised.value.faults] == [
        "extra",
        "services.web.instances[0].host",
        "services.web.instances[1].port",
        "services.Api",
    ]


def test_the_gateways_host_must_be_an_address() -> None:
    with pytest.raises(RenderError, match=r"the gateway's host: 'gateway\.local' does not appear to be"):
        render(load(""), "gateway.local", 10000)


def test_what_envoy_would_refuse_is_not_rendered() -> None:
    catalog = load("services: {web: {instances: [{host: api.internal, port: 80}]}, api: {}}")
    resolved, _ = catalog.apply(Resolved(host="api.internal", addresses=("fe80::1%eth0",)))
    with pytest.raises(RenderError) as raised:
        render(resolved, "127.0.0.1", 10000)
    assert raised.value.faults == [
        "services.web: instance web-api.internal-80: 'fe80::1%eth0' is not an IP address, and EDS takes no other"
    ]
