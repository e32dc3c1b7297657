"""The registry contract: what every writable registry does, whatever keeps its data."""

import asyncio
from dataclasses import replace

import pytest
from builders import instance, key, verdict
from registry.harness import Subject, Told

from controlplane.model import (
    DeleteInstance,
    DeletePolicy,
    DeleteResource,
    HealthCheck,
    HealthStatus,
    Instance,
    Locality,
    Missing,
    PutInstance,
    PutPolicy,
    PutResource,
    RawResource,
    ServiceName,
)
from controlplane.policy import Policy, Strategy
from controlplane.registry import AddressTaken, Conflict, UnknownInstance, WritableRegistry

WEB = ServiceName("web")
A = instance("web", "a", host="10.0.0.1")
B = instance("web", "b", host="10.0.0.2")
LEASED = replace(A, ttl=10.0)
POLICY = Policy(strategy=Strategy.RANDOM, panic_threshold=0.0)


def there(registry: WritableRegistry, instance: Instance) -> PutInstance:
    return PutInstance(instance=instance, registry=registry.name)


def gone(registry: WritableRegistry, instance: Instance) -> DeleteInstance:
    return DeleteInstance(key=instance.key, registry=registry.name)


def expired(registry: WritableRegistry, instance: Instance) -> Missing:
    return Missing(keys=(instance.key,), registry=registry.name, reason="ttl expired")


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


STILL_DRAINING = [
    pytest.param(replace(A, draining=True), id="the same again"),
    pytest.param(replace(A, draining=True, weight=7), id="with another weight"),
]

RETYPED = [
    pytest.param(1, True, id="a number becomes a boolean"),
    pytest.param(True, 1.0, id="a boolean becomes a number"),
    pytest.param(1, 1.0, id="an integer becomes a float"),
]


def tagged(value: object) -> Instance:
    return instance("web", "a", host="10.0.0.1", metadata={"v": value})


class TestListing:
    async def test_a_registry_that_holds_nothing_says_so_at_once(self, source: Subject) -> None:
        async with source.listing() as (_, told):
            assert await told.listing() == []

    async def test_what_was_written_before_the_run_is_listed_before_synced(self, subject: Subject) -> None:
        async with subject.open() as registry:
            await registry.put(A)
            await registry.put_policy(WEB, POLICY)
            await registry.put(B)
            await registry.delete(B.key)
            told = Told(registry)
            task = asyncio.create_task(registry.run(told.emit))
            listing = await told.listing()
            await _cancelled(task)

        assert listing == [PutPolicy(service=WEB, policy=POLICY, registry=registry.name), there(registry, A)]

    async def test_what_is_written_while_the_listing_goes_out_is_neither_lost_nor_told_twice(
        self, subject: Subject
    ) -> None:
        async with subject.open() as registry:
            many = [instance("web", f"i{n}", host=f"10.0.{n // 250}.{n % 250}") for n in range(1_000)]
            await asyncio.gather(*(registry.put(each) for each in many[:900]))
            ids: list[str] = []
            complete = asyncio.Event()

            def emit(event: object) -> None:
                if isinstance(event, PutInstance):
                    ids.append(event.instance.id)
                    if len(ids) == len(many):
                        complete.set()

            task = asyncio.create_task(registry.run(emit))
            await asyncio.gather(*(registry.put(each) for each in many[900:]))
            await asyncio.wait_for(complete.wait(), 20)
            await _cancelled(task)

        assert sorted(ids) == sorted(each.id for each in many)


class TestDelivery:
    """What holds wherever instances come from, whoever put them there."""

    async def test_what_is_there_is_listed_and_what_comes_changes_and_goes_is_told_once(self, source: Subject) -> None:
        leaving = replace(B, draining=True)
        async with source.open() as registry:
            await source.put(registry, A)
        async with source.listing() as (registry, told):
            assert [event for event in await told.listing() if isinstance(event, PutInstance)] == [there(registry, A)]
            await source.put(registry, B)
            assert await told.next() == there(registry, B)
            await source.put(registry, leaving)
            assert await told.next() == there(registry, leaving)
            await source.delete(registry, leaving)
            assert await told.next() == gone(registry, B)
            await told.silence()

    async def test_while_it_is_followed_it_is_never_old(self, source: Subject) -> None:
        async with source.running() as (registry, _):
            assert registry.age_s() < 10
            assert registry.remarks == {}


