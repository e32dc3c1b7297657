"""How instances are spelled for Consul and read back, and which of two pictures of a service is believed."""

import base64
from dataclasses import replace
from typing import Any

import pytest
from builders import instance, key
from hypothesis import given
from hypothesis import strategies as st

from controlplane.model import HealthCheck, HealthStatus, Instance, Locality
from controlplane.registry.consul.changes import SLOTS, Changes, Touched, What
from controlplane.registry.consul.mirror import Mirror
from controlplane.registry.consul.rows import NODE, Row, put_operations, read_rows, service_of

pytestmark = pytest.mark.unit

A = instance("web", "a", host="10.0.0.1")


def stored(stored: Instance, *, node: str = NODE, index: int = 5, **service: Any) -> dict[str, Any]:
    """Return what Consul lists of an instance that was stored as ours."""
    spelled = {**service_of(stored, None), "ModifyIndex": index, **service}
    return {"Node": {"Node": node, "Address": "10.9.9.9", "Meta": {}}, "Service": spelled, "Checks": []}


def row(host: str = "10.0.0.1", id: str = "a", index: int = 5) -> Row:
    (found,), _ = read_rows("web", [stored(instance("web", id, host=host), index=index)])
    return found


metadata = st.dictionaries(
    st.text(min_size=1, max_size=20), st.text(max_size=600) | st.booleans() | st.integers(-9, 9), max_size=12
)


@given(
    metadata=metadata,
    weight=st.integers(1, 1000),
    draining=st.booleans(),
    ttl=st.none() | st.floats(0.5, 100),
    zone=st.sampled_from(["", "eu-1"]),
    check=st.none() | st.just(HealthCheck(http_path="/ok", interval=1.5)),
)
def test_whatever_is_stored_is_read_back_as_it_was(
    metadata: dict[str, Any], weight: int, draining: bool, ttl: float | None, zone: str, check: HealthCheck | None
) -> None:
    given = replace(
        A,
        metadata=metadata,
        weight=weight,
        draining=draining,
        ttl=ttl,
        locality=Locality(zone=zone),
        health_check=check,
    )
    spelled = stored(given)

    (read,), unusable = read_rows("web", [spelled])

    assert read.instance == given
    assert {name: type(value) for name, value in read.instance.metadata.items()} == {
        name: type(value) for name, value in metadata.items()
    }
    assert not unusable
    assert len(spelled["Service"]["Meta"]) <= 64
    assert all(len(name) <= 128 and len(value) <= 512 for name, value in spelled["Service"]["Meta"].items())


def test_a_plain_instance_needs_no_json_in_consul() -> None:
    assert service_of(replace(A, metadata={"version": "2"}), None)["Meta"] == {"version": "2"}


def test_one_that_nobody_but_a_person_registered_on_our_node_is_read_too() -> None:
    (read,), _ = read_rows("web", [stored(A, ID="by-hand", Meta=None, Weights=None, Tags=None)])

    assert (read.own, read.instance) == (True, replace(A, id="by-hand"))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        pytest.param({"Address": "a b"}, "host", id="an address that is none"),
        pytest.param({"Port": 0}, "port", id="no port"),
        pytest.param({"Meta": {"service-discovery-instance-0": "{"}}, "JSON", id="broken JSON"),
        pytest.param({"Meta": {"service-discovery-instance-0": "[1]"}}, "object", id="JSON that is no object"),
        pytest.param({"Meta": {"service-discovery-remove-at": "soon"}}, "remove-at", id="a time that is none"),
    ],
)
def test_what_cannot_be_used_is_named_with_the_reason_and_keeps_nothing_else_out(
    changes: dict[str, Any], why: str
) -> None:
    rows, (unusable,) = read_rows("web", [stored(A, **changes), stored(replace(A, id="b", port=9))])

    assert [row.key for row in rows] == [key("web", "b")]
    assert unusable.key == A.key
    assert why in unusable.why


