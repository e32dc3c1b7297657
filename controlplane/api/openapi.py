"""The OpenAPI 3.1 document, from the same rows that register the routes and the same models that validate.

Pure: rows in, document out.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter

from controlplane.api.operations import Answer, Body, Operation
from controlplane.api.parameters import Parameter
from controlplane.api.problems import INTERNAL, PROBLEM_JSON, PROBLEM_TYPES, ProblemDocument, ProblemType

HEADERS: Mapping[str, str] = {
    "ETag": "The version of this document, for `If-None-Match` and `If-Match`.",
    "Revision": "The revision that the answer shows, or that the write made: `<epoch>.<n>`, opaque.",
    "Location": "Where the resource is.",
    "Age": "How many seconds ago the registries were last known to have said everything that the answer rests on.",
    "Registry-Connected": "`false` while a registry cannot be heard: what it said last is answered with.",
    "Link": 'The next page, as `rel="next"`.',
    "Preference-Applied": "Which `Prefer` was honoured.",
}
_ABOUT = (
    "Service discovery and an Envoy control plane. Writes go to the registry and answer when this process shows them; "
    "reads come from memory. Every read carries `ETag` and `Revision`; with `If-None-Match` and `Prefer: wait=30` it "
    "waits for a change. Errors are problem documents (RFC 9457) that list every fault. Fields and query parameters "
    "that are not known are refused; read-only fields in a write are ignored. Bodies are read as JSON whatever the "
    "content type says, unless it clearly says otherwise. Durations are numbers of seconds, times RFC 3339 in UTC."
)
_REFERENCE = "#/components/schemas/"
_PATH_PARAMETER = re.compile(r"\{(\w+)\}")


def document(operations: Iterable[Operation], version: str) -> dict[str, Any]:
    """Return the OpenAPI document of these operations."""
    schemas = _Schemas()
    problem = schemas.of(ProblemDocument)
    paths: dict[str, dict[str, Any]] = {}
    groups: dict[str, None] = {}
    for operation in operations:
        groups[operation.group] = None
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schemas, problem)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Service discovery control plane", "version": version, "description": _ABOUT},
        "tags": [{"name": name} for name in groups],
        "paths": paths,
        "components": {
            "schemas": schemas.named,
            "headers": {
                name: {"description": text, "schema": {"type": "string"}} for name, text in sorted(HEADERS.items())
            },
        },
        "x-problem-types": [
            {"type": kind.url, "status": kind.status, "title": kind.title, "description": kind.meaning}
            for kind in PROBLEM_TYPES
        ],
    }


class _Schemas:
    """Collect the schemas of models under their names; the same model is described once."""

    def __init__(self) -> None:
        self.named: dict[str, Any] = {}
        self._made: dict[Any, dict[str, Any]] = {}

    def of(self, model: Any) -> dict[str, Any]:
        """Return the schema of a model, the same for what is sent and what is answered."""
        made = self._made.get(model)
        if made is None:
            made = self._made[model] = self._make(model)
        return made

    def _make(self, model: Any) -> dict[str, Any]:
        schema = TypeAdapter(model).json_schema(ref_template=_REFERENCE + "{model}")
        self.named |= {name: _tidy(inner) for name, inner in schema.pop("$defs", {}).items()}
        if "properties" not in schema:
            tidy: dict[str, Any] = _tidy(schema)
            return tidy
        name = schema["title"]
        self.named[name] = _tidy(schema)
        return {"$ref": _REFERENCE + name}

    def variant(self, body: Body, name: str) -> dict[str, Any]:
        """Return a body's schema, which may require other fields than its model, and name ignored ones."""
        base = self.named[self.of(body.model)["$ref"].removeprefix(_REFERENCE)]
        schema = {**base, "title": name, "properties": dict(base["properties"])}
        if body.required is not None:
            schema["required"] = list(body.required)
            if not body.required:
                del schema["required"]
        if body.nullable:
            schema["properties"] = {
                field: inner if _nullable(inner) else {"anyOf": [_undefaulted(inner), {"type": "null"}]}
                for field, inner in schema["properties"].items()
            }
        for field in sorted(body.read_only - set(schema["properties"])):
            schema["properties"][field] = {"readOnly": True, "description": "ignored in a write"}
        self.named[name] = schema
        return {"$ref": _REFERENCE + name}


def _nullable(schema: Mapping[str, Any]) -> bool:
    return {"type": "null"} in schema.get("anyOf", ())


def _undefaulted(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != "default"}


def _tidy(schema: Any) -> Any:
    """Leave out the titles that only repeat a field's name, and refer to models that are named by `x-model`."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {name: _tidy(value) for name, value in schema.items()}
    if "x-model" in result:
        return {"$ref": _REFERENCE + result["x-model"]}
    for field, inner in result.get("properties", {}).items():
        if isinstance(inner, dict) and str(inner.get("title", "")).lower() == field.replace("_", " "):
            inner.pop("title")
    return result


def _operation(operation: Operation, schemas: _Schemas, problem: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {"operationId": operation.id, "tags": [operation.group], "summary": operation.summary}
    if operation.description:
        result["description"] = operation.description
    if operation.parameters:
        result["parameters"] = [_parameter(parameter) for parameter in operation.parameters]
    if operation.body is not None:
        result["requestBody"] = _body(operation.body, operation.id, schemas)
    result["responses"] = {
        **_problems(operation.all_problems, problem),
        **{str(answer.status): _answer(answer, schemas) for answer in operation.answers},
    }
    return result


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "description": parameter.description,
        "schema": dict(parameter.schema),
    }


def _body(body: Body, operation_id: str, schemas: _Schemas) -> dict[str, Any]:
    changed = body.required is not None or body.nullable or body.read_only
    name = operation_id[0].upper() + operation_id[1:] + "Body"
    schema = schemas.variant(body, name) if changed else schemas.of(body.model)
    return {"required": True, "content": {body.media_type: {"schema": schema, "example": body.example}}}


def _answer(answer: Answer, schemas: _Schemas) -> dict[str, Any]:
    result: dict[str, Any] = {"description": answer.description}
    if answer.headers:
        result["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in answer.headers}
    if answer.models:
        parts = [schemas.of(model) for model in answer.models]
        result["content"] = {answer.media_type: {"schema": parts[0] if len(parts) == 1 else {"allOf": parts}}}
    elif answer.media_type != "application/json":
        result["content"] = {answer.media_type: {"schema": {"type": "string"}}}
    return result


def _problems(kinds: Iterable[ProblemType], schema: dict[str, Any]) -> dict[str, Any]:
    by_status: dict[int, list[ProblemType]] = {}
    for kind in (*kinds, INTERNAL):
        by_status.setdefault(kind.status, []).append(kind)
    return {
        str(status): {
            "description": " · ".join(f"{kind.title} (`{kind.slug}`)" for kind in of_status),
            "content": {PROBLEM_JSON: {"schema": schema}},
        }
        for status, of_status in sorted(by_status.items())
    }


def path_parameters(path: str) -> set[str]:
    """Return the names of a path's parameters."""
    return set(_PATH_PARAMETER.findall(path))
