"""The composition root: settings become objects, wired in the order data flows, started and stopped in order.

The core reports by returning events; metrics and logs subscribe here and nowhere else.
"""

import asyncio
import gc
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version as installed_version

import structlog
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2

from controlplane import api, conditions
from controlplane.checks import Checks
from controlplane.debounce import Debounce
from controlplane.grpc_health import health_handler
from controlplane.guard import Guard, Limits
from controlplane.health.grpc import GrpcProbe
from controlplane.health.http import HttpProbe, probe_session
from controlplane.health.monitor import HealthMonitor
from controlplane.health.script import ScriptProbe, script_problem
from controlplane.health.tcp import TcpProbe
from controlplane.intake import Clocks, Intake
from controlplane.last_good import LastGoodFile, LastGoodKeeper, NotGood
from controlplane.live import LiveCatalog
from controlplane.model import CheckType, Judged, Resolved
from controlplane.pick import Picker
from controlplane.polled import PolledGroups
from controlplane.ports import DRAIN_S, StartError, rest_port, xds_port
from controlplane.publish import Publisher
from controlplane.raw.compile import Compiler
from controlplane.raw.overlay import Overlay
from controlplane.readiness import Readiness
from controlplane.registry.merged import Merged
from controlplane.remembered import LastGood, Remembered
from controlplane.resolver import Resolver, system_resolve
from controlplane.settings import Settings
from controlplane.shares import Shares
from controlplane.sources import EMBEDDED, SourceError, Sources, open_sources, required
from controlplane.telemetry.metrics import Metrics
from controlplane.telemetry.observers import IntakeObserver, PublicationObserver, StreamObserver
from controlplane.translate.snapshot import warm_up
from controlplane.verdicts import VerdictWriter
from controlplane.views import by_name_only
from xds.cache import SnapshotCache
from xds.csds import ClientStatus
from xds.load import LoadReports
from xds.server import XdsServer
from xds.status import Status

FALL_BACK_S = 5.0
"""How long registries may take to say what there is before the last known good state is served in their place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Give access to a control plane that runs: the ports it is bound to and what it knows."""

    service_port: int
    xds_port: int
    live: LiveCatalog
    readiness: Readiness


