"""Which kinds of registry a run is made with."""

from typing import Any

import pytest

_MARKER = {"etcd": "etcd", "consul": "consul", "kubernetes": "k8s"}


def of(*kinds: str) -> Any:
    """Run a test with each of these kinds of registry, marked as what it needs."""
    return pytest.mark.parametrize(
        "kind", [pytest.param(kind, marks=getattr(pytest.mark, _MARKER[kind.split()[0]])) for kind in kinds]
    )
