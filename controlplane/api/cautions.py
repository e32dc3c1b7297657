"""What the author of a raw resource is warned of: it is stored and served, and may not do what was meant."""

from collections.abc import Iterator
from typing import assert_never

from controlplane.api.views import timestamp
from controlplane.catalog import Catalog
from controlplane.raw.certificates import Certificate, NoCertificate, is_due
from controlplane.raw.compile import Compiled
from controlplane.raw.overlay import dangling
from xds.typenames import message_name


def cautions(compiled: Compiled, catalog: Catalog, now: float) -> tuple[str, ...]:
    """Return the warnings; `now` is in seconds since the epoch."""
    missing = (
        f"{message_name(type_url)} {name!r} does not exist: what refers to it waits, or fails its requests"
        for type_url, name in dangling(catalog, compiled.refs)
    )
    return (*missing, *_of_certificates(compiled, now))


def _of_certificates(compiled: Compiled, now: float) -> Iterator[str]:
    for each in compiled.certificates:
        match each:
            case NoCertificate():
                yield f"certificate_chain cannot be read, so whoever uses it refuses it: {each.why}"
            case Certificate() if now >= each.not_after:
                yield f"certificate {each.subject!r} expired at {timestamp(each.not_after)}: put a new one in its place"
            case Certificate() if now < each.not_before:
                yield f"certificate {each.subject!r} is not valid before {timestamp(each.not_before)}"
            case Certificate() if is_due(each, now):
                yield f"certificate {each.subject!r} expires at {timestamp(each.not_after)}: renew it before that"
            case Certificate():
                pass
            case _:
                assert_never(each)
