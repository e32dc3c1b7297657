"""`docs/api.md`: the same rows as `/openapi.json`, for people who read.

`python -m controlplane.api.reference > docs/api.md` writes it anew; a test says when that is due.
"""

import json
import sys

from controlplane.api import openapi
from controlplane.api.operations import Operation
from controlplane.api.problems import INTERNAL, PROBLEM_TYPES
from controlplane.api.table import OPERATIONS

_HEAD = """\
# REST API

Generated from the route table by `python -m controlplane.api.reference`; do not edit. The same, with every field, is
served as `/openapi.json`, and as a page to try it out at `/docs`.

- **Reads** come from memory and carry `ETag` and `Revision`. With `If-None-Match` an unchanged resource answers 304;
  with `Prefer: wait=30` besides, the answer waits up to so many seconds (at most 300) for a change of that resource.
- **Writes** go to the registry and answer when this process shows them, with the `Revision` that they made; where
  that takes longer than 2 s the answer is 202 without a `Revision`. `If-Match` and `If-None-Match: *` guard them: 412.
- **Bodies** are JSON of at most 1 MiB, read as such whatever the content type says, unless it clearly says otherwise
  (415). A name twice in one object, NaN and bytes that are not UTF-8 are refused. Unknown fields and query parameters
  are refused; read-only fields in a write are ignored; an empty query parameter counts as not given.
- **Errors** are problem documents (RFC 9457). Malformed requests and invalid values are 400, and `errors` lists every
  fault by `pointer`, `parameter` or `header`. `instance` is the request's id: `X-Request-Id` as sent, or a fresh one.
- Durations are numbers of seconds, times RFC 3339 in UTC, revisions opaque.
"""


def markdown() -> str:
    """Return the page."""
    parts = [_HEAD, "## Overview\n", "| request | does |", "|---|---|"]
    parts += [
        f"| [`{operation.method} {operation.path}`](#{operation.id.lower()}) | {operation.summary} |"
        for operation in OPERATIONS
    ]
    group = ""
    for operation in OPERATIONS:
        if operation.group != group:
            group = operation.group
            parts.append(f"\n## {group.capitalize()}")
        parts.append(_operation(operation))
    parts += ["\n## Problem types\n", "| type | status | title | meaning |", "|---|---|---|---|"]
    parts += [
        f'| <a id="problem-{kind.slug}"></a>`{kind.url}` | {kind.status} | {kind.title} | {kind.meaning} |'
        for kind in PROBLEM_TYPES
    ]
    parts += ["\n## Headers of answers\n", "| header | meaning |", "|---|---|"]
    parts += [f"| `{name}` | {text} |" for name, text in openapi.HEADERS.items()]
    return "\n".join(parts) + "\n"


def _operation(operation: Operation) -> str:
    lines = [
        f'\n<a id="{operation.id.lower()}"></a>',
        f"### {operation.summary}\n",
        f"`{operation.method} {operation.path}`",
    ]
    if operation.description:
        lines.append(f"\n{operation.description}")
    if operation.parameters:
        lines += ["\n| parameter | in | meaning |", "|---|---|---|"]
        lines += [
            f"| `{parameter.name}` | {parameter.place} | {parameter.description} |"
            for parameter in operation.parameters
        ]
    if operation.body is not None:
        example = json.dumps(operation.body.example, indent=2)
        lines.append(f"\nBody (`{operation.body.media_type}`):\n\n```json\n{example}\n```")
    lines += ["\n| answer | |", "|---|---|"]
    lines += [f"| {answer.status} | {answer.description}{_headers(answer.headers)} |" for answer in operation.answers]
    problems = sorted({*operation.all_problems, INTERNAL}, key=lambda kind: (kind.status, kind.slug))
    lines += [f"| {kind.status} | [`{kind.slug}`](#problem-{kind.slug}) |" for kind in problems]
    return "\n".join(lines)


def _headers(names: tuple[str, ...]) -> str:
    return f" ({', '.join(f'`{name}`' for name in names)})" if names else ""


if __name__ == "__main__":
    sys.stdout.write(markdown())
