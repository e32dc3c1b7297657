"""From what registries say to what the catalog holds: the whole way, with real parts and a clock of the test's own."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from builders import instance, key, put, verdict
from harness import PATIENCE_S
from intakes import Told, intake_of

from controlplane.guard import Limits
from controlplane.intake import Intake
from controlplane.last_good import LastGoodFile
from controlplane.live import LiveCatalog
from controlplane.model import (
    DeleteInstance,
    DeletePolicy,
    DeleteResource,
    HealthStatus,
    Instance,
    InstanceKey,
    Lost,
    Members,
    Missing,
    PutAliases,
    PutInstance,
    PutPolicy,
    PutResource,
    RawResource,
    Recorded,
    RegistryEvent,
    Release,
    ServiceName,
    Synced,
    target_of,
)
from controlplane.policy import Policy, Strategy
from controlplane.registry.reconcile import Delivered
from controlplane.remembered import LastGood, Remembered

pytestmark = pytest.mark.unit

SICK = verdict(HealthStatus.UNHEALTHY)
CHECKED = {"health_check": {"type": "tcp"}}


class Timers:
    """Hold the time, and what was put off until later."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, Callable[[], object]]] = []

    def clock(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], object]) -> None:
        self._due.append((self.now + delay, call))

    def go_to(self, now: float) -> None:
        while due := sorted((each for each in self._due if each[0] <= now), key=lambda each: each[0]):
            self._due.remove(due[0])
            self.now, call = due[0]
            call()
        self.now = now


