"""What a proxy's type waits for, in the words of somebody who wonders why nothing happens."""

from collections.abc import Collection

from xds.standing import Lack, Waiting
from xds.typenames import message_name
from xds.types import CLUSTER

_MAX_LACKS = 20
_MAX_NAMES = 5


def waits_for(type_url: str, waiting: Waiting | None) -> tuple[str, ...]:
    """Say what has to happen before a type is in step, the likeliest cause first; empty where nothing is known."""
    if waiting is None:
        return ()
    kind = message_name(type_url)
    said = [_lack(kind, each) for each in waiting.lacks[:_MAX_LACKS]]
    if waiting.unanswered:
        warm = ", which Envoy does once they are warm" if type_url == CLUSTER else ""
        said.append(f"the proxy has not acknowledged {kind} {_listed(waiting.unanswered)}{warm}")
    said += [f"what it says of {message_name(each)} comes first" for each in waiting.behind]
    if waiting.kept:
        said.append(f"{kind} {_listed(waiting.kept)} goes once nothing that the proxy may hold refers to it")
    return tuple(said)


def _lack(kind: str, lack: Lack) -> str:
    why = "does not exist" if not lack.exists else "the proxy has not acknowledged"
    if not lack.asked:
        why = "the proxy has not asked for" if lack.exists else "does not exist, and the proxy has not asked for"
    return f"{kind} {lack.of!r} refers to {message_name(lack.type_url)} {lack.name!r}, which {why}"


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(map(repr, list(names)[:_MAX_NAMES]))
    return shown if len(names) <= _MAX_NAMES else f"{shown} and {len(names) - _MAX_NAMES} more"
