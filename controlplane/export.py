"""What Envoys would be told, as a folder of files that an Envoy boots from and follows without a control plane (J-02).

    envoy.yaml         the bootstrap: `envoy -c DIR/envoy.yaml`
    cds.json lds.json  all clusters, all listeners
    eds/<name>.json    the assignment of one cluster
    rds/<name>.json    one route configuration

Each but the first is a whole DiscoveryResponse. JSON, because nothing in it can be read in two ways, and Envoy reads
it faster. `responses` is pure; `write` is the only part that touches a disk, and knows nothing of the network.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from controlplane.translate.decode import as_json
from controlplane.translate.names import file_of
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource, Snapshot

BOOTSTRAP = PurePath("envoy.yaml")
CLUSTERS = PurePath("cds.json")
LISTENERS = PurePath("lds.json")


class ExportError(Exception):
    """Report why a folder cannot be exported to, and what to do."""


def responses(snapshot: Snapshot) -> dict[PurePath, dict[str, Any]]:
    """Spell a snapshot as DiscoveryResponses by file; equal content gives equal documents.

    The snapshot's resources must refer to each other by files in the folder (`names.Source`).
    """
    documents = {
        file_of(type_url, name): _response(type_url, resource.version, [resource])
        for type_url in (ENDPOINT, ROUTE)
        for name, resource in snapshot.of_type(type_url).items()
    }
    for path, type_url in ((CLUSTERS, CLUSTER), (LISTENERS, LISTENER)):
        resources = snapshot.of_type(type_url)
        documents[path] = _response(type_url, resources.version, resources.ordered)
    return documents


def _response(type_url: str, version: str, resources: Iterable[Resource]) -> dict[str, Any]:
    return {
        "versionInfo": version,
        "typeUrl": type_url,
        "resources": [{"@type": type_url, **as_json(type_url, each.body)} for each in resources],
    }


def write(folder: Path, documents: Mapping[PurePath, Mapping[str, Any]], bootstrap: str) -> tuple[int, int]:
    """Bring a folder up to date; return how many files were written, and how many removed.

    An Envoy may be following it, so each file is moved into place whole, what is referred to before what refers to
    it, and what goes last of all: an old cluster stays in `cds.json` until the new routes are there, and its
    assignment until nothing names it (O-05). Files that hold what they should are left alone: a move is a change to
    Envoy.

    Raises ExportError where `cds.json` is there and not from an export, OSError where the disk refuses.
    """
    clusters = documents[CLUSTERS]
    kept = {each["name"] for each in clusters["resources"]}
    old = _clusters(folder / CLUSTERS)
    leaving = [each for each in old if each["name"] not in kept]
    steps = [(path, documents[path]) for path in _below("eds", documents)]
    both = sorted([*clusters["resources"], *leaving], key=lambda each: str(each["name"]))
    if both != old:
        version = f"{clusters['versionInfo']}+{len(leaving)}" if leaving else clusters["versionInfo"]
        steps.append((CLUSTERS, {**clusters, "versionInfo": version, "resources": both}))
    steps += [(path, documents[path]) for path in _below("rds", documents)]
    steps += [(LISTENERS, documents[LISTENERS]), (CLUSTERS, clusters)]
    written = {path for path, document in steps if _put(folder / path, json.dumps(document, indent=1) + "\n")}
    if _put(folder / BOOTSTRAP, bootstrap):
        written.add(BOOTSTRAP)
    for each in leaving:
        (folder / file_of(ENDPOINT, each["name"])).unlink(missing_ok=True)
    return len(written), len(leaving)


def _below(top: str, documents: Mapping[PurePath, object]) -> list[PurePath]:
    return sorted(path for path in documents if path.parts[0] == top)


def _clusters(path: Path) -> list[dict[str, Any]]:
    """Return the clusters of the last export, none where there was none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    try:
        return [each for each in json.loads(text)["resources"] if each["@type"] == CLUSTER and each["name"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} is not from an export of ours; name an empty folder, or remove it") from error


def _put(path: Path, text: str) -> bool:
    """Move a file with this text into place; False where it is there already.

    It is on the disk before it has its name: after a crash there is the old file or the new one, never half of one.
    """
    try:
        if path.read_text(encoding="utf-8") == text:
            return False
    except (FileNotFoundError, UnicodeDecodeError):
        path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return True
