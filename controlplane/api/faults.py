"""From what pydantic says about a value to what a person can act on: where, what was expected, what was found.

Pure. Pointers are RFC 6901 in their URI fragment form ("#/tags/0"), into the body as it was sent.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from controlplane.api.problems import Fault

_EXPECTED_TYPES = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "dict_type": "an object",
    "dataclass_type": "an object",
    "mapping_type": "an object",
    "tuple_type": "a list",
    "list_type": "a list",
}
_COMPARED = {
    "greater_than": ("gt", "a number greater than"),
    "greater_than_equal": ("ge", "a number of at least"),
    "less_than": ("lt", "a number less than"),
    "less_than_equal": ("le", "a number of at most"),
}
_PATTERNS = {r"^[^,\s]+$": "text without commas or spaces"}
_NAMED = re.compile(r"`(\w+)`")
_UNION_MEMBERS = {"constrained-str": str, "bool": bool, "constrained-int": int, "float": float}


def pointer(*path: str | int) -> str:
    """Return the RFC 6901 pointer to a place in the body; no path is the body itself."""
    return "#" + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def found(value: object) -> str:
    """Describe a JSON value in a few words."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return f"the string {value!r}" if len(value) <= 64 else f"a string of {len(value)} characters"
        case int() | float():
            return f"{value}"
        case list() | tuple():
            return "a list"
        case _:
            return "an object"


def suggestion(unknown: str, known: Iterable[str]) -> str:
    """Return what was probably meant, as the end of a sentence; where nothing is near, what there is."""
    choices = sorted(known)
    near = nearest(unknown, choices)
    return f"known are: {', '.join(choices)}" if near is None else f"did you mean {near!r}?"


def nearest(unknown: str, known: Iterable[str]) -> str | None:
    """Return what was probably meant, as plain text even where `known` are members of an enumeration."""
    near = get_close_matches(unknown, [str(each) for each in known], n=1, cutoff=0.6)
    return near[0] if near else None


def unknown_field(path: Sequence[str | int], known: Iterable[str]) -> Fault:
    """Return the fault of a field that does not exist."""
    name = str(path[-1])
    return Fault(pointer=pointer(*path), detail=f"unknown field {name!r}; {suggestion(name, known)}")


def faults(
    error: ValidationError, body: Mapping[str, Any], fields: Mapping[tuple[str, ...], frozenset[str]]
) -> list[Fault]:
    """Return every fault that `error` found in `body`, one for each place.

    `fields` gives the known fields of the body and of each object in it, by path.
    """
    result: dict[str, Fault] = {}
    for place, details in _by_place(error, body).items():
        fault = _fault(place, details, fields)
        result.setdefault(fault.pointer or "#", fault)
    return list(result.values())


def _by_place(error: ValidationError, body: Mapping[str, Any]) -> dict[tuple[str | int, ...], list[ErrorDetails]]:
    """Group the errors by the place in the body that they speak of; the members of a union share theirs."""
    places: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for details in error.errors(include_url=False, include_context=True):
        place = details["loc"]
        if len(place) > 2 and place[0] == "metadata":
            place = place[:2]
        elif len(place) == 2 and place[0] == "tags":
            place = ("tags", _position(body.get("tags"), details["input"], place[1]))
        places.setdefault(place, []).append(details)
    return places


def _position(sent: object, value: object, fallback: str | int) -> str | int:
    """Return where `value` stood in the list as it was sent: duplicates have been dropped before validation."""
    if isinstance(sent, list):
        for index, item in enumerate(sent):
            if type(item) is type(value) and item == value:
                return index
    return fallback


def _fault(
    place: tuple[str | int, ...], details: list[ErrorDetails], fields: Mapping[tuple[str, ...], frozenset[str]]
) -> Fault:
    first = details[0]
    if first["type"] == "unexpected_keyword_argument":
        known = fields.get(tuple(str(part) for part in place[:-1]), frozenset())
        return unknown_field(place, known)
    if len(place) == 2 and place[0] == "metadata":
        return Fault(pointer=pointer(*place), detail=_metadata(details))
    return Fault(pointer=pointer(*place, *_named(place, first, fields)), detail=_detail(first), choices=_choices(first))


def _named(
    place: tuple[str | int, ...], error: ErrorDetails, fields: Mapping[tuple[str, ...], frozenset[str]]
) -> tuple[str, ...]:
    """Return the field of an object that a rule about the whole object names first, none where it names none."""
    if error["type"] != "value_error":
        return ()
    known = fields.get(tuple(str(part) for part in place), frozenset())
    return tuple(name for name in _NAMED.findall(str(error["ctx"]["error"])) if name in known)[:1]


def _metadata(details: list[ErrorDetails]) -> str:
    """Say what is wrong with a metadata entry: its key, or its value by the member of the union that fits best."""
    for error in details:
        if error["loc"][-1] == "[key]":
            return f"a key has 1 to 128 characters, {len(str(error['input']))} were found"
        member = _UNION_MEMBERS.get(str(error["loc"][-1]))
        if member is not None and type(error["input"]) is member:
            return _detail(error)
    return f"expected a string, a number or a boolean, found {found(details[0]['input'])}"


def _choices(error: ErrorDetails) -> tuple[str, ...]:
    if error["type"] not in {"enum", "literal_error"}:
        return ()
    return tuple(str(error["ctx"]["expected"]).replace(" or ", ", ").replace("'", "").split(", "))


def _detail(error: ErrorDetails) -> str:
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind == "missing":
        return "required, but missing"
    if kind in _EXPECTED_TYPES:
        return f"expected {_EXPECTED_TYPES[kind]}, found {found(value)}"
    if kind in _COMPARED:
        bound, words = _COMPARED[kind]
        return f"expected {words} {context[bound]:g}, found {found(value)}"
    match kind:
        case "enum" | "literal_error":
            hint = f"; {suggestion(value, _choices(error))}" if isinstance(value, str) and value else ""
            return f"expected {context['expected']}, found {found(value)}{hint if 'did you' in hint else ''}"
        case "string_too_short":
            return f"expected at least {context['min_length']} character, found {found(value)}"
        case "string_too_long":
            return f"expected at most {context['max_length']} characters, found {found(value)}"
        case "too_long":
            return f"expected at most {context['max_length']} entries, found {context['actual_length'] or 'more'}"
        case "string_pattern_mismatch":
            wanted = _PATTERNS.get(context["pattern"], f"text of the form {context['pattern']}")
            return f"expected {wanted}, found {found(value)}"
        case "value_error":
            said = str(context["error"])
            return f"{said}; found {found(value)}" if isinstance(value, (str, int, float)) else said
        case _:
            return f"{error['msg']}; found {found(value)}"
