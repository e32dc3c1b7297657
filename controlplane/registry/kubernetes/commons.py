"""The control planes' common state in ConfigMaps: which document lies where, and what there is to tell of them.

A policy, a raw resource and a release have a ConfigMap each, so that a person finds them with kubectl; verdicts, of
which there are as many as instances, share a bounded number of them. Pure: objects come in, events and objects go
out. Told as in `index`: what is noted is what was told.
"""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any

import orjson

from controlplane.model import DeletePolicy, PutPolicy, RegistryEvent
from controlplane.registry.documents import Document, Kind, Unreadable, event_of, parse_path
from controlplane.registry.kubernetes.index import Policies
from controlplane.registry.kubernetes.objects import Object, name_of
from controlplane.registry.kubernetes.remarks import Remarks

MANAGED_BY = "app.kubernetes.io/managed-by"
OURS = "service-discovery"
KIND = "service-discovery/kind"
NAME = "service-discovery/name"
"""The annotation with a document's path: a hash stands in the object's name, which takes not every character."""

DOCUMENT = "document"
"""The entry of a ConfigMap's data that holds the JSON: of one document, or of a shard, by path."""

SHARDS = 16
"""How many ConfigMaps hold the verdicts: of 60,000 instances each stays below the MiB that one may have."""


def labels(kind: Kind) -> dict[str, str]:
    """Return the labels by which our objects of a kind are found."""
    return {MANAGED_BY: OURS, KIND: kind}


def object_name(path: str) -> str:
    """Return what the object of a document is called: its kind and a hash of its path."""
    return f"{OURS}-{path.partition('/')[0]}-{sha256(path.encode()).hexdigest()[:24]}"


def shard_name(path: str) -> str:
    """Return what the ConfigMap is called that holds a verdict: one of `SHARDS`, by a hash of the service."""
    service = path.split("/")[1]
    return f"{OURS}-{Kind.VERDICT}-{int(sha256(service.encode()).hexdigest(), 16) % SHARDS:02}"


def config_map(document: Document, version: str | None) -> dict[str, Any]:
    """Return the ConfigMap of a document; with `version`, one that replaces that version only."""
    return _object(object_name(document.path), document.kind, document.body.decode(), version, {NAME: document.path})


def shard(name: str, entries: Mapping[str, bytes], version: str | None) -> dict[str, Any]:
    """Return the ConfigMap of verdicts, each by its path; with `version`, one that replaces that version only."""
    text = orjson.dumps({path: orjson.Fragment(body) for path, body in sorted(entries.items())})
    return _object(name, Kind.VERDICT, text.decode(), version, {})


def _object(name: str, kind: Kind, text: str, version: str | None, annotations: dict[str, str]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "labels": labels(kind), "annotations": annotations}
    if version is not None:
        metadata["resourceVersion"] = version
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {DOCUMENT: text}}


def entries_of(thing: Object) -> dict[str, bytes]:
    """Return the documents of a ConfigMap, by path. Raises Unreadable."""
    metadata = thing["metadata"]
    text = (thing.get("data") or {}).get(DOCUMENT)
    if not isinstance(text, str):
        raise Unreadable(f"data: must have an entry {DOCUMENT!r}")
    if (metadata.get("labels") or {}).get(KIND) != Kind.VERDICT:
        path = (metadata.get("annotations") or {}).get(NAME, "")
        parse_path(path)
        return {path: text.encode()}
    try:
        judgements = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Unreadable(f"not JSON: {error}") from None
    if not isinstance(judgements, dict):
        raise Unreadable("must be a JSON object")
    for path in judgements:
        parse_path(path)
    return {path: orjson.dumps(judgement) for path, judgement in judgements.items()}


class Commons:
    """Hold the documents as they are in the cluster, and tell what has changed since it was told last."""

    def __init__(self, *, registry: str, policies: Policies, remarks: Remarks) -> None:
        self._registry = registry
        self._policies = policies
        self._remarks = remarks
        self._objects: dict[str, tuple[str, dict[str, bytes]]] = {}
        self._told: dict[str, bytes] = {}
        self._touched: dict[str, bytes | None] = {}

    def held(self, name: str) -> tuple[str | None, Mapping[str, bytes]]:
        """Return the version of a ConfigMap and its documents by path; None and nothing where it is not known."""
        return self._objects.get(name, (None, {}))

    def releases(self) -> set[tuple[str, str]]:
        """Return the ConfigMaps of releases, with their versions."""
        prefix = f"{OURS}-{Kind.RELEASE}-"
        return {(name, version) for name, (version, _) in self._objects.items() if name.startswith(prefix)}

    def list(self, things: Iterable[Object]) -> None:
        """Take all ConfigMaps."""
        listed = set()
        for thing in things:
            listed.add(name_of(thing).name)
            self._take(thing)
        for name in [each for each in self._objects if each not in listed]:
            self._drop(name)

    def changed(self, thing: Object, gone: bool) -> None:
        """Take a ConfigMap as it is now, or that it is gone."""
        if gone:
            self._drop(name_of(thing).name)
        else:
            self._take(thing)

    def events(self) -> Iterator[RegistryEvent]:
        """Tell of what has changed: policies, then resources and releases, then verdicts."""
        for path in [each for each in self._touched if each.startswith(f"{Kind.POLICY}/")]:
            match self._read(path):
                case PutPolicy(service=service, policy=policy):
                    self._policies.store(service, policy)
                case DeletePolicy(service=service):
                    self._policies.store(service, None)
        yield from self._policies.events()
        for path in sorted(self._touched, key=lambda each: (each.startswith(f"{Kind.VERDICT}/"), each)):
            if (event := self._read(path)) is not None:
                yield event

    def _read(self, path: str) -> RegistryEvent | None:
        """Return what a document that was touched tells; it counts as told from now on."""
        if path not in self._touched:
            return None
        body = self._touched.pop(path)
        if self._told.get(path) == body:
            return None
        try:
            event = event_of(*parse_path(path), body, self._registry)
        except Unreadable as unreadable:
            self._remarks.set(path, [str(unreadable)])
            return None
        self._remarks.set(path, ())
        if body is None:
            del self._told[path]
        else:
            self._told[path] = body
        return event

    def _take(self, thing: Object) -> None:
        name = name_of(thing).name
        try:
            entries = entries_of(thing)
        except Unreadable as unreadable:
            self._remarks.set(f"configmap {name}", [str(unreadable)])
            return
        self._remarks.set(f"configmap {name}", ())
        _, before = self.held(name)
        self._objects[name] = str(thing["metadata"].get("resourceVersion", "")), entries
        self._touch(before, entries)

    def _drop(self, name: str) -> None:
        _, before = self._objects.pop(name, ("", {}))
        self._touch(before, {})

    def _touch(self, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
        for path in {*before, *after}:
            if before.get(path) != after.get(path):
                self._touched[path] = after.get(path)
