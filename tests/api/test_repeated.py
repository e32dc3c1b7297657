"""Reads that come again, byte for byte: answered without being read again, and as if they had been."""

import asyncio
import json
import re
from contextlib import asynccontextmanager

import pytest

from controlplane import api

pytestmark = pytest.mark.unit

WEB = "/api/v1/services/web"


def get(path=WEB, *headers):
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: x", *headers, "", "")).encode()


class Connection:
    """Send bytes and take the answers apart."""

    def __init__(self, edge, reader, writer):
        self.edge = edge
        self.reader = reader
        self.writer = writer

    @property
    def read_in_full(self):
        """Return how many requests aiohttp has read, on all connections."""
        return self.edge.client.server.runner.server.requests_count

    async def answer(self):
        """Return the next answer: its status line, its headers, its body."""
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).decode()
        first, *lines = head.split("\r\n")[:-2]
        headers = dict(line.split(": ", 1) for line in lines)
        body = await asyncio.wait_for(self.reader.readexactly(int(headers.get("Content-Length", 0))), 10)
        return first, headers, body

    async def ask(self, sent):
        self.writer.write(sent)
        return await self.answer()

    async def learn(self, sent):
        """Ask until the request is one that is known: the first of a connection may come before it is ready."""
        for _ in range(3):
            answer = await self.ask(sent)
        return answer


