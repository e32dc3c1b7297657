"""The stream of events: state, `synced`, changes; resumable, and bounded for whoever reads slowly."""

import asyncio
import json
import socket
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from builders import key, put, verdict

from controlplane.model import DeletePolicy, GraceOver, HealthStatus, Held, Judged, Lost, PutPolicy, Resolved, Synced
from controlplane.policy import Policy

pytestmark = pytest.mark.unit

EVENTS = "/api/v1/events"


@dataclass
class Event:
    """Hold one event of a stream; a heartbeat has no kind."""

    kind: str
    data: Any
    id: str | None

    @property
    def about(self) -> tuple[str, str]:
        """Return the event in short: its kind and what it is about."""
        if self.kind in {"synced", "reset", ""}:
            return self.kind, self.id or ""
        if self.data["kind"] == "policy":
            return self.kind, f"policy {self.data.get('service') or self.data['policy']['service']}"
        shown = self.data.get("instance")
        return self.kind, f"{shown['name']}/{shown['id']}" if shown else f"{self.data['service']}/{self.data['id']}"


class Stream:
    """Read events from an answer."""

    def __init__(self, response):
        self.response = response

    async def next(self) -> Event:
        kind, data, id, comment = "", None, None, False
        while True:
            line = (await self.response.content.readuntil(b"\n")).decode().rstrip("\n")
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                if kind or comment:
                    return Event(kind, data, id)
            elif not name:
                comment = True
            elif name == "event":
                kind = value
            elif name == "data":
                data = json.loads(value)
            elif name == "id":
                id = value

    async def until(self, kind: str) -> list[Event]:
        """Return the events up to the first of `kind`, which is the last of them."""
        events = [await self.next()]
        while events[-1].kind != kind:
            events.append(await self.next())
        return events


@asynccontextmanager
async def watching(edge, query="", last_event_id=None):
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    async with edge.client.get(EVENTS + query, headers=headers) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        yield Stream(response)


def about(events):
    return [event.about for event in events]


async def test_the_state_comes_first_then_every_change(edge):
    await edge.register("web", id="b", host="10.0.0.2")
    await edge.register("web", id="a")
    await edge.json("PUT", "/api/v1/services/api/policy", 201, {"strategy": "random"})
    async with watching(edge) as stream:
        state = await stream.until("synced")
        await edge.register("web", id="c", host="10.0.0.3", weight=7)
        added = await stream.next()
        await edge.json("DELETE", "/api/v1/services/web/instances/a", 204)
        removed = await stream.next()

    assert about(state) == [("put", "policy api"), ("put", "web/a"), ("put", "web/b"), ("synced", "e.4")]
    assert [event.id for event in state] == [None, None, None, "e.4"]
    assert (added.about, added.id, added.data["instance"]["weight"]) == (("put", "web/c"), "e.5", 7)
    assert (removed.about, removed.id, removed.data["reason"]) == (("delete", "web/a"), "e.6", "deregistered")


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        pytest.param(
            Judged(key=key("web", "a"), verdict=verdict(HealthStatus.UNHEALTHY)), ("put", "web/a"), id="a verdict"
        ),
        pytest.param(
            Resolved(host="web.internal", addresses=("10.1.1.1",)), ("put", "web/named"), id="a name that resolves"
        ),
        pytest.param(
            PutPolicy(service="web", policy=Policy(timeout=9), registry="memory"), ("put", "policy web"), id="a policy"
        ),
        pytest.param(DeletePolicy(service="api", registry="memory"), ("delete", "policy api"), id="a policy's end"),
        pytest.param(Held(keys=(key("web", "a"),), hold="web"), ("put", "web/a"), id="a hold of the guard"),
    ],
)
async def test_whatever_changes_what_is_shown_is_an_event(edge, event, expected):
    await edge.register("web", id="a", health_check={"type": "tcp"})
    await edge.register("web", id="named", host="web.internal")
    await edge.json("PUT", "/api/v1/services/api/policy", 201, {"strategy": "random"})
    async with watching(edge) as stream:
        await stream.until("synced")
        change = edge.live.apply(event)
        seen = await stream.next()

    assert (seen.about, seen.id) == (expected, edge.live.label(change.revision))


async def test_what_shows_nothing_is_no_event(edge):
    await edge.register("web", id="a")
    await edge.json("DELETE", "/api/v1/services/web/instances/a", 204)
    async with watching(edge) as stream:
        await stream.until("synced")
        edge.live.apply(GraceOver(service="web", emptied_at=3))
        edge.live.apply(Synced(registry="another"))
        edge.live.apply(Lost(registry="another", reason="refused"))
        await edge.register("web", id="b")

        assert (await stream.next()).about == ("put", "web/b")


async def test_only_the_services_asked_for_are_told(edge):
    for name in ("a", "b", "c"):
        await edge.register(name, id="x")
    async with watching(edge, "?service=a,c") as both, watching(edge, "?service=b&service=unborn") as other:
        assert about(await both.until("synced"))[:-1] == [("put", "a/x"), ("put", "c/x")]
        assert about(await other.until("synced"))[:-1] == [("put", "b/x")]
        for name in ("b", "unborn", "c"):
            await edge.register(name, id="y", host="10.0.0.2")

        assert (await both.next()).about == ("put", "c/y")
        assert (await other.next()).about == ("put", "b/y")
        assert (await other.next()).about == ("put", "unborn/y")