class TestInstances:
    async def test_every_field_arrives_as_it_was_given(self, subject: Subject) -> None:
        full = Instance(
            name="web",
            id="Full:1",
            host="2001:db8::1",
            port=65535,
            tags=("b", "a"),
            metadata={"version": "1.0", "canary": True, "shard": 7, "load": 0.5, "ünï": "✓"},
            weight=1000,
            ttl=60.0,
            draining=True,
            locality=Locality(region="eu", zone="eu-1", sub_zone="rack"),
            health_check=HealthCheck(http_path="/ok", interval=1.5, unhealthy_threshold=2),
        )
        async with subject.running() as (registry, told):
            assert await registry.put(full) is True
            assert await told.next() == there(registry, full)

    async def test_a_replacement_is_one_event_and_not_new(self, subject: Subject) -> None:
        async with subject.running() as (registry, told):
            await registry.put(A)
            assert await registry.put(replace(A, weight=7)) is False

            assert await told.next() == there(registry, A)
            assert await told.next() == there(registry, replace(A, weight=7))
            await told.silence()

    async def test_putting_the_same_again_changes_nothing(self, subject: Subject) -> None:
        async with subject.running() as (registry, told):
            await registry.put(A)
            await told.next()

            assert await registry.put(A) is False

            await told.silence()

    @pytest.mark.parametrize(("old", "new"), RETYPED)
    async def test_a_metadata_value_of_another_json_type_is_a_change(
        self, subject: Subject, old: object, new: object
    ) -> None:
        async with subject.running() as (registry, told):
            for value in (old, new):
                await registry.put(tagged(value))
                event = await told.next()
                assert isinstance(event, PutInstance)
                assert repr(event.instance.metadata) == repr({"v": value})
            await told.silence()

    async def test_a_deletion_is_told_once(self, subject: Subject) -> None:
        async with subject.running() as (registry, told):
            await registry.put(A)
            await told.next()

            assert await registry.delete(A.key) is True
            assert await registry.delete(A.key) is False

            assert await told.next() == gone(registry, A)
            await told.silence()

    async def test_an_id_is_unique_within_its_service_only(self, subject: Subject) -> None:
        other = replace(A, name="api")
        async with subject.running() as (registry, told):
            assert await registry.put(A) is True
            assert await registry.put(other) is True
            await registry.delete(A.key)

            assert [await told.next() for _ in range(3)] == [
                there(registry, A),
                there(registry, other),
                gone(registry, A),
            ]

    async def test_a_writer_that_gives_up_does_not_undo_what_was_accepted(self, embedded: Subject) -> None:
        async with embedded.running() as (registry, told):
            writer = asyncio.create_task(registry.put(A))
            await asyncio.sleep(0)
            writer.cancel()

            assert await told.next() == there(registry, A)
            assert await registry.put(A) is False


class TestAddresses:
    async def test_an_address_has_one_owner_in_a_service(self, subject: Subject) -> None:
        thief = replace(A, id="thief")
        async with subject.running() as (registry, told):
            await registry.put(A)
            with pytest.raises(AddressTaken) as caught:
                await registry.put(thief)

            assert caught.value.owner == "a"
            assert await told.next() == there(registry, A)
            await told.silence()

    async def test_of_many_who_want_an_address_at_once_one_gets_it(self, subject: Subject) -> None:
        async with subject.running() as (registry, told):
            results = await asyncio.gather(
                *(registry.put(replace(A, id=f"i{n}")) for n in range(8)), return_exceptions=True
            )

            assert [result for result in results if not isinstance(result, AddressTaken)] == [True]
            await told.next()
            await told.silence()

    @pytest.mark.parametrize(
        "taker",
        [
            pytest.param(replace(A, name="api", id="x"), id="another service may have the same address"),
            pytest.param(replace(A, port=9), id="the owner may change its port"),
            pytest.param(replace(A, id="x", port=9), id="another port is another address"),
        ],
    )
    async def test_no_conflict(self, subject: Subject, taker: Instance) -> None:
        async with subject.running() as (registry, told):
            await registry.put(A)
            await registry.put(taker)

            assert [await told.next(), await told.next()] == [there(registry, A), there(registry, taker)]

    async def test_an_address_is_free_once_its_owner_has_moved_or_gone(self, subject: Subject) -> None:
        async with subject.running() as (registry, _):
            await registry.put(A)
            await registry.put(replace(A, port=9))
            assert await registry.put(replace(A, id="second")) is True
            await registry.delete(A.key)
            assert await registry.put(replace(A, id="third", port=9)) is True