@asynccontextmanager
async def connected(edge):
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.client.port)
    try:
        yield Connection(edge, reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_repeated_read_is_not_read_again_and_answered_the_same(edge):
    await edge.register(id="a")
    async with connected(edge) as it:
        first = await it.ask(get())
        await it.learn(get())
        before = it.read_in_full

        again = await it.ask(get())

        assert it.read_in_full == before
    assert again[0] == first[0] == "HTTP/1.1 200 OK"
    assert again[2] == first[2]
    assert again[1].keys() == first[1].keys()
    passing = {"X-Request-Id", "Date"}
    assert {name: text for name, text in again[1].items() if name not in passing} == {
        name: text for name, text in first[1].items() if name not in passing
    }
    assert again[1]["X-Request-Id"] != first[1]["X-Request-Id"]
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", again[1]["Date"])


async def test_what_one_client_asked_is_known_when_another_asks_it(edge):
    await edge.register(id="a")
    async with connected(edge) as one:
        await one.learn(get())
    async with connected(edge) as other:
        await other.ask(get("/livez"))
        before = other.read_in_full

        assert (await other.ask(get()))[0] == "HTTP/1.1 200 OK"

        assert other.read_in_full == before


async def test_a_repeated_read_sees_every_change(edge):
    await edge.register(id="a")
    async with connected(edge) as it:
        await it.learn(get())

        await edge.register(id="b", host="10.0.0.2")
        shown = json.loads((await it.ask(get()))[2])
        assert [instance["id"] for instance in shown["instances"]] == ["a", "b"]

        await edge.client.delete(f"{WEB}/instances/a")
        shown = json.loads((await it.ask(get()))[2])
        assert [instance["id"] for instance in shown["instances"]] == ["b"]


async def test_a_repeated_poll_is_told_that_nothing_changed_until_something_does(edge):
    await edge.register(id="a")
    async with connected(edge) as it:
        _, headers, _ = await it.ask(get())
        poll = get(WEB, f"If-None-Match: {headers['ETag']}")
        first = await it.ask(poll)
        await it.learn(poll)
        before = it.read_in_full

        again = await it.ask(poll)

        assert it.read_in_full == before
        assert (again[0], again[2]) == (first[0], first[2]) == ("HTTP/1.1 304 Not Modified", b"")
        assert again[1].keys() == first[1].keys()
        await edge.register(id="b", host="10.0.0.2")
        assert (await it.ask(poll))[0] == "HTTP/1.1 200 OK"


async def test_every_repeated_read_is_counted(edge):
    await edge.register(id="a")
    async with connected(edge) as it:
        await it.learn(get())
        edge.metrics.requests.clear()
        edge.metrics.hits.clear()

        await it.ask(get())

    assert [request[:3] for request in edge.metrics.requests] == [("GET", "/api/v1/services/{name}", 200)]
    assert edge.metrics.hits == [True]


@pytest.mark.parametrize(
    "header",
    ["Authorization: Bearer secret", "Cookie: a=b", "X-Request-Id: mine", "Prefer: wait=1", "X-Unknown: 1"],
)
async def test_a_request_that_says_more_is_read_each_time(edge, header):
    await edge.register(id="a")
    async with connected(edge) as it:
        await it.learn(get(WEB, header))
        before = it.read_in_full

        await it.ask(get(WEB, header))

        assert it.read_in_full == before + 1


@pytest.mark.parametrize("path", [f"{WEB}x", f"{WEB}?tag=a"], ids=["an unknown service", "a wrong parameter"])
async def test_a_refusal_is_worked_out_each_time(edge, path):
    await edge.register(id="a")
    async with connected(edge) as it:
        await it.learn(get(path))
        before = it.read_in_full

        await it.ask(get(path))

        assert it.read_in_full == before + 1


async def test_known_bytes_inside_of_another_request_are_a_part_of_that(edge):
    await edge.register("web", id="a")
    await edge.register("other", id="b", host="10.0.0.2")
    async with connected(edge) as it:
        await it.learn(get())
        it.writer.write(b"GET /api/v1/services/other HTTP/1.1\r\nX-Swallowed: ")
        await taken(it)

        _, _, body = await it.ask(get())
        assert json.loads(body)["name"] == "other"

        _, _, body = await it.ask(get())
        assert json.loads(body)["name"] == "web"


async def taken(it):
    """Wait until the server has taken what was sent before: it answers another connection later than that."""
    async with connected(it.edge) as other:
        await other.ask(get("/livez"))


async def test_requests_that_come_together_are_answered_in_their_order(edge):
    await edge.register("web", id="a")
    await edge.register("other", id="b", host="10.0.0.2")
    async with connected(edge) as it:
        await it.learn(get())

        it.writer.write(get("/api/v1/services/other") + get() + get("/api/v1/services/other"))
        names = [json.loads((await it.answer())[2])["name"] for _ in range(3)]
        assert names == ["other", "web", "other"]

        it.writer.write(get(WEB, "If-None-Match: x", "Prefer: wait=1"))
        it.writer.write(get())
        names = [json.loads((await it.answer())[2])["name"] for _ in range(2)]
        assert names == ["web", "web"]


async def test_a_known_read_does_not_overtake_one_that_waits(edge):
    await edge.register(id="a")
    async with connected(edge) as it:
        _, headers, _ = await it.learn(get())
        it.writer.write(get(WEB, f"If-None-Match: {headers['ETag']}", "Prefer: wait=30"))
        while edge.live.watchers == 0:
            await asyncio.sleep(0)
        it.writer.write(get())
        await taken(it)
        await edge.register(id="b", host="10.0.0.2")

        waited, plain = await it.answer(), await it.answer()

    assert waited[1]["Preference-Applied"] == "wait=30"
    assert "Preference-Applied" not in plain[1]


async def test_a_known_read_says_how_old_its_answer_is_and_waits_where_nothing_is_known(start):
    now = api.Freshness(age_s=0.0, connected=True, known=True, stale=False)
    edge = await start(freshness=lambda: now, visible_within_s=0.5)
    await edge.register(id="a")
    async with connected(edge) as it:
        await it.learn(get())

        now = api.Freshness(age_s=7.9, connected=False, known=True, stale=False)
        _, headers, _ = await it.ask(get())
        assert (headers["Age"], headers["Registry-Connected"]) == ("7", "false")

        now = api.Freshness(age_s=7.9, connected=False, known=False, stale=False)
        assert (await it.ask(get()))[0].startswith("HTTP/1.1 503 ")
