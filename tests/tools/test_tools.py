"""What `make tools` promises: it makes nothing twice, keeps nothing that does not run, and says what went wrong."""

from pathlib import Path

import pytest
from servers import binaries
from servers.binaries import Binary
from tools import __main__ as tools
from tools.debian import ToolFailed, run
from tools.kube_apiserver import version_of

pytestmark = pytest.mark.unit

SERVER = Binary(name="server-of-this-test", variable="TEST_SERVER_OF_THIS_TEST", remedy="`make tools` brings it")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for `.tools`, empty."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setattr(binaries, "FOLDER", folder)
    monkeypatch.setattr(tools, "FOLDER", folder)
    return folder


def made(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_what_was_made_is_kept_and_not_made_again(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def make() -> Path:
        asked.append("once")
        return made(tmp_path / "built", 'echo "server $1"')

    tools.bring(SERVER, ("version",), make)
    tools.bring(SERVER, ("version",), make)

    assert asked == ["once"]
    assert SERVER.path({"PATH": ""}) == folder / SERVER.name
    assert capsys.readouterr().out.count("server version") == 2


def test_what_does_not_run_is_not_kept(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ToolFailed, match="not for this machine"):
        tools.bring(SERVER, ("version",), lambda: made(tmp_path / "built", "echo not for this machine; exit 126"))

    assert list(folder.iterdir()) == []


def test_a_command_that_does_not_end_is_ended_and_said(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match="sleep did not end within"):
        run("sleep", "60", cwd=tmp_path, timeout_s=0.1)


def test_the_version_is_upstreams_and_not_the_one_that_debian_had_to_pretend() -> None:
    assert version_of(Path("kubernetes_1.20.5+really1.20.2.orig.tar.gz")) == "1.20.2"
    with pytest.raises(ToolFailed, match="does not say a version"):
        version_of(Path("kubernetes.tar.gz"))
