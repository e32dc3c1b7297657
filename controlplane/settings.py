"""What the operator decided: one frozen value, with the origin of each part.

Order: defaults < profile (`ENVIRONMENT`) < YAML file < environment < flags. Names are those of the
environment, lower-case in the file and here. All faults are reported at once; values that belong to nobody we
know are faults in the file and in flags, and ignored in the environment, which we share with others.
"""

import difflib
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

DEVELOPMENT: Literal["development"] = "development"

Port = Annotated[int, Field(ge=0, le=65535)]
"""A port to listen on; 0 = any free one."""

RemotePort = Annotated[int, Field(ge=1, le=65535)]
PositiveSeconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""A part of a whole, 0 to 1."""


def _age(value: float) -> float:
    if 0 < value < 1:
        raise ValueError("must be 0 (streams last for ever) or at least 1: proxies reconnect at the end of it")
    return value


StreamAge = Annotated[float, Field(ge=0, le=604_800, allow_inf_nan=False), AfterValidator(_age)]
"""Seconds after which a stream is ended, a tenth more or less; 0 = never."""


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError("must be an IP address: Envoy binds it as it is") from None


def _consul_hosts(value: str) -> str:
    if "://" in value or not all(part.strip() for part in value.split(",")):
        raise ValueError("must be a host or host:port, or several with commas between; CONSUL_SCHEME says https")
    return value


def _etcd_endpoint(value: str) -> str:
    if not value.rstrip("/").rpartition(":")[2].isdecimal():
        raise ValueError("must be host:port, such as localhost:2379; https:// may stand before it")
    return value


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


RegistryType = Literal["memory", "consul", "etcd", "kubernetes"]
CommaList = Annotated[tuple[str, ...], BeforeValidator(_split)]
EtcdEndpoints = Annotated[tuple[Annotated[str, AfterValidator(_etcd_endpoint)], ...], BeforeValidator(_split)]


class SettingsError(Exception):
    """Report every fault of the configuration, one a line."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("the configuration has faults:\n" + "\n".join(f"  - {fault}" for fault in faults))
        self.faults = faults


