"""The API's own description: the OpenAPI document, and a small page of ours that shows it and tries it out.

The page loads nothing from elsewhere and runs no inline script, so a strict policy holds.
"""

from importlib.resources import files

from aiohttp import web

from controlplane.api.edge import Edge, hashed
from controlplane.api.operations import Answer, Operation
from controlplane.api.parameters import IF_NONE_MATCH, Parameter
from controlplane.api.problems import NOT_FOUND, Problem

DOCUMENTATION = "documentation"

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {"docs.js": "text/javascript", "docs.css": "text/css"}
_FILE = Parameter(
    name="file",
    place="path",
    description="A file of the page.",
    schema={"type": "string", "enum": sorted(_TYPES)},
)


async def openapi(edge: Edge, request: web.Request) -> web.Response:
    """Answer with the OpenAPI document of exactly the routes that are served."""
    return edge.answer_now(request, lambda: hashed(edge.openapi, edge.context.live.revision))


async def page(_: Edge, __: web.Request) -> web.Response:
    """Answer with the page."""
    return _file("docs.html", "text/html")


async def part(_: Edge, request: web.Request) -> web.Response:
    """Answer with a file that the page needs."""
    name = request.match_info["file"]
    if name not in _TYPES:
        raise Problem(NOT_FOUND, f"the page has no file {name!r}; it has {', '.join(sorted(_TYPES))}")
    return _file(name, _TYPES[name])


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
        path="/docs",
        id="docs",
        group=DOCUMENTATION,
        summary="Read and try the API in a browser",
        handler=page,
        answers=(Answer(status=200, description="The page.", media_type="text/html"),),
    ),
    Operation(
        method="GET",
        path="/docs/{file}",
        id="docsFile",
        group=DOCUMENTATION,
        summary="Get a file of the page",
        handler=part,
        parameters=(_FILE,),
        answers=(Answer(status=200, description="The script.", media_type="text/javascript"),),
        problems=(NOT_FOUND,),
    ),
)
