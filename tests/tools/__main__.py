"""Bring the servers that the tests run and that no Python package holds: `make tools`.

They land in `.tools/`, which git ignores. What is there already, on `PATH`, or named by a variable is left alone; a run
that was interrupted goes on where it was. Exits with 1 where something is still missing, having said what and why.
"""

import fcntl
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from servers.binaries import CONSUL, FOLDER, KUBE_APISERVER, Binary, BinaryMissing
from tools import kube_apiserver
from tools.debian import Apt, ToolFailed, run

WORK = FOLDER / "work"


def consul(apt: Apt) -> Path:
    """Fetch bullseye's Consul, the newest that Debian has."""
    print("bringing Consul (15 MB)", flush=True)
    apt.unpack("consul", into=WORK / "consul")
    return WORK / "consul/usr/bin/consul"


def kubernetes(apt: Apt) -> Path:
    """Build kube-apiserver."""
    print("building kube-apiserver from Debian's sources (once; 3 minutes and 3 GB of scratch)", flush=True)
    return kube_apiserver.build(apt, WORK)


def bring(binary: Binary, version: tuple[str, ...], make: Callable[[], Path]) -> None:
    """Make sure that a server is there and can say its version.

    Raises:
        ToolFailed: it could not be brought, or what is there does not run.
        BinaryMissing: a variable names something that is not there.
    """
    if (there := binary.named()) is None:
        made = make()
        run(made, *version, cwd=FOLDER)  # what cannot run is not kept
        there = FOLDER / binary.name
        made.chmod(0o755)
        made.replace(there)
    said = "packed" if there.suffix == ".xz" else run(there, *version, cwd=FOLDER).splitlines()[0]
    print(f"{binary.name}: {said} ({there})", flush=True)


def main() -> int:
    """Bring everything; what fails does not keep the rest from coming."""
    FOLDER.mkdir(exist_ok=True)
    apt = cache(lambda: Apt(WORK / "apt", packages="bullseye", sources="bookworm"))  # only where there is a need
    recipes: tuple[tuple[Binary, tuple[str, ...], Callable[[], Path]], ...] = (
        (CONSUL, ("version",), lambda: consul(apt())),
        (KUBE_APISERVER, ("--version",), lambda: kubernetes(apt())),
    )
    missing = False
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once: the second finds what the first brought
        for binary, version, make in recipes:
            try:
                bring(binary, version, make)
            except (ToolFailed, BinaryMissing, OSError) as failure:
                print(f"{binary.name} is missing: {failure}", file=sys.stderr, flush=True)
                missing = True
        if not missing:
            shutil.rmtree(WORK, ignore_errors=True)
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
