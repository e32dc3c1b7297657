"""Finding the servers' binaries: what a variable names, what was brought, what PATH has."""

import lzma
import subprocess
from pathlib import Path

import pytest
from servers import binaries
from servers.binaries import Binary, BinaryMissing

pytestmark = pytest.mark.unit

SERVER = Binary(name="server", variable="TEST_SERVER", remedy="`make tools` brings it")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for `.tools`, empty."""
    monkeypatch.setattr(binaries, "FOLDER", tmp_path / "tools")
    return tmp_path / "tools"


def executable(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\necho it runs\n")
    path.chmod(0o755)
    return path


def test_what_a_variable_names_wins_over_what_was_brought_and_that_over_path(tmp_path: Path, folder: Path) -> None:
    on_path = executable(tmp_path / "bin/server")
    brought = executable(folder / "server")
    named = executable(tmp_path / "own/server")
    path = str(on_path.parent)

    assert SERVER.path({"TEST_SERVER": str(named), "PATH": path}) == named
    assert SERVER.path({"PATH": path}) == brought
    brought.unlink()
    assert SERVER.path({"PATH": path}) == on_path


def test_a_variable_that_names_no_file_is_said_and_not_passed_over(folder: Path) -> None:
    executable(folder / "server")

    with pytest.raises(BinaryMissing, match="TEST_SERVER=/nowhere: there is no such file"):
        SERVER.path({"TEST_SERVER": "/nowhere", "PATH": ""})


def test_a_missing_server_comes_with_its_remedy() -> None:
    with pytest.raises(BinaryMissing, match="server is not here: `make tools` brings it"):
        SERVER.path({"PATH": ""})


def test_a_packed_binary_is_unpacked_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    packed = tmp_path / "server.xz"
    packed.write_bytes(lzma.compress(executable(tmp_path / "server").read_bytes()))
    environ = {"TEST_SERVER": str(packed), "PATH": ""}

    first = SERVER.path(environ)

    assert subprocess.check_output([first], text=True) == "it runs\n"
    assert SERVER.path(environ) == first
    packed.write_bytes(lzma.compress(b"#!/bin/sh\necho it runs anew\n"))
    assert subprocess.check_output([SERVER.path(environ)], text=True) == "it runs anew\n"
