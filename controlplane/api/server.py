"""Run the application so that what never reaches it is answered as it should be, too.

aiohttp answers broken HTTP (and an unknown `Expect`) before any middleware runs, as plain text and in its own name.
And it reads every request anew, where `repeated` knows by the bytes alone what is asked. Only the class of its
connections has a say in either, and only a runner of one's own can choose that class.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError
from aiohttp.streams import EMPTY_PAYLOAD

from controlplane.api.edge import set_common_headers
from controlplane.api.problems import BAD_REQUEST, INTERNAL, UNSUPPORTED_MEDIA_TYPE, Problem, from_aiohttp
from controlplane.api.repeated import REPEATED, RepeatedReads

_MAX_DETAIL_CHARS = 200

_Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Runner(web.AppRunner):
    """Run an application: no access log, handlers end with their clients, every error is a problem document.

    `shutdown_timeout` in seconds: how long requests are given to end when the process stops.
    """

    __slots__ = ()

    def __init__(self, app: web.Application, *, shutdown_timeout: float) -> None:
        super().__init__(app, access_log=None, handler_cancellation=True, shutdown_timeout=shutdown_timeout)

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        repeated = self.app[REPEATED]
        return _Server(
            repeated,
            _learning(repeated, _without_plain_text(made.request_handler)),
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
        )


class _Server(web.Server):
    def __init__(self, repeated: RepeatedReads, handler: _Handler, **options: Any) -> None:
        super().__init__(handler, **options)
        self._repeated = repeated

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self._repeated)


class _Connection(web.RequestHandler):
    """Answer what is recognised at once, and have the rest read.

    aiohttp offers no way to do so: the names that begin with an underscore are its own. A request is taken by its bytes
    only where it comes alone, in one piece, on a connection that has nothing else to do: never ahead of another's
    answer, never as a part of a longer message.
    """

    __slots__ = ("_answered", "_between", "_repeated", "alone")

    def __init__(self, server: _Server, repeated: RepeatedReads) -> None:
        # None switches the access log off, which the annotation leaves out.
        super().__init__(server, loop=asyncio.get_running_loop(), access_log=None)  # type: ignore[arg-type]
        self._repeated = repeated
        self._answered = 0
        self._between = True
        self.alone: bytes | None = None

    def data_received(self, data: bytes) -> None:
        """Answer bytes that are known as a request; else let them be read."""
        idle = self._between and self._request_count == self._answered
        open_ = not (self._close or self._force_close or self.writing_paused)
        # After its first request, for only then does the connection end where nothing comes for long.
        if idle and open_ and self._keepalive:
            answer = self._repeated.answer(data)
            if answer is not None and self.transport is not None:
                self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
                self.transport.write(answer)
                return
        count = self._request_count
        super().data_received(data)
        # One message without a body, and its end is the end of what came: then the next bytes begin a request.
        self._between = (
            self._request_count == count + 1
            and data.endswith(b"\r\n\r\n")
            and bool(self._messages)
            and self._messages[-1][1] is EMPTY_PAYLOAD
        )
        self.alone = data if idle and self._between else None

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer, and remember that it was sent: once for each request that was read."""
        finished = await super().finish_response(request, resp, start_time)
        self._answered += 1
        return finished

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


def _learning(repeated: RepeatedReads, handle: _Handler) -> _Handler:
    async def handled(request: web.BaseRequest) -> web.StreamResponse:
        response = await handle(request)
        if isinstance(request.protocol, _Connection) and request.protocol.alone is not None:
            repeated.learn(request, request.protocol.alone, response.status)
        return response

    return handled


def _without_plain_text(handle: _Handler) -> _Handler:
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
