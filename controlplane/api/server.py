"""Run the application so that what never reaches it is answered as a problem document too.

aiohttp answers broken HTTP (and an unknown `Expect`) before any middleware runs, as plain text and in its own name.
Only the class of its connections has a say in that, and only a runner of one's own can choose that class.
"""

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError

from controlplane.api.edge import set_common_headers
from controlplane.api.problems import BAD_REQUEST, INTERNAL, UNSUPPORTED_MEDIA_TYPE, Problem, from_aiohttp

_MAX_DETAIL_CHARS = 200


class Runner(web.AppRunner):
    """Run an application: no access log, handlers end with their clients, every error is a problem document.

    `shutdown_timeout` in seconds: how long requests are given to end when the process stops.
    """

    __slots__ = ()

    def __init__(self, app: web.Application, *, shutdown_timeout: float) -> None:
        super().__init__(app, access_log=None, handler_cancellation=True, shutdown_timeout=shutdown_timeout)

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            _without_plain_text(made.request_handler),
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
        )


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        # None switches the access log off, which the annotation leaves out.
        return _Connection(self, loop=asyncio.get_running_loop(), access_log=None)  # type: ignore[arg-type]


class _Connection(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be read as a request, and close: where the next one begins is not known.

        Raises ConnectionError where an answer has begun. What a client broke is no line in the log.
        """
        if status >= 500:
            self.log_exception("a request failed outside of its handler", exc_info=exc)
        if request.writer.output_size > 0:
            msg = "the answer has begun, nothing can be said any more"
            raise ConnectionError(msg)
        detail = (message or "").strip().partition("\n")[0].rstrip(":")[:_MAX_DETAIL_CHARS]
        if status >= 500:
            problem = Problem(INTERNAL, "a fault of the server", status=status)
        elif isinstance(exc, ContentEncodingError):
            problem = Problem(UNSUPPORTED_MEDIA_TYPE, detail, headers={"Accept-Encoding": "gzip, deflate"})
        else:
            problem = Problem(BAD_REQUEST, detail or "this is not HTTP", status=status)
        return _last(problem)


def _without_plain_text(
    handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    async def handled(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await handle(request)
        except web.HTTPException as error:
            return _last(from_aiohttp(error, request))

    return handled


def _last(problem: Problem) -> web.Response:
    """Return the answer after which the connection closes; the request has no id, as nothing of it was read."""
    response = problem.response(None)
    set_common_headers(response, None)
    response.force_close()
    return response
