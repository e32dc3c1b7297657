"""Section S of the conformance list: versions, nonces, ACK and NACK of state-of-the-world streams."""

import pytest
from envoy_data_plane.envoy.service.discovery.v3 import DiscoveryRequest
from envoy_data_plane.google.rpc import Status

from tests.xds.client import Response, XdsStream
from tests.xds.conformance.fixture import FIXTURE
from tests.xds.conformance.world import EITHER, WAYS, World, contents, names, ports, serving, settle, until_quiet
from xds.messages import Acked, Ignored, Nacked, Outdated
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE

pytestmark = [pytest.mark.integration, WAYS]


def open_sotw(world: World, type_url: str, own: bool) -> XdsStream:
    return world.open(type_url, delta=False, own=own)


def version_of(response: Response) -> str:
    return str(getattr(response, "version_info", ""))


@EITHER
async def test_s_01_s_02_the_first_request_is_answered_once_and_an_ack_ends_it(
    world: World, own: bool, type_url: str, wanted: tuple[str, ...]
) -> None:
    stream = open_sotw(world, type_url, own)
    response = await settle(stream, type_url, wanted)

    assert version_of(response)
    assert response.nonce
    assert names(response) == list(FIXTURE[type_url])
    await stream.expect_quiet()


async def test_s_03_no_nonce_is_used_twice_on_a_stream(world: World, own: bool) -> None:
    stream = open_sotw(world, ENDPOINT, own)
    answers = [await settle(stream, ENDPOINT, ["c1"]), await settle(stream, ENDPOINT, ["c1", "c2"])]
    await stream.subscribe(ENDPOINT, [])
    answers.append(await settle(stream, ENDPOINT, ["c1"]))
    world.mutate((ENDPOINT, "c1"))
    answers.append(await stream.expect(ENDPOINT))

    assert version_of(answers[0]) == version_of(answers[1]) == version_of(answers[2])
    assert len({answer.nonce for answer in answers}) == 4


@EITHER
async def test_s_04_the_version_follows_the_content_on_every_replica(
    own: bool, type_url: str, wanted: tuple[str, ...]
) -> None:
    async with serving() as world, serving(identifier="cp-2") as replica:
        stream, other = open_sotw(world, type_url, own), open_sotw(replica, type_url, own)
        first = await settle(stream, type_url, wanted)

        assert version_of(first) == version_of(await settle(other, type_url, wanted))
        world.mutate((type_url, "c1"))
        changed = await stream.expect(type_url)

        assert version_of(changed) != version_of(first)
        replica.mutate((type_url, "c1"))

        assert version_of(await other.expect(type_url)) == version_of(changed)


@EITHER
@pytest.mark.parametrize("code", [13, 3], ids=["INTERNAL, as Envoy says", "INVALID_ARGUMENT, as gRPC says"])
async def test_s_05_a_request_with_an_error_is_a_refusal_and_is_told_to_the_operator(
    world: World, own: bool, type_url: str, wanted: tuple[str, ...], code: int
) -> None:
    stream = open_sotw(world, type_url, own)
    await settle(stream, type_url, wanted)
    world.mutate((type_url, "c1"))
    await stream.nack(await stream.expect(type_url), "it will not do", code)
    await world.heard.until(lambda: bool(world.heard.of(Nacked)))
    await stream.expect_quiet()
    refusal = world.heard.of(Nacked)[0]

    assert (refusal.type_url, refusal.code, refusal.message) == (type_url, code, "it will not do")
    assert refusal.names == ("c1",)
    assert len(world.heard.of(Acked)) == 1


async def test_s_05_a_refusal_at_the_accepted_version_is_still_a_refusal(world: World, own: bool) -> None:
    stream = open_sotw(world, ENDPOINT, own)
    accepted = await settle(stream, ENDPOINT, ["c1"])
    await stream.subscribe(ENDPOINT, ["c1", "c2"])
    refused = await stream.expect(ENDPOINT)
    await stream.nack(refused)
    await world.heard.until(lambda: bool(world.heard.of(Nacked)))
    await stream.expect_quiet()

    assert version_of(refused) == version_of(accepted)
    assert world.heard.of(Nacked)[0].names == ("c2",)


@EITHER
async def test_s_06_an_old_version_without_an_error_is_neither_an_ack_nor_a_new_request(
    world: World, own: bool, type_url: str, wanted: tuple[str, ...]
) -> None:
    stream = open_sotw(world, type_url, own)
    accepted = await settle(stream, type_url, wanted)
    world.mutate((type_url, "c1"))
    response = await stream.expect(type_url)
    await stream.send(
        DiscoveryRequest(
            type_url=type_url,
            resource_names=list(wanted),
            version_info=version_of(accepted),
            response_nonce=response.nonce,
        )
    )
    await world.heard.until(lambda: bool(world.heard.of(Ignored)))
    await stream.expect_quiet()

    assert len(world.heard.of(Acked)) == 1
    world.mutate((type_url, "c1"))

    assert "c1" in names(await stream.expect(type_url))


