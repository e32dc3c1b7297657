"""What a proxy refuses, as somebody needs to see it who has to mend it: the words, the write, and what it changed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from controlplane.api.views import timestamp
from controlplane.catalog import Catalog
from controlplane.model import ServiceName
from controlplane.translate.decode import Content, readable
from xds.status import Refusal, ResourceStatus
from xds.types import CLUSTER, ENDPOINT

MAX_REFUSALS = 20
_MAX_CHANGES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeView:
    """Show one place where the refused content differs from the last good one; null stands for absent.

    `pointer` is a JSON pointer into the resource (RFC 6901).
    """

    pointer: str
    was: Any
    now: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedView:
    """Show one resource that the proxy refused, and goes on without or at its last good version.

    `refused_version` and `good_version` are the resource's own, `good_version` null where it never took any. `since`
    is when this content was first refused, `message` and `code` the proxy's own. `revision` is the write that led to
    it, as in `/events`; `service` the service that it belongs to, where it belongs to one. `changes` lead from the
    last good content to the refused one, the first hundred of them; `note` says why there are none or not all.
    """

    name: str
    refused_version: str
    good_version: str | None
    since: str | None
    message: str
    code: int
    revision: str
    service: str | None
    changes: tuple[ChangeView, ...]
    note: str | None


def refused_view(resource: ResourceStatus, refusal: Refusal, catalog: Catalog) -> RefusedView:
    """Show a resource that was refused; decodes both contents."""
    standing = resource.standing
    good = standing.held
    changes, note = _changes(resource)
    return RefusedView(
        name=standing.name,
        refused_version=standing.version,
        good_version=None if good is None else good.version,
        since=timestamp(refusal.since),
        message=refusal.message,
        code=refusal.code,
        revision=refusal.revision,
        service=_service(resource.type_url, standing.name, catalog),
        changes=changes,
        note=note,
    )


def _service(type_url: str, name: str, catalog: Catalog) -> str | None:
    """Find the service that a cluster or an assignment is made from: `<service>`, or `<service>@<subset>`."""
    if type_url not in (CLUSTER, ENDPOINT):
        return None
    service = ServiceName(name.partition("@")[0])
    return service if service in catalog.services else None


def _changes(resource: ResourceStatus) -> tuple[tuple[ChangeView, ...], str | None]:
    refused, good = resource.standing.sent, resource.standing.held
    if refused is None:
        return (), "what was refused is no longer known, or was a removal"
    after = readable(resource.type_url, refused.body)
    before = Content(json={}) if good is None else readable(resource.type_url, good.body)
    if after.json is None or before.json is None:
        return (), after.note if after.json is None else before.note
    found = tuple(islice(differences(before.json, after.json), _MAX_CHANGES + 1))
    if not found:
        return (), "they differ in what is not shown, such as a private key"
    note = f"only the first {_MAX_CHANGES} are shown" if len(found) > _MAX_CHANGES else None
    return found[:_MAX_CHANGES], note


def differences(was: Any, now: Any, pointer: str = "") -> Iterator[ChangeView]:
    """Walk two JSON documents and yield where they differ, in the order of the keys; lists are compared by place."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in sorted({*was, *now}):
            place = key.replace("~", "~0").replace("/", "~1")
            yield from differences(was.get(key), now.get(key), f"{pointer}/{place}")
    elif isinstance(was, list) and isinstance(now, list):
        for place in range(max(len(was), len(now))):
            before, after = (each[place] if place < len(each) else None for each in (was, now))
            yield from differences(before, after, f"{pointer}/{place}")
    elif was != now:
        yield ChangeView(pointer=pointer, was=was, now=now)