def test_checks_that_somebody_else_makes_of_ours_count_unless_it_has_one_of_ours() -> None:
    check = {"CheckID": "esm", "Name": "esm", "Status": "warning", "ModifyIndex": 7}
    (bare,), _ = read_rows("web", [{**stored(A), "Checks": [check]}])
    (checked,), _ = read_rows("web", [{**stored(replace(A, health_check=HealthCheck())), "Checks": [check]}])

    assert bare.stated == (HealthStatus.DEGRADED, "Consul: warning: esm")
    assert checked.stated is None


def test_a_write_rests_on_what_was_read() -> None:
    new, *_ = put_operations(A, None, None)
    changed, *_ = put_operations(A, None, row(index=41))

    assert new["Service"]["Service"]["ModifyIndex"] == 0
    assert changed["Service"]["Service"]["ModifyIndex"] == 41


class TestMirror:
    def test_an_older_picture_changes_nothing(self) -> None:
        mirror = Mirror()
        mirror.listed("web", 9, [row("10.0.0.9")], [])

        difference = mirror.listed("web", 8, [row("10.0.0.8")], [])

        assert (difference.put, difference.gone) == ((), ())

    def test_a_picture_from_before_ones_own_write_does_not_undo_it(self) -> None:
        mirror = Mirror()
        mirror.listed("web", 5, [row(), row(id="b", host="10.0.0.2")], [])
        mirror.wrote(row("10.0.0.9", index=9), 9)
        mirror.removed(key("web", "b"), 10)

        difference = mirror.listed("web", 8, [row(), row(id="b", host="10.0.0.2"), row(id="c", host="10.0.0.3")], [])

        assert [each.key.id for each in difference.put] == ["c"]
        assert difference.gone == ()
        known = mirror.get(A.key)
        assert known is not None
        assert known.instance.host == "10.0.0.9"

    def test_a_picture_from_after_ones_own_write_is_believed(self) -> None:
        mirror = Mirror()
        mirror.wrote(row(index=9), 9)

        difference = mirror.listed("web", 10, [], [])

        assert [each.key for each in difference.gone] == [A.key]

    def test_what_lies_behind_ones_own_write_is_not_known_for_it(self) -> None:
        mirror = Mirror()
        mirror.listed("web", 5, [row()], [])
        mirror.wrote(row(index=9), 9)

        assert [mirror.knows("web", index) for index in (5, 7, 9)] == [True, False, True]


class TestChanges:
    def read(self, changes: Changes, *operations: dict[str, Any], since: int = 0) -> tuple[list[Touched], bool]:
        keys: dict[str, dict[str, Any]] = {}
        for index, each in enumerate(operations, start=1):
            kv = each["KV"]
            value = base64.b64decode(kv["Value"])
            keys[kv["Key"]] = {"Key": kv["Key"], "Value": value, "ModifyIndex": index}
        return changes.read(keys.values(), since)

    def test_only_what_is_new_is_read(self) -> None:
        writer, reader = Changes("p/", "one"), Changes("p/", "two")
        operations = [writer.operation(What.SERVICE, ["web"]), writer.operation(What.SERVICE, ["api", "db"])]

        assert self.read(reader, *operations, since=1) == (
            [Touched(What.SERVICE, "api", 2), Touched(What.SERVICE, "db", 2)],
            False,
        )

    def test_the_same_twice_is_two_different_values(self) -> None:
        writer = Changes("p/", "one")
        values = {writer.operation(What.SERVICE, ["web"])["KV"]["Value"] for _ in range(2 * SLOTS)}

        assert len(values) == 2 * SLOTS, "Consul takes setting the same value for no change"

    def test_more_than_there_are_slots_is_noticed(self) -> None:
        writer = Changes("p/", "one")
        many = [writer.operation(What.SERVICE, [f"s{n}"]) for n in range(SLOTS + 5)]

        assert self.read(writer, *many)[1]
        assert not self.read(writer, *many, since=10)[1]

    def test_what_another_version_wrote_makes_us_look_at_everything(self) -> None:
        found = [{"Key": "p/changes/one/1", "Value": b'{"v": 2}', "ModifyIndex": 3}]

        assert Changes("p/", "two").read(found, 0) == ([], True)