@EITHER
async def test_s_07_an_ack_of_a_response_that_is_not_the_last_changes_nothing(
    own: bool, type_url: str, wanted: tuple[str, ...]
) -> None:
    async with serving(ack_timeout_s=0.02) as world:
        stream = open_sotw(world, type_url, own)
        await stream.subscribe(type_url, wanted)
        first = await stream.expect(type_url)
        world.mutate((type_url, "c1"))
        second = await stream.expect(type_url)
        await stream.ack(first)
        await world.heard.until(lambda: bool(world.heard.of(Outdated)))
        await stream.expect_quiet()

        assert world.heard.of(Acked) == []
        await stream.ack(second)
        await world.heard.until(lambda: bool(world.heard.of(Acked)))

        assert [event.nonce for event in world.heard.of(Acked)] == [second.nonce]
        await stream.expect_quiet()


async def test_s_08_a_list_that_grows_on_a_stale_nonce_is_answered_exactly_once(own: bool) -> None:
    async with serving(ack_timeout_s=0.02) as world:
        stream = open_sotw(world, ENDPOINT, own)
        await stream.subscribe(ENDPOINT, ["c1"])
        first = await stream.expect(ENDPOINT)
        world.mutate((ENDPOINT, "c1"))
        second = await stream.expect(ENDPOINT)
        for nonce in (first.nonce, second.nonce):
            await stream.send(DiscoveryRequest(type_url=ENDPOINT, resource_names=["c1", "c2"], response_nonce=nonce))
        delivered = [name for response in await until_quiet(stream) for name in names(response)]

        assert delivered.count("c2") == 1


async def test_s_08_a_list_that_grows_on_a_stale_nonce_alone_is_answered_too(own: bool) -> None:
    async with serving(ack_timeout_s=0.02) as world:
        stream = open_sotw(world, ENDPOINT, own)
        await stream.subscribe(ENDPOINT, ["c1"])
        first = await stream.expect(ENDPOINT)
        world.mutate((ENDPOINT, "c1"))
        await stream.expect(ENDPOINT)
        await stream.send(DiscoveryRequest(type_url=ENDPOINT, resource_names=["c1", "c2"], response_nonce=first.nonce))

        assert names(await stream.expect(ENDPOINT)) == ["c2"]


@EITHER
async def test_s_09_s_10_the_first_request_of_a_stream_is_answered_in_full_whatever_it_carries(
    world: World, own: bool, type_url: str, wanted: tuple[str, ...]
) -> None:
    current = version_of(await settle(open_sotw(world, type_url, own), type_url, wanted))
    for version, nonce in (("7", "old"), (current, ""), (current, "1")):
        stream = open_sotw(world, type_url, own)
        await stream.send(
            DiscoveryRequest(type_url=type_url, resource_names=list(wanted), version_info=version, response_nonce=nonce)
        )

        assert names(await stream.expect(type_url)) == list(FIXTURE[type_url])


async def test_s_11_a_newer_request_supersedes_one_that_is_not_answered_yet(world: World, own: bool) -> None:
    stream = open_sotw(world, ENDPOINT, own)
    await stream.subscribe(ENDPOINT, ["c1"])
    await stream.subscribe(ENDPOINT, ["c2"])
    told = [names(response) for response in await until_quiet(stream)]

    assert told in ([["c2"]], [["c1"], ["c2"]])
    world.mutate((ENDPOINT, "c1"), (ENDPOINT, "c2"))

    assert [names(response) for response in await until_quiet(stream)] == [["c2"]]


async def test_s_12_s_06_a_client_that_answers_late_or_never_keeps_its_stream_and_the_other_types(own: bool) -> None:
    async with serving(ack_timeout_s=0.02) as world:
        world.mutate(removed=[(CLUSTER, name) for name in FIXTURE[CLUSTER]])
        stream = open_sotw(world, CLUSTER, own)
        await stream.subscribe(CLUSTER)
        empty = await stream.expect(CLUSTER)  # to which Envoy does not reply where it has no watch

        assert empty.resources == []
        for type_url in () if own else (LISTENER, ROUTE):
            await stream.subscribe(type_url, ["l1", "r1"])
            await stream.expect(type_url)
        world.mutate((CLUSTER, "c1"))

        assert names(await stream.expect(CLUSTER)) == ["c1"]


@EITHER
async def test_s_13_after_a_refusal_the_mended_version_goes_out_at_once(
    world: World, own: bool, type_url: str, wanted: tuple[str, ...]
) -> None:
    stream = open_sotw(world, type_url, own)
    await settle(stream, type_url, wanted)
    world.mutate((type_url, "c1"))
    await stream.nack(await stream.expect(type_url))
    await world.heard.until(lambda: bool(world.heard.of(Nacked)))
    world.mutate((type_url, "c1"))
    mended = await stream.expect(type_url)

    assert "c1" in names(mended)
    await stream.ack(mended)
    world.mutate((type_url, "c1"))
    bad = await stream.expect(type_url)
    world.mutate((type_url, "c1"))  # the mend is there before the refusal is
    await stream.nack(bad)

    assert "c1" in names(await stream.expect(type_url))


async def test_s_13_a_refused_endpoint_change_is_followed_by_the_newest_one(world: World, own: bool) -> None:
    stream = open_sotw(world, ENDPOINT, own)
    await settle(stream, ENDPOINT, ["c1"])
    world.mutate((ENDPOINT, "c1"))
    bad = await stream.expect(ENDPOINT)
    for _ in range(3):
        world.mutate((ENDPOINT, "c1"))
    await stream.send(
        DiscoveryRequest(
            type_url=ENDPOINT, resource_names=["c1"], response_nonce=bad.nonce, error_detail=Status(code=13)
        )
    )

    assert ports(contents(await stream.expect(ENDPOINT))["c1"]) == [8005]
    await stream.expect_quiet()