class TestCompareAndSwap:
    async def test_the_expected_instance_is_replaced(self, subject: Subject) -> None:
        async with subject.running() as (registry, told):
            await registry.put(A)
            assert await registry.put(replace(A, weight=2), expected=A) is False
            await told.next()
            assert await told.next() == there(registry, replace(A, weight=2))

    async def test_one_that_has_changed_is_left_alone(self, subject: Subject) -> None:
        async with subject.running() as (registry, told):
            await registry.put(replace(A, weight=2))
            with pytest.raises(Conflict):
                await registry.put(replace(A, weight=3), expected=A)
            await told.next()
            await told.silence()

    @pytest.mark.parametrize(("old", "new"), RETYPED)
    async def test_one_whose_metadata_is_of_another_json_type_has_changed(
        self, subject: Subject, old: object, new: object
    ) -> None:
        async with subject.running() as (registry, _):
            await registry.put(tagged(new))
            with pytest.raises(Conflict):
                await registry.put(A, expected=tagged(old))
            assert await registry.put(A, expected=tagged(new)) is False

    async def test_one_that_has_gone_is_not_brought_back(self, subject: Subject) -> None:
        async with subject.running() as (registry, told):
            with pytest.raises(UnknownInstance):
                await registry.put(replace(A, weight=3), expected=A)
            await told.silence()

    async def test_of_many_who_expect_the_same_one_wins(self, subject: Subject) -> None:
        async with subject.running() as (registry, told):
            await registry.put(A)
            await told.next()
            results = await asyncio.gather(
                *(registry.put(replace(A, weight=2 + n), expected=A) for n in range(8)), return_exceptions=True
            )

            assert [result for result in results if not isinstance(result, Conflict)] == [False]
            await told.next()
            await told.silence()


