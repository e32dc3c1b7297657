"""Probes and metrics: what orchestrators, load balancers and Prometheus ask. Outside the base path."""

import asyncio

import orjson
from aiohttp import web

from controlplane.api.edge import Edge
from controlplane.api.operations import TEXT, Answer, Operation
from controlplane.api.parameters import ACCEPT, VERBOSE
from controlplane.api.problems import NOT_FOUND, Problem
from controlplane.api.views import HealthView
from controlplane.readiness import Readiness

PROBES = "probes"

_NO_STORE = {"Cache-Control": "no-store"}


async def livez(_: Edge, __: web.Request) -> web.Response:
    """Answer: that it does so proves that the event loop turns."""
    return web.Response(text="ok\n", headers=_NO_STORE)


async def readyz(edge: Edge, request: web.Request) -> web.Response:
    """Say whether this process should be given work; `?verbose` says what it waits for."""
    readiness = edge.context.readiness
    ready = readiness.ready()
    flag = request.query.get("verbose")
    if flag is not None and VERBOSE.read(flag):
        text = _verbose(readiness, ready=ready)
    else:
        text = "ok\n" if ready else "draining\n" if readiness.draining else "not ready\n"
    return web.Response(status=200 if ready else 503, text=text, headers=_NO_STORE)


def _verbose(readiness: Readiness, *, ready: bool) -> str:
    lines = []
    for finding in readiness.findings():
        if finding.reason is None:
            lines.append(f"[+]{finding.name} ok")
        else:
            lines.append(f"[-]{finding.name} {finding.reason}{'' if finding.required else ' (not required)'}")
    if readiness.draining:
        lines.append("[-]draining this process is shutting down")
    lines.append("ready" if ready else "not ready")
    return "\n".join(lines) + "\n"


async def health(edge: Edge, _: web.Request) -> web.Response:
    """Sum the process up in one word, for people and load balancers; 200 as long as it answers."""
    view = HealthView(status=edge.context.readiness.health(), last_known_good=edge.context.freshness().stale)
    return web.Response(body=orjson.dumps(view), content_type="application/json", headers=_NO_STORE)


async def metrics(edge: Edge, request: web.Request) -> web.Response:
    """Answer with all metrics, written in a thread: thousands of series would hold up the loop."""
    source = edge.context.metrics
    if source is None:
        raise Problem(NOT_FOUND, "metrics are switched off (METRICS_ENABLED=false)")
    body, content_type = await asyncio.to_thread(source.exposition, request.headers.get("Accept"))
    return web.Response(body=body, headers={"Content-Type": content_type, **_NO_STORE})


OPERATIONS = (
    Operation(
        method="GET",
        path="/health",
        id="health",
        group=PROBES,
        summary="Sum up the process",
        handler=health,
        answers=(Answer(status=200, description="One word.", models=(HealthView,)),),
    ),
    Operation(
        method="GET",
        path="/livez",
        id="livez",
        group=PROBES,
        summary="Tell whether the process is alive",
        description="Answers as long as the event loop turns; looks at nothing else.",
        handler=livez,
        answers=(Answer(status=200, description="It is.", media_type=TEXT),),
    ),
    Operation(
        method="GET",
        path="/readyz",
        id="readyz",
        group=PROBES,
        summary="Tell whether the process should be given work",
        handler=readyz,
        parameters=(VERBOSE,),
        answers=(
            Answer(status=200, description="It should.", media_type=TEXT),
            Answer(status=503, description="Starting, or draining.", media_type=TEXT),
        ),
    ),
    Operation(
        method="GET",
        path="/metrics",
        id="metrics",
        group=PROBES,
        summary="Get the metrics",
        description="In the Prometheus text format, or OpenMetrics where `Accept` asks for it.",
        handler=metrics,
        parameters=(ACCEPT,),
        answers=(Answer(status=200, description="All metrics.", media_type=TEXT),),
        needs_metrics=True,
    ),
)
