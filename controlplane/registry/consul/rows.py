"""How an instance is spelled in Consul's catalog, and how what is in there is read. Pure.

Ours lie on a node of their own, which no agent looks after, under the id `<service>/<instance id>`. What Consul has a
field for stands in that field, so that Consul's users read it as ever; the rest is JSON in meta keys that begin with
`service-discovery-`. What agents have registered is read with its checks.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from controlplane.model import HealthStatus, Instance, InstanceId, InstanceKey, MetadataValue, ServiceName
from controlplane.registry import ReadOnly
from controlplane.registry.documents import Unreadable, instance_body, read_instance

NODE = "service-discovery"
"""The node that our instances lie on. `external-node` tells Consul's own tools that no agent runs there."""

REGISTER_NODE = {
    "Node": {
        "Verb": "set",
        "Node": {"Node": NODE, "Address": "127.0.0.1", "Meta": {"external-node": "true", "external-probe": "false"}},
    }
}

_OURS = "service-discovery-"
_REMOVE_AT = "service-discovery-remove-at"
_PART = "service-discovery-instance-"
_TTL_CHECK = "service-discovery-ttl:"
_SERVICE_MAINTENANCE = "_service_maintenance:"
_NODE_MAINTENANCE = "_node_maintenance"

_PAIRS_MAX = 64
_KEY_MAX = 128
_VALUE_MAX = 512
_PLAIN_MAX = 40
"""How many of an instance's metadata become meta pairs of their own; what is left of Consul's 64 is for the JSON."""
_META_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9._:-]")
_PLACE = ("region", "zone", "sub_zone")

