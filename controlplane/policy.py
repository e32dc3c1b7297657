"""How a service is balanced and routed: strategies and their options, as data.

Values only, validated as the model's are; the same definitions serve REST bodies, journal lines and files.
Durations are in seconds.
"""

import re
from dataclasses import field
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, Strict, model_validator
from pydantic.dataclasses import dataclass

_CONFIG = ConfigDict(extra="forbid")

HTTP_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _timeout(value: float) -> float:
    if 0 < value < 0.001:
        raise ValueError("must be 0 (no timeout) or at least 0.001 s: a shorter one would be sent as 0")
    return value


PanicThreshold = Annotated[
    float,
    Strict(),
    Field(
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="Percent of healthy instances. Below that share Envoy uses the unhealthy too, rather than "
        "overload the few that are left. 0 switches it off: only the healthy are used.",
    ),
]


class Strategy(StrEnum):
    """Name the load-balancing strategies, for REST callers and for proxies alike."""

    ROUND_ROBIN = "round_robin"
    WEIGHTED_ROUND_ROBIN = "weighted_round_robin"
    LEAST_CONNECTIONS = "least_connections"
    RANDOM = "random"
    CONSISTENT_HASH = "consistent_hash"
    HEALTH_BASED = "health_based"


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class HashOn:
    """Say what a consistent hash is computed from: one of a header, a cookie, a query parameter, the source.

    A cookie with a `ttl` is made by Envoy where the client sends none; 0 = a session cookie.
    """

    source: Literal["header", "cookie", "query", "source_address"] = "source_address"
    name: Annotated[str, Strict(), Field(max_length=256)] = ""
    ttl: Annotated[float, Strict(), Field(ge=0, le=31_536_000, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _named(self) -> "HashOn":
        if self.source != "source_address" and not self.name:
            raise ValueError(f"hashing on a {self.source} needs its `name`")
        if self.source == "source_address" and self.name:
            raise ValueError("hashing on the source address takes no `name`")
        if self.ttl is not None and self.source != "cookie":
            raise ValueError("`ttl` goes with source = cookie only")
        if self.source in ("header", "cookie") and not HTTP_TOKEN.fullmatch(self.name):
            raise ValueError(f"`name` must be the name of a {self.source}: letters, digits and !#$%&'*+-.^_`|~ only")
        if self.source == "query" and not self.name.isprintable():
            raise ValueError("`name` must hold no control characters")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class ConsistentHash:
    """Hold the options of `consistent_hash`: Envoy's ring hash (default) or maglev.

    Sizes are entries of the table: `minimum_ring_size` for ring_hash (Envoy allows up to 8,388,608),
    `table_size` for maglev (a prime, at most 5,000,011).
    """

    algorithm: Literal["ring_hash", "maglev"] = "ring_hash"
    hash_on: HashOn = field(default_factory=HashOn)
    minimum_ring_size: Annotated[int, Strict(), Field(ge=1, le=8_388_608)] = 1024
    table_size: Annotated[int, Strict(), Field(ge=2, le=5_000_011)] = 65_537

    @model_validator(mode="after")
    def _prime(self) -> "ConsistentHash":
        n = self.table_size
        if any(n % d == 0 for d in range(2, int(n**0.5) + 1)):
            raise ValueError("`table_size` must be a prime number, 65537 for example")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class LeastConnections:
    """Hold the options of `least_connections`: how many hosts Envoy compares for each request."""

    choice_count: Annotated[int, Strict(), Field(ge=2, le=100)] = 2


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Policy:
    """Hold a service's traffic policy. Times in seconds.

    `panic_threshold` in percent: below that share of healthy instances Envoy uses the unhealthy too;
    0 switches that off. `connect_timeout` bounds a TCP connect, `timeout` a whole request (0 = none).
    """

    strategy: Strategy = Strategy.WEIGHTED_ROUND_ROBIN
    consistent_hash: ConsistentHash | None = None
    least_connections: LeastConnections | None = None
    panic_threshold: PanicThreshold = 50.0
    connect_timeout: Annotated[float, Strict(), Field(ge=0.001, le=300, allow_inf_nan=False)] = 5.0
    timeout: Annotated[float, Strict(), AfterValidator(_timeout), Field(ge=0, le=86_400, allow_inf_nan=False)] = 15.0

    @model_validator(mode="after")
    def _options_fit(self) -> "Policy":
        for options, strategy in (
            (self.consistent_hash, Strategy.CONSISTENT_HASH),
            (self.least_connections, Strategy.LEAST_CONNECTIONS),
        ):
            if options is not None and self.strategy is not strategy:
                raise ValueError(f"`{strategy}` options go with strategy = {strategy} only")
        return self


DEFAULT_POLICY = Policy()
