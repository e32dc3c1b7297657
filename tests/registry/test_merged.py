"""Several registries as one: whose word counts."""

from dataclasses import replace

import pytest
from builders import instance, key
from hypothesis import given
from hypothesis import strategies as st

from controlplane.model import (
    DeleteInstance,
    DeletePolicy,
    InstanceKey,
    Missing,
    PutInstance,
    PutPolicy,
    RegistryEvent,
    ServiceName,
    Synced,
)
from controlplane.policy import Policy
from controlplane.registry.merged import Merged

pytestmark = pytest.mark.unit

WEB = ServiceName("web")
A = key("web", "a")


def put(registry: str, id: str = "a", host: str = "10.0.0.1") -> PutInstance:
    return PutInstance(instance=instance("web", id, host=host), registry=registry)


def delete(registry: str, id: str = "a") -> DeleteInstance:
    return DeleteInstance(key=key("web", id), registry=registry)


def missing(registry: str, *ids: str, hold: str = "") -> Missing:
    return Missing(keys=tuple(key("web", id) for id in ids), registry=registry, reason="ttl expired", hold=hold)


def policy(registry: str) -> PutPolicy:
    return PutPolicy(service=WEB, policy=Policy(timeout=float(len(registry))), registry=registry)


def no_policy(registry: str) -> DeletePolicy:
    return DeletePolicy(service=WEB, registry=registry)


@pytest.mark.parametrize(
    ("before", "event", "told"),
    [
        pytest.param([], put("consul"), [put("consul")], id="what one registry holds is told"),
        pytest.param([put("consul")], put("etcd"), [], id="what a better one holds already is not told"),
        pytest.param([put("etcd")], put("consul"), [put("consul")], id="a better one takes over"),
        pytest.param(
            [put("consul"), put("etcd")],
            put("etcd", host="10.0.0.9"),
            [],
            id="a change in one whose word does not count is not told",
        ),
        pytest.param(
            [put("consul"), put("etcd")], delete("consul"), [put("etcd")], id="when the first loses it the next has it"
        ),
        pytest.param(
            [put("consul"), put("etcd"), put("etcd", host="10.0.0.9")],
            delete("consul"),
            [put("etcd", host="10.0.0.9")],
            id="the next has it as it is there now",
        ),
        pytest.param([put("consul"), put("etcd")], delete("etcd"), [], id="when the second loses it nobody hears"),
        pytest.param([put("etcd")], delete("etcd"), [delete("etcd")], id="when the only one loses it it goes"),
        pytest.param([], delete("etcd"), [], id="what nobody held cannot go"),
        pytest.param([put("etcd")], delete("consul"), [], id="nor what that registry never held"),
        pytest.param(
            [put("consul"), put("etcd"), delete("etcd")],
            delete("consul"),
            [delete("consul")],
            id="one that lost it unheard does not take over",
        ),
        pytest.param(
            [put("consul", "a"), put("etcd", "a"), put("consul", "b")],
            missing("consul", "a", "b"),
            [put("etcd", "a"), missing("consul", "b")],
            id="of a doubted loss what another holds moves there and only the rest is doubted",
        ),
        pytest.param(
            [put("consul"), put("etcd")],
            missing("consul", "a"),
            [put("etcd")],
            id="a loss made good by another",
        ),
        pytest.param([put("consul"), put("etcd")], missing("etcd", "a"), [], id="a loss where the word does not count"),
        pytest.param([], missing("etcd", "a"), [], id="a loss of what nobody held"),
        pytest.param(
            [put("etcd")],
            missing("etcd", "a", hold="web"),
            [missing("etcd", "a", hold="web")],
            id="a loss keeps the hold that it was in",
        ),
        pytest.param([], policy("consul"), [policy("consul")], id="a policy is told"),
        pytest.param([policy("consul")], policy("etcd"), [policy("etcd")], id="the store's policy wins"),
        pytest.param([policy("etcd")], policy("consul"), [], id="whoever comes first"),
        pytest.param(
            [policy("kubernetes")], policy("consul"), [policy("consul")], id="among the others the first in rank wins"
        ),
        pytest.param(
            [policy("etcd"), policy("consul")],
            no_policy("etcd"),
            [policy("consul")],
            id="without the store's policy the next one's counts",
        ),
        pytest.param([policy("etcd"), policy("consul")], no_policy("consul"), [], id="a policy that did not count"),
        pytest.param([policy("etcd")], no_policy("etcd"), [no_policy("etcd")], id="the only policy goes"),
        pytest.param([], no_policy("etcd"), [], id="no policy goes that was not there"),
        pytest.param([], Synced(registry="etcd"), [Synced(registry="etcd")], id="anything else passes"),
    ],
)
def test_merging(before: list[RegistryEvent], event: RegistryEvent, told: list[RegistryEvent]) -> None:
    merged = Merged(("consul", "etcd", "kubernetes"), store="etcd")
    for each in before:
        merged.take(each)
    assert merged.take(event) == told


def test_with_one_registry_everything_passes_as_it_is_and_nothing_is_kept() -> None:
    merged = Merged(("etcd",), store="etcd")
    for event in (put("etcd"), delete("etcd"), delete("etcd"), missing("etcd", "a"), no_policy("etcd")):
        (told,) = merged.take(event)
        assert told is event


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "delete", "missing"]),
            st.sampled_from(["consul", "etcd", "kubernetes"]),
            st.sampled_from(["a", "b"]),
            st.integers(1, 3),
        )
    )
)
def test_what_is_told_always_leads_to_the_first_holders_instances(steps: list[tuple[str, str, str, int]]) -> None:
    ranking = ("consul", "etcd", "kubernetes")
    merged = Merged(ranking, store="etcd")
    held: dict[str, dict[InstanceKey, PutInstance]] = {name: {} for name in ranking}
    seen: dict[InstanceKey, PutInstance] = {}
    for what, registry, id_, host in steps:
        event: RegistryEvent
        match what:
            case "put":
                event = put(registry, id_, host=f"10.0.0.{host}")
                held[registry][key("web", id_)] = event
            case "delete":
                event = delete(registry, id_)
                held[registry].pop(key("web", id_), None)
            case _:
                event = missing(registry, id_)
                held[registry].pop(key("web", id_), None)
        for told in merged.take(event):
            match told:
                case PutInstance():
                    assert seen.get(told.instance.key) != told or told is event
                    seen[told.instance.key] = told
                case DeleteInstance(key=gone):
                    del seen[gone]
                case Missing(keys=keys):
                    for gone in keys:
                        del seen[gone]
                case _:
                    raise AssertionError(told)
        expected = {each: found for name in reversed(ranking) for each, found in held[name].items()}
        assert seen == expected


def test_a_loss_keeps_its_reason() -> None:
    merged = Merged(("consul", "etcd"), store="etcd")
    merged.take(put("etcd"))
    event = replace(missing("etcd", "a"), reason="missing after a reconnect")
    assert merged.take(event) == [event]
