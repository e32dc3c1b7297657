"""What a client would refuse in the resources of a planned cluster, found before they are published.

One refused resource makes a client refuse the whole response it came in, so a faulty service must be held back by
itself (law 15). The generated messages carry none of Envoy's validation rules.

Looked at is the plan and not the encoded messages: it is what the messages are spelled from, field for field, it
needs no decoding, and its faults can be told in the words of the person who made them. The model already refuses
most of this where values enter; a registry's adapter or a later policy may not, and here is the last gate.
"""

import ipaddress
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from controlplane import plan
from controlplane.model import SERVICE_NAME, HealthStatus
from controlplane.policy import HTTP_TOKEN, ConsistentHash, HashOn, Strategy

_UINT32_MAX = 2**32 - 1
_MAX_RING_SIZE = 8_388_608
_MAX_TABLE_SIZE = 5_000_011


def problems(planned: plan.Cluster) -> list[str]:
    """Return what is wrong with a cluster, its assignment or its routes; empty = publish it."""
    return [*_name(planned), *_policy(planned), *_localities(planned), *_addresses(planned)]


def grpc_problems(planned: plan.Cluster) -> list[str]:
    """Return what a gRPC client would refuse or leave out of a plan in `proxyless` form, itself without `problems`.

    What it refuses of listeners, routes and clusters (C-09, C-11, C-13, C-14) no plan can ask for.
    """
    return [*_localities(planned), *_unused_by_grpc(planned)]


def _unused_by_grpc(planned: plan.Cluster) -> Iterator[str]:
    """Check that gRPC uses every endpoint, and by its weight: a locality's, as it ignores an endpoint's (A27)."""
    by_endpoint = planned.policy.strategy is Strategy.CONSISTENT_HASH
    for group in planned.localities:
        if not by_endpoint and len({endpoint.weight for endpoint in group.endpoints}) > 1:
            yield f"{_place(group.locality)} mixes weights, and gRPC would ignore them; one locality for each (C-02)"
        if group.weight != (total := sum(endpoint.weight for endpoint in group.endpoints)):
            yield f"{_place(group.locality)}: weight {group.weight}; it must be {total}, its instances' (C-02)"
        for endpoint in group.endpoints:
            if endpoint.status is not HealthStatus.HEALTHY:
                yield f"instance {endpoint.id}: status {endpoint.status}, which gRPC ignores; leave it out (C-05)"


def _name(planned: plan.Cluster) -> Iterator[str]:
    """Check what C-16 asks: a name, and none that a bootstrap's own clusters could have."""
    if len(planned.name) > 253 or not SERVICE_NAME.fullmatch(planned.name):
        yield f"name {planned.name!r}: must be a lower-case DNS name, as the bootstrap's own clusters cannot be"


def _policy(planned: plan.Cluster) -> Iterator[str]:
    policy = planned.policy
    if policy.connect_timeout <= 0:
        yield f"connect_timeout {policy.connect_timeout}: must be more than 0 s"
    if policy.timeout < 0:
        yield f"timeout {policy.timeout}: must not be negative; 0 means none"
    if not 0 <= policy.panic_threshold <= 100:
        yield f"panic_threshold {policy.panic_threshold}: must be a percentage"
    if policy.least_connections is not None and policy.least_connections.choice_count < 2:
        yield f"choice_count {policy.least_connections.choice_count}: Envoy compares at least 2 (C-10)"
    if policy.strategy is Strategy.CONSISTENT_HASH:
        yield from _consistent_hash(policy.consistent_hash or ConsistentHash())


def _consistent_hash(options: ConsistentHash) -> Iterator[str]:
    if options.algorithm == "ring_hash" and not 1 <= options.minimum_ring_size <= _MAX_RING_SIZE:
        yield f"minimum_ring_size {options.minimum_ring_size}: must be 1 to {_MAX_RING_SIZE} (C-10)"
    size = options.table_size
    if options.algorithm == "maglev" and not (2 <= size <= _MAX_TABLE_SIZE and _is_prime(size)):
        yield f"table_size {size}: must be a prime number of at most {_MAX_TABLE_SIZE}"
    yield from _hash_on(options.hash_on)


def _hash_on(hash_on: HashOn) -> Iterator[str]:
    if hash_on.source != "source_address" and not hash_on.name:
        yield f"hash_on: hashing on a {hash_on.source} needs its name"
    elif hash_on.source in ("header", "cookie") and not HTTP_TOKEN.fullmatch(hash_on.name):
        # Envoy writes a cookie's name into its responses as it is.
        yield f"hash_on: {hash_on.name!r} is not the name of a {hash_on.source}"
    if hash_on.source == "query" and not hash_on.name.isprintable():
        yield f"hash_on: {hash_on.name!r} holds control characters"
    if hash_on.ttl is not None and hash_on.ttl < 0:
        yield f"hash_on: a cookie's ttl of {hash_on.ttl} s; it must not be negative"


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _localities(planned: plan.Cluster) -> Iterator[str]:
    """Check C-01, C-02, C-04. Priorities (C-03) are all 0, as the plan knows no other."""
    for locality, times in Counter(group.locality for group in planned.localities).items():
        if times > 1:
            yield f"{_place(locality)} appears {times} times (C-04)"
    for group in planned.localities:
        if not group.endpoints:
            yield f"{_place(group.locality)} is empty; leave it out"
        total = sum(endpoint.weight for endpoint in group.endpoints)
        if total > _UINT32_MAX:
            yield f"{_place(group.locality)}: its instances' weights sum up to {total}, more than 2³²-1 (C-01)"
        if not 1 <= group.weight <= _UINT32_MAX:
            yield f"{_place(group.locality)}: weight {group.weight}, must be 1 to 2³²-1 (C-02)"
    total = sum(group.weight for group in planned.localities)
    if total > _UINT32_MAX:
        yield f"the localities' weights sum up to {total}, more than 2³²-1 (C-01)"


def _place(locality: object) -> str:
    names = (getattr(locality, part) for part in ("region", "zone", "sub_zone"))
    return f"locality {'/'.join(name or '-' for name in names)}"


def _addresses(planned: plan.Cluster) -> Iterator[str]:
    """Check C-01, C-04 and C-05 for every endpoint: the one loop here whose speed is felt, at 10,000 endpoints."""
    owners: dict[tuple[str, int], str] = {}
    for group in planned.localities:
        for endpoint in group.endpoints:
            address = (endpoint.address, endpoint.port)
            if address in owners:
                yield f"instance {endpoint.id}: {address[0]}:{address[1]} is instance {owners[address]}'s (C-04)"
            owners[address] = endpoint.id
            if not is_ip_address(endpoint.address):
                yield f"instance {endpoint.id}: {endpoint.address!r} is not an IP address, and EDS takes no other"
            if not 1 <= endpoint.port <= 65535:
                yield f"instance {endpoint.id}: port {endpoint.port}, must be 1 to 65535"
            if not 1 <= endpoint.weight <= _UINT32_MAX:
                yield f"instance {endpoint.id}: weight {endpoint.weight}, must be 1 to 2³²-1; leave it out (C-01)"
            if endpoint.status is HealthStatus.UNKNOWN:
                yield f"instance {endpoint.id}: status unknown, healthy to Envoy; leave it out (C-05)"


@lru_cache(maxsize=32_768)
def is_ip_address(text: str) -> bool:
    """Tell whether Envoy takes a text for an address without a resolver."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text  # a zone id means nothing on another machine
