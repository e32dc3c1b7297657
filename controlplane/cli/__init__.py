"""The operator's command line. Data goes to stdout, talk to stderr.

Exit status: 0 ok, 1 failed, 2 usage, 3 found problems. Commands import what they need when they run, so that
`--help` is quick.
"""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

FAILED = 1
USAGE = 2

app = typer.Typer(
    name="controlplane",
    help="Service discovery and an Envoy control plane.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at the configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")


class Protocol(StrEnum):
    """Name the two forms of the xDS protocol."""

    DELTA = "delta"
    SOTW = "sotw"


class OutputFormat(StrEnum):
    """Name the forms in which data is printed."""

    YAML = "yaml"
    JSON = "json"


ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file of settings; also CONFIG_FILE.")]
ServerUrl = Annotated[
    str, typer.Option("--server", envvar="CONTROLPLANE_URL", help="Where the control plane's REST API is.")
]


@app.command()
def serve(
    config: ConfigFile = None,
    registry_type: Annotated[str | None, typer.Option(help="REGISTRY_TYPE")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="DATA_DIR: where durable state lives.")] = None,
    service_host: Annotated[str | None, typer.Option(help="SERVICE_HOST of the REST API.")] = None,
    service_port: Annotated[int | None, typer.Option(help="SERVICE_PORT of the REST API.")] = None,
    xds_host: Annotated[str | None, typer.Option(help="XDS_HOST")] = None,
    xds_port: Annotated[int | None, typer.Option(help="XDS_PORT")] = None,
    gateway_host: Annotated[str | None, typer.Option(help="GATEWAY_HOST that Envoys listen on.")] = None,
    gateway_port: Annotated[int | None, typer.Option(help="GATEWAY_PORT that Envoys listen on.")] = None,
    log_level: Annotated[str | None, typer.Option(help="LOG_LEVEL")] = None,
) -> None:
    """Run the control plane until SIGTERM or SIGINT; a second signal ends it at once."""
    flags: dict[str, object] = {
        "registry_type": registry_type,
        "data_dir": data_dir,
        "service_host": service_host,
        "service_port": service_port,
        "xds_host": xds_host,
        "xds_port": xds_port,
        "gateway_host": gateway_host,
        "gateway_port": gateway_port,
        "log_level": log_level,
    }
    from controlplane.cli.run import run_serve  # noqa: PLC0415
    from controlplane.settings import SettingsError, load  # noqa: PLC0415

    try:
        loaded = load(os.environ, flags=flags, config_file=config)
    except SettingsError as error:
        fail(str(error), USAGE)
    run_serve(loaded)


@app.command()
def demo(
    config: ConfigFile = None,
    data_dir: Annotated[Path, typer.Option(help="Where durable state and Envoy's log live.")] = Path(".data"),
    admin_port: Annotated[int, typer.Option(envvar="ENVOY_ADMIN_PORT", help="Envoy's admin port on 127.0.0.1.")] = 9901,
) -> None:
    """Run the control plane, a local Envoy gateway and a demo service together (`make run`)."""
    from controlplane.cli.demo import run_demo  # noqa: PLC0415
    from controlplane.settings import SettingsError, load  # noqa: PLC0415

    flags: dict[str, object] = {}
    if not os.environ.get("DATA_DIR"):
        flags["data_dir"] = data_dir
    if not os.environ.get("LOG_LEVEL"):
        flags["log_level"] = "INFO"
    try:
        loaded = load(os.environ, flags=flags, config_file=config)
    except SettingsError as error:
        fail(str(error), USAGE)
    run_demo(loaded, admin_port)


@app.command()
def bootstrap(
    node: Annotated[str, typer.Option("--node", help="The Envoy's node id.")],
    cluster: Annotated[str, typer.Option("--cluster", help="The Envoy's node cluster.")],
    xds: Annotated[str, typer.Option("--xds", help="HOST:PORT of the control plane.")] = "127.0.0.1:18000",
    protocol: Annotated[Protocol, typer.Option(help="Delta sends only what changed.")] = Protocol.DELTA,
    admin: Annotated[str, typer.Option("--admin", help="HOST:PORT of Envoy's admin page.")] = "127.0.0.1:9901",
    gateway_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Listen here instead of the control plane's GATEWAY_PORT.")
    ] = None,
) -> None:
    """Print an Envoy bootstrap (YAML) that takes everything from this control plane."""
    from controlplane.bootstrap import bootstrap as make  # noqa: PLC0415

    xds_host, xds_port = host_and_port(xds, "--xds")
    admin_host, admin_port = host_and_port(admin, "--admin")
    text = make(
        node_id=node,
        cluster=cluster,
        xds_host=xds_host,
        xds_port=xds_port,
        protocol=protocol.value,
        admin_host=admin_host,
        admin_port=admin_port,
        gateway_port=gateway_port,
    )
    typer.echo(text, nl=not text.endswith("\n"))


