"""What an operator types and gets: data on stdout, talk on stderr, exit status 0, 1, 2 or 3."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from controlplane.cli import app

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    for name in ("ENVIRONMENT", "SERVICE_PORT", "XDS_PORT", "CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    return CliRunner()


def test_bootstrap_prints_yaml_with_the_id_quoted(cli: CliRunner) -> None:
    result = cli.invoke(app, ["bootstrap", "--node", "n", "--cluster", "1e3", "--xds", "[::1]:18001"])

    assert result.exit_code == 0
    document = yaml.safe_load(result.stdout)
    assert document["node"] == {"id": "n", "cluster": "1e3"}
    endpoint = document["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
    assert endpoint["endpoint"]["address"]["socket_address"] == {"address": "::1", "port_value": 18001}
    assert "load_stats_config" in document["cluster_manager"]


@pytest.mark.parametrize(("protocol", "api_type"), [("sotw", "GRPC"), ("delta", "DELTA_GRPC")])
def test_bootstrap_speaks_either_variant(cli: CliRunner, protocol: str, api_type: str) -> None:
    result = cli.invoke(app, ["bootstrap", "--node", "a", "--cluster", "b", "--protocol", protocol])

    assert yaml.safe_load(result.stdout)["dynamic_resources"]["ads_config"]["api_type"] == api_type


@pytest.mark.parametrize("address", ["127.0.0.1", "host:0", "host:70000", ":18000", "host:x"])
def test_an_address_that_is_none_is_a_usage_error(cli: CliRunner, address: str) -> None:
    result = cli.invoke(app, ["bootstrap", "--node", "a", "--cluster", "b", "--xds", address])

    assert result.exit_code == 2
    assert "--xds" in result.stderr
    assert result.stdout == ""


def test_render_prints_what_envoys_would_be_told(cli: CliRunner) -> None:
    case = GOLDEN / "weights"

    result = cli.invoke(app, ["render", "-f", str(case / "in.yaml"), "-o", "json"])

    assert result.exit_code == 0
    assert json.loads(result.stdout)["clusters"] == list(yaml.safe_load_all((case / "clusters.yaml").read_text()))


def test_the_help_of_render_names_its_folder_in_one_pair_of_brackets(cli: CliRunner) -> None:
    result = cli.invoke(app, ["render", "--help"], terminal_width=100)

    assert "[DIR]" in result.stdout
    assert "[[DIR]]" not in result.stdout


def test_render_names_every_fault_and_exits_3(cli: CliRunner, tmp_path: Path) -> None:
    file = tmp_path / "services.yaml"
    file.write_text("services: {web: {instances: [{host: 10.0.0.1, port: 0}, {hots: x}]}}")

    result = cli.invoke(app, ["render", "-f", str(file)])

    assert result.exit_code == 3
    assert result.stdout == ""
    assert "port" in result.stderr
    assert "hots" in result.stderr


def test_config_check_names_every_fault_and_exits_3(cli: CliRunner) -> None:
    result = cli.invoke(app, ["config", "check"], env={"XDS_PORT": "x", "SERVICE_PORT": "-1"})

    assert result.exit_code == 3
    assert "XDS_PORT" in result.stderr
    assert "SERVICE_PORT" in result.stderr


def test_config_show_says_where_values_come_from_and_masks_secrets(cli: CliRunner) -> None:
    result = cli.invoke(app, ["config", "show", "--origin"], env={"XDS_PORT": "1234", "CONSUL_TOKEN": "s3cr3t"})

    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["SETTING", "VALUE", "ORIGIN"]
    assert ["XDS_PORT", "1234", "environment"] in rows
    assert ["SERVICE_PORT", "8090", "default"] in rows
    assert "s3cr3t" not in result.output


def test_config_schema_is_json_schema(cli: CliRunner) -> None:
    assert "service_port" in json.loads(cli.invoke(app, ["config", "schema"]).stdout)["properties"]


def test_serve_refuses_a_faulty_configuration_with_all_faults(cli: CliRunner) -> None:
    result = cli.invoke(app, ["serve", "--service-port", "0"], env={"XDS_PORT": "x", "LOG_FORMAT": "xml"})

    assert result.exit_code == 2
    assert "XDS_PORT" in result.stderr
    assert "LOG_FORMAT" in result.stderr


def test_render_lists_the_resources_with_version_and_size(cli: CliRunner) -> None:
    result = cli.invoke(app, ["render", "-f", str(GOLDEN / "weights" / "in.yaml")])

    header, *rows = [line.split() for line in result.stdout.splitlines()]
    assert header == ["KIND", "NAME", "VERSION", "BYTES"]
    assert {row[0] for row in rows} == {"clusters", "endpoints", "listeners", "routes"}
    assert all(int(row[3]) > 0 for row in rows)


READ = {"json": json.loads, "yaml": yaml.safe_load}


@pytest.mark.parametrize("form", ["json", "yaml"])
@pytest.mark.parametrize(
    ("command", "holds"),
    [
        pytest.param(["version"], "version", id="version"),
        pytest.param(["config", "show"], "XDS_PORT", id="config show"),
        pytest.param(["config", "show", "--origin"], "XDS_PORT", id="config show with origins"),
        pytest.param(["config", "schema"], "properties", id="config schema"),
        pytest.param(["render", "-f", str(GOLDEN / "weights" / "in.yaml")], "clusters", id="render"),
    ],
)
def test_data_is_printed_for_programs_too(cli: CliRunner, command: list[str], holds: str, form: str) -> None:
    result = cli.invoke(app, [*command, "-o", form])

    assert result.exit_code == 0
    assert holds in READ[form](result.stdout)
    assert result.stdout.startswith("{") == (form == "json")


def test_health_fails_where_nothing_listens(cli: CliRunner) -> None:
    result = cli.invoke(app, ["health", "--server", "http://127.0.0.1:1"])

    assert result.exit_code == 1
    assert "cannot reach" in result.stderr


@contextmanager
def answering(answer: Callable[[str], bytes]) -> Iterator[str]:
    """Serve connections one after another, each with the bytes for its path, and yield the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(answer(connection.recv(65_536).decode().split()[1]))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("form", "printed"),
    [
        ("table", "STATUS\nhealthy\n"),
        ("json", '{\n  "status": "healthy"\n}\n'),
        ("yaml", "status: healthy\n"),
    ],
)
def test_health_prints_what_the_server_says(cli: CliRunner, form: str, printed: str) -> None:
    with answering(lambda _path: OK + b'{"status": "healthy"}') as server:
        result = cli.invoke(app, ["health", "--server", server, "-o", form])

    assert (result.exit_code, result.stdout) == (0, printed)


