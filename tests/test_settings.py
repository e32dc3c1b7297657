"""Where a value comes from, and that a faulty configuration says everything that is wrong with it."""

from pathlib import Path

import pytest

from controlplane.settings import Loaded, SettingsError, load

pytestmark = pytest.mark.unit


def faults(environ: dict[str, str], **flags: object) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(environ, flags=flags)
    return caught.value.faults


@pytest.mark.parametrize(
    ("environ", "file", "flags", "port", "origin"),
    [
        pytest.param({}, "", {}, 8090, "default", id="nothing said"),
        pytest.param({}, "service_port: 1", {}, 1, "file", id="the file beats the default"),
        pytest.param(
            {"SERVICE_PORT": "2"}, "service_port: 1", {}, 2, "environment", id="the environment beats the file"
        ),
        pytest.param({"SERVICE_PORT": "2"}, "", {"service_port": 3}, 3, "flags", id="a flag beats the environment"),
        pytest.param({"SERVICE_PORT": ""}, "", {}, 8090, "default", id="an empty variable is not set"),
        pytest.param({}, "SERVICE_PORT: 1", {}, 1, "file", id="the file may use the environment's spelling"),
    ],
)
def test_sources_in_order(
    tmp_path: Path, environ: dict[str, str], file: str, flags: dict[str, object], port: int, origin: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(file)

    loaded = load({**environ, "CONFIG_FILE": str(path)}, flags=flags)

    assert loaded.settings.service_port == port
    assert loaded.origins["service_port"].startswith(origin)


def test_development_listens_on_loopback_and_production_everywhere() -> None:
    development = load({}).settings
    production = load({"ENVIRONMENT": "production", "ALLOW_ANONYMOUS": "true"}).settings

    assert {development.service_host, development.xds_host, development.gateway_host} == {"127.0.0.1"}
    assert {production.service_host, production.xds_host, production.gateway_host} == {"0.0.0.0"}
    assert (development.log_level, development.log_format) == ("DEBUG", "console")
    assert (production.log_level, production.log_format) == ("INFO", "json")


def test_the_profile_can_come_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("environment: production\nallow_anonymous: true\n")

    loaded = load({}, config_file=path)

    assert loaded.settings.service_host == "0.0.0.0"


def test_production_without_authentication_is_refused() -> None:
    assert any("ALLOW_ANONYMOUS=true" in fault for fault in faults({"ENVIRONMENT": "production"}))


@pytest.mark.parametrize(
    "variable", ["TLS_ENABLED", "API_KEY_ENABLED", "JWT_ENABLED", "METRICS_AUTH", "TRACING_ENABLED"]
)
def test_protection_that_is_not_there_is_not_pretended(variable: str) -> None:
    assert any(variable in fault for fault in faults({variable: "true"}))


def test_streams_may_last_for_ever() -> None:
    assert load({"XDS_MAX_STREAM_AGE": "0"}).settings.xds_max_stream_age == 0
    assert load({}).settings.xds_max_stream_age == 1800


def test_the_gateway_listens_on_an_address_not_a_name() -> None:
    assert any("GATEWAY_HOST" in fault and "IP address" in fault for fault in faults({"GATEWAY_HOST": "localhost"}))


def test_all_faults_are_told_at_once_and_each_once(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "log_levle: INFO\nhealth_check_timeout: soon\nenvironment: production\nENVIRONMENT: production\n"
        "consul_token: [s3cr3t]\n"
    )
    environ = {
        "XDS_PORT": "70000",
        "SERVICE_PORT": "x",
        "LOG_LEVEL": "loud",
        "GATEWAY_HOST": "localhost",
        "REGISTRY_TYPE": "consul,zookeeper,consul",
        "ETCD_USERNAME": "me",
        "ETCD_CERT_FILE": "cert.pem",
        "CONSUL_KEY_FILE": "key.pem",
        "REGISTRY_OPTIONAL": "consul,etcd",
        "HEALTH_CHECK_SCRIPTS_DIR": str(tmp_path / "absent"),
        "API_KEY_ENABLED": "on",
        "JWT_ENABLED": "perhaps",
        "TLS_CLIENT_AUTH": "required",
        "XDS_TLS_CLIENT_AUTH": "required",
        "CONFIG_FILE": str(path),
    }

    told = faults(environ, sevice_name="x")

    expected = [
        ("log_levle", "did you mean log_level"),
        ("sevice_name", "did you mean service_name"),
        ("HEALTH_CHECK_TIMEOUT", "'soon'"),
        ("environment is given more than once", "lines 3, 4"),
        ("CONSUL_TOKEN", "valid string"),
        ("XDS_PORT", "'70000'"),
        ("SERVICE_PORT", "'x'"),
        ("LOG_LEVEL (environment)", "'loud'"),
        ("GATEWAY_HOST", "'localhost'"),
        ("REGISTRY_TYPE (environment)", "'zookeeper'"),
        ("REGISTRY_TYPE: consul", "named twice"),
        ("ETCD_USERNAME and ETCD_PASSWORD", "set both"),
        ("ETCD_CERT_FILE", "without ETCD_KEY_FILE"),
        ("CONSUL_KEY_FILE", "without CONSUL_CERT_FILE"),
        ("REGISTRY_OPTIONAL: etcd", "not in REGISTRY_TYPE"),
        ("HEALTH_CHECK_SCRIPTS_DIR", "absent"),
        ("API_KEY_ENABLED", "not part of this version"),
        ("JWT_ENABLED", "'perhaps'"),
        ("TLS_CLIENT_AUTH=required", "with TLS only"),
        ("XDS_TLS_CLIENT_AUTH=required", "with TLS only"),
        ("ENVIRONMENT=production", "ALLOW_ANONYMOUS=true"),
    ]
    for subject, part in expected:
        assert any(subject in fault and part in fault for fault in told), (subject, told)
    assert len(told) == len(expected), told
    assert "s3cr3t" not in str(told)


@pytest.mark.parametrize(
    ("environ", "part"),
    [
        pytest.param({"REGISTRY_OPTIONAL": "consul"}, "REGISTRY_OPTIONAL: consul", id="an optional registry not used"),
        pytest.param(
            {"REGISTRY_TYPE": "memory,etcd", "REGISTRY_OPTIONAL": "etcd,memory"},
            "leave out at least one",
            id="no registry that is waited for",
        ),
        pytest.param({"TLS_CLIENT_AUTH": "optional"}, "TLS_CLIENT_AUTH=optional", id="client certificates without TLS"),
        pytest.param({"XDS_TLS_CLIENT_AUTH": "required"}, "XDS_TLS_CLIENT_AUTH=required", id="the same for xDS"),
        pytest.param({"HEALTH_CHECK_SCRIPTS_DIR": "/dev/null"}, "'/dev/null'", id="a file for a folder of scripts"),
        pytest.param({"CONSUL_HOST": "http://consul"}, "CONSUL_SCHEME", id="a Consul by URL"),
        pytest.param({"CONSUL_HOST": "one, ,two"}, "host:port", id="a Consul without a name"),
        pytest.param({"CONSUL_CA_FILE": "ca.pem"}, "CONSUL_SCHEME=https", id="an authority for what is not encrypted"),
        pytest.param({"ETCD_ENDPOINTS": "one:2379,two"}, "'two'", id="a member of etcd without a port"),
        pytest.param({"ETCD_ENDPOINTS": "http://one/"}, "localhost:2379", id="a member by URL without a port"),
        pytest.param({"XDS_MAX_STREAM_AGE": "0.5"}, "at least 1", id="streams that hardly live"),
        pytest.param({"XDS_MAX_STREAM_AGE": "-1"}, "XDS_MAX_STREAM_AGE", id="streams that end before they begin"),
        pytest.param({"SERVICE_NAME": "x", "LOG_LEVEL": "x" * 5000}, "…", id="a long value, shortened"),
    ],
)
def test_values_that_make_no_sense_are_refused(environ: dict[str, str], part: str) -> None:
    [told] = faults(environ)

    assert part in told
    assert len(told) < 300


def test_what_there_is_is_accepted(tmp_path: Path) -> None:
    registries = {"REGISTRY_TYPE": "memory,etcd", "REGISTRY_OPTIONAL": "etcd"}
    loaded = load({**registries, "HEALTH_CHECK_SCRIPTS_DIR": str(tmp_path), "TLS_CLIENT_AUTH": "none"})

    assert loaded.settings.health_check_scripts_dir == tmp_path


def test_registries_may_be_named_with_ports_and_several_at_once() -> None:
    loaded = load({"CONSUL_HOST": "one, two:8501, [::1]:8502", "ETCD_ENDPOINTS": "https://one:2379/, [::1]:2379"})

    assert loaded.settings.consul_host == "one, two:8501, [::1]:8502"
    assert loaded.settings.etcd_endpoints == ("https://one:2379/", "[::1]:2379")


def test_variables_of_others_are_ignored() -> None:
    assert load({"PATH": "/bin", "SERVICE_COLOUR": "red"}) == load({})


def test_a_kubernetes_service_link_is_ignored_with_a_warning() -> None:
    loaded = load({"XDS_PORT": "tcp://10.0.0.1:18000"})

    assert loaded.settings.xds_port == 18000
    assert "XDS_PORT" in loaded.warnings[0]


@pytest.mark.parametrize(
    "content",
    ["- a\n- b\n", "a: [", "\x00", "data_dir: 2026-13-13"],
    ids=["a list", "broken YAML", "binary", "no such date"],
)
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)

    assert any(str(path) in fault for fault in faults({"CONFIG_FILE": str(path)}))


def test_a_missing_file_is_refused_by_name() -> None:
    assert any("absent.yaml" in fault for fault in faults({"CONFIG_FILE": "absent.yaml"}))


def test_a_secret_comes_from_a_file_and_is_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("s3cr3t\n")

    loaded: Loaded = load({"CONSUL_TOKEN_FILE": str(path)})

    token = loaded.settings.consul_token
    assert token is not None
    assert token.get_secret_value() == "s3cr3t"
    assert "s3cr3t" not in repr(loaded)
