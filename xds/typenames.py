"""What people call the resource types: one table for paths, files, metrics and the CLI.

A type has a plural word (`clusters`), the discovery service's abbreviation (`CDS`) and its message's name
(`Cluster`). People may type any of them, or the type URL; we print the word or the message's name.
"""

from collections.abc import Mapping
from types import MappingProxyType

from xds.types import CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, RUNTIME, SCOPED_ROUTE, SECRET, VIRTUAL_HOST

WORDS: Mapping[str, str] = MappingProxyType(
    {
        CLUSTER: "clusters",
        ENDPOINT: "endpoints",
        LISTENER: "listeners",
        ROUTE: "routes",
        SCOPED_ROUTE: "scoped-routes",
        VIRTUAL_HOST: "virtual-hosts",
        SECRET: "secrets",
        RUNTIME: "runtimes",
        EXTENSION: "extension-configs",
    }
)
"""Type URL to plural word, in the order in which clients are told of them."""

ABBREVIATIONS: Mapping[str, str] = MappingProxyType(
    {
        CLUSTER: "CDS",
        ENDPOINT: "EDS",
        LISTENER: "LDS",
        ROUTE: "RDS",
        SCOPED_ROUTE: "SRDS",
        VIRTUAL_HOST: "VHDS",
        SECRET: "SDS",
        RUNTIME: "RTDS",
        EXTENSION: "ECDS",
    }
)


def message_name(type_url: str) -> str:
    """Return the last word of a type URL: `Cluster` for envoy.config.cluster.v3.Cluster."""
    return type_url.rpartition(".")[2]


def type_url_of(spelled: str) -> str | None:
    """Find the type that somebody means, however they spell it; None for no type that we serve.

    Understood are the plural word with `-` or `_`, its singular, the abbreviation in any case, the message's name
    and the type URL with or without its prefix.
    """
    return _BY_SPELLING.get(_folded(spelled))


def _folded(spelled: str) -> str:
    return spelled.removeprefix("type.googleapis.com/").replace("_", "-").lower()


_BY_SPELLING = {
    _folded(each): url
    for url, word in WORDS.items()
    for each in (word, word.removesuffix("s"), ABBREVIATIONS[url], message_name(url), url)
}
