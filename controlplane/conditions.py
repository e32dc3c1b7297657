"""In what condition the parts of the process are, in words for people: what readiness asks and answers say."""

from collections.abc import Collection, Sequence

from controlplane import api
from controlplane.health.monitor import HealthMonitor
from controlplane.intake import Intake
from controlplane.live import LiveCatalog
from controlplane.publish import Publisher
from controlplane.readiness import Readiness
from controlplane.registry import Registry
from controlplane.resolver import Resolver
from controlplane.sources import Sources


def ask_all(
    readiness: Readiness,
    *,
    sources: Sources,
    required: Collection[str],
    live: LiveCatalog,
    intake: Intake,
    publisher: Publisher,
    resolver: Resolver,
    monitor: HealthMonitor,
) -> None:
    """Let readiness ask every part, in the order in which data flows."""
    for source in sources.registries:
        _ask_registry(readiness, live, intake, source, required=source.name in required)
    readiness.add("guard", lambda: _holds(intake), required=False)

    # These two hold up the first publication only: what is registered later must not make readiness flap.
    def unresolved() -> str | None:
        count = 0 if publisher.ready else resolver.pending()
        return f"{count} names to resolve" if count else None

    def unchecked() -> str | None:
        count = 0 if publisher.ready else monitor.pending()
        return f"waiting for {count} first checks" if count else None

    readiness.add("dns", unresolved)
    readiness.add("health", unchecked)
    readiness.add("snapshot", lambda: None if publisher.ready else "nothing has been published yet")
    readiness.add("resources", lambda: _refusals(publisher), required=False)
    if (journal := sources.journal) is not None:
        readiness.add("journal", lambda: journal.fault or _refused_lines(journal.refused), required=False)


def _ask_registry(readiness: Readiness, live: LiveCatalog, intake: Intake, source: Registry, *, required: bool) -> None:
    """Let readiness ask whether a registry has said what there is, can be heard, and holds nothing unusable."""
    name = source.name

    def silent() -> str | None:
        if name in live.current.synced or name in intake.stale:
            return None
        why = live.current.lost.get(name)
        return "not in sync" if why is None else f"not in sync: {why}"

    def unheard() -> str | None:
        if name in intake.stale:
            return f"the last known good state is served in its place: {live.current.lost.get(name, 'it is silent')}"
        why = live.current.lost.get(name)
        return None if why is None else f"lost for {source.age_s():.0f} s, what it said last stands: {why}"

    def unusable() -> str | None:
        remarks = [f"{where}: {why}" for where, why in sorted(source.remarks.items())]
        return f"{len(remarks)} objects are left out: " + "; ".join(remarks[:5]) if remarks else None

    readiness.add(f"registry/{name}", silent, required=required)
    readiness.add(f"connection/{name}", unheard, required=False)
    readiness.add(f"objects/{name}", unusable, required=False)


def _holds(intake: Intake) -> str | None:
    said = [f"{hold.id}: {len(hold.keys)} instances are held, because {hold.reason}" for hold in intake.holds()]
    return "; ".join(said) or None


def freshness(registries: Sequence[Registry], live: LiveCatalog, *, stale: bool) -> api.Freshness:
    """Say how current the catalog is: as old as what its oldest registry said."""
    return api.Freshness(
        age_s=max(source.age_s() for source in registries),
        connected=all(source.name in live.current.synced.difference(live.current.lost) for source in registries),
        known=stale or not live.current.synced.isdisjoint(source.name for source in registries),
        stale=stale,
    )


def _refusals(publisher: Publisher) -> str | None:
    """Say which services keep their last good version, having broken a content rule, and which raw resources wait."""
    held = [f"{name}: {'; '.join(problems)}" for name, problems in sorted(publisher.refused.items())]
    left = [f"{key}: {why}" for key, why in sorted(publisher.left_out.items())]
    said = [f"{len(held)} services are held at their last good version: " + ", ".join(held[:5])] if held else []
    said += [f"{len(left)} raw resources are not published: " + ", ".join(left[:5])] if left else []
    return "; ".join(said) or None


def _refused_lines(count: int) -> str | None:
    return f"{count} lines set aside in journal.refused: look at them, then remove the file" if count else None
