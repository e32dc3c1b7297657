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


def test_the_gateway_listens_on_an_address_not_a_name() -> None:
    assert any("GATEWAY_HOST" in fault and "IP address" in fault for fault in faults({"GATEWAY_HOST": "localhost"}))


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("log_levle: INFO\nhealth_check_timeout: soon\n")

    told = "\n".join(faults({"XDS_PORT": "70000", "SERVICE_PORT": "x", "CONFIG_FILE": str(path)}, sevice_name="x"))

    for part in (
        "log_levle",
        "did you mean log_level",
        "HEALTH_CHECK_TIMEOUT",
        "XDS_PORT",
        "SERVICE_PORT",
        "sevice_name",
    ):
        assert part in told


def test_variables_of_others_are_ignored() -> None:
    assert load({"PATH": "/bin", "SERVICE_COLOUR": "red"}) == load({})


def test_a_kubernetes_service_link_is_ignored_with_a_warning() -> None:
    loaded = load({"XDS_PORT": "tcp://10.0.0.1:18000"})

    assert loaded.settings.xds_port == 18000
    assert "XDS_PORT" in loaded.warnings[0]


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "\x00"], ids=["a list", "broken YAML", "binary"])
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
