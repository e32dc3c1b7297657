"""A resource is read once, and nothing is kept of what is replaced or removed."""

import pytest

from controlplane.model import RawResource
from controlplane.raw.compile import Compiler
from xds.types import RUNTIME

pytestmark = pytest.mark.unit


def runtime(value: int) -> RawResource:
    return RawResource(type_url=RUNTIME, name="rt", body=f'{{"name":"rt","layer":{{"a":{value}}}}}')


def test_an_equal_resource_is_not_read_again() -> None:
    compiler = Compiler()

    assert compiler.compile(runtime(1)) is compiler.compile(runtime(1))


def test_what_is_replaced_is_forgotten() -> None:
    """A secret that is rotated every hour must not stay in memory in all its versions."""
    compiler = Compiler()
    old = compiler.compile(runtime(1))
    compiler.compile(runtime(2))

    assert compiler.compile(runtime(1)) is not old


def test_what_is_removed_is_forgotten() -> None:
    compiler = Compiler()
    kept = compiler.compile(runtime(1))
    compiler.forget_all_but({runtime(1).key})
    assert compiler.compile(runtime(1)) is kept

    compiler.forget_all_but(())
    assert compiler.compile(runtime(1)) is not kept
