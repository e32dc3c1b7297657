"""The REST edge: reads from the live catalog, writes to the registry, and nothing else (law 11).

`build` makes the aiohttp application of a `Context`. Each route is one row of `table.OPERATIONS`, from which it is
registered and documented. No authentication here, no cross-origin headers, no access log.
"""

from collections.abc import Awaitable, Callable

import orjson
from aiohttp import web

from controlplane.api import openapi
from controlplane.api.bodies import MAX_BODY_BYTES
from controlplane.api.context import Context, Freshness, HealthDefaults, Metrics, Pick, Picker, Proxies
from controlplane.api.edge import Edge
from controlplane.api.operations import Handler
from controlplane.api.repeated import REPEATED, RepeatedReads
from controlplane.api.server import Runner
from controlplane.api.table import OPERATIONS

__all__ = ["Context", "Freshness", "HealthDefaults", "Metrics", "Pick", "Picker", "Proxies", "Runner", "build"]


def build(context: Context) -> web.Application:
    """Return the application that serves `context`. Run it with a `Runner`; it counts by `context.metrics`."""
    served = [operation for operation in OPERATIONS if context.metrics is not None or not operation.needs_metrics]
    edge = Edge(context, orjson.dumps(openapi.document(served, context.version)))
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[edge.middleware])
    app[REPEATED] = RepeatedReads(edge)
    for operation in served:
        handler = _bound(operation.handler, edge)
        path = operation.path.replace(f"{{{operation.tail}}}", f"{{{operation.tail}:.+}}")
        if operation.method == "GET":
            app.router.add_get(path, handler, allow_head=operation.allow_head)
        else:
            app.router.add_route(operation.method, path, handler)
    app.on_shutdown.append(edge.stop)
    return app


def _bound(handler: Handler, edge: Edge) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        return await handler(edge, request)

    return handle
