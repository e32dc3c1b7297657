"""Invalid values cannot be built, and every fault is named at once."""

import pytest
from builders import instance
from pydantic import TypeAdapter, ValidationError

from controlplane.model import Instance, same_target
from controlplane.policy import Policy

pytestmark = pytest.mark.unit

INSTANCES: TypeAdapter[Instance] = TypeAdapter(Instance)
POLICIES: TypeAdapter[Policy] = TypeAdapter(Policy)

GOOD = {"name": "web", "host": "10.0.0.1", "port": 80}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        pytest.param({"name": "Web"}, ("name",), id="upper case is no DNS name"),
        pytest.param({"name": "-web"}, ("name",), id="a name does not begin with a dash"),
        pytest.param({"name": "web_1"}, ("name",), id="an underscore is kept for the bootstrap's own clusters"),
        pytest.param({"name": "w" * 254}, ("name",), id="a name has at most 253 characters"),
        pytest.param({"name": 5}, ("name",), id="a name is a string"),
        pytest.param({"host": "10.0.0.256"}, ("host",), id="an address out of range is no DNS name either"),
        pytest.param({"host": "[::1]"}, ("host",), id="an IPv6 address has no brackets"),
        pytest.param({"host": "fe80::1%eth0"}, ("host",), id="a scoped address means nothing elsewhere"),
        pytest.param({"host": "http://web"}, ("host",), id="a host is no URL"),
        pytest.param({"host": ""}, ("host",), id="a host is not empty"),
        pytest.param({"port": 0}, ("port",), id="port 0 is out of range"),
        pytest.param({"port": 65536}, ("port",), id="port 65536 is out of range"),
        pytest.param({"port": "80"}, ("port",), id="a port is a number, not a string"),
        pytest.param({"port": True}, ("port",), id="a port is no boolean"),
        pytest.param({"weight": 0}, ("weight",), id="weight 0 is out of range"),
        pytest.param({"weight": 1001}, ("weight",), id="weight 1001 is out of range"),
        pytest.param({"weight": 1.5}, ("weight",), id="a weight is whole"),
        pytest.param({"ttl": 0}, ("ttl",), id="a lease of no length is none"),
        pytest.param({"ttl": float("nan")}, ("ttl",), id="a lease's length is a number"),
        pytest.param({"id": "a b"}, ("id",), id="an id holds no space"),
        pytest.param({"id": ""}, ("id",), id="an id is not empty"),
        pytest.param({"tags": ["a,b"]}, ("tags", 0), id="a tag holds no comma, which separates tags in queries"),
        pytest.param({"tags": "a"}, ("tags",), id="tags are a list"),
        pytest.param({"tags": [["a"]]}, ("tags", 0), id="a tag is a string, not a list"),
        pytest.param({"metadata": {"a": {"b": 1}}}, ("metadata", "a"), id="metadata values are scalars"),
        pytest.param({"draining": "yes"}, ("draining",), id="draining is a boolean"),
        pytest.param({"locality": {"zones": "a"}}, ("locality", "zones"), id="an unknown field is refused at depth"),
        pytest.param({"colour": "red"}, ("colour",), id="an unknown field is refused"),
        pytest.param({"health_check": {"type": "icmp"}}, ("health_check", "type"), id="an unknown check type"),
        pytest.param({"health_check": {"type": "script"}}, ("health_check",), id="a script check without a script"),
        pytest.param(
            {"health_check": {"http_path": "health"}}, ("health_check", "http_path"), id="a path begins with a slash"
        ),
        pytest.param({"health_check": {"interval": 0}}, ("health_check", "interval"), id="an interval is not 0"),
    ],
)
def test_bad_instances_are_refused_with_the_field(change: dict[str, object], field: tuple[object, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        INSTANCES.validate_python({**GOOD, **change})

    assert {error["loc"][: len(field)] for error in caught.value.errors()} == {field}


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        INSTANCES.validate_python({"name": "WEB", "host": "", "port": 0, "weight": -1, "x": 1})

    assert {error["loc"][0] for error in caught.value.errors()} == {"name", "host", "port", "weight", "x"}


@pytest.mark.parametrize(
    ("host", "kept"),
    [
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("API.Internal.", "api.internal"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_hosts_are_kept_in_one_spelling(host: str, kept: str) -> None:
    assert instance(host=host).host == kept


def test_an_id_defaults_to_name_host_and_port() -> None:
    assert instance("web", host="10.0.0.1", port=80).id == "web-10.0.0.1-80"
    assert INSTANCES.validate_python({**GOOD, "id": None}).id == "web-10.0.0.1-80"


def test_an_instance_survives_its_json() -> None:
    original = instance(
        tags=["b", "a", "b"],
        metadata={"version": "1", "n": 2, "canary": True},
        locality={"zone": "eu-1"},
        health_check={"type": "script", "script": ["ok", "-x"], "interval": 3},
    )

    assert INSTANCES.validate_json(INSTANCES.dump_json(original)) == original
    assert original.tags == ("b", "a")


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        pytest.param({"strategy": "fastest"}, ("strategy",), id="an unknown strategy"),
        pytest.param({"strategy": "random", "consistent_hash": {}}, (), id="options of another strategy"),
        pytest.param({"panic_threshold": 101}, ("panic_threshold",), id="a percentage over 100"),
        pytest.param(
            {"strategy": "consistent_hash", "consistent_hash": {"hash_on": {"source": "header"}}},
            ("consistent_hash", "hash_on"),
            id="a header hash without the header's name",
        ),
        pytest.param(
            {"strategy": "consistent_hash", "consistent_hash": {"algorithm": "maglev", "table_size": 65536}},
            ("consistent_hash",),
            id="a maglev table whose size is no prime",
        ),
        pytest.param(
            {
                "strategy": "consistent_hash",
                "consistent_hash": {"hash_on": {"source": "cookie", "name": "a\r\nX-Evil: y", "ttl": 5}},
            },
            ("consistent_hash", "hash_on"),
            id="a cookie's name that would write headers of its own",
        ),
        pytest.param(
            {"strategy": "consistent_hash", "consistent_hash": {"hash_on": {"source": "query", "name": "a\x00"}}},
            ("consistent_hash", "hash_on"),
            id="a query parameter's name with a control character",
        ),
        pytest.param({"timeout": 1e-7}, ("timeout",), id="a timeout that would become no timeout"),
        pytest.param({"connect_timeout": 0}, ("connect_timeout",), id="Envoy refuses a connect timeout of 0"),
    ],
)
def test_bad_policies_are_refused_with_the_field(policy: dict[str, object], field: tuple[object, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        POLICIES.validate_python(policy)

    assert [error["loc"][: len(field)] for error in caught.value.errors()] == [field]


def test_a_verdict_speaks_of_the_same_address_and_check_only() -> None:
    check = {"http_path": "/a", "interval": 5}
    old = instance(health_check=check)

    assert same_target(old, instance(health_check={**check, "interval": 9}, weight=7, tags=["x"]))
    assert not same_target(old, instance(health_check={**check, "http_path": "/b"}))
    assert not same_target(old, instance(health_check=check, port=9))
    assert not same_target(old, instance())