class Settings(BaseModel):
    """Hold every setting, valid. Durations are in seconds. A secret can also be given as `<NAME>_FILE`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    environment: Literal["development", "production", "kubernetes"] = DEVELOPMENT
    service_name: str = "service-discovery"
    service_host: str = "0.0.0.0"
    service_port: Port = 8090
    allow_anonymous: bool = False
    data_dir: Path | None = None

    registry_type: Annotated[tuple[RegistryType, ...], BeforeValidator(_split), Field(min_length=1)] = ("memory",)
    registry_optional: CommaList = ()
    cache_ttl: Annotated[float, Field(ge=1, le=86_400, allow_inf_nan=False)] = 30.0
    guard_hold: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 600.0
    guard_window: PositiveSeconds = 10.0
    guard_service_share: Share = 0.5
    guard_service_minimum: Annotated[int, Field(ge=1, le=1_000_000)] = 4
    guard_total_share: Share = 0.2
    guard_total_minimum: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    consul_host: Annotated[str, AfterValidator(_consul_hosts)] = "localhost"
    consul_port: RemotePort = 8500
    consul_scheme: Literal["http", "https"] = "http"
    consul_token: SecretStr | None = None
    consul_datacenter: str | None = None
    consul_ca_file: Path | None = None
    consul_cert_file: Path | None = None
    consul_key_file: Path | None = None
    etcd_endpoints: EtcdEndpoints = ("localhost:2379",)
    etcd_prefix: str = "/services/"
    etcd_username: str | None = None
    etcd_password: SecretStr | None = None
    etcd_ca_file: Path | None = None
    etcd_cert_file: Path | None = None
    etcd_key_file: Path | None = None
    kubeconfig: str | None = None
    kubernetes_namespaces: CommaList = ()
    kubernetes_label_selector: str = ""
    pod_namespace: str | None = None

    xds_host: str = "0.0.0.0"
    xds_port: Port = 18000
    xds_max_stream_age: StreamAge = 1800.0
    gateway_host: Annotated[str, AfterValidator(_address)] = "0.0.0.0"
    gateway_port: RemotePort = 10000

    health_check_enabled: bool = True
    health_check_interval: PositiveSeconds = 30.0
    health_check_timeout: PositiveSeconds = 10.0
    health_check_scripts_dir: Path | None = None

    tls_enabled: bool = False
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_ca_file: Path | None = None
    tls_client_auth: Literal["none", "optional", "required"] = "none"
    xds_tls_client_auth: Literal["none", "required"] = "none"
    api_key_enabled: bool = False
    api_keys_file: Path | None = None
    jwt_enabled: bool = False
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_jwks_url: str | None = None
    jwt_jwks_file: Path | None = None
    jwt_roles_claim: str = "roles"

    metrics_enabled: bool = True
    metrics_auth: bool = False
    tracing_enabled: bool = False
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)] = "INFO"
    log_format: Literal["json", "console"] = "json"


PROFILES: Mapping[str, Mapping[str, object]] = {
    DEVELOPMENT: {
        "service_host": "127.0.0.1",
        "xds_host": "127.0.0.1",
        "gateway_host": "127.0.0.1",
        "log_level": "DEBUG",
        "log_format": "console",
    },
    "production": {},
    "kubernetes": {"registry_type": ("kubernetes",)},
}

SECRETS = frozenset(name for name, info in Settings.model_fields.items() if info.annotation == SecretStr | None)

_SHOWN_MAX = 80
"""Characters of a faulty value that are told."""

# What this version does not carry yet: asking for it must stop the start, not be passed over in silence.
_ABSENT: Mapping[str, str] = {
    "tls_enabled": "TLS on our ports",
    "api_key_enabled": "authentication by API key",
    "jwt_enabled": "authentication by JWT",
    "metrics_auth": "authentication of /metrics",
    "tracing_enabled": "tracing",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Hold the settings, where each value came from, and what the operator should be told."""

    settings: Settings
    origins: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def load(
    environ: Mapping[str, str], *, flags: Mapping[str, object] | None = None, config_file: Path | None = None
) -> Loaded:
    """Merge all sources and validate the result.

    `flags` are settings by name; None values count as not given. The file is `config_file`, else `CONFIG_FILE`.

    Raises SettingsError with every fault at once.
    """
    faults: list[str] = []
    warnings: list[str] = []
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    path = config_file or (Path(environ["CONFIG_FILE"]) if environ.get("CONFIG_FILE") else None)
    from_file = _read_file(path, faults) if path is not None else {}
    from_env = _read_environ(environ, warnings, faults)
    for source, values in ((f"file {path}", from_file), ("flags", given)):
        faults += [_unknown(name, source) for name in values if name not in Settings.model_fields]

    environment = next(
        (str(values["environment"]) for values in (given, from_env, from_file) if "environment" in values),
        DEVELOPMENT,
    )
    merged: dict[str, object] = {}
    origins = dict.fromkeys(Settings.model_fields, "default")
    layers: tuple[tuple[str, Mapping[str, object]], ...] = (
        (f"profile {environment}", PROFILES.get(environment, {})),
        (f"file {path}", from_file),
        ("environment", from_env),
        ("flags", given),
    )
    for origin, layer in layers:
        known = {name: value for name, value in layer.items() if name in Settings.model_fields}
        merged.update(known)
        origins.update(dict.fromkeys(known, origin))

    settings = _validated(merged, origins, faults)
    faults += _refusals(settings)
    if faults:
        raise SettingsError(faults)
    return Loaded(settings=settings, origins=origins, warnings=tuple(warnings))


def _validated(merged: Mapping[str, object], origins: Mapping[str, str], faults: list[str]) -> Settings:
    """Return the settings; where values are faulty, say so and leave them out, so that the rest is judged too."""
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
    kept = dict(merged)
    for fault in found:
        name = str(fault["loc"][0])
        # The input of an element is the element; that of a value may have been changed on the way to its check.
        value = fault["input"] if len(fault["loc"]) > 1 else merged[name]
        shown = "" if name in SECRETS else f", found {_shown(value)}"
        faults.append(f"{name.upper()} ({origins[name]}): {fault['msg']}{shown}")
        kept.pop(name, None)
    for name in {str(fault["loc"][0]) for fault in found if len(fault["loc"]) > 1}:
        bad = {fault["loc"][1] for fault in found if fault["loc"][0] == name}
        if rest := tuple(part for at, part in enumerate(_split(merged[name])) if at not in bad):
            kept[name] = rest
    return Settings.model_validate(kept)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…"


