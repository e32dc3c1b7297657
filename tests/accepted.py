"""Ask the real Envoy whether it would take a configuration."""

import subprocess
from pathlib import Path

import pytest

from controlplane.local_envoy import EnvoyMissing, envoy_binary


def complaints(config: Path, *arguments: str, binary: Path | None = None) -> str:
    """Return what Envoy says against a configuration file: its warnings, or why it refuses; empty = accepted.

    Without a binary it is the newest that decides; the test is skipped where none is installed.
    """
    try:
        binary = binary or envoy_binary()
    except EnvoyMissing as missing:
        pytest.skip(str(missing))
    done = subprocess.run(
        [binary, "--mode", "validate", "-c", config, "--log-level", "warning", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stderr if done.returncode == 0 else f"refused ({done.returncode}): {done.stdout}{done.stderr}"
