"""What a route is: one row that registers it, documents it and is tested.

A row names the handler, so a route cannot exist without its documentation, nor be documented without existing.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from controlplane.api.edge import Edge
from controlplane.api.parameters import IF_NONE_MATCH, PREFER, Parameter
from controlplane.api.problems import CROSS_SITE, ProblemType

Handler = Callable[[Edge, web.Request], Awaitable[web.StreamResponse]]

BASE = "/api/v1"
JSON = "application/json"
TEXT = "text/plain"

CONDITIONAL = (IF_NONE_MATCH, PREFER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Describe one answer. `models` are the types of its document; several = it has the members of all.

    `headers` are names out of `openapi.HEADERS`.
    """

    status: int
    description: str
    models: tuple[Any, ...] = ()
    media_type: str = JSON
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """Describe a request's body. `required` are the fields that must be there, None = those of the model."""

    model: Any
    example: Any
    media_type: str = JSON
    required: tuple[str, ...] | None = None
    read_only: frozenset[str] = frozenset()
    nullable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Describe one route. `id` is its operationId, `group` the heading it stands under.

    `tail` names the last parameter of a path where that may hold slashes, as they are or escaped.
    """

    method: str
    path: str
    id: str
    group: str
    summary: str
    handler: Handler
    answers: tuple[Answer, ...]
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None
    problems: tuple[ProblemType, ...] = ()

    @property
    def all_problems(self) -> tuple[ProblemType, ...]:
        """Return the problems of this operation with those that every write has."""
        return self.problems if self.method == "GET" else (*self.problems, CROSS_SITE)

    needs_metrics: bool = False
    tail: str = ""
    allow_head: bool = True


NOT_MODIFIED = Answer(
    status=304,
    description="Still what `If-None-Match` names.",
    headers=("ETag", "Revision", "Age", "Registry-Connected", "Preference-Applied"),
)


def shown(model: Any, description: str, *more: Any, headers: tuple[str, ...] = ()) -> tuple[Answer, ...]:
    """Return the answers of a conditional read of a document."""
    found = Answer(
        status=200,
        description=description,
        models=(model, *more),
        headers=("ETag", "Revision", "Age", "Registry-Connected", "Preference-Applied", *headers),
    )
    return found, NOT_MODIFIED
