"""Exported folders: whole discovery responses that refer to each other by path, changed without a gap."""

import json
import os
from pathlib import Path, PurePath
from typing import Any

import pytest

from controlplane import export
from controlplane.bootstrap import bootstrap_from_files
from controlplane.export import ExportError, responses
from controlplane.render import load, render
from controlplane.translate.names import Source, Transport, file_of
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE

pytestmark = pytest.mark.unit

TWO = "services: {web: {instances: [{id: a, host: 10.0.0.1, port: 80}]}, api: {}}"
ONE = "services: {web: {instances: [{id: a, host: 10.0.0.1, port: 80}]}}"
MOVED = "services: {web: {instances: [{id: a, host: 10.0.0.2, port: 80}]}}"


def documents(text: str, folder: Path) -> dict[PurePath, dict[str, Any]]:
    source = Source(transport=Transport.FILES, directory=str(folder))
    return responses(render(load(text), "127.0.0.1", 10000, source))


def write(text: str, folder: Path) -> tuple[int, int]:
    return export.write(folder, documents(text, folder), "bootstrap\n")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_a_folder_holds_a_whole_response_in_each_file(tmp_path: Path) -> None:
    assert write(TWO, tmp_path) == (6, 0)
    assert files(tmp_path) == {"cds.json", "eds/api.json", "eds/web.json", "envoy.yaml", "lds.json", "rds/gateway.json"}
    for name, type_url in {
        "cds.json": CLUSTER,
        "eds/web.json": ENDPOINT,
        "lds.json": LISTENER,
        "rds/gateway.json": ROUTE,
    }.items():
        response = read(tmp_path / name)
        assert response["typeUrl"] == type_url
        assert response["versionInfo"]
        assert {each["@type"] for each in response["resources"]} == {type_url}


def test_resources_refer_to_the_files_beside_them(tmp_path: Path) -> None:
    write(TWO, tmp_path)
    clusters = read(tmp_path / "cds.json")["resources"]
    paths = [each["edsClusterConfig"]["edsConfig"]["pathConfigSource"]["path"] for each in clusters]
    assert paths == [str(tmp_path / "eds/api.json"), str(tmp_path / "eds/web.json")]
    assert str(tmp_path / "rds/gateway.json") in (tmp_path / "lds.json").read_text()
    assert '"ads"' not in "".join((tmp_path / name).read_text() for name in ("cds.json", "lds.json"))


def test_only_files_that_change_are_moved(tmp_path: Path) -> None:
    write(ONE, tmp_path)
    before = {name: (tmp_path / name).stat().st_ino for name in files(tmp_path)}
    assert write(ONE, tmp_path) == (0, 0)
    assert write(MOVED, tmp_path) == (1, 0)
    after = {name: (tmp_path / name).stat().st_ino for name in files(tmp_path)}
    assert {name for name in before if before[name] != after[name]} == {"eds/web.json"}


def test_what_goes_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O-05: clusters stay until the routes are gone, assignments until the clusters are."""
    write(TWO, tmp_path)
    seen: list[tuple[str, list[str]]] = []
    move = Path.replace

    def watched(self: Path, target: Path) -> Path:
        moved = move(self, target)
        names = [each["name"] for each in read(tmp_path / "cds.json")["resources"]]
        assert all((tmp_path / file_of(ENDPOINT, name)).exists() for name in names)
        seen.append((str(target.relative_to(tmp_path)), names))
        return moved

    monkeypatch.setattr(Path, "replace", watched)
    assert write(MOVED, tmp_path) == (3, 1)
    assert seen == [
        ("eds/web.json", ["api", "web"]),
        ("rds/gateway.json", ["api", "web"]),
        ("cds.json", ["web"]),
    ]
    assert "eds/api.json" not in files(tmp_path)


def test_an_old_cluster_stays_beside_a_new_one_until_the_routes_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("services: {old: {}}", tmp_path)
    seen: list[tuple[str, list[str]]] = []
    move = Path.replace

    def watched(self: Path, target: Path) -> Path:
        moved = move(self, target)
        seen.append((target.name, [each["name"] for each in read(tmp_path / "cds.json")["resources"]]))
        return moved

    monkeypatch.setattr(Path, "replace", watched)
    write("services: {new: {}}", tmp_path)
    assert seen == [
        ("new.json", ["old"]),
        ("cds.json", ["new", "old"]),
        ("gateway.json", ["new", "old"]),
        ("cds.json", ["new"]),
    ]


def test_a_disk_that_refuses_leaves_the_old_file_whole_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(ONE, tmp_path)
    before = {name: (tmp_path / name).read_text() for name in files(tmp_path)}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(MOVED, tmp_path)
    assert {name: (tmp_path / name).read_text() for name in files(tmp_path)} == before


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"resources": [{"name": "web"}]}'])
def test_a_folder_of_somebody_elses_is_left_alone(text: str, tmp_path: Path) -> None:
    (tmp_path / "cds.json").write_text(text)
    with pytest.raises(ExportError, match=r"cds\.json is not from an export of ours; name an empty folder"):
        write(ONE, tmp_path)
    assert files(tmp_path) == {"cds.json"}


def test_the_longest_service_name_still_makes_a_file(tmp_path: Path) -> None:
    name = "a" * 253
    write(f"services: {{{name}: {{}}}}", tmp_path)
    assert read(tmp_path / file_of(ENDPOINT, name))["resources"][0]["clusterName"] == name


def test_the_bootstrap_refuses_an_admin_host_that_envoy_could_not_bind() -> None:
    with pytest.raises(ValueError, match="needs an IP address"):
        bootstrap_from_files(clusters="/c", listeners="/l", admin_host="envoy.local", admin_port=1)
