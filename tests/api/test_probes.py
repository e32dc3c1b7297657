"""Probes say what holds the process back; metrics are there unless switched off."""

import pytest

from controlplane.readiness import Readiness

pytestmark = pytest.mark.unit


class Part:
    """Be a component whose check a test sets."""

    def __init__(self):
        self.reason = "waiting for 3 first checks"

    def __call__(self):
        return self.reason


@pytest.fixture
def health(edge):
    part = Part()
    edge.readiness.add("registry/memory", lambda: None)
    edge.readiness.add("health", part)
    return part


async def probe(edge, path):
    async with edge.client.get(path) as response:
        return response.status, await response.text()


async def test_the_process_is_ready_when_every_required_part_is(edge, health):
    assert await probe(edge, "/readyz") == (503, "not ready\n")
    assert await probe(edge, "/readyz?verbose") == (
        503,
        "[+]registry/memory ok\n[-]health waiting for 3 first checks\nnot ready\n",
    )
    health.reason = None
    assert await probe(edge, "/readyz") == (200, "ok\n")
    assert await probe(edge, "/readyz?verbose") == (200, "[+]registry/memory ok\n[+]health ok\nready\n")
    assert await probe(edge, "/readyz?verbose=false") == (200, "ok\n")


async def test_draining_takes_the_process_out_but_it_lives(edge, health):
    health.reason = None
    edge.readiness.draining = True

    assert await probe(edge, "/readyz") == (503, "draining\n")
    assert (await probe(edge, "/readyz?verbose"))[1].endswith("[-]draining this process is shutting down\nnot ready\n")
    assert await probe(edge, "/livez") == (200, "ok\n")


async def test_health_is_one_word(edge, health):
    seen = [await edge.json("GET", "/health", 200)]
    health.reason = None
    seen.append(await edge.json("GET", "/health", 200))
    health.reason = "lost"
    seen.append(await edge.json("GET", "/health", 200))

    assert seen == [{"status": status, "last_known_good": False} for status in ("starting", "ok", "degraded")]


async def test_what_is_not_required_degrades_and_no_more(edge):
    edge.readiness.add("registry/consul", lambda: "disconnected", required=False)

    assert await probe(edge, "/readyz?verbose") == (
        200,
        "[-]registry/consul disconnected (not required)\nready\n",
    )
    assert await edge.json("GET", "/health", 200) == {"status": "degraded", "last_known_good": False}


def test_names_of_checks_are_unique():
    readiness = Readiness()
    readiness.add("dns", lambda: None)

    with pytest.raises(ValueError, match="'dns' is registered already"):
        readiness.add("dns", lambda: None)


async def test_metrics_are_there(edge):
    async with edge.client.get("/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert await response.text() == "up 1\n"


async def test_metrics_that_are_switched_off_are_nowhere(start):
    it = await start(metrics=None)

    await it.json("GET", "/metrics", 404)
    assert "/metrics" not in (await it.json("GET", "/openapi.json", 200))["paths"]
    await it.register("web")
    await it.json("GET", "/api/v1/services/web", 200)