class TestLeases:
    async def test_without_a_heartbeat_an_instance_goes_after_its_ttl(self, timed: Subject) -> None:
        async with timed.running() as (registry, told):
            await registry.put(LEASED)
            await told.next()
            await timed.advance(9.9)
            await told.silence()
            await timed.advance(0.2)

            assert await told.next() == expired(registry, LEASED)
            with pytest.raises(UnknownInstance):
                await registry.heartbeat(LEASED.key)
            assert await registry.put(LEASED) is True

    async def test_a_heartbeat_renews_the_whole_lease_silently(self, timed: Subject) -> None:
        async with timed.running() as (registry, told):
            await registry.put(LEASED)
            await told.next()
            for _ in range(5):
                await timed.advance(9.9)
                assert await registry.heartbeat(LEASED.key) == 10.0
            await told.silence()
            await timed.advance(10.1)

            assert await told.next() == expired(registry, LEASED)

    async def test_putting_the_same_again_renews_the_lease_silently(self, timed: Subject) -> None:
        async with timed.running() as (registry, told):
            await registry.put(LEASED)
            await told.next()
            await timed.advance(9.0)
            await registry.put(LEASED)
            await timed.advance(9.0)
            await told.silence()
            await timed.advance(1.1)

            assert await told.next() == expired(registry, LEASED)

    @pytest.mark.parametrize(
        ("ttl", "lasts"),
        [
            pytest.param(None, 86_400.0, id="without a ttl it stays"),
            pytest.param(100.0, 99.0, id="a longer ttl counts from the change"),
            pytest.param(5.0, 4.9, id="a shorter ttl counts from the change"),
        ],
    )
    async def test_a_changed_ttl_replaces_the_lease(self, timed: Subject, ttl: float | None, lasts: float) -> None:
        async with timed.running() as (registry, told):
            await registry.put(LEASED)
            await timed.advance(9.0)
            await registry.put(replace(LEASED, ttl=ttl))
            assert [await told.next(), await told.next()] == [
                there(registry, LEASED),
                there(registry, replace(LEASED, ttl=ttl)),
            ]
            await timed.advance(lasts)
            await told.silence()
            if ttl is not None:
                await timed.advance(ttl - lasts + 0.1)
                assert await told.next() == expired(registry, LEASED)

    async def test_where_thousands_expire_at_once_a_renewal_that_was_answered_counts(self, timed: Subject) -> None:
        many = [instance("web", f"i{n}", port=1 + n, ttl=10.0) for n in range(2_000)]
        async with timed.running() as (registry, told):
            await asyncio.gather(*(registry.put(each) for each in many))
            for _ in many:
                await told.next()
            renewed = set()

            async def renew() -> None:
                for each in reversed(many):
                    await asyncio.sleep(0)
                    try:
                        await registry.heartbeat(each.key)
                        renewed.add(each.key)
                    except UnknownInstance:
                        return

            await timed.advance(9.0)
            await asyncio.gather(timed.advance(1.0), renew())
            ended = set()
            while len(ended) < len(many) - len(renewed):
                ended.update((await told.next()).keys)
            await told.silence()

        assert renewed, "others get a turn while leases end"
        assert ended == {each.key for each in many} - renewed

    async def test_an_instance_without_a_lease_has_nothing_to_renew(self, subject: Subject) -> None:
        async with subject.running() as (registry, _):
            await registry.put(A)
            assert await registry.heartbeat(A.key) is None

    async def test_a_heartbeat_of_nobody_is_refused(self, subject: Subject) -> None:
        async with subject.running() as (registry, _):
            with pytest.raises(UnknownInstance):
                await registry.heartbeat(key("web", "nobody"))

    async def test_a_restart_gives_the_whole_lease_again(self, timed_durable: Subject) -> None:
        async with timed_durable.running() as (registry, told):
            await registry.put(LEASED)
            await told.next()
            await timed_durable.advance(9.0)
        await timed_durable.advance(1_000.0)
        async with timed_durable.running() as (registry, told):
            await timed_durable.advance(9.0)
            await told.silence()
            await timed_durable.advance(1.1)
            assert await told.next() == expired(registry, LEASED)