@asynccontextmanager
async def control_plane(settings: Settings) -> AsyncIterator[Running]:
    """Run a control plane for as long as the block lasts.

    On leaving, readiness goes first, then streams end spread over `DRAIN_S`, then REST, last the journal.

    Raises StartError, alone or in a group, before the block is entered; a group where a background part fails.
    """
    warm_up()
    log = structlog.get_logger("controlplane")
    version = installed_version("service-discovery-controlplane")
    epoch = secrets.token_hex(4)
    member = f"{socket.gethostname()}-{epoch}"
    live = LiveCatalog(
        epoch=epoch,
        checks_enabled=settings.health_check_enabled,
        ranking=settings.registry_type if len(settings.registry_type) > 1 else (),
    )
    readiness = Readiness()
    cache = SnapshotCache()
    status = Status(clock=time.time)
    async with AsyncExitStack() as stack:
        try:
            sources = await open_sources(settings, member, stack)
        except SourceError as error:
            raise StartError(str(error)) from error
        metrics = Metrics(
            live,
            version=version,
            ages={source.name: source.age_s for source in sources.registries},
            stale=lambda: intake.stale,
            tally=status.tally,
        )
        _remark(sources, settings)
        verdicts = VerdictWriter(sources.store, lambda error: log.warning("verdict.unsaved", error=str(error)))
        session = await stack.enter_async_context(probe_session())

        def resolved(event: Resolved) -> None:
            live.apply(event)

        def judged(event: Judged) -> None:
            before = live.current.entry(event.key)
            change = live.apply(event)
            if change is None:
                return
            if before is not None:
                verdicts.add(event, before.instance)
            # The score moves in steps under a lasting state: worth keeping, not worth a line.
            if before is None or before.verdict is None or before.verdict.status is not event.verdict.status:
                log.info(
                    "health.verdict",
                    instance=str(event.key),
                    status=event.verdict.status,
                    reason=event.verdict.reason,
                    revision=live.label(change.revision),
                )

        monitor = HealthMonitor(
            probes={
                CheckType.HTTP: HttpProbe(session),
                CheckType.TCP: TcpProbe(),
                CheckType.GRPC: GrpcProbe(),
                CheckType.SCRIPT: ScriptProbe(settings.health_check_scripts_dir),
            },
            default_interval_s=settings.health_check_interval,
            default_timeout_s=settings.health_check_timeout,
            emit=judged,
            on_check=lambda kind, outcome: metrics.health_check(kind, outcome.latency_s),
            random=random.Random(),  # noqa: S311 - jitter
            clock=time.monotonic,
            wall_clock=time.time,
        )
        resolver = Resolver(emit=resolved, resolve=system_resolve, clock=time.monotonic)
        checks = Checks(
            live,
            monitor,
            resolver,
            shares=Shares(member, waits=sources.shared),
            verdicts=verdicts,
            call_later=asyncio.get_running_loop().call_later,
        )
        live.subscribe(checks.on_change)
        last_good = None if settings.data_dir is None else LastGoodFile(settings.data_dir)
        known = None if last_good is None else await _last_known(last_good)
        for event in () if known is None else known.events:
            if isinstance(event, Resolved):
                live.apply(event)
        intake = Intake(
            live,
            remembered=None if known is None else _remembered(known, settings),
            merged=Merged(settings.registry_type, store=sources.store.name),
            guard=Guard(_limits(settings)),
            store=sources.store.name,
            work=checks,
            observer=IntakeObserver(),
            clocks=Clocks(monotonic=time.monotonic, wall=time.time, call_later=asyncio.get_running_loop().call_later),
        )
        compiler = Compiler()
        publisher = Publisher(
            live=live,
            cache=cache,
            gateway_host=settings.gateway_host,
            gateway_port=settings.gateway_port,
            observer=PublicationObserver(metrics),
            clock=time.monotonic,
            debounce=Debounce(),
            overlay=Overlay(compiler),
            regroup=lambda: server.regroup(),  # noqa: PLW0108 - the server is made below, of this publisher
        )
        conditions.ask_all(
            readiness,
            sources=sources,
            required=required(settings),
            live=live,
            intake=intake,
            publisher=publisher,
            resolver=resolver,
            monitor=monitor,
        )
        keeper = None
        if last_good is not None:
            keeper = LastGoodKeeper(
                last_good, live, registries=frozenset(required(settings)), ready=lambda: publisher.ready
            )
            readiness.add(last_good.path.name, lambda: keeper.fault or None, required=False)

        grpc_status = grpc_health.aio.HealthServicer()
        loads = LoadReports()
        client_status = ClientStatus(status)
        server = XdsServer(
            cache,
            group_of=publisher.group_of,
            by_name_only=by_name_only,
            ready=lambda: publisher.ready,
            identifier=f"{settings.service_name}/{epoch} {version}",
            on_event=StreamObserver(status, metrics).on_event,
            handlers=[health_handler(grpc_status), loads.handler(), client_status.handler()],
            max_stream_age_s=settings.xds_max_stream_age,
            random=random.Random(),  # noqa: S311 - jitter
        )
        polled = PolledGroups(
            cache=cache,
            group_of=publisher.group_of,
            ready=lambda: publisher.ready,
            call_later=asyncio.get_running_loop().call_later,
        )
        app = api.build(
            api.Context(
                live=live,
                registry=sources.store,
                guard=intake,
                freshness=lambda: conditions.freshness(sources.registries, live, stale=bool(intake.stale)),
                picker=Picker(random=random.Random(), clock=time.monotonic),  # noqa: S311 - nothing secret
                reports=monitor,
                readiness=readiness,
                metrics=metrics if settings.metrics_enabled else None,
                script_problem=lambda check: script_problem(check, settings.health_check_scripts_dir),
                health_defaults=api.HealthDefaults(
                    interval=settings.health_check_interval, timeout=settings.health_check_timeout
                ),
                proxies=status,
                discovery=polled.snapshot,
                compiler=compiler,
                version=version,
                report_error=lambda error, request_id: log.error("http.error", request_id=request_id, exc_info=error),
                monotonic=time.monotonic,
                wall_clock=time.time,
                random=random.random,
                request_id=lambda: secrets.token_hex(8),
            )
        )

        async def first_state() -> None:
            silent_for_s = None if known is None else FALL_BACK_S
            if stale := await intake.first_words(settings.registry_type, required(settings), silent_for_s):
                log.warning("last_known_good.served", registries=sorted(stale), saved=_ago(known))
            await resolver.first_round()
            await monitor.first_round()

        async def publish() -> None:
            await publisher.run(first_state, on_ready=on_ready)

        async def on_ready() -> None:
            await grpc_status.set("", health_pb2.HealthCheckResponse.SERVING)
            # What exists by now mostly stays: without it a full collection takes a tenth of the time.
            gc.collect()
            gc.freeze()
            # A change makes a few short-lived objects for every proxy: looking for cycles after each 700, as by
            # default, costs several percent of telling them.
            gc.set_threshold(20_000, 10, 20)
            log.info("xds.serving", revision=live.revision, services=len(live.current.services))

        await grpc_status.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(part, name=name)
                for name, part in (
                    *((f"registry {source.name}", source.run(intake.heard)) for source in sources.registries),
                    ("verdicts", verdicts.run()),
                    *((("last known good", keeper.run()),) if keeper is not None else ()),
                    ("resolver", resolver.run()),
                    ("monitor", monitor.run()),
                    ("publisher", publish()),
                )
            ]
            try:
                # REST is the outer one: while streams drain, /readyz still says so and services can deregister.
                async with (
                    rest_port(app, settings) as service_port,
                    xds_port(server, settings, grpc_status, (loads, client_status)) as xds,
                ):
                    log.info("started", service_port=service_port, xds_port=xds, version=version, epoch=epoch)
                    try:
                        yield Running(service_port=service_port, xds_port=xds, live=live, readiness=readiness)
                    finally:
                        readiness.draining = True
                        log.info("stopping", drain_s=DRAIN_S)
            finally:
                for task in background:
                    task.cancel()


