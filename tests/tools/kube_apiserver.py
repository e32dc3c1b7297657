"""kube-apiserver, built from Debian's sources: no Debian package holds the binary.

The sources are bookworm's, the compiler is bullseye's Go 1.15: what a newer Go makes of these sources crashes at once.
Debian's patches are left out; they change kubectl alone. The OpenAPI definitions are no part of the sources: upstream's
build generates them from the types that are marked `+k8s:openapi-gen`, and so does this.
"""

import re
import shutil
from pathlib import Path

from tools.debian import Apt, ToolFailed, run

_SCRATCH_BYTES = 3 * 1024**3
_PACKAGE = "k8s.io/kubernetes"
_MARK = re.compile(r"^\s*//\s*\+k8s:openapi-gen=", re.MULTILINE)
_NOT_SERVED = {"code-generator", "sample-apiserver"}


def build(apt: Apt, work: Path) -> Path:
    """Build it in a folder and return the binary's path; a build that was interrupted goes on where it was.

    Raises:
        ToolFailed: there is no room, or a step failed.
    """
    if (free := shutil.disk_usage(work).free) < _SCRATCH_BYTES:
        raise ToolFailed(f"building kube-apiserver takes 3 GB in {work} for a while; there are {free / 1e9:.1f} free")
    archive = apt.source("kubernetes")
    version = version_of(archive)
    apt.unpack("golang-1.15-go", "golang-1.15-src", into=work / "go")
    root = _unpacked(archive, work / "path/src" / _PACKAGE)
    goroot = work / "go/usr/lib/go-1.15"
    go = goroot / "bin/go"
    environ = {
        "GOROOT": str(goroot),
        "GOPATH": str(work / "path"),
        "GOCACHE": str(work / "cache"),
        "GO111MODULE": "off",
        "GOPROXY": "off",
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
        "PATH": f"{go.parent}:/usr/bin:/bin",
    }
    generator, binary = work / "openapi-gen", work / "kube-apiserver"
    run(go, "build", "-o", generator, "./vendor/k8s.io/kube-openapi/cmd/openapi-gen", cwd=root, environ=environ)
    run(
        *(generator, "--input-dirs", ",".join(_marked(root)), "--output-package", f"{_PACKAGE}/pkg/generated/openapi"),
        *("--output-file-base", "zz_generated.openapi", "--report-filename", work / "violations"),
        *("--go-header-file", root / "vendor/k8s.io/code-generator/hack/boilerplate.go.txt"),
        cwd=root,
        environ=environ,
    )
    major, minor, _ = version.split(".")
    stamps = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}
    flags = " ".join(
        f"-X {_PACKAGE}/vendor/k8s.io/{holder}/version.{name}={value}"
        for holder in ("component-base", "client-go/pkg")
        for name, value in stamps.items()
    )
    run(
        *(go, "build", "-ldflags", f"-s -w {flags}", "-o", binary, "./cmd/kube-apiserver"),
        cwd=root,
        environ=environ,
        timeout_s=3600,
    )
    return binary


def version_of(archive: Path) -> str:
    """Read upstream's version from the archive's name, `kubernetes_1.20.5+really1.20.2.orig.tar.gz`.

    Raises:
        ToolFailed: there is none in it.
    """
    found = re.search(r"(\d+\.\d+\.\d+)\.orig\.tar", archive.name)
    if found is None:
        raise ToolFailed(f"{archive.name} does not say a version; was the package renamed?")
    return found[1]


def _unpacked(archive: Path, root: Path) -> Path:
    """Lay the sources out, whole or not at all."""
    if not root.exists():
        partial = root.with_name("partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        run("tar", "--extract", "--file", archive, "--strip-components=1", cwd=partial)
        partial.rename(root)
    return root


def _marked(root: Path) -> list[str]:
    """Return the packages whose types the OpenAPI definitions describe, by the path under which they are imported."""
    packages = set()
    for top in ("staging/src/k8s.io", "pkg", "cmd"):
        for file in (root / top).rglob("*.go"):
            name = file.name
            if name.endswith("_test.go") or name.startswith("zz_generated") or _NOT_SERVED & set(file.parts):
                continue
            if _MARK.search(file.read_text(errors="replace")):
                packages.add(str(file.parent.relative_to(root)))
    return [f"{_PACKAGE}/{re.sub('^staging/src/', 'vendor/', package)}" for package in sorted(packages)]