def test_health_fails_where_the_server_is_not_ready(cli: CliRunner) -> None:
    def answer(path: str) -> bytes:
        return OK + b"{}" if path == "/health" else b"HTTP/1.1 503 No\r\nConnection: close\r\n\r\ndns: waiting\n"

    with answering(answer) as server:
        result = cli.invoke(app, ["health", "--server", server])

    assert result.exit_code == 1
    assert result.stderr == "not ready: /readyz answers 503: dns: waiting\n"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="not HTTP"),
        pytest.param(b"", id="nothing"),
        pytest.param(OK + b"<html>", id="no JSON"),
        pytest.param(OK + b"[1]", id="other JSON"),
    ],
)
def test_health_says_in_one_line_that_something_else_listens(cli: CliRunner, answer: bytes) -> None:
    with answering(lambda _path: answer) as server:
        result = cli.invoke(app, ["health", "--server", server])

    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "server", ["http://[::1", "http://", "http://x:port", "ftp://x", "127.0.0.1:8090", "http://a..b"]
)
def test_a_server_that_is_no_url_is_a_usage_error(cli: CliRunner, server: str) -> None:
    result = cli.invoke(app, ["health", "--server", server])

    assert result.exit_code == 2
    assert "--server" in result.stderr
    assert result.stdout == ""


def test_the_module_is_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "controlplane", "version"], capture_output=True, text=True, timeout=30, check=True
    )

    assert result.stdout.strip()[0].isdigit()


def test_render_writes_a_folder_of_files_and_says_so_on_stderr(cli: CliRunner, tmp_path: Path) -> None:
    render = ["render", "-f", str(GOLDEN / "weights" / "in.yaml"), "-o", "files", str(tmp_path / "exported")]

    first, second = cli.invoke(app, render), cli.invoke(app, render)

    assert (first.exit_code, first.stdout, second.exit_code, second.stdout) == (0, "", 0, "")
    assert "6 files written, 0 removed" in first.stderr
    assert "0 files written, 0 removed" in second.stderr
    assert (tmp_path / "exported" / "envoy.yaml").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["-o", "files"], id="files without a folder"),
        pytest.param(["-o", "yaml", "folder"], id="a folder without files"),
        pytest.param(["-o", "files", "folder", "--admin", "envoy.local:1"], id="an admin page that Envoy cannot bind"),
    ],
)
def test_render_refuses_what_makes_no_folder(
    cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    result = cli.invoke(app, ["render", "-f", str(GOLDEN / "weights" / "in.yaml"), *arguments])

    assert result.exit_code == 2
    assert "files" in result.stderr or "--admin" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_bootstrap_for_a_grpc_client_is_json_without_a_cluster(cli: CliRunner) -> None:
    result = cli.invoke(app, ["bootstrap", "--grpc", "--node", "caller-1", "--xds", "[::1]:18001"])
    assert result.exit_code == 0
    (server,) = json.loads(result.stdout)["xds_servers"]
    assert server == {
        "server_uri": "[::1]:18001",
        "channel_creds": [{"type": "insecure"}],
        "server_features": ["xds_v3"],
    }
    assert json.loads(result.stdout)["node"] == {"id": "caller-1"}


def test_bootstrap_for_a_grpc_client_names_its_cluster_which_raw_resources_may_be_limited_to(cli: CliRunner) -> None:
    result = cli.invoke(app, ["bootstrap", "--grpc", "--node", "caller-1", "--cluster", "callers"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["node"] == {"id": "caller-1", "cluster": "callers"}


@pytest.mark.parametrize(
    "option",
    [
        ("--protocol", "rest"),
        ("--admin", "127.0.0.1:9902"),
        ("--gateway-port", "10001"),
        ("--runtime-layer", "flags"),
    ],
    ids=lambda option: option[0],
)
def test_bootstrap_for_a_grpc_client_refuses_what_it_would_have_to_drop(
    cli: CliRunner, option: tuple[str, str]
) -> None:
    result = cli.invoke(app, ["bootstrap", "--grpc", "--node", "caller-1", *option])
    assert result.exit_code == 2
    assert option[0] in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("given", [[], ["--cluster", ""]], ids=["none", "empty"])
def test_bootstrap_for_an_envoy_needs_a_cluster(cli: CliRunner, given: list[str]) -> None:
    result = cli.invoke(app, ["bootstrap", "--node", "edge-1", *given])
    assert result.exit_code == 2
    assert "--cluster is missing" in result.stderr


def test_bootstrap_needs_a_node_id_that_tells_clients_apart(cli: CliRunner) -> None:
    result = cli.invoke(app, ["bootstrap", "--node", "", "--cluster", "edge"])
    assert result.exit_code == 2
    assert "--node is empty" in result.stderr