def _refusals(settings: Settings) -> list[str]:
    """Say what is valid value by value and yet cannot be started with."""
    faults = [
        f"{name.upper()}: {what} is not part of this version; leave it off"
        for name, what in _ABSENT.items()
        if getattr(settings, name)
    ]
    faults += [
        f"{name.upper()}={value} asks for client certificates, which there are with TLS only; set it to none"
        for name in ("tls_client_auth", "xds_tls_client_auth")
        if (value := getattr(settings, name)) != "none" and not settings.tls_enabled
    ]
    if twice := sorted({name for name in settings.registry_type if settings.registry_type.count(name) > 1}):
        faults.append(f"REGISTRY_TYPE: {', '.join(twice)} is named twice; name each registry once")
    for prefix in ("consul", "etcd"):
        cert, key = (getattr(settings, f"{prefix}_{part}_file") for part in ("cert", "key"))
        if (cert is None) != (key is None):
            given, missing = ("CERT", "KEY") if key is None else ("KEY", "CERT")
            faults.append(f"{prefix.upper()}_{given}_FILE is set without {prefix.upper()}_{missing}_FILE; set both")
    if settings.consul_scheme == "http" and (settings.consul_ca_file or settings.consul_cert_file):
        faults.append("CONSUL_CA_FILE and CONSUL_CERT_FILE are for https; set CONSUL_SCHEME=https, or leave them off")
    if (settings.etcd_username is None) != (settings.etcd_password is None):
        faults.append("ETCD_USERNAME and ETCD_PASSWORD go together; set both, or neither")
    if not settings.etcd_endpoints:
        faults.append("ETCD_ENDPOINTS is empty; name at least one member, such as localhost:2379")
    if absent := [name for name in settings.registry_optional if name not in settings.registry_type]:
        there = ",".join(settings.registry_type)
        faults.append(f"REGISTRY_OPTIONAL: {', '.join(absent)} is not in REGISTRY_TYPE, which is {there}")
    elif not set(settings.registry_type).difference(settings.registry_optional):
        faults.append(
            "REGISTRY_OPTIONAL names every registry of REGISTRY_TYPE, so that nothing would be waited for and proxies "
            "be told that there is nothing; leave out at least one"
        )
    folder = settings.health_check_scripts_dir
    if folder is not None and not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises where it may not look
        faults.append(f"HEALTH_CHECK_SCRIPTS_DIR: there is no folder {str(folder)!r}")
    if settings.environment != DEVELOPMENT and not settings.allow_anonymous:
        faults.append(
            f"ENVIRONMENT={settings.environment} without any authentication is refused, because everyone who "
            "reaches the ports could change routing; set ALLOW_ANONYMOUS=true to accept that"
        )
    return faults


def _unknown(name: str, source: str) -> str:
    near = difflib.get_close_matches(name, Settings.model_fields, n=1)
    return f"{name} ({source}): no such setting" + (f"; did you mean {near[0]}?" if near else "")


def _read_file(path: Path, faults: list[str]) -> dict[str, object]:
    import yaml  # noqa: PLC0415 - most processes have no file, and this is a MiB

    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, yaml.SafeLoader)
        document = yaml.safe_load(text)
    except OSError as error:
        faults.append(f"config file {path}: {error.strerror or error}")
        return {}
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, no such date
        faults.append(f"config file {path}: not YAML: {' '.join(str(error).split())}")
        return {}
    if document is None:
        return {}
    if (
        not isinstance(tree, yaml.MappingNode)
        or not isinstance(document, dict)
        or not all(isinstance(name, str) for name in document)
    ):
        faults.append(f"config file {path}: expected a mapping of setting names to values")
        return {}
    lines: dict[str, list[str]] = {}
    for key, _ in tree.value:
        lines.setdefault(str(key.value).lower(), []).append(str(key.start_mark.line + 1))
    faults += [
        f"config file {path}: {name} is given more than once, in lines {', '.join(at)}"
        for name, at in lines.items()
        if len(at) > 1
    ]
    return {name.lower(): value for name, value in document.items()}


def _read_environ(environ: Mapping[str, str], warnings: list[str], faults: list[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for name in Settings.model_fields:
        key = name.upper()
        value = environ.get(key)
        if name in SECRETS and value is None and (path := environ.get(f"{key}_FILE")):
            try:
                value = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                faults.append(f"{key}_FILE: cannot read {path}: {error}")
        if value is None or value == "":
            continue
        if key.endswith("_PORT") and value.startswith("tcp://"):
            warnings.append(f"{key}={value} looks like a Kubernetes service link and is ignored")
            continue
        values[name] = value
    return values
