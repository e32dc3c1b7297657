"""The last known good state on disk: what is read is what was in force, or the file says why not."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import orjson
import pytest
from builders import catalog, key, put, verdict
from harness import eventually

from controlplane.catalog import Catalog
from controlplane.last_good import LastGoodFile, LastGoodKeeper, NotGood
from controlplane.live import LiveCatalog
from controlplane.model import (
    Event,
    HealthStatus,
    Held,
    Judged,
    Lost,
    PutInstance,
    PutPolicy,
    PutResource,
    RawResource,
    Resolved,
    ServiceName,
    Synced,
    Verdict,
)
from controlplane.plan import plan
from controlplane.policy import ConsistentHash, Policy, Strategy
from controlplane.remembered import Remembered
from controlplane.translate import listener
from controlplane.translate.snapshot import snapshot as spell

pytestmark = pytest.mark.unit

STATED = Verdict(status=HealthStatus.DEGRADED, passed=True, since=3.0, reason="disk is full")
CHECK = {"type": "http", "http_path": "/up", "interval": 2.5}
EVENTS: tuple[Event, ...] = (
    PutPolicy(
        service=ServiceName("web"),
        policy=Policy(
            strategy=Strategy.CONSISTENT_HASH, timeout=1.5, consistent_hash=ConsistentHash(algorithm="maglev")
        ),
        registry="memory",
    ),
    PutPolicy(service=ServiceName("later"), policy=Policy(panic_threshold=0), registry="memory"),
    put("web", "b", port=2, health_check=CHECK, verdict=verdict(HealthStatus.UNHEALTHY, score=40, since=12.25)),
    put("web", "a", weight=7, tags=["v1", "é"], metadata={"n": 1, "f": 1.0, "t": True, "s": "x"}, ttl=30),
    put("web", "c", port=3, host="api.internal", draining=True, locality={"region": "eu", "zone": "eu-1"}),
    PutInstance(instance=put("db", "a", host="2001:db8::1").instance, registry="consul", stated=STATED),
    Resolved(host="api.internal", addresses=("10.0.0.7", "10.0.0.8")),
    PutResource(
        resource=RawResource(type_url="t", name="cert", body='{"private_key":"x"}', node_clusters=("edge",)),
        registry="memory",
    ),
)


@pytest.fixture
def file(tmp_path: Path) -> LastGoodFile:
    return LastGoodFile(tmp_path / "data")


def restored(file: LastGoodFile, *registries: str) -> Catalog:
    """Return the catalog of a process that starts from the file, with every registry silent."""
    known = file.read()
    assert known is not None
    remembered = Remembered(known, registries, journalled=frozenset(), fresh=True)
    events = [event for event in known.events if isinstance(event, Resolved)]
    return catalog(*events, *remembered.fall_back(registries))  # type: ignore[arg-type]


def test_a_restart_from_the_file_gives_the_same_catalog_and_the_same_bytes(file: LastGoodFile) -> None:
    before = catalog(*EVENTS)
    file.write(before)
    after = restored(file, "memory", "consul")

    def facts(each: Catalog) -> object:
        return (
            {entry.instance.key: replace(entry, revision=0) for entry in each.entries()},
            {name: (service.own_policy, service.policy_registry) for name, service in each.services.items()},
            {name: (raw.resource, raw.registry) for name, raw in each.raw.items()},
            dict(each.resolutions),
        )

    assert facts(after) == facts(before)

    def told(each: Catalog) -> dict[str, list[tuple[str, str, bytes]]]:
        clusters = [plan(service, each) for service in each.services.values() if service.has_cluster]
        spelled = spell(clusters, gateway=listener.gateway("127.0.0.1", 10_000)).by_type
        return {
            url: [(one.name, one.version, one.body) for one in of_type.values()] for url, of_type in spelled.items()
        }

    assert told(after) == told(before)


def test_what_was_written_twice_is_the_same_file_byte_for_byte(file: LastGoodFile) -> None:
    file.write(catalog(*EVENTS))
    first = file.path.read_bytes()
    file.write(restored(file, "memory", "consul"))
    assert sorted(file.path.read_bytes().splitlines()[1:]) == sorted(first.splitlines()[1:])


def test_what_was_held_is_remembered_with_its_hold(file: LastGoodFile) -> None:
    file.write(catalog(put("web", "a"), put("web", "b", port=2), Held(keys=(key("web", "a"),), hold="web")))
    known = file.read()
    assert known is not None
    assert known.held == {key("web", "a"): "web"}


def test_a_name_that_could_not_be_looked_up_is_no_knowledge(file: LastGoodFile) -> None:
    file.write(catalog(put("web", "a", host="api.internal"), Resolved(host="api.internal", error="no such name")))
    known = file.read()
    assert known is not None
    assert not any(isinstance(event, Resolved) for event in known.events)


def test_where_there_is_no_file_nothing_is_known(file: LastGoodFile) -> None:
    assert file.read() is None


def test_the_file_says_when_it_was_last_known_to_be_true(file: LastGoodFile) -> None:
    file.write(catalog(*EVENTS))
    os.utime(file.path, (1_000.0, 1_000.0))
    known = file.read()
    assert known is not None
    assert known.confirmed_at == 1_000.0

    file.confirm()
    known = file.read()
    assert known is not None
    assert known.confirmed_at > 1_000_000.0


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def of_format(content: bytes, number: object) -> bytes:
    head, _, body = content.partition(b"\n")
    return orjson.dumps({**orjson.loads(head), "format": number}) + b"\n" + body


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(damaged, "is damaged: its checksum does not fit", id="one bit is wrong"),
        pytest.param(lambda content: content[:-20], "is damaged", id="its end is missing"),
        pytest.param(lambda content: content.partition(b"\n")[0], "is damaged", id="all but the header is missing"),
        pytest.param(lambda content: content + b"\n", "is damaged", id="something was added"),
        pytest.param(lambda _: b"", "its first line is no header", id="it is empty"),
        pytest.param(lambda _: b"[]\n", "its first line is no header", id="it is something else"),
        pytest.param(lambda content: of_format(content, 2), "has format 2, and this version knows 1", id="it is newer"),
    ],
)
def test_a_file_that_is_not_what_was_written_is_refused(file: LastGoodFile, spoil, said: str) -> None:  # type: ignore[no-untyped-def]
    file.write(catalog(*EVENTS))
    file.path.write_bytes(spoil(file.path.read_bytes()))
    with pytest.raises(NotGood, match=said) as failure:
        file.read()
    assert str(file.path) in str(failure.value)


def test_a_file_of_a_version_that_knew_other_things_is_refused(file: LastGoodFile) -> None:
    for line in (b'{"kind":"planet","held":"","value":{}}\n', b'{"kind":"instance","held":"","value":{}}\n', b"?\n"):
        file.path.parent.mkdir(exist_ok=True)
        header = orjson.dumps({"format": 1, "sha256": sha256(line).hexdigest()})
        file.path.write_bytes(header + b"\n" + line)
        with pytest.raises(NotGood, match="holds what this version does not take"):
            file.read()


def test_a_file_that_cannot_be_read_says_so(file: LastGoodFile) -> None:
    file.path.mkdir(parents=True)
    with pytest.raises(NotGood, match="cannot be read: Is a directory"):
        file.read()


def test_only_its_owner_can_read_the_file_for_it_holds_private_keys(file: LastGoodFile) -> None:
    before = os.umask(0)
    try:
        file.write(catalog(*EVENTS))
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700


def test_a_write_that_fails_leaves_the_old_file_as_it_is(file: LastGoodFile) -> None:
    file.write(catalog(put("web", "a")))
    (file.path.parent / "last-known-good.new").mkdir()  # the place where the new one is prepared is taken
    with pytest.raises(IsADirectoryError):
        file.write(catalog())
    assert set(restored(file, "memory").services) == {"web"}


def test_a_write_leaves_nothing_else_behind(file: LastGoodFile) -> None:
    file.write(catalog(*EVENTS))
    assert [each.name for each in file.path.parent.iterdir()] == ["last-known-good"]


class Kept:
    """Keep a file of a live catalog; a test says when there is something worth keeping."""

    def __init__(self, file: LastGoodFile) -> None:
        self.live = LiveCatalog(epoch="e", call_later=lambda _delay, _call: None)
        self.ready = True
        self.keeper = LastGoodKeeper(
            file, self.live, registries=frozenset({"memory"}), ready=lambda: self.ready, write_every_s=3_600
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.keeper.run())
        try:
            yield
        finally:
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])


@pytest.fixture
def kept(file: LastGoodFile) -> Kept:
    return Kept(file)


async def test_a_process_that_ends_leaves_the_newest_state(file: LastGoodFile, kept: Kept) -> None:
    kept.live.apply(Synced(registry="memory"))
    async with kept.running():
        kept.live.apply(put("web", "a", health_check=CHECK))
        kept.live.apply(Judged(key=key("web", "a"), verdict=verdict()))
    entry = restored(file, "memory").entry(key("web", "a"))
    assert entry is not None
    assert entry.verdict == verdict()


async def test_a_hold_is_on_disk_at_once_for_no_registry_has_it(file: LastGoodFile, kept: Kept) -> None:
    kept.live.apply(Synced(registry="memory"))
    kept.live.apply(put("web", "a"))
    async with kept.running():
        kept.live.apply(Held(keys=(key("web", "a"),), hold="web"))

        async def written() -> bool:
            known = file.read()
            return known is not None and bool(known.held)

        await eventually(written, "the hold is on disk")


@pytest.mark.parametrize(
    "why",
    [
        pytest.param("unready", id="before anything was published"),
        pytest.param("silent", id="before the registry has spoken"),
        pytest.param("lost", id="while the registry cannot be heard"),
    ],
)
async def test_what_may_not_be_the_registries_state_does_not_replace_the_file(
    file: LastGoodFile, kept: Kept, why: str
) -> None:
    file.write(catalog(put("web", "a")))
    kept.ready = why != "unready"
    if why != "silent":
        kept.live.apply(Synced(registry="memory"))
    if why == "lost":
        kept.live.apply(Lost(registry="memory", reason="refused"))
    async with kept.running():
        kept.live.apply(put("db", "x"))
    assert set(restored(file, "memory").services) == {"web"}


async def test_an_optional_registry_that_is_lost_keeps_nothing_from_being_remembered(
    file: LastGoodFile, kept: Kept
) -> None:
    kept.live.apply(Synced(registry="memory"))
    kept.live.apply(Lost(registry="consul", reason="refused"))
    async with kept.running():
        kept.live.apply(put("db", "x"))
    assert set(restored(file, "memory").services) == {"db"}


async def test_a_folder_that_cannot_be_written_is_a_fault_that_says_so_and_ends_when_it_can(
    file: LastGoodFile, kept: Kept
) -> None:
    blocked = file.path.parent
    blocked.write_text("a file where the folder should be")
    kept.live.apply(Synced(registry="memory"))
    kept.live.apply(put("web", "a"))
    async with kept.running():

        async def faulty() -> bool:
            return "cannot be written" in kept.keeper.fault

        await eventually(faulty, "the keeper says that it cannot write")
        blocked.unlink()
        kept.live.apply(Held(keys=(key("web", "a"),), hold="web"))

        async def well() -> bool:
            return not kept.keeper.fault and file.path.exists()

        await eventually(well, "the keeper writes again")