class TestDraining:
    async def test_a_drained_instance_says_so_first_and_goes_later(self, timed: Subject) -> None:
        async with timed.running() as (registry, told):
            await registry.put(A)
            await registry.drain(A.key, 30.0)
            assert [await told.next(), await told.next()] == [
                there(registry, A),
                there(registry, replace(A, draining=True)),
            ]
            await timed.advance(29.0)
            await told.silence()
            await timed.advance(1.1)

            assert await told.next() == gone(registry, A)
            assert await registry.delete(A.key) is False

    async def test_a_put_that_is_not_draining_calls_the_removal_off(self, timed: Subject) -> None:
        async with timed.running() as (registry, told):
            await registry.put(A)
            await registry.drain(A.key, 30.0)
            await told.next()
            await told.next()
            await registry.put(A)
            assert await told.next() == there(registry, A)
            await registry.put(replace(A, draining=True))
            assert await told.next() == there(registry, replace(A, draining=True))
            await timed.advance(3_600.0)
            await told.silence()

    @pytest.mark.parametrize("change", STILL_DRAINING)
    async def test_a_put_that_is_still_draining_leaves_the_removal_and_its_time(
        self, timed: Subject, change: Instance
    ) -> None:
        async with timed.running() as (registry, told):
            await registry.put(A)
            await registry.drain(A.key, 30.0)
            await told.next()
            await told.next()
            await timed.advance(20.0)
            await registry.put(change)
            if change.weight != A.weight:
                assert await told.next() == there(registry, change)
            await timed.advance(9.0)
            await told.silence()
            await timed.advance(1.1)

            assert await told.next() == gone(registry, A)

    async def test_draining_again_counts_anew_and_is_no_change(self, timed: Subject) -> None:
        async with timed.running() as (registry, told):
            await registry.put(A)
            await registry.drain(A.key, 30.0)
            await told.next()
            await told.next()
            await timed.advance(29.0)
            await registry.drain(A.key, 60.0)
            await timed.advance(59.0)
            await told.silence()
            await timed.advance(1.1)

            assert await told.next() == gone(registry, A)

    async def test_nobody_cannot_be_drained(self, subject: Subject) -> None:
        async with subject.running() as (registry, _):
            with pytest.raises(UnknownInstance):
                await registry.drain(key("web", "nobody"), 30.0)

    async def test_a_removal_that_waits_survives_a_restart_with_its_whole_delay(self, timed_durable: Subject) -> None:
        async with timed_durable.running() as (registry, told):
            await registry.put(A)
            await registry.drain(A.key, 30.0)
            await timed_durable.advance(29.0)
        async with timed_durable.listing() as (registry, told):
            assert await told.listing() == [there(registry, replace(A, draining=True))]
            await timed_durable.advance(29.0)
            await told.silence()
            await timed_durable.advance(1.1)
            assert await told.next() == gone(registry, A)
        async with timed_durable.listing() as (_, told):
            assert await told.listing() == []

    @pytest.mark.parametrize("change", STILL_DRAINING)
    async def test_a_removal_that_a_put_has_left_survives_a_restart(
        self, timed_durable: Subject, change: Instance
    ) -> None:
        async with timed_durable.running() as (registry, told):
            await registry.put(A)
            await registry.drain(A.key, 30.0)
            await registry.put(change)
        for _ in range(2):  # as it was written, then as the start compacted it
            async with timed_durable.listing() as (registry, told):
                assert await told.listing() == [there(registry, change)]
        async with timed_durable.running() as (registry, told):
            await timed_durable.advance(29.0)
            await told.silence()
            await timed_durable.advance(1.1)
            assert await told.next() == gone(registry, A)

    async def test_a_removal_that_was_called_off_stays_so_across_a_restart(self, timed_durable: Subject) -> None:
        async with timed_durable.running() as (registry, told):
            await registry.put(A)
            await registry.drain(A.key, 30.0)
            await registry.put(A)
        async with timed_durable.running() as (registry, told):
            await timed_durable.advance(3_600.0)
            await told.silence()


class TestRealTime:
    """The same by a real server's own clock: short times, and the event is awaited."""

    BRIEF = replace(A, ttl=1.0)

    async def test_without_a_heartbeat_an_instance_goes_after_its_ttl(self, real: Subject) -> None:
        async with real.running() as (registry, told):
            await registry.put(self.BRIEF)
            await told.next()

            assert await told.next() == expired(registry, self.BRIEF)
            with pytest.raises(UnknownInstance):
                await registry.heartbeat(A.key)
            assert await registry.put(self.BRIEF) is True

    async def test_one_with_heartbeats_outlives_one_without(self, real: Subject) -> None:
        quiet = replace(B, ttl=1.0)
        async with real.running() as (registry, told):
            await registry.put(self.BRIEF)
            await registry.put(quiet)
            assert [await told.next(), await told.next()] == [there(registry, self.BRIEF), there(registry, quiet)]
            went = asyncio.create_task(told.next())
            while not went.done():
                assert (left := await registry.heartbeat(A.key)) is not None
                assert left >= 1.0
                await asyncio.wait([went], timeout=0.2)

            assert went.result() == expired(registry, quiet)

    async def test_a_leased_instance_that_is_deregistered_was_meant_to_go(self, real: Subject) -> None:
        async with real.running() as (registry, told):
            await registry.put(replace(A, ttl=60.0))
            await told.next()
            assert await registry.delete(A.key) is True

            assert await told.next() == gone(registry, A)
            await told.silence()

    async def test_a_ttl_that_is_dropped_ends_nothing_any_more(self, real: Subject) -> None:
        quiet = replace(B, ttl=1.0)
        async with real.running() as (registry, told):
            await registry.put(self.BRIEF)
            await registry.put(A)
            await registry.put(quiet)

            events = [await told.next() for _ in range(4)]
            assert events[1:] == [there(registry, A), there(registry, quiet), expired(registry, quiet)]
            await told.silence()

    async def test_a_drained_instance_says_so_first_and_goes_later(self, real: Subject) -> None:
        async with real.running() as (registry, told):
            await registry.put(A)
            await registry.drain(A.key, 0.5)

            assert [await told.next() for _ in range(3)] == [
                there(registry, A),
                there(registry, replace(A, draining=True)),
                gone(registry, A),
            ]

    async def test_a_put_that_is_not_draining_calls_the_removal_off(self, real: Subject) -> None:
        async with real.running() as (registry, told):
            await registry.put(A)
            await registry.drain(A.key, 0.5)
            await registry.put(A)
            await registry.put(B)
            await registry.drain(B.key, 1.0)

            events = [await told.next() for _ in range(6)]
            assert events[2:] == [
                there(registry, A),
                there(registry, B),
                there(registry, replace(B, draining=True)),
                gone(registry, B),
            ]
            await told.silence()

    async def test_a_removal_that_waits_survives_a_restart(self, real: Subject) -> None:
        async with real.running() as (registry, told):
            await registry.put(A)
            await registry.drain(A.key, 1.0)
        async with real.running() as (registry, told):
            assert await told.next() == gone(registry, A)