@app.command()
def render(
    file: Annotated[Path, typer.Option("--file", "-f", exists=True, dir_okay=False, help="YAML file of services.")],
    output: Annotated[OutputFormat, typer.Option("--output", "-o")] = OutputFormat.YAML,
    gateway_host: Annotated[str, typer.Option(help="Address of the gateway listener.")] = "127.0.0.1",
    gateway_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the gateway listener.")] = 10000,
) -> None:
    """Print what Envoys would be told of the services in a file, without a network; exit 3 where it has faults."""
    import json  # noqa: PLC0415

    import yaml  # noqa: PLC0415

    from controlplane.render import RenderError, load  # noqa: PLC0415
    from controlplane.render import render as make  # noqa: PLC0415
    from controlplane.translate.decode import documents  # noqa: PLC0415

    try:
        told = documents(make(load(file.read_text(encoding="utf-8")), gateway_host, gateway_port))
    except (RenderError, UnicodeDecodeError) as error:
        fail(f"{file}: {error}", 3)
    if output is OutputFormat.JSON:
        typer.echo(json.dumps(told, indent=2))
    else:
        typer.echo(yaml.safe_dump(told, sort_keys=False, allow_unicode=True), nl=False)


@app.command()
def health(server: ServerUrl = "http://127.0.0.1:8090") -> None:
    """Print the control plane's health; exit 1 where it cannot be reached or is not ready."""
    import urllib.error  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    if not server.startswith(("http://", "https://")):
        fail(f"--server {server!r}: expected a URL that begins with http:// or https://", USAGE)
    try:
        with urllib.request.urlopen(f"{server.rstrip('/')}/health", timeout=5) as answer:  # noqa: S310
            typer.echo(answer.read().decode())
        with urllib.request.urlopen(f"{server.rstrip('/')}/readyz", timeout=5):  # noqa: S310
            pass
    except urllib.error.HTTPError as error:
        fail(f"not ready: {error.read().decode(errors='replace').strip()}", FAILED)
    except OSError as error:
        fail(f"cannot reach {server}: {error}", FAILED)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed  # noqa: PLC0415

    typer.echo(installed("service-discovery-controlplane"))


@config_app.command("check")
def config_check(config: ConfigFile = None) -> None:
    """Say whether the configuration is valid, naming every fault; exit 3 where it is not."""
    from controlplane.settings import SettingsError, load  # noqa: PLC0415

    try:
        load(os.environ, config_file=config)
    except SettingsError as error:
        fail(str(error), 3)
    typer.echo("the configuration is valid")


@config_app.command("show")
def config_show(
    config: ConfigFile = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
) -> None:
    """Print the settings in force; secrets are masked."""
    from controlplane.settings import SettingsError, load  # noqa: PLC0415

    try:
        loaded = load(os.environ, config_file=config)
    except SettingsError as error:
        fail(str(error), 3)
    for name, value in loaded.settings.model_dump(mode="json").items():
        shown = ",".join(value) if isinstance(value, list) else "" if value is None else value
        typer.echo(f"{name.upper()}={shown}" + (f"  # {loaded.origins[name]}" if origin else ""))


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the configuration file."""
    import json  # noqa: PLC0415

    from controlplane.settings import Settings  # noqa: PLC0415

    typer.echo(json.dumps(Settings.model_json_schema(), indent=2))


def host_and_port(value: str, option: str) -> tuple[str, int]:
    """Split HOST:PORT; an IPv6 host stands in brackets. Exit with usage where it is neither."""
    host, _, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        fail(f"{option} {value!r}: expected HOST:PORT with a port from 1 to 65535", USAGE)
    return host, int(port)


def fail(message: str, status: int) -> NoReturn:
    """Say what went wrong on stderr and exit."""
    typer.echo(message, err=True)
    raise typer.Exit(status)


def main() -> None:
    """Run the command line."""
    # grpc's handlers for fork() only complain when we start a process, which then replaces itself at once.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    app(prog_name="controlplane" if sys.argv[0].endswith("__main__.py") else None)
