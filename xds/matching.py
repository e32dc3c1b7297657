"""Which nodes a status request means: Envoy's node matchers compiled into a predicate.

The request comes from anybody who reaches the port, so nothing here may cost more than it looks: messages are
bounded in depth, and a regular expression may not hold anything that Python's engine takes exponential time for.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import betterproto2
from envoy_data_plane.envoy.type.matcher.v3 import NodeMatcher, StringMatcher, StructMatcher, ValueMatcher

from xds.types import Node

_MAX_MATCHERS = 256
_MAX_DEPTH = 8
_MAX_EXPRESSIONS = 8  # in all of a request: each may take milliseconds on a node, with nobody served meanwhile
_MAX_REGEX = 256
_MAX_TEXT = 512  # what an expression is tried on; two repetitions take time by the square of it
_MAX_REPEATS = 2
_MAX_CHOICES = 8

MatchesNode = Callable[[Node], bool]
_MatchesText = Callable[[str], bool]
_MatchesValue = Callable[[object], bool]


class MatcherError(Exception):
    """Report a matcher that cannot be used: the field, and the remedy."""


@dataclass(frozen=True, slots=True)
class _Absent:
    """Stand for metadata that a node does not have."""


_ABSENT = _Absent()


def any_node(matchers: Sequence[NodeMatcher]) -> MatchesNode:
    """Compile matchers of which one has to match; none at all match every node (Q-01, Q-03).

    Raises:
        MatcherError: a matcher is empty, of a kind that is not served, or there are too many.
    """
    if len(matchers) > _MAX_MATCHERS:
        raise MatcherError(f"node_matchers: {len(matchers)} matchers; at most {_MAX_MATCHERS} are read")
    if not matchers:
        return lambda _node: True
    compiler = _Compiler()
    each = [compiler.node(matcher, f"node_matchers[{number}]") for number, matcher in enumerate(matchers)]
    return lambda node: any(matches(node) for matches in each)


class _Compiler:
    """Compile the matchers of one request, and count what of them is dear to try."""

    def __init__(self) -> None:
        self._expressions = 0

    def node(self, matcher: NodeMatcher, where: str) -> MatchesNode:
        parts: list[MatchesNode] = []
        if matcher.node_id is not None:
            matches_id = self._string(matcher.node_id, f"{where}.node_id")
            parts.append(lambda node: matches_id(node.id))
        for number, struct in enumerate(matcher.node_metadatas):
            parts.append(self._metadata(struct, f"{where}.node_metadatas[{number}]"))
        if not parts:
            raise MatcherError(f"{where}: set node_id or node_metadatas, or leave node_matchers empty for all nodes")
        return lambda node: all(part(node) for part in parts)

    def _metadata(self, matcher: StructMatcher, where: str) -> MatchesNode:
        keys = [segment.key or "" for segment in matcher.path]
        if not keys or not all(keys):
            raise MatcherError(f"{where}.path: name at least one key, and no empty one")
        if matcher.value is None:
            raise MatcherError(f"{where}.value: set what the value has to be; present_match: true asks for any")
        matches = self._value(matcher.value, f"{where}.value", 0)

        def found(node: Node) -> bool:
            value: object = node.metadata
            for key in keys:
                value = value.get(key, _ABSENT) if isinstance(value, Mapping) else _ABSENT
            return matches(value)

        return found

    def _value(self, matcher: ValueMatcher, where: str, depth: int) -> _MatchesValue:
        if depth > _MAX_DEPTH:
            raise MatcherError(f"{where}: matchers are nested deeper than {_MAX_DEPTH}")
        kind, wanted = betterproto2.which_one_of(matcher, "match_pattern")
        chosen: Any = wanted
        match kind:
            case "null_match":
                return lambda value: value is None
            case "present_match":
                return lambda value: (value is not _ABSENT) is chosen
            case "bool_match":
                return lambda value: value is chosen
            case "string_match":
                text = self._string(chosen, f"{where}.string_match")
                return lambda value: isinstance(value, str) and text(value)
            case "double_match":
                return _double(chosen, f"{where}.double_match")
            case "list_match":
                if chosen.one_of is None:
                    raise MatcherError(f"{where}.list_match.one_of: set what one of the items has to be")
                item = self._value(chosen.one_of, f"{where}.list_match.one_of", depth + 1)
                return lambda value: isinstance(value, list) and any(map(item, value))
            case "or_match":
                each = [
                    self._value(one, f"{where}.or_match.value_matchers[{number}]", depth + 1)
                    for number, one in enumerate(chosen.value_matchers)
                ]
                return lambda value: any(one(value) for one in each)
        raise MatcherError(f"{where}: set one of its matchers")

    def _string(self, matcher: StringMatcher, where: str) -> _MatchesText:
        kind, wanted = betterproto2.which_one_of(matcher, "match_pattern")
        chosen: Any = wanted
        if kind == "safe_regex":
            # Envoy ignores ignore_case here, too.
            whole = self._expression(chosen.regex, f"{where}.safe_regex.regex")
            return lambda text: len(text) <= _MAX_TEXT and whole.fullmatch(text) is not None
        if kind not in ("exact", "prefix", "suffix", "contains"):
            raise MatcherError(f"{where}: set exact, prefix, suffix, contains or safe_regex")
        sought = str(chosen).lower() if matcher.ignore_case else str(chosen)

        def compared(text: str) -> bool:
            text = text.lower() if matcher.ignore_case else text
            match kind:
                case "exact":
                    return text == sought
                case "prefix":
                    return text.startswith(sought)
                case "suffix":
                    return text.endswith(sought)
            return sought in text

        return compared

    def _expression(self, pattern: str, where: str) -> re.Pattern[str]:
        self._expressions += 1
        if self._expressions > _MAX_EXPRESSIONS:
            detail = (
                f"at most {_MAX_EXPRESSIONS} regular expressions are tried for a request; use exact, prefix or suffix"
            )
            raise MatcherError(f"{where}: {detail}")
        return _regex(pattern, where)


def _double(matcher: Any, where: str) -> _MatchesValue:
    kind, wanted = betterproto2.which_one_of(matcher, "match_pattern")
    chosen: Any = wanted
    match kind:
        case "exact":
            return lambda value: type(value) in (int, float) and value == chosen
        case "range":
            return lambda value: isinstance(value, int | float) and chosen.start <= value < chosen.end
    raise MatcherError(f"{where}: set exact or range")


def _regex(pattern: str, where: str) -> re.Pattern[str]:
    """Compile an expression that both RE2 and Python read alike, and that Python matches in bounded time.

    RE2 takes linear time for everything; Python's engine goes back and forth. So no group is repeated, of repetitions
    and of choices there are few (escaped characters count as well: that errs on the safe side), and no text that is
    longer than `_MAX_TEXT` matches.
    """
    if not pattern or len(pattern) > _MAX_REGEX:
        raise MatcherError(f"{where}: expected 1 to {_MAX_REGEX} characters, found {len(pattern)}")
    if re.search(r"\(\?(?!:)|\\[0-9]", pattern):
        raise MatcherError(f"{where}: of groups with options only (?:…) is served, and no references to groups")
    if re.search(r"\)[*+?{]", pattern):
        raise MatcherError(f"{where}: no group may be repeated; write [ab]* for (a|b)*, or use prefix or contains")
    repeats, choices = sum(map(pattern.count, "*+{")), sum(map(pattern.count, "?|"))
    if repeats > _MAX_REPEATS or choices > _MAX_CHOICES:
        raise MatcherError(
            f"{where}: at most {_MAX_REPEATS} repetitions and {_MAX_CHOICES} choices are served; "
            f"found {repeats} and {choices}. Use several node_matchers: one of them has to match"
        )
    try:
        return re.compile(pattern)
    except re.error as error:
        raise MatcherError(f"{where}: no regular expression: {error}") from error
