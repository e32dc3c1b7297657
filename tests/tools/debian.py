"""Debian's packages, fetched with the machine's own apt into a folder, without a change to the system.

Everything apt writes (lists, cache, state) lies in that folder, and what other packages hook into apt is left out.
Mirror, proxy and credentials are those of the machine's apt; what is fetched is checked against Debian's signatures.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

MIRROR = "TEST_DEBIAN_MIRROR"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class ToolFailed(Exception):
    """Raised where something could not be brought; the message says why and what to do."""


def run(*command: str | Path, cwd: Path, environ: Mapping[str, str] | None = None, timeout_s: float = 600) -> str:
    """Run a command and return what it printed.

    Raises:
        ToolFailed: it failed, or did not end in time; the message ends with its last lines.
    """
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ToolFailed(f"{command[0]} did not end within {timeout_s:.0f} s; run this again to go on") from None
    printed = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        tail = "\n".join(printed.splitlines()[-15:])
        raise ToolFailed(f"{' '.join(str(word) for word in command[:3])} … failed with {done.returncode}:\n{tail}")
    return printed


class Apt:
    """Fetch packages of one suite and sources of another, through an apt that keeps to a folder."""

    def __init__(self, folder: Path, *, packages: str, sources: str) -> None:
        """Find a mirror that has both suites, and read its lists.

        Raises:
            ToolFailed: this is no Debian, or no configured mirror has the suites.
        """
        for tool in ("apt-get", "dpkg-deb", "tar"):
            if shutil.which(tool) is None:
                raise ToolFailed(f"{tool} is not here: servers are brought on Debian only")
        if not _KEYRING.exists():
            raise ToolFailed(f"{_KEYRING} is not here: servers are brought on Debian only")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._config = folder / "apt.conf"
        mirrors = [os.environ[MIRROR]] if os.environ.get(MIRROR) else _configured(folder)
        failures = []
        for mirror in mirrors:
            self._configure(mirror, packages, sources)
            try:
                run("apt-get", "-c", self._config, "-o", "APT::Update::Error-Mode=any", "update", cwd=folder)
            except ToolFailed as failure:
                failures.append(str(failure))
            else:
                return
        raise ToolFailed(
            f"no mirror of apt's configuration has {packages} and {sources} ({', '.join(mirrors) or 'there is none'}); "
            f"name one that has: {MIRROR}=…\n" + "\n".join(failures)
        )

    def _configure(self, mirror: str, packages: str, sources: str) -> None:
        for kept in ("state/lists/partial", "cache/archives/partial"):
            (self._folder / kept).mkdir(parents=True, exist_ok=True)
        signed = f"[signed-by={_KEYRING}]"
        (self._folder / "sources.list").write_text(
            f"deb {signed} {mirror} {packages} main\ndeb-src {signed} {mirror} {sources} main\n"
        )
        self._config.write_text(
            f'Dir::Etc::sourcelist "{self._folder}/sources.list";\n'
            'Dir::Etc::sourceparts "-";\n'
            f'Dir::State "{self._folder}/state";\n'
            'Dir::State::status "/var/lib/dpkg/status";\n'
            f'Dir::Cache "{self._folder}/cache";\n'
            'APT::Sandbox::User "";\n'  # root's helper user could not write here
            'Acquire::Languages "none";\n'
            'Acquire::Retries "3";\n'
            + "".join(f"#clear APT::Update::{hook};\n" for hook in ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success"))
        )

    def unpack(self, *packages: str, into: Path) -> None:
        """Download packages and lay their files out under a folder; nothing is installed, no script is run."""
        fetched = self._fetched("download", *packages)
        for package in packages:
            archive = next(fetched.glob(f"{package}_*.deb"))
            run("dpkg-deb", "--extract", archive, into, cwd=fetched)

    def source(self, package: str) -> Path:
        """Download a source package and return the archive of upstream's sources, without Debian's patches."""
        fetched = self._fetched("source", "--download-only", package)
        return next(fetched.glob(f"{package}_*.orig.tar.*"))

    def _fetched(self, *command: str) -> Path:
        into = self._folder / "fetched"
        into.mkdir(exist_ok=True)
        run("apt-get", "-c", self._config, "-q", *command, cwd=into)
        return into


def _configured(folder: Path) -> list[str]:
    """Return the mirrors of the machine's apt, those that look like Debian's own archive first."""
    asked = run("apt-get", "update", "--print-uris", cwd=folder)
    mirrors = dict.fromkeys(re.findall(r"^'(\S+)/dists/\S+/InRelease'", asked, re.MULTILINE))
    return sorted(mirrors, key=lambda mirror: not mirror.rstrip("/").endswith("/debian"))