class TestPolicies:
    async def test_a_policy_is_set_replaced_and_dropped(self, source: Subject) -> None:
        async with source.running() as (registry, told):
            assert await registry.put_policy(WEB, POLICY) is True
            assert await registry.put_policy(WEB, POLICY) is False
            assert await registry.put_policy(WEB, Policy()) is False
            assert await registry.delete_policy(WEB) is True
            assert await registry.delete_policy(WEB) is False

            assert [await told.next() for _ in range(3)] == [
                PutPolicy(service=WEB, policy=POLICY, registry=registry.name),
                PutPolicy(service=WEB, policy=Policy(), registry=registry.name),
                DeletePolicy(service=WEB, registry=registry.name),
            ]
            await told.silence()

    async def test_a_policy_needs_no_instance_and_outlives_the_last_one(self, durable: Subject) -> None:
        async with durable.running() as (registry, _):
            await registry.put_policy(WEB, POLICY)
            await registry.put(A)
            await registry.delete(A.key)
        async with durable.listing() as (registry, told):
            assert await told.listing() == [PutPolicy(service=WEB, policy=POLICY, registry=registry.name)]


class TestVerdicts:
    CHECKED = replace(A, health_check=HealthCheck())
    SICK = verdict(HealthStatus.UNHEALTHY, reason="HTTP 503, 3 of 3", score=20)

    async def test_a_verdict_comes_back_with_its_instance(self, durable: Subject) -> None:
        async with durable.running() as (registry, told):
            await registry.put(self.CHECKED)
            await registry.record(self.CHECKED.key, verdict(), self.CHECKED)
            await registry.record(self.CHECKED.key, self.SICK, self.CHECKED)
            await registry.put(replace(self.CHECKED, weight=9))
            assert [await told.next(), await told.next()] == [
                there(registry, self.CHECKED),
                there(registry, replace(self.CHECKED, weight=9)),
            ], "a live put carries no verdict: the catalog's is never older"
            await told.silence()
        async with durable.listing() as (registry, told):
            heavy = replace(self.CHECKED, weight=9)
            assert await told.listing() == [durable.listed(registry, heavy, self.SICK)]
            assert told.verdict_of(heavy) == self.SICK

    ELSEWHERE = (
        pytest.param(replace(CHECKED, port=9), id="another port"),
        pytest.param(replace(CHECKED, health_check=HealthCheck(http_path="/new")), id="another path"),
    )

    @pytest.mark.parametrize("changed", ELSEWHERE)
    async def test_a_verdict_does_not_speak_for_another_target(self, durable: Subject, changed: Instance) -> None:
        async with durable.running() as (registry, _):
            await registry.put(self.CHECKED)
            await registry.record(self.CHECKED.key, self.SICK, self.CHECKED)
            await registry.put(changed)
        async with durable.listing() as (registry, told):
            assert await told.listing() == [there(registry, changed)]
            assert told.verdict_of(changed) is None

    @pytest.mark.parametrize("changed", ELSEWHERE)
    async def test_a_verdict_that_comes_behind_a_move_does_not_speak_for_the_new_target(
        self, durable: Subject, changed: Instance
    ) -> None:
        async with durable.running() as (registry, _):
            await registry.put(self.CHECKED)
            moved = asyncio.create_task(registry.put(changed))
            await asyncio.sleep(0)
            await registry.record(self.CHECKED.key, self.SICK, self.CHECKED)
            await moved
            await registry.record(self.CHECKED.key, self.SICK, self.CHECKED)
        async with durable.listing() as (registry, told):
            assert await told.listing() == [there(registry, changed)]
            assert told.verdict_of(changed) is None

    async def test_a_verdict_about_what_has_since_changed_otherwise_is_kept(self, durable: Subject) -> None:
        heavy = replace(self.CHECKED, weight=9)
        async with durable.running() as (registry, _):
            await registry.put(heavy)
            await registry.record(heavy.key, self.SICK, self.CHECKED)
        async with durable.listing() as (registry, told):
            assert await told.listing() == [durable.listed(registry, heavy, self.SICK)]
            assert told.verdict_of(heavy) == self.SICK

    async def test_a_verdict_goes_with_its_instance(self, durable: Subject) -> None:
        async with durable.running() as (registry, _):
            await registry.put(self.CHECKED)
            await registry.record(self.CHECKED.key, self.SICK, self.CHECKED)
            await registry.delete(self.CHECKED.key)
            await registry.put(self.CHECKED)
        async with durable.listing() as (registry, told):
            assert await told.listing() == [there(registry, self.CHECKED)]
            assert told.verdict_of(self.CHECKED) is None

    async def test_a_verdict_about_nobody_is_ignored(self, embedded: Subject) -> None:
        async with embedded.running() as (registry, told):
            await registry.record(key("web", "nobody"), self.SICK, instance("web", "nobody"))
            await told.silence()


