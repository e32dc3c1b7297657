"""What a former process last knew, beside what registries say."""

import pytest
from builders import instance, key, verdict

from controlplane.model import (
    DeleteInstance,
    DeletePolicy,
    DeleteResource,
    InstanceKey,
    Lost,
    Missing,
    PutInstance,
    PutPolicy,
    PutResource,
    RawResource,
    RegistryEvent,
    Resolved,
    ServiceName,
    Synced,
)
from controlplane.policy import Policy
from controlplane.remembered import MISSING, LastGood, Remembered, Saved

pytestmark = pytest.mark.unit

SYNCED = Synced(registry="etcd")
RESOURCE = RawResource(type_url="t", name="n", body="{}")
POLICY = PutPolicy(service=ServiceName("web"), policy=Policy(), registry="etcd")
RAW = PutResource(resource=RESOURCE, registry="etcd")


def put(id: str, registry: str = "etcd") -> PutInstance:
    return PutInstance(instance=instance("web", id), registry=registry, verdict=verdict())


def missing(*ids: str, hold: str = "") -> Missing:
    return Missing(keys=tuple(key("web", id) for id in ids), registry="etcd", reason=MISSING, hold=hold)


def remembered(
    *events: Saved, fresh: bool = True, journalled: bool = False, held: dict[InstanceKey, str] | None = None
) -> Remembered:
    known = LastGood(confirmed_at=0.0, events=events, held=held or {})
    return Remembered(known, ["etcd", "consul"], journalled=frozenset({"etcd"} if journalled else ()), fresh=fresh)


def all_of(known: Remembered, *events: RegistryEvent) -> list[RegistryEvent]:
    return [told for event in events for told in known.take(event)]


def test_a_registry_that_says_what_was_known_is_told_as_it_is() -> None:
    events = [POLICY, RAW, put("a"), SYNCED]
    assert all_of(remembered(put("a"), POLICY, RAW), *events) == events


def test_what_the_first_listing_lacks_is_put_and_then_doubted_before_the_registry_is_in_sync() -> None:
    known = remembered(put("a"), put("b"), put("c"))
    assert all_of(known, put("b"), SYNCED) == [put("b"), put("a"), put("c"), missing("a", "c"), SYNCED]


def test_only_the_first_listing_is_compared() -> None:
    known = remembered(put("a"))
    all_of(known, SYNCED)
    assert all_of(known, put("a"), Lost(registry="etcd", reason="x"), SYNCED) == [
        put("a"),
        Lost(registry="etcd", reason="x"),
        SYNCED,
    ]


def test_each_registry_is_compared_with_its_own() -> None:
    known = remembered(put("a"), put("b", registry="consul"))
    assert all_of(known, put("a"), SYNCED) == [put("a"), SYNCED]
    (told, lost, _) = all_of(known, Synced(registry="consul"))
    assert told == put("b", registry="consul")
    assert isinstance(lost, Missing)
    assert lost.registry == "consul"


def test_what_is_too_old_is_no_measure_of_what_is_missing() -> None:
    assert all_of(remembered(put("a"), put("b"), fresh=False), put("b"), SYNCED) == [put("b"), SYNCED]


NO_POLICY = DeletePolicy(service=POLICY.service, registry="etcd")
NO_RESOURCE = DeleteResource(key=RESOURCE.key, registry="etcd")


def test_policies_and_resources_that_are_gone_are_told_to_have_been_there_so_that_a_hold_can_keep_them() -> None:
    assert all_of(remembered(POLICY, RAW), SYNCED) == [POLICY, NO_POLICY, RAW, NO_RESOURCE, SYNCED]
    assert all_of(remembered(POLICY, RAW, fresh=False), SYNCED) == [SYNCED]


def test_a_silent_registry_is_stood_in_for_by_everything_of_it() -> None:
    known = remembered(POLICY, RAW, put("a"), put("b", registry="consul"))
    assert known.fall_back(["etcd"]) == [POLICY, RAW, put("a")]
    assert known.offered == {"etcd"}


def test_a_registry_of_which_nothing_is_known_cannot_be_stood_in_for() -> None:
    known = remembered(put("a"))
    assert known.fall_back(["consul"]) == []
    assert known.offered == frozenset()


def test_when_it_speaks_what_it_lacks_is_doubted_and_policies_go_with_it() -> None:
    known = remembered(POLICY, RAW, put("a"), put("b"))
    known.fall_back(["etcd"])
    assert all_of(known, put("b"), SYNCED) == [
        put("b"),
        NO_POLICY,
        NO_RESOURCE,
        missing("a"),
        SYNCED,
    ]
    assert known.offered == frozenset()


def test_what_was_offered_and_is_too_old_to_doubt_goes_at_once() -> None:
    known = remembered(put("a"), put("b"), fresh=False)
    known.fall_back(["etcd"])
    gone = DeleteInstance(key=key("web", "a"), registry="etcd", reason=MISSING)
    assert all_of(known, put("b"), SYNCED) == [put("b"), gone, SYNCED]


def test_a_registry_with_a_journal_is_the_truth_about_all_but_what_was_held() -> None:
    known = remembered(put("a"), put("b"), POLICY, journalled=True, held={key("web", "b"): "web"})
    assert all_of(known, SYNCED) == [put("b"), missing("b", hold="web"), SYNCED]


def test_what_was_held_is_told_apart_by_its_hold_and_before_what_is_newly_missing() -> None:
    held = {key("web", "a"): "web", key("web", "c"): "_everything"}
    known = remembered(put("a"), put("b"), put("c"), held=held)
    assert all_of(known, SYNCED)[3:] == [
        missing("a", hold="web"),
        missing("c", hold="_everything"),
        missing("b"),
        SYNCED,
    ]


def test_what_was_held_and_is_registered_again_is_not_held() -> None:
    known = remembered(put("a"), held={key("web", "a"): "web"})
    assert all_of(known, put("a"), SYNCED) == [put("a"), SYNCED]


def test_names_and_registries_that_are_not_used_any_more_are_left_aside() -> None:
    known = remembered(Resolved(host="api.internal", addresses=("10.0.0.1",)), put("a", registry="kubernetes"))
    assert known.fall_back(["etcd", "consul", "kubernetes"]) == []
    assert all_of(known, Synced(registry="kubernetes")) == [Synced(registry="kubernetes")]
