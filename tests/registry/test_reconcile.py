"""Only differences are told, whatever a backend repeats."""

import pytest
from builders import instance, key, verdict
from hypothesis import given
from hypothesis import strategies as st

from controlplane.model import (
    DeleteInstance,
    HealthStatus,
    Instance,
    InstanceKey,
    Missing,
    PutInstance,
    RegistryEvent,
    Verdict,
)
from controlplane.registry.reconcile import MISSING, Delivered

pytestmark = pytest.mark.unit

A = instance("web", "a")
B = instance("web", "b", port=2)
SICK = verdict(HealthStatus.UNHEALTHY)


def listed(*instances: Instance) -> dict[InstanceKey, tuple[Instance, Verdict | None]]:
    return {each.key: (each, None) for each in instances}


def told(instance: Instance, stated: Verdict | None = None) -> PutInstance:
    return PutInstance(instance=instance, registry="etcd", stated=stated)


@pytest.fixture
def delivered() -> Delivered:
    return Delivered("etcd")


def test_a_first_listing_is_told_as_it_is(delivered: Delivered) -> None:
    assert delivered.relist({A.key: (A, SICK), B.key: (B, None)}) == [told(A, SICK), told(B)]
    assert sorted(delivered.keys()) == [A.key, B.key]


def test_a_listing_that_says_nothing_new_tells_nothing(delivered: Delivered) -> None:
    delivered.relist(listed(A, B))
    assert delivered.relist(listed(B, A)) == []


def test_a_replayed_event_tells_nothing(delivered: Delivered) -> None:
    assert delivered.put(A) == [told(A)]
    assert delivered.put(A) == []
    assert delivered.delete(A.key) == [DeleteInstance(key=A.key, registry="etcd")]
    assert delivered.delete(A.key) == []
    assert delivered.lose([A.key], "ttl expired") == []


def test_what_a_listing_lacks_is_one_doubted_loss_in_the_order_of_keys(delivered: Delivered) -> None:
    many = [instance("web", f"i{number}", port=1 + number) for number in range(9)]
    delivered.relist(listed(*reversed(many)))
    changed = instance("web", "i0", port=80)
    assert delivered.relist(listed(changed)) == [
        told(changed),
        Missing(keys=tuple(each.key for each in many[1:]), registry="etcd", reason=MISSING),
    ]
    assert len(delivered) == 1


def test_what_was_lost_and_comes_back_is_told_again(delivered: Delivered) -> None:
    delivered.put(A)
    delivered.lose([A.key, A.key, key("web", "ghost")], "ttl expired")
    assert A.key not in delivered
    assert delivered.get(A.key) is None
    assert delivered.put(A) == [told(A)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param((A, None), (A, SICK), id="the registry says it is unhealthy"),
        pytest.param((A, SICK), (A, None), id="the registry says nothing of its health any more"),
        pytest.param((A, None), (instance("web", "a", weight=2), None), id="another weight"),
        pytest.param(
            (instance("web", "a", metadata={"n": 1}), None),
            (instance("web", "a", metadata={"n": True}), None),
            id="1 and true are not the same to Envoy",
        ),
    ],
)
def test_every_difference_is_told(
    delivered: Delivered, old: tuple[Instance, Verdict | None], new: tuple[Instance, Verdict | None]
) -> None:
    delivered.put(*old)
    assert delivered.put(*new) == [told(*new)]
    assert delivered.get(A.key) == new[0]


INSTANCES = st.builds(
    lambda id_, port, weight: instance("web", id_, port=port, weight=weight),
    st.sampled_from("abcd"),
    st.integers(1, 2),
    st.integers(1, 2),
)


@given(st.lists(st.lists(INSTANCES, unique_by=lambda each: each.key)))
def test_the_differences_always_lead_to_the_newest_listing(listings: list[list[Instance]]) -> None:
    delivered = Delivered("etcd")
    seen: dict[InstanceKey, Instance] = {}
    for listing in listings:
        before = dict(seen)
        events: list[RegistryEvent] = delivered.relist(listed(*listing))
        for event in events:
            match event:
                case PutInstance(instance=each):
                    assert before.get(each.key) != each, "nothing is told that was known"
                    seen[each.key] = each
                case Missing(keys=keys):
                    for gone in keys:
                        del seen[gone]
                case _:
                    raise AssertionError(event)
        assert seen == {each.key: each for each in listing}
        assert sum(isinstance(event, Missing) for event in events) <= 1
