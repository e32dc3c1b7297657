"""Hide what is private in a resource's JSON: keys, passwords and tokens never leave the control plane but by xDS."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

REDACTED: Final = "[redacted]"

_PRIVATE: Final = frozenset(
    {
        "access_token",
        "client_secret",
        "generic_secret",
        "hmac_secret",
        "inline_key",
        "password",
        "passphrase",
        "pkcs12",
        "private_key",
        "private_key_provider",
        "secret",
        "session_ticket_keys",
        "token",
        "token_secret",
    }
)
_PLACES: Final = frozenset({"environment_variable", "filename"})
"""What says where a secret is rather than what it is."""


def redacted(document: Any) -> Any:
    """Return a copy with the values of private fields hidden, at any depth and in either spelling of their names.

    Shape and field names stay, so that a reader sees what is set. A value that is read from a file keeps its path.
    """
    if isinstance(document, Mapping):
        return {name: _hidden(each) if _snake(name) in _PRIVATE else redacted(each) for name, each in document.items()}
    if isinstance(document, list):
        return [redacted(each) for each in document]
    return document


def hidden_places(document: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Tell where a document has the mark of something hidden instead of the thing itself."""
    if document == REDACTED:
        yield path
    elif isinstance(document, Mapping):
        for name, each in document.items():
            yield from hidden_places(each, (*path, name))
    elif isinstance(document, list):
        for index, each in enumerate(document):
            yield from hidden_places(each, (*path, index))


def _hidden(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            name: each if _snake(name) in _PLACES and isinstance(each, str) else _hidden(each)
            for name, each in value.items()
        }
    if isinstance(value, list):
        return [_hidden(each) for each in value]
    return REDACTED


def _snake(name: str) -> str:
    return "".join(f"_{ch.lower()}" if ch.isupper() else ch for ch in name)