@pytest.mark.parametrize(("old", "new"), RETYPED)
async def test_a_changed_json_type_survives_a_restart(durable: Subject, old: object, new: object) -> None:
    async with durable.running() as (registry, _):
        await registry.put(tagged(old))
        await registry.put(tagged(new))
    async with durable.listing() as (registry, told):
        (event,) = await told.listing()
        assert isinstance(event, PutInstance)
        assert repr(event.instance.metadata) == repr({"v": new})


async def test_everything_answered_for_is_there_after_a_restart(durable: Subject) -> None:
    async with durable.running() as (registry, _):
        await asyncio.gather(*(registry.put(instance("web", f"i{n}", port=1 + n)) for n in range(300)))
        await asyncio.gather(*(registry.delete(key("web", f"i{n}")) for n in range(0, 300, 3)))
    async with durable.listing() as (_, told):
        ids = {event.instance.id for event in await told.listing() if isinstance(event, PutInstance)}

    assert ids == {f"i{n}" for n in range(300) if n % 3}


class TestRawResources:
    RUNTIME = RawResource(type_url="type.googleapis.com/a.Runtime", name="rt", body='{"name":"rt"}')

    async def test_one_that_is_stored_changed_and_removed_is_told_each_time(self, source: Subject) -> None:
        changed = replace(self.RUNTIME, node_zones=("eu-1",))
        async with source.listing() as (registry, told):
            await told.listing()
            assert await registry.put_resource(self.RUNTIME)
            assert await told.next() == PutResource(resource=self.RUNTIME, registry=registry.name)
            assert not await registry.put_resource(changed)
            assert await told.next() == PutResource(resource=changed, registry=registry.name)
            assert await registry.delete_resource(self.RUNTIME.key)
            assert await told.next() == DeleteResource(key=self.RUNTIME.key, registry=registry.name)

    async def test_the_same_again_and_removing_none_tell_nothing(self, source: Subject) -> None:
        async with source.listing() as (registry, told):
            await told.listing()
            await registry.put_resource(self.RUNTIME)
            await told.next()
            assert not await registry.put_resource(self.RUNTIME)
            assert not await registry.delete_resource(replace(self.RUNTIME, name="other").key)
            await told.silence()
