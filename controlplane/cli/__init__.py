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

from controlplane.cli.output import Output, OutputFormat, show, table

FAILED = 1
USAGE = 2

ADMIN = "127.0.0.1:9901"

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
    """Name the forms of the xDS protocol."""

    DELTA = "delta"
    SOTW = "sotw"
    REST = "rest"


class RenderFormat(StrEnum):
    """Name the forms in which a rendered file is given: those of all commands, and a folder of files."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    FILES = "files"


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
    from controlplane.settings import SettingsError, load  # noqa: PLC0415

    try:
        loaded = load(os.environ, flags=flags, config_file=config)
    except SettingsError as error:
        fail(str(error), USAGE)
    # structlog imports rich where it can, for coloured tracebacks; a server prints none, and saves 3 MiB.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    # grpc reads this when it is imported. Its older way to listen spends a fifth less on a message (decision 8).
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    from controlplane.cli.run import run_serve  # noqa: PLC0415

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
    node: Annotated[str, typer.Option("--node", help="The client's node id.")],
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="The client's node cluster; an Envoy needs one.")
    ] = None,
    xds: Annotated[
        str | None,
        typer.Option(
            "--xds",
            help="HOST:PORT of the control plane, or of several with commas between; 127.0.0.1:18000, or with `rest` "
            "127.0.0.1:8090.",
        ),
    ] = None,
    protocol: Annotated[
        Protocol, typer.Option(help="Delta sends only what changed; rest polls the REST API, where gRPC cannot pass.")
    ] = Protocol.DELTA,
    admin: Annotated[str, typer.Option("--admin", help="HOST:PORT of Envoy's admin page.")] = ADMIN,
    gateway_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Listen here instead of the control plane's GATEWAY_PORT.")
    ] = None,
    grpc: Annotated[
        bool, typer.Option("--grpc", help="For a gRPC client without a proxy: JSON for GRPC_XDS_BOOTSTRAP.")
    ] = False,
    runtime_layer: Annotated[
        str | None, typer.Option(help="Take runtime values from the raw resource of this name (RTDS).")
    ] = None,
) -> None:
    """Print an Envoy bootstrap (YAML) that takes everything from this control plane; with --grpc, a gRPC client's."""
    from controlplane.bootstrap import bootstrap as make  # noqa: PLC0415
    from controlplane.bootstrap import grpc_bootstrap  # noqa: PLC0415

    own = "127.0.0.1:8090" if protocol is Protocol.REST and not grpc else "127.0.0.1:18000"
    control_planes = [host_and_port(each.strip(), "--xds") for each in (own if xds is None else xds).split(",")]
    if not node:
        fail("--node is empty: clients are told apart by it, such as `--node edge-1`", USAGE)
    if grpc:
        of_envoys = {
            "--protocol": protocol is not Protocol.DELTA,
            "--admin": admin != ADMIN,
            "--gateway-port": gateway_port is not None,
            "--runtime-layer": runtime_layer is not None,
        }
        if given := [option for option, is_given in of_envoys.items() if is_given]:
            fail(f"{', '.join(given)}: only an Envoy's bootstrap knows that; leave it out with --grpc", USAGE)
        text = grpc_bootstrap(node_id=node, cluster=cluster, xds=control_planes)
        typer.echo(text, nl=False)
        return
    if not cluster:
        fail("--cluster is missing: an Envoy needs one, such as `--cluster edge`", USAGE)
    admin_host, admin_port = host_and_port(admin, "--admin")
    text = make(
        node_id=node,
        cluster=cluster,
        xds=control_planes,
        protocol=protocol.value,
        admin_host=admin_host,
        admin_port=admin_port,
        gateway_port=gateway_port,
        runtime_layer=runtime_layer,
    )
    typer.echo(text, nl=not text.endswith("\n"))


@app.command()
def render(
    file: Annotated[Path, typer.Option("--file", "-f", exists=True, dir_okay=False, help="YAML file of services.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", file_okay=False, help="With `-o files`: the folder to write.")
    ] = None,
    output: Annotated[
        RenderFormat, typer.Option("--output", "-o", help="The form of what is printed; files go to DIR.")
    ] = RenderFormat.TABLE,
    gateway_host: Annotated[str, typer.Option(help="Address of the gateway listener.")] = "127.0.0.1",
    gateway_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the gateway listener.")] = 10000,
    admin: Annotated[str, typer.Option(help="With `-o files`: HOST:PORT of Envoy's admin page.")] = ADMIN,
) -> None:
    """Print what Envoys would be told of the services in a file, without a network; exit 3 where it has faults.

    The table lists the resources; JSON and YAML hold them in full. `-o files DIR` writes a folder that an Envoy boots
    from without a control plane (`envoy -c DIR/envoy.yaml`), and follows when it is written again.
    """
    if (output is RenderFormat.FILES) != (folder is not None):
        fail("`-o files` goes with the folder to write, and no other form does: render -f FILE -o files DIR", USAGE)
    if folder is not None:
        admin_host, admin_port = host_and_port(admin, "--admin")
        _render_files(file, folder, (gateway_host, gateway_port), (admin_host, admin_port))
        return
    from controlplane.render import RenderError, load  # noqa: PLC0415
    from controlplane.render import render as make  # noqa: PLC0415
    from controlplane.translate.decode import KINDS, documents  # noqa: PLC0415

    try:
        snapshot = make(load(file.read_text(encoding="utf-8")), gateway_host, gateway_port)
    except (RenderError, UnicodeDecodeError) as error:
        fail(f"{file}: {error}", 3)
    rows = [
        (kind, name, resource.version, len(resource.body))
        for type_url, kind in KINDS.items()
        for name, resource in sorted(snapshot.of_type(type_url).items())
    ]
    form = OutputFormat(output)
    in_full = {} if form is OutputFormat.TABLE else documents(snapshot)
    show(in_full, form, table(("KIND", "NAME", "VERSION", "BYTES"), rows))