async def test_a_stream_of_one_service_sleeps_through_the_others(edge):
    async with watching(edge, "?service=web") as stream:
        await stream.until("synced")
        await edge.register("other", id="x")
        await edge.register("web", id="y")

        assert (await stream.next()).about == ("put", "web/y")


async def test_a_stream_goes_on_after_the_last_event(edge):
    await edge.register("web", id="a")
    last = edge.live.revision
    await edge.register("web", id="b", host="10.0.0.2")
    await edge.json("DELETE", "/api/v1/services/web/instances/a", 204)
    async with watching(edge, last_event_id=last) as stream:
        missed = await stream.until("synced")

    assert about(missed) == [("put", "web/b"), ("delete", "web/a"), ("synced", edge.live.revision)]


async def test_a_stream_that_missed_nothing_begins_with_synced(edge):
    await edge.register("web", id="a")
    async with watching(edge, last_event_id=edge.live.revision) as stream:
        assert (await stream.next()).about == ("synced", edge.live.revision)


@pytest.mark.parametrize(
    "last_event_id",
    [
        pytest.param("before.2", id="of another process"),
        pytest.param("e.999", id="from the future"),
        pytest.param("e.0", id="from before the history"),
        pytest.param("e.x", id="no revision"),
        pytest.param("e.²", id="a digit that is none"),
        pytest.param("junk", id="no id of ours"),
    ],
)
async def test_an_unknown_event_id_gets_a_reset_and_the_full_state(edge, last_event_id):
    edge.live.history = deque(maxlen=2)
    await edge.register("web", id="a")
    await edge.register("web", id="b", host="10.0.0.2")
    await edge.register("web", id="c", host="10.0.0.3")
    async with watching(edge, last_event_id=last_event_id) as stream:
        state = await stream.until("synced")

    assert about(state)[0] == ("reset", "")
    assert about(state)[1:] == [("put", "web/a"), ("put", "web/b"), ("put", "web/c"), ("synced", edge.live.revision)]


async def test_changes_that_come_together_are_told_once_each(edge):
    async with watching(edge) as stream:
        await stream.until("synced")
        for weight in (1, 2, 3):  # in one turn of the loop: the stream cannot look in between
            edge.live.apply(put("web", "a", weight=weight))
        edge.live.apply(put("web", "b", host="10.0.0.2"))
        seen = [await stream.next(), await stream.next()]

    assert about(seen) == [("put", "web/a"), ("put", "web/b")]
    assert seen[0].data["instance"]["weight"] == 3
    assert [event.id for event in seen] == [None, edge.live.revision]


async def test_a_reader_that_missed_more_than_is_remembered_gets_everything_anew(edge):
    edge.live.history = deque(maxlen=2)
    async with watching(edge) as stream:
        await stream.until("synced")
        for number in range(5):
            edge.live.apply(put("web", f"i{number}", host=f"10.0.0.{number + 1}"))
        state = await stream.until("synced")

    assert about(state) == [
        ("reset", ""),
        *(("put", f"web/i{number}") for number in range(5)),
        ("synced", edge.live.revision),
    ]


async def test_a_slow_reader_is_moved_to_the_newest_state(edge):
    fat = {f"k{n}": "x" * 4000 for n in range(60)}
    rounds = 120  # 29 MB in all, more than any socket buffers
    async with watching(edge) as stream:
        await stream.until("synced")
        for weight in range(1, rounds + 1):
            await edge.register("web", id="a", weight=weight, metadata=fat)
        seen = []
        while not seen or seen[-1] != rounds:
            seen.append((await stream.next()).data["instance"]["weight"])

    assert seen == sorted(seen)
    assert len(seen) < rounds


async def test_a_quiet_stream_is_kept_alive_and_its_id_moves_on(edge, monkeypatch):
    monkeypatch.setattr("controlplane.api.events._HEARTBEAT_S", 0.0)
    await edge.register("other", id="x")
    async with watching(edge, "?service=web") as stream:
        await stream.until("synced")
        first = await stream.next()
        await edge.register("other", id="y", host="10.0.0.2")
        revision = edge.live.revision
        while (latest := await stream.next()).id != revision:
            assert latest.kind == ""

    assert first.kind == ""


async def test_a_reader_that_takes_nothing_is_disconnected(edge, monkeypatch):
    monkeypatch.setattr("controlplane.api.events._STUCK_S", 0.2)
    fat = {f"k{n}": "x" * 4000 for n in range(60)}
    for number in range(40):  # 10 MB in all, more than the sockets buffer
        await edge.register("web", id=f"i{number}", host=f"10.0.0.{number}", metadata=fat)
    server = edge.client.server.runner.server
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(reader, ("127.0.0.1", edge.client.port))
        others = set(server.connections)
        await loop.sock_sendall(reader, f"GET {EVENTS} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        async with asyncio.timeout(10):
            while not set(server.connections) - others:
                await asyncio.sleep(0)
            while set(server.connections) - others:
                await asyncio.sleep(0)


async def test_a_stream_ends_with_the_process(edge):
    async with watching(edge) as stream:
        await stream.until("synced")
        await edge.client.app.shutdown()

        async with asyncio.timeout(5):
            assert await stream.response.content.read() == b""


async def test_a_client_that_goes_leaves_nothing_behind(edge):
    async with watching(edge) as stream:
        await stream.until("synced")
    async with asyncio.timeout(5):
        await edge.metrics.counted.wait()

    assert edge.metrics.requests == [("GET", EVENTS, 499, 0.0)]