def _remark(sources: Sources, settings: Settings) -> None:
    log = structlog.get_logger("controlplane.journal")
    if settings.data_dir is None and sources.store.name == EMBEDDED:
        log.warning(
            "journal.absent", message="DATA_DIR is not set: a restart forgets all registrations, and proxies follow"
        )
    for remark in () if sources.journal is None else sources.journal.remarks:
        log.warning("journal.remark", message=remark)


async def _last_known(file: LastGoodFile) -> LastGood | None:
    try:
        return await asyncio.to_thread(file.read)
    except NotGood as error:
        structlog.get_logger("controlplane").error("last_known_good.refused", reason=str(error))
        return None


def _remembered(known: LastGood, settings: Settings) -> Remembered:
    # Older than a hold would last, it is no measure of what is missing: addresses have changed hands since.
    fresh = time.time() - known.confirmed_at <= settings.guard_hold
    return Remembered(known, settings.registry_type, journalled=frozenset({EMBEDDED}), fresh=fresh)


def _ago(known: LastGood | None) -> str:
    return "never" if known is None else f"{max(0.0, time.time() - known.confirmed_at):.0f} s ago"


def _limits(settings: Settings) -> Limits:
    return Limits(
        window_s=settings.guard_window,
        hold_s=settings.guard_hold,
        service_share=settings.guard_service_share,
        service_minimum=settings.guard_service_minimum,
        total_share=settings.guard_total_share,
        total_minimum=settings.guard_total_minimum,
    )