def _render_files(file: Path, folder: Path, gateway: tuple[str, int], admin: tuple[str, int]) -> None:
    from controlplane.bootstrap import bootstrap_from_files  # noqa: PLC0415
    from controlplane.export import CLUSTERS, LISTENERS, ExportError, responses, write  # noqa: PLC0415
    from controlplane.render import RenderError, load  # noqa: PLC0415
    from controlplane.render import render as make  # noqa: PLC0415
    from controlplane.translate.names import Source, Transport  # noqa: PLC0415

    folder = folder.resolve()
    source = Source(transport=Transport.FILES, directory=str(folder))
    try:
        snapshot = make(load(file.read_text(encoding="utf-8")), *gateway, source)
    except (RenderError, UnicodeDecodeError) as error:
        fail(f"{file}: {error}", 3)
    try:
        text = bootstrap_from_files(
            clusters=str(folder / CLUSTERS),
            listeners=str(folder / LISTENERS),
            admin_host=admin[0],
            admin_port=admin[1],
        )
    except ValueError as error:
        fail(f"--admin: {error}", USAGE)
    try:
        written, removed = write(folder, responses(snapshot), text)
    except (ExportError, OSError) as error:
        fail(str(error), FAILED)
    typer.echo(f"{folder}: {written} files written, {removed} removed", err=True)


@app.command()
def health(server: ServerUrl = "http://127.0.0.1:8090", output: Output = OutputFormat.TABLE) -> None:
    """Print the control plane's health; exit 1 where it cannot be reached or is not ready."""
    import json  # noqa: PLC0415

    _require_url(server)
    text = _get(server, "/health")
    try:
        summary = json.loads(text)
    except ValueError:
        summary = None
    if not isinstance(summary, dict):
        fail(f"{server} is no control plane: it answers /health with something else than a JSON object", FAILED)
    show(summary, output, table([str(name).upper() for name in summary], [list(summary.values())]))
    _get(server, "/readyz")


def _require_url(server: str) -> None:
    from urllib.parse import urlsplit  # noqa: PLC0415

    try:
        url = urlsplit(server)
        whole = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:
        whole = False
    if not whole:
        fail(f"--server {server!r}: expected a URL such as http://127.0.0.1:8090", USAGE)


def _get(server: str, path: str) -> bytes:
    """Return what the server answers; exit with one line where it does not, or not with success."""
    import http.client  # noqa: PLC0415
    import urllib.error  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    try:
        try:
            with urllib.request.urlopen(server.rstrip("/") + path, timeout=5) as answer:  # noqa: S310
                body: bytes = answer.read()
                return body
        except urllib.error.HTTPError as error:
            said = " ".join(error.read().decode(errors="replace").split())
            fail(f"not ready: {path} answers {error.code}: {said}", FAILED)
    except (OSError, http.client.HTTPException) as error:
        fail(f"cannot reach {server}: {' '.join(str(error).split()) or type(error).__name__}", FAILED)
    except ValueError as error:
        fail(f"--server {server!r}: {error}", USAGE)


@app.command()
def version(output: Output = OutputFormat.TABLE) -> None:
    """Print the version."""
    from importlib.metadata import version as installed  # noqa: PLC0415

    number = installed("service-discovery-controlplane")
    show({"version": number}, output, number)


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
    output: Output = OutputFormat.TABLE,
) -> None:
    """Print the settings in force; secrets are masked."""
    from controlplane.settings import SettingsError, load  # noqa: PLC0415

    try:
        loaded = load(os.environ, config_file=config)
    except SettingsError as error:
        fail(str(error), 3)
    values = {name.upper(): value for name, value in loaded.settings.model_dump(mode="json").items()}
    origins = {name: str(loaded.origins[name.lower()]) for name in values}
    if origin:
        data: object = {name: {"value": value, "origin": origins[name]} for name, value in values.items()}
        text = table(
            ("SETTING", "VALUE", "ORIGIN"), [(name, _cell(value), origins[name]) for name, value in values.items()]
        )
    else:
        data = values
        text = table(("SETTING", "VALUE"), [(name, _cell(value)) for name, value in values.items()])
    show(data, output, text)


def _cell(value: object) -> object:
    """Return a setting as an environment variable would hold it."""
    return ",".join(map(str, value)) if isinstance(value, list) else "" if value is None else value


@config_app.command("schema")
def config_schema(output: Output = OutputFormat.JSON) -> None:
    """Print the JSON Schema of the configuration file; it has no form as a table, which prints JSON."""
    from controlplane.settings import Settings  # noqa: PLC0415

    form = OutputFormat.JSON if output is OutputFormat.TABLE else output
    show(Settings.model_json_schema(), form, "")


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
    # And its core writes to stderr, past our logs, whatever text a client puts into a GOAWAY.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    app(prog_name="controlplane" if sys.argv[0].endswith("__main__.py") else None)