_WORST = {"critical": HealthStatus.UNHEALTHY, "warning": HealthStatus.DEGRADED, "passing": HealthStatus.HEALTHY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Hold one instance as Consul has it.

    `stated` is what Consul's checks say of it, with the reason; None where it has none, or has checks of ours.
    `index` is Consul's index of its last change, `service_index` without its checks, `ttl_index` that of its ttl check.
    `expired`: its ttl ran out, and it is no more, except that a person sees it in Consul for a while.
    `remove_at`: when it is to be removed, in seconds since the epoch.
    """

    key: InstanceKey
    instance: Instance
    own: bool
    node: str
    service_id: str
    index: int
    service_index: int
    stated: tuple[HealthStatus, str] | None = None
    ttl_index: int | None = None
    expired: bool = False
    maintained: bool = False
    remove_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusable:
    """Say why an instance in Consul cannot be used; `key` where it would be that instance."""

    place: str
    why: str
    key: InstanceKey | None


def service_of(instance: Instance, remove_at: float | None) -> dict[str, Any]:
    """Spell an instance as a service of Consul's. Raises ReadOnly where it does not fit in there."""
    plain = {
        name: value
        for name, value in sorted(instance.metadata.items())
        if isinstance(value, str)
        and _META_KEY.fullmatch(name)
        and not name.startswith((_OURS, "consul-"))
        and len(value.encode()) <= _VALUE_MAX
    }
    plain = dict(list(plain.items())[:_PLAIN_MAX])
    values = orjson.loads(instance_body(instance))
    rest: dict[str, Any] = {
        name: values[name] for name in ("ttl", "draining", "locality", "health_check") if values[name]
    }
    if rest.get("locality") == dict.fromkeys(_PLACE, ""):
        del rest["locality"]
    if others := {name: value for name, value in instance.metadata.items() if name not in plain}:
        rest["metadata"] = others
    meta = dict(plain)
    if remove_at is not None:
        meta[_REMOVE_AT] = repr(remove_at)
    if rest:
        text = json.dumps(rest, separators=(",", ":"))  # ASCII, so that it can be cut anywhere
        parts = [text[at : at + _VALUE_MAX] for at in range(0, len(text), _VALUE_MAX)]
        meta |= {f"{_PART}{number}": part for number, part in enumerate(parts)}
    if len(meta) > _PAIRS_MAX:
        raise ReadOnly(
            f"instance {instance.key}: metadata and health_check do not fit into Consul's {_PAIRS_MAX} pairs of "
            f"{_VALUE_MAX} characters; shorten or drop some metadata"
        )
    return {
        "ID": str(instance.key),
        "Service": instance.name,
        "Address": instance.host,
        "Port": instance.port,
        "Tags": list(instance.tags),
        "Meta": meta,
        "Weights": {"Passing": instance.weight, "Warning": instance.weight},
    }


def put_operations(instance: Instance, remove_at: float | None, replaced: Row | None) -> list[dict[str, Any]]:
    """Return the operations that store an instance in place of `replaced`, with the checks that show it to people."""
    service = {**service_of(instance, remove_at), "ModifyIndex": 0 if replaced is None else replaced.service_index}
    operations: list[dict[str, Any]] = [{"Service": {"Verb": "cas", "Node": NODE, "Service": service}}]
    if instance.ttl is not None:
        operations.append(_ttl_check(instance.key, "passing", instance.ttl))
    elif replaced is not None and replaced.ttl_index is not None:
        operations.append(_drop_check(f"{_TTL_CHECK}{instance.key}"))
    if instance.draining:
        operations.append(_maintenance_check(instance.key))
    elif replaced is not None and replaced.maintained:
        operations.append(_drop_check(f"{_SERVICE_MAINTENANCE}{instance.key}"))
    return operations


def delete_operations(row: Row, *, unchanged: bool = False, unrevived: bool = False) -> list[dict[str, Any]]:
    """Return the operations that remove an instance, and with it its checks.

    `unchanged`: only where it is as `row` says; `unrevived`: only where its ttl check is.
    """
    service = {"ID": row.service_id, "Service": row.instance.name, "ModifyIndex": row.service_index}
    delete = {"Service": {"Verb": "delete-cas" if unchanged else "delete", "Node": row.node, "Service": service}}
    return [*(expire_operations(row) if unrevived else ()), delete]


def confirm_operations(row: Row) -> list[dict[str, Any]]:
    """Return the operations that read an instance of ours as it is now, for `row_of`."""
    service = {"ID": row.service_id, "Service": row.instance.name}
    operations: list[dict[str, Any]] = [{"Service": {"Verb": "get", "Node": NODE, "Service": service}}]
    if row.ttl_index is not None:
        check = {"Node": NODE, "CheckID": f"{_TTL_CHECK}{row.key}"}
        operations.append({"Check": {"Verb": "get", "Check": check}})
    return operations


def expire_operations(row: Row) -> list[dict[str, Any]]:
    """Return the operation that says that a ttl ran out, provided that nobody has said anything since."""
    check = _ttl_check(row.key, "critical", row.instance.ttl or 0)
    check["Check"]["Verb"] = "cas"
    check["Check"]["Check"]["ModifyIndex"] = row.ttl_index or 0
    return [check]


def read_rows(name: str, found: Iterable[Mapping[str, Any]]) -> tuple[list[Row], list[Unusable]]:
    """Read all instances of a service, as `/v1/health/service` lists them.

    Ids of services are unique on their node only, so one that several nodes have is told apart by the node: the lowest
    node keeps it as it is, except the service's own name, Consul's default, which always gets its node.
    """
    rows: dict[InstanceKey, Row] = {}
    unusable: list[Unusable] = []
    for each in sorted(found, key=lambda each: (each["Node"]["Node"] != NODE, each["Node"]["Node"])):
        service, node = each["Service"], each["Node"]["Node"]
        plain = _instance_id(name, service["ID"])
        candidates = [plain, f"{plain}:{node}"] if service["ID"] != name or node == NODE else [f"{plain}:{node}"]
        ids = [_NOT_IN_IDS.sub("-", candidate)[:253] for candidate in candidates]
        key = next(
            (key for each_id in ids if (key := InstanceKey(ServiceName(name), InstanceId(each_id))) not in rows),
            None,
        )
        place = f"{node}: {service['ID']}"
        if key is None:
            unusable.append(Unusable(place=place, why="another instance has that id", key=None))
            continue
        try:
            rows[key] = _own_row(key, each) if node == NODE else _foreign_row(key, each, unusable)
        except Unreadable as error:
            unusable.append(Unusable(place=place, why=str(error), key=key))
    return list(rows.values()), unusable


def row_of(results: Iterable[Mapping[str, Any]]) -> Row:
    """Read an instance of ours from what the transaction that stored it says."""
    service = next(each["Service"] for each in results if "Service" in each)
    checks = [each["Check"] for each in results if "Check" in each]
    key = InstanceKey(ServiceName(service["Service"]), _instance_id(service["Service"], service["ID"]))
    return _own_row(key, {"Node": {"Node": NODE}, "Service": service, "Checks": checks})


def _own_row(key: InstanceKey, each: Mapping[str, Any]) -> Row:
    service = each["Service"]
    meta: Mapping[str, str] = service["Meta"] or {}
    parts: list[str] = []
    while (part := meta.get(f"{_PART}{len(parts)}")) is not None:
        parts.append(part)
    try:
        rest = orjson.loads("".join(parts)) if parts else {}
        remove_at = float(meta[_REMOVE_AT]) if _REMOVE_AT in meta else None
    except ValueError as error:
        raise Unreadable(f"the JSON in its {_PART}… meta keys, or its {_REMOVE_AT}, is broken: {error}") from None
    if not isinstance(rest, dict) or not isinstance(rest.get("metadata", {}), dict):
        raise Unreadable(f"the JSON in its {_PART}… meta keys must be an object, and so must its metadata")
    ttl = maintained = None
    stating = []
    for check in each["Checks"] or ():
        if check["CheckID"] == f"{_TTL_CHECK}{service['ID']}":
            ttl = check
        elif check["CheckID"].startswith((_SERVICE_MAINTENANCE, _NODE_MAINTENANCE)):
            maintained = check
        else:
            stating.append(check)
    plain = {name: value for name, value in meta.items() if not name.startswith(_OURS)}
    instance = _instance(
        key,
        each,
        {
            **rest,
            "metadata": {**plain, **rest.get("metadata", {})},
            "draining": bool(rest.get("draining", False)) or maintained is not None,
        },
    )
    return Row(
        key=key,
        instance=instance,
        own=True,
        node=NODE,
        service_id=service["ID"],
        index=_last_change(each),
        service_index=service["ModifyIndex"],
        stated=None if instance.checked else _stated(stating),
        ttl_index=None if ttl is None else ttl["ModifyIndex"],
        expired=ttl is not None and ttl["Status"] == "critical",
        maintained=maintained is not None,
        remove_at=remove_at if instance.draining else None,
    )


def _foreign_row(key: InstanceKey, each: Mapping[str, Any], unusable: list[Unusable]) -> Row:
    service, node = each["Service"], each["Node"]
    checks = list(each["Checks"] or ())
    maintenance = [each for each in checks if each["CheckID"].startswith((_SERVICE_MAINTENANCE, _NODE_MAINTENANCE))]
    meta: Mapping[str, str] = service["Meta"] or {}
    places = {**{place: (node.get("Meta") or {}).get(place, "") for place in _PLACE}, **_chosen(meta, _PLACE)}
    metadata: dict[str, MetadataValue] = dict(sorted(meta.items())[:_PAIRS_MAX])
    values = {"metadata": metadata, "locality": places, "draining": bool(maintenance)}
    tags = [tag for tag in service["Tags"] or () if re.fullmatch(r"[^,\s]{1,128}", tag)]
    if len(tags) < len(service["Tags"] or ()):
        why = "tags with spaces or commas, or of more than 128 characters, are left out; the instance is used"
        unusable.append(Unusable(place=f"{node['Node']}: {service['ID']}: tags", why=why, key=None))
    return Row(
        key=key,
        instance=_instance(key, {**each, "Service": {**service, "Tags": tags[:64]}}, values),
        own=False,
        node=node["Node"],
        service_id=service["ID"],
        index=_last_change(each),
        service_index=service["ModifyIndex"],
        stated=_stated([check for check in checks if check not in maintenance]),
        maintained=bool(maintenance),
    )


def _instance(key: InstanceKey, each: Mapping[str, Any], values: Mapping[str, Any]) -> Instance:
    service = each["Service"]
    weight = (service.get("Weights") or {}).get("Passing", 1)
    spelled = {
        **values,
        "host": service["Address"] or each["Node"].get("Address", ""),
        "port": service["Port"],
        "tags": service["Tags"] or [],
        "weight": min(max(weight, 1), 1000),
    }
    return read_instance(orjson.dumps(spelled), key)


def _stated(checks: list[Mapping[str, Any]]) -> tuple[HealthStatus, str] | None:
    """Return the worst that the checks say, and which say so; not their output, which changes all the time."""
    for state, status in _WORST.items():
        names = sorted(check["Name"] or check["CheckID"] for check in checks if check["Status"] == state)
        if names:
            return status, f"{state}: {', '.join(names)}"[:500]
    return None


def _last_change(each: Mapping[str, Any]) -> int:
    return max(int(found["ModifyIndex"]) for found in (each["Service"], *(each["Checks"] or ())))


def _instance_id(name: str, service_id: str) -> InstanceId:
    return InstanceId(service_id.removeprefix(f"{name}/"))


def _chosen(values: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    return {name: values[name] for name in names if name in values}


def _ttl_check(key: InstanceKey, status: str, ttl: float) -> dict[str, Any]:
    output = f"no heartbeat for {ttl:g} s" if status == "critical" else ""
    return _check(
        key, f"{_TTL_CHECK}{key}", "heartbeat", status, f"renewed through the control plane; {ttl:g} s", output
    )


def _maintenance_check(key: InstanceKey) -> dict[str, Any]:
    return _check(key, f"{_SERVICE_MAINTENANCE}{key}", "Service Maintenance Mode", "critical", "draining", "")


def _check(key: InstanceKey, check_id: str, name: str, status: str, notes: str, output: str) -> dict[str, Any]:
    check = {
        "Node": NODE,
        "CheckID": check_id,
        "Name": name,
        "Status": status,
        "Notes": notes,
        "Output": output,
        "ServiceID": str(key),
        "ServiceName": key.service,
    }
    return {"Check": {"Verb": "set", "Check": check}}


def _drop_check(check_id: str) -> dict[str, Any]:
    return {"Check": {"Verb": "delete", "Check": {"Node": NODE, "CheckID": check_id}}}
