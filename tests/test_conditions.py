"""How current an answer is: what several registries say together."""

import pytest

from controlplane import api
from controlplane.conditions import freshness
from controlplane.live import LiveCatalog
from controlplane.model import Lost, RegistryEvent, Synced
from controlplane.registry.memory import MemoryRegistry

pytestmark = pytest.mark.unit


class Named(MemoryRegistry):
    """Be a registry of a name and an age."""

    def __init__(self, name: str, age_s: float) -> None:
        super().__init__(journal=None)
        self.name = name
        self._age_s = age_s

    def age_s(self) -> float:
        return self._age_s


@pytest.mark.parametrize(
    ("events", "stale", "expected"),
    [
        pytest.param([], False, (30.0, False, False), id="before anyone has spoken nothing is known"),
        pytest.param([Synced(registry="etcd")], False, (30.0, False, True), id="one that is silent is not connected"),
        pytest.param([], True, (30.0, False, True), id="what was last known is something to answer from"),
        pytest.param(
            [Synced(registry="etcd"), Synced(registry="consul")], False, (30.0, True, True), id="all have spoken"
        ),
        pytest.param(
            [Synced(registry="etcd"), Synced(registry="consul"), Lost(registry="etcd", reason="refused")],
            False,
            (30.0, False, True),
            id="one is lost and what it said stands",
        ),
    ],
)
def test_an_answer_is_as_old_as_its_oldest_part(
    events: list[RegistryEvent], stale: bool, expected: tuple[float, bool, bool]
) -> None:
    live = LiveCatalog(epoch="e", call_later=lambda _delay, _call: None)
    for event in events:
        live.apply(event)  # type: ignore[arg-type]
    age_s, connected, known = expected
    assert freshness([Named("etcd", 2.0), Named("consul", 30.0)], live, stale=stale) == api.Freshness(
        age_s=age_s, connected=connected, known=known, stale=stale
    )
