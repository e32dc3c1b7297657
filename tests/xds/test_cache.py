"""The snapshot cache: what changed is worked out once, and the newest snapshot is all there is."""

import pytest

from xds.cache import Changes, SnapshotCache, changes_between
from xds.types import CLUSTER, ENDPOINT, Resource, ResourceSet, Snapshot

pytestmark = pytest.mark.unit


def snapshot(**labels: str) -> Snapshot:
    return Snapshot({CLUSTER: ResourceSet(Resource.of(name, label.encode()) for name, label in labels.items())})


class Heard:
    def __init__(self) -> None:
        self.calls: list[tuple[Snapshot, Changes | None]] = []

    def __call__(self, newest: Snapshot, changes: Changes | None) -> None:
        self.calls.append((newest, changes))


def test_the_change_set_names_what_was_added_changed_and_removed() -> None:
    changes = changes_between(snapshot(a="1", b="1", c="1"), snapshot(a="1", b="2", d="1"))

    assert changes == {CLUSTER: {"b", "c", "d"}}


def test_a_type_that_appears_or_goes_is_a_change() -> None:
    endpoints = Snapshot({ENDPOINT: ResourceSet([Resource.of("a", b"")])})

    assert changes_between(endpoints, snapshot(a="1")) == {CLUSTER: {"a"}, ENDPOINT: {"a"}}


def test_watchers_hear_of_the_present_at_once_and_of_changes_later() -> None:
    cache, heard = SnapshotCache(), Heard()
    first, second = snapshot(a="1"), snapshot(a="2")
    cache.watch("g", heard)
    cache.set("g", first)
    cache.watch("g", late := Heard())
    cache.set("g", second)

    assert heard.calls == [(first, None), (second, {CLUSTER: {"a"}})]
    assert late.calls == [(first, None), (second, {CLUSTER: {"a"}})]
    assert late.calls[1][1] is heard.calls[1][1]


def test_p_01_equal_content_wakes_nobody() -> None:
    cache, heard = SnapshotCache(), Heard()
    cache.set("g", snapshot(a="1"))
    cache.watch("g", heard)
    cache.set("g", snapshot(a="1"))

    assert len(heard.calls) == 1


def test_the_first_snapshot_wakes_even_if_empty() -> None:
    cache, heard = SnapshotCache(), Heard()
    cache.watch("g", heard)
    cache.set("g", Snapshot())

    assert len(heard.calls) == 1


def test_groups_are_apart_and_nothing_is_left_of_a_watcher_that_stopped() -> None:
    cache, heard = SnapshotCache(), Heard()
    stop = cache.watch("g", heard)
    cache.watch("h", other := Heard())
    cache.set("h", snapshot(a="1"))

    assert (len(heard.calls), len(other.calls)) == (0, 1)
    assert cache.groups() == ("h",)
    stop()
    stop()
    cache.set("g", snapshot(a="1"))

    assert not heard.calls
    assert cache.watched() == ("h",)
    cache.drop("h")

    assert cache.get("h") is None


def test_a_watcher_that_stops_while_being_called_does_not_disturb_the_others() -> None:
    cache, heard = SnapshotCache(), Heard()
    stops = [cache.watch("g", lambda *_: stops[0]()), cache.watch("g", heard)]
    cache.set("g", snapshot(a="1"))
    cache.set("g", snapshot(a="2"))

    assert len(heard.calls) == 2
