"""The API's own description: the OpenAPI document, and a small page of ours that shows it and tries it out.

The page loads nothing from elsewhere and runs no inline script, so a strict policy holds.
"""

from importlib.resources import files

from aiohttp import web

from controlplane.api.edge import Edge, hashed
from controlplane.api.operations import Answer, Operation
from controlplane.api.parameters import IF_NONE_MATCH

DOCUMENTATION = "documentation"

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def openapi(edge: Edge, request: web.Request) -> web.Response:
    """Answer with the OpenAPI document of exactly the routes that are served."""
    return edge.answer_now(request, lambda: hashed(edge.openapi, edge.context.live.revision))


async def root(_: Edge, __: web.Request) -> web.Response:
    """Lead a person who asks for the bare address to the page; relative, so that it holds behind a path prefix too."""
    return web.Response(status=302, headers={"Location": "docs"})


async def page(_: Edge, __: web.Request) -> web.Response:
    """Answer with the page."""
    return _file("docs.html", "text/html")


async def script(_: Edge, __: web.Request) -> web.Response:
    """Answer with the page's script."""
    return _file("docs.js", "text/javascript")


async def style(_: Edge, __: web.Request) -> web.Response:
    """Answer with the page's style sheet."""
    return _file("docs.css", "text/css")


async def icon(_: Edge, __: web.Request) -> web.Response:
    """Answer with the icon that browsers ask for beside any page, so that none of them notes a 404."""
    return _file("icon.svg", "image/svg+xml")


def _file(name: str, content_type: str) -> web.Response:
    data = files("controlplane.api").joinpath("static", name).read_bytes()
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}
    return web.Response(body=data, content_type=content_type, charset="utf-8", headers=headers)


OPERATIONS = (
    Operation(
        method="GET",
        path="/openapi.json",
        id="openapi",
        group=DOCUMENTATION,
        summary="Get this API's OpenAPI 3.1 document",
        handler=openapi,
        parameters=(IF_NONE_MATCH,),
        answers=(
            Answer(status=200, description="The document.", models=(dict[str, object],), headers=("ETag", "Revision")),
            Answer(status=304, description="Still what `If-None-Match` names.", headers=("ETag", "Revision")),
        ),
    ),
    Operation(
        method="GET",
        path="/",
        id="root",
        group=DOCUMENTATION,
        summary="Go to the documentation",
        handler=root,
        answers=(Answer(status=302, description="To `/docs`.", headers=("Location",)),),
    ),
    Operation(
        method="GET",
        path="/docs",
        id="docs",
        group=DOCUMENTATION,
        summary="Read and try the API in a browser",
        handler=page,
        answers=(Answer(status=200, description="The page.", media_type="text/html"),),
    ),
    Operation(
        method="GET",
        path="/docs/docs.js",
        id="docsScript",
        group=DOCUMENTATION,
        summary="Get the page's script",
        handler=script,
        answers=(Answer(status=200, description="The script.", media_type="text/javascript"),),
    ),
    Operation(
        method="GET",
        path="/docs/docs.css",
        id="docsStyle",
        group=DOCUMENTATION,
        summary="Get the page's style sheet",
        handler=style,
        answers=(Answer(status=200, description="The style sheet.", media_type="text/css"),),
    ),
    Operation(
        method="GET",
        path="/favicon.ico",
        id="icon",
        group=DOCUMENTATION,
        summary="Get the page's icon",
        handler=icon,
        answers=(Answer(status=200, description="The icon.", media_type="image/svg+xml"),),
    ),
)