class World:
    """Give a test an intake, what it told, and short ways to say what registries say."""

    def __init__(
        self,
        *registries: str,
        store: str | None = None,
        remembered: Remembered | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.timers = Timers()
        self.told = Told()
        names = registries or ("etcd",)
        self.live = LiveCatalog(
            epoch="e", ranking=names if len(names) > 1 else (), call_later=lambda _delay, _call: None
        )
        self.intake: Intake = intake_of(
            self.live,
            registries=names,
            store=store,
            remembered=remembered,
            limits=limits or Limits(),
            told=self.told,
            clock=self.timers.clock,
            call_later=self.timers.call_later,
        )

    def hears(self, *events: RegistryEvent) -> None:
        for event in events:
            self.intake.heard(event)

    def has(self, *ids: str, registry: str = "etcd", service: str = "web") -> list[PutInstance]:
        events = [
            PutInstance(instance=instance(service, id_, host=f"10.0.1.{number}"), registry=registry)
            for number, id_ in enumerate(ids, start=1)
        ]
        self.hears(*events)
        return events

    def offered(self, service: str = "web") -> dict[str, str]:
        known = self.live.current.services.get(key(service, "").service)
        return {} if known is None else {entry.instance.id: entry.held for entry in known.sorted_entries()}


def listing_of(*instances: Instance) -> dict[InstanceKey, tuple[Instance, None]]:
    return {each.key: (each, None) for each in instances}


def test_a_loss_too_small_to_be_held_is_said_with_whom_it_took() -> None:
    world = World()
    delivered = Delivered("etcd")
    world.hears(*delivered.relist(listing_of(instance("web", "a"), instance("web", "b"))), Synced(registry="etcd"))
    world.hears(Lost(registry="etcd", reason="connection refused"))

    world.hears(*delivered.relist(listing_of(instance("web", "a"))), Synced(registry="etcd"))

    assert world.offered() == {"a": ""}
    ((registry, reason, gone),) = world.told.let_go_seen
    assert (registry, gone) == ("etcd", [key("web", "b")])
    assert "reconnect" in reason


def test_a_registry_that_comes_back_empty_is_held_and_said_loudly_until_it_has_everything_again() -> None:
    world = World()
    delivered = Delivered("etcd")
    instances = [instance("web", id_, host=f"10.0.1.{number}") for number, id_ in enumerate("abcd", start=1)]
    world.hears(*delivered.relist(listing_of(*instances)), Synced(registry="etcd"))
    world.hears(Lost(registry="etcd", reason="connection refused"))
    assert world.offered() == dict.fromkeys("abcd", "")

    world.hears(*delivered.relist({}), Synced(registry="etcd"))
    assert world.offered() == dict.fromkeys("abcd", "web")
    world.hears(*delivered.relist(listing_of(*instances)))
    assert world.offered() == dict.fromkeys("abcd", "")
    assert world.told.said == [
        ("synced", "etcd"),
        ("lost", "etcd"),
        ("held", "web"),
        ("synced", "etcd"),
        ("released", "web"),
    ]


POLICY = PutPolicy(service=ServiceName("web"), policy=Policy(strategy=Strategy.RANDOM), registry="etcd")
RESOURCE = PutResource(resource=RawResource(type_url="t", name="cert", body="{}"), registry="etcd")
NO_POLICY = DeletePolicy(service=POLICY.service, registry="etcd")
NO_RESOURCE = DeleteResource(key=RESOURCE.resource.key, registry="etcd")


def commons_of(world: World) -> tuple[Strategy | None, int]:
    """Return the strategy of the policy that `web` has of its own, and how many raw resources there are."""
    service = world.live.current.services.get(POLICY.service)
    own = None if service is None else service.own_policy
    return (None if own is None else own.strategy), len(world.live.current.raw)


def wiped(*ids: str) -> World:
    """Return what is left of a registry with a policy and a raw resource that came back without anything."""
    world = World()
    world.has(*ids)
    world.hears(POLICY, RESOURCE, Synced(registry="etcd"))
    gone = Missing(keys=tuple(key("web", id_) for id_ in ids), registry="etcd", reason="missing after a reconnect")
    world.hears(Lost(registry="etcd", reason="refused"), NO_POLICY, NO_RESOURCE, gone, Synced(registry="etcd"))
    return world


def test_a_registry_that_comes_back_empty_takes_no_policy_and_no_secret_while_its_instances_are_held() -> None:
    world = wiped("a", "b", "c", "d")
    assert world.offered() == dict.fromkeys("abcd", "web")
    assert commons_of(world) == (Strategy.RANDOM, 1)
    world.hears(Release(hold="web", registry="etcd"))
    assert commons_of(world) == (None, 0)


def test_what_a_registry_lacked_goes_when_the_hold_ends_and_what_it_has_again_stays() -> None:
    world = wiped("a", "b", "c", "d")
    world.hears(replace(POLICY, policy=Policy(strategy=Strategy.ROUND_ROBIN)))
    world.timers.go_to(600)
    assert world.offered() == {}
    assert commons_of(world) == (Strategy.ROUND_ROBIN, 0)


def test_a_hold_that_ends_while_its_registry_is_away_takes_nothing_that_the_registry_may_still_have() -> None:
    world = wiped("a", "b", "c", "d")
    world.hears(Lost(registry="etcd", reason="refused"))
    world.timers.go_to(600)
    assert commons_of(world) == (Strategy.RANDOM, 1)
    world.hears(POLICY, Synced(registry="etcd"))
    assert commons_of(world) == (Strategy.RANDOM, 0)


def test_what_a_registry_lacks_when_it_comes_back_with_its_instances_is_gone() -> None:
    assert commons_of(wiped()) == (None, 0)


def test_what_is_deleted_while_the_registry_can_be_heard_goes_at_once_whatever_is_held() -> None:
    world = wiped("a", "b", "c", "d")
    world.hears(POLICY, RESOURCE, NO_POLICY, NO_RESOURCE)
    assert commons_of(world) == (None, 0)


def test_a_hold_ends_by_a_timer_and_is_said_to_have_ended() -> None:
    world = World(limits=Limits(hold_s=60))
    world.has("a", "b", "c", "d")
    world.hears(Missing(keys=tuple(key("web", id_) for id_ in "abc"), registry="etcd", reason="ttl expired"))
    world.timers.go_to(59.9)
    assert world.offered() == {"a": "web", "b": "web", "c": "web", "d": ""}
    world.timers.go_to(60.0)
    assert world.offered() == {"d": ""}
    assert world.told.said == [("held", "web"), ("released", "web")]


def test_each_of_two_holds_ends_at_its_own_time() -> None:
    world = World(limits=Limits(hold_s=60))
    world.has("a", "b", "c", "d")
    world.has("a", "b", "c", "d", service="db")
    world.hears(Missing(keys=tuple(key("web", id_) for id_ in "abcd"), registry="etcd", reason="ttl expired"))
    world.timers.go_to(30.0)
    world.hears(Missing(keys=tuple(key("db", id_) for id_ in "abcd"), registry="etcd", reason="ttl expired"))
    world.timers.go_to(60.0)
    assert (world.offered(), len(world.offered("db"))) == ({}, 4)
    world.timers.go_to(89.9)
    assert len(world.offered("db")) == 4
    world.timers.go_to(90.0)
    assert world.offered("db") == {}


def test_a_hold_that_ended_early_leaves_no_timer_that_ends_the_next_one() -> None:
    world = World(limits=Limits(hold_s=60))
    puts = world.has("a", "b", "c", "d")
    gone = Missing(keys=tuple(key("web", id_) for id_ in "abcd"), registry="etcd", reason="ttl expired")
    world.hears(gone, *puts)
    world.timers.go_to(30.0)
    world.hears(gone)
    world.timers.go_to(89.9)
    assert world.offered() == dict.fromkeys("abcd", "web")
    world.timers.go_to(90.0)
    assert world.offered() == {}


def test_a_release_that_another_control_plane_was_asked_for_counts_here() -> None:
    world = World()
    world.has("a", "b", "c", "d")
    world.hears(Missing(keys=tuple(key("web", id_) for id_ in "abcd"), registry="etcd", reason="ttl expired"))
    assert [hold.id for hold in world.intake.holds()] == ["web"]
    world.hears(Release(hold="web/a", registry="etcd"))
    assert world.offered() == dict.fromkeys("bcd", "web")
    world.hears(Release(hold="web", registry="etcd"))
    assert world.offered() == {}
    assert world.intake.holds() == ()
    assert world.told.said == [("held", "web"), ("released", "web")]


def test_a_deletion_by_a_request_takes_even_the_last_of_all() -> None:
    world = World()
    world.has("a", "b", "c", "d")
    world.hears(*(DeleteInstance(key=key("web", id_), registry="etcd") for id_ in "abcd"))
    assert world.offered() == {}
    assert world.told.said == []


def test_an_instance_that_moves_to_another_registry_is_no_loss() -> None:
    world = World("consul", "etcd")
    world.has("a", "b", "c", "d", registry="consul")
    world.has("a", "b", "c", "d", registry="etcd")
    world.hears(Missing(keys=tuple(key("web", id_) for id_ in "abcd"), registry="consul", reason="relist"))
    assert world.offered() == dict.fromkeys("abcd", "")
    assert {entry.registry for entry in world.live.current.entries()} == {"etcd"}


def recorded(instance_: Instance, status: HealthStatus = HealthStatus.UNHEALTHY) -> Recorded:
    return Recorded(key=instance_.key, target=target_of(instance_), verdict=verdict(status), registry="etcd")


def status_of(world: World, id_: str = "a") -> HealthStatus:
    entry = world.live.current.entry(key("web", id_))
    assert entry is not None
    return entry.status


def test_a_verdict_that_was_recorded_before_its_instance_came_counts_from_the_start() -> None:
    world = World()
    judged = instance("web", "a", **CHECKED)
    world.hears(recorded(judged), PutInstance(instance=judged, registry="etcd"))
    assert status_of(world) is HealthStatus.UNHEALTHY


def test_a_recorded_verdict_of_another_address_says_nothing() -> None:
    world = World()
    judged = instance("web", "a", **CHECKED)
    moved = instance("web", "a", host="10.9.9.9", **CHECKED)
    world.hears(recorded(judged), PutInstance(instance=moved, registry="etcd"))
    assert status_of(world) is HealthStatus.UNKNOWN
    world.hears(recorded(judged))
    assert status_of(world) is HealthStatus.UNKNOWN
    world.hears(recorded(moved))
    assert status_of(world) is HealthStatus.UNHEALTHY


def test_a_recorded_verdict_counts_where_others_check_and_is_disputed_where_we_do() -> None:
    world = World()
    judged = instance("web", "a", **CHECKED)
    world.hears(PutInstance(instance=judged, registry="etcd", verdict=verdict()))
    world.told.counts = False
    world.hears(recorded(judged))
    assert status_of(world) is HealthStatus.HEALTHY
    world.told.counts = True
    world.hears(recorded(judged))
    assert status_of(world) is HealthStatus.UNHEALTHY


def test_a_recorded_verdict_does_not_replace_the_one_that_a_known_instance_has() -> None:
    world = World()
    judged = instance("web", "a", **CHECKED)
    world.hears(PutInstance(instance=judged, registry="etcd", verdict=verdict()))
    world.told.counts = False
    world.hears(recorded(judged), PutInstance(instance=replace(judged, weight=7), registry="etcd"))
    assert status_of(world) is HealthStatus.HEALTHY


def test_when_an_instance_goes_whose_verdict_is_recorded_it_is_said_so_once() -> None:
    world = World()
    judged = instance("web", "a", **CHECKED)
    gone = DeleteInstance(key=judged.key, registry="etcd")
    world.hears(recorded(judged), PutInstance(instance=judged, registry="etcd"), gone)
    assert world.told.gone_seen == [judged.key]
    # Its verdict is dropped by then, and what comes next under its id is a new one.
    world.hears(Recorded(key=judged.key, target="", verdict=None, registry="etcd"))
    world.hears(PutInstance(instance=judged, registry="etcd"), gone)
    assert world.told.gone_seen == [judged.key]
    world.hears(PutInstance(instance=judged, registry="etcd"))
    assert status_of(world) is HealthStatus.UNKNOWN


def test_while_the_store_cannot_be_heard_the_other_members_are_not_known() -> None:
    world = World("kubernetes", "etcd", store="etcd")
    world.hears(Members(ids=frozenset({"me", "other"}), registry="etcd"))
    world.hears(Lost(registry="kubernetes", reason="gone"))
    assert world.told.members_seen == [{"me", "other"}]
    world.hears(Lost(registry="etcd", reason="gone"))
    assert world.told.members_seen == [{"me", "other"}, None]


def test_the_members_share_the_checks_again_once_the_store_is_back_and_has_no_others_to_tell() -> None:
    world = World("kubernetes", "etcd", store="etcd")
    world.hears(Members(ids=frozenset({"me", "other"}), registry="etcd"), Synced(registry="etcd"))
    world.hears(Lost(registry="etcd", reason="gone"))
    assert world.told.members_seen[-1] is None
    world.hears(Synced(registry="kubernetes"))
    assert world.told.members_seen[-1] is None, "that is another registry"
    world.hears(Synced(registry="etcd"))
    assert world.told.members_seen[-1] == {"me", "other"}


def test_a_loss_that_is_told_twice_is_said_once() -> None:
    world = World()
    world.hears(*[Lost(registry="etcd", reason="refused")] * 2, *[Synced(registry="etcd")] * 2)
    assert world.told.said == [("lost", "etcd"), ("synced", "etcd")]


def known(*events: PutInstance, held: dict[InstanceKey, str] | None = None) -> LastGood:
    return LastGood(confirmed_at=0.0, events=events, held=held or {})


def test_what_was_held_before_a_restart_of_an_embedded_registry_is_held_again() -> None:
    gone = put("web", "a", host="10.0.1.1")
    left = [put("web", id_, host=f"10.0.1.{number}") for number, id_ in enumerate("bcdefgh", start=2)]
    remembered = Remembered(
        known(gone, *left, held={key("web", "a"): "web"}),
        ["memory"],
        journalled=frozenset({"memory"}),
        fresh=True,
    )
    world = World("memory", remembered=remembered, limits=Limits(hold_s=60))
    world.hears(*left, Synced(registry="memory"))
    assert world.offered() == {"a": "web", **dict.fromkeys("bcdefgh", "")}
    assert world.told.said == [("held", "web"), ("synced", "memory")]
    world.timers.go_to(60.0)
    assert "a" not in world.offered()


def test_a_first_listing_that_lacks_what_was_there_before_the_restart_is_looked_at_twice() -> None:
    puts = [PutInstance(instance=each.instance, registry="etcd") for each in (put("web", id_) for id_ in "abcd")]
    world = World(remembered=Remembered(known(*puts), ["etcd"], journalled=frozenset(), fresh=True))
    world.hears(Synced(registry="etcd"))
    assert world.offered() == dict.fromkeys("abcd", "web")


def remembering(*registries: str) -> tuple[World, list[PutInstance]]:
    """Return a world that knows of an instance in each registry, none of which has spoken yet."""
    puts = [PutInstance(instance=put(name, "a").instance, registry=name) for name in registries]
    remembered = Remembered(known(*puts), registries, journalled=frozenset(), fresh=True)
    return World(*registries, remembered=remembered), puts


@pytest.mark.parametrize("silent", [True, False], ids=["after it was silent", "at once"])
async def test_a_registry_that_is_found_empty_after_a_restart_takes_no_policy_and_no_secret(silent: bool) -> None:
    puts = [PutInstance(instance=instance("web", id_, host=f"10.0.2.{id_}"), registry="etcd") for id_ in "1234"]
    last = LastGood(confirmed_at=0.0, events=(*puts, POLICY, RESOURCE), held={})
    world = World(remembered=Remembered(last, ("etcd",), journalled=frozenset(), fresh=True))
    if silent:
        await world.intake.first_words(["etcd"], ["etcd"], 0.0)
    world.hears(Synced(registry="etcd"))
    assert world.offered() == dict.fromkeys("1234", "web")
    assert commons_of(world) == (Strategy.RANDOM, 1)
    world.hears(Release(hold="web", registry="etcd"))
    assert commons_of(world) == (None, 0)


async def test_what_is_offered_in_place_of_a_silent_registry_is_stale_until_that_speaks() -> None:
    world, (known_of_it,) = remembering("etcd")
    assert world.intake.stale == frozenset()
    assert await world.intake.first_words(["etcd"], ["etcd"], 0) == {"etcd"}
    assert world.intake.stale == {"etcd"}
    assert world.offered("etcd") == {"a": ""}
    assert "etcd" not in world.live.current.synced
    world.hears(known_of_it, Synced(registry="etcd"))
    assert world.intake.stale == frozenset()
    assert world.offered("etcd") == {"a": ""}


async def test_a_registry_that_has_spoken_is_not_stood_in_for() -> None:
    world, _ = remembering("etcd")
    world.hears(Synced(registry="etcd"))
    assert await world.intake.first_words(["etcd"], ["etcd"], 0) == frozenset()


async def test_an_optional_registry_is_not_waited_for_and_what_was_known_of_it_is_there_all_the_same() -> None:
    world, _ = remembering("etcd", "consul")
    world.hears(Synced(registry="etcd"))
    assert await world.intake.first_words(["etcd", "consul"], ["etcd"], PATIENCE_S) == {"consul"}
    assert world.offered("consul") == {"a": ""}


async def test_other_names_of_a_service_are_remembered_on_disk_until_its_registry_says_otherwise(
    tmp_path: Path,
) -> None:
    web, api = ServiceName("web"), ServiceName("api")
    before = World("kubernetes")
    before.hears(
        PutAliases(service=web, aliases=(ServiceName("web.shop"),), registry="kubernetes"),
        PutAliases(service=api, aliases=(ServiceName("api.shop"),), registry="kubernetes"),
        PutPolicy(service=web, policy=Policy(), registry="kubernetes"),
    )
    file = LastGoodFile(tmp_path)
    file.write(before.live.current)
    read = file.read()
    assert read is not None

    world = World("kubernetes", remembered=Remembered(read, ["kubernetes"], journalled=frozenset(), fresh=True))
    await world.intake.first_words(["kubernetes"], ["kubernetes"], 0)
    services = world.live.current.services
    assert (services[web].aliases, services[web].own_policy) == (("web.shop",), Policy())
    assert services[api].aliases == ("api.shop",)

    world.hears(
        PutAliases(service=web, aliases=(ServiceName("web.shop"),), registry="kubernetes"),
        Synced(registry="kubernetes"),
    )
    assert set(world.live.current.services) == {web}, "the other went while nobody looked"


async def test_a_registry_of_which_nothing_is_known_is_waited_for() -> None:
    world = World()
    waiting = asyncio.create_task(world.intake.first_words(["etcd"], ["etcd"], None))
    await asyncio.sleep(0)
    assert not waiting.done()
    world.hears(Synced(registry="etcd"))
    async with asyncio.timeout(PATIENCE_S):
        assert await waiting == frozenset()
