"""Hide what is private in a resource's JSON: keys, passwords and tokens never leave the control plane but by xDS."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

REDACTED: Final = "[redacted]"

PRIVATE_KEY: Final = "PRIVATE KEY"
"""What is in the first line of every private key in PEM, wherever it stands."""

_PRIVATE: Final = frozenset(
    {
        "access_token",
        "auth_password",
        "authorization_token",
        "backend_token",
        "client_secret",
        "credentials",
        "credentials_data_source",
        "downstream_auth_password",
        "downstream_auth_passwords",
        "generic_secret",
        "google_refresh_token",
        "hmac_secret",
        "inline_key",
        "json_key",
        "password",
        "passphrase",
        "pkcs12",
        "private_key",
        "private_key_provider",
        "secret",
        "secret_access_key",
        "secret_data",
        "secrets",
        "session_ticket_keys",
        "session_token",
        "token",
        "token_secret",
        "users",
        "web_identity_token_data_source",
    }
)
_PRIVATE_HEADERS: Final = frozenset({"api-key", "authorization", "cookie", "proxy-authorization", "x-api-key"})
"""Headers whose values are credentials, where they are spelled as Envoy's `HeaderValue`."""

_PLACES: Final = frozenset({"environment_variable", "filename"})
"""What says where a secret is rather than what it is."""


def redacted(document: Any) -> Any:
    """Return a copy with the values of private fields hidden, at any depth and in either spelling of their names.

    Shape and field names stay, so that a reader sees what is set. A value that is read from a file keeps its path.
    """
    if isinstance(document, Mapping):
        private = _PRIVATE | {"value", "raw_value"} if _names_private_header(document) else _PRIVATE
        return {name: _hidden(each) if _snake(name) in private else redacted(each) for name, each in document.items()}
    if isinstance(document, list):
        return [redacted(each) for each in document]
    if isinstance(document, str) and PRIVATE_KEY in document:
        return REDACTED
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


def _names_private_header(document: Mapping[str, Any]) -> bool:
    key = document.get("key")
    return isinstance(key, str) and key.lower() in _PRIVATE_HEADERS


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
