"""Which kinds of registry a run is made with, and which of the runs `make test` makes too."""

from typing import Any

import pytest

_MARKER = {"etcd": "etcd", "consul": "consul", "kubernetes": "k8s"}


def of(*kinds: str, thorough: tuple[str, ...] = ()) -> Any:
    """Run a test with each of these kinds of registry, marked as what it needs; with some by `--thorough` only."""
    return pytest.mark.parametrize(
        "kind",
        [
            pytest.param(
                kind,
                marks=[
                    getattr(pytest.mark, _MARKER[kind.split()[0]]),
                    *([pytest.mark.thorough] if kind in thorough else []),
                ],
            )
            for kind in (*kinds, *thorough)
        ],
    )
