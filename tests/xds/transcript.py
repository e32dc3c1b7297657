"""Replay a conversation against `Stream`. Nothing may be said but what is written: silence is checked by itself.

    # CDS wildcard, and one cluster changes            a comment
    = delta                                            the variant (sotw, delta); `= delta CDS`: a per-type stream
    = offer CDS a@1 b@1, EDS a@1 b@1                   add or change resources; `-a` removes; the rest stays
    > CDS                                              SotW: the list of names, `> EDS [a b]`
    > EDS +a -b {a@1 gone@7}                           Delta: subscribe, unsubscribe, initial versions
    < CDS [a@1 b@1] -c nonce=1                         a response: resources, removed names
    > CDS ack 1                                        answers repeat the SotW list, or `> EDS [a b] ack 2`
    > CDS nack 1 a is wrong
    > CDS ignore 1                                     an old version, a new nonce, no error (SotW)
    > EDS [a] nonce=7                                  a nonce of one's own
    ! Acked                                            the kinds of events that the last request gave rise to
    = stop waiting CDS

`r@1>a,b` refers to resources of the type below (LDS to RDS, RDS to CDS); a cluster always refers to its
assignment. `a@none` is the empty assignment that stands for a missing one. `@1` is not a version but a label of
content.
"""

import re
from collections.abc import Iterator

from xds.cache import changes_between
from xds.protocol import (
    KINDS,
    ORDER,
    DeltaRequest,
    Error,
    Event,
    Request,
    Response,
    SotwRequest,
    Stream,
    one_row,
)
from xds.types import CLUSTER, ENDPOINT, LISTENER, ROUTE, Resource, ResourceSet, Snapshot

TYPES = {"CDS": CLUSTER, "EDS": ENDPOINT, "LDS": LISTENER, "RDS": ROUTE, "FOO": "type.googleapis.com/acme.Foo"}
SHORT = {url: short for short, url in TYPES.items()}
_BELOW = {LISTENER: ROUTE, ROUTE: CLUSTER}


def make(url: str, spec: str) -> Resource:
    """Build the resource that `name@label>refs` describes."""
    match = re.fullmatch(r"([^@>]+)@([^>]+)(?:>(.+))?", spec)
    assert match is not None, f"{spec!r} is not name@label"
    name, label, refs = match.groups()
    if url == ENDPOINT and label == "none":
        return KINDS[ENDPOINT].absent(name)
    to = [(_BELOW[url], each) for each in refs.split(",")] if refs else []
    if url == CLUSTER:
        to.append((ENDPOINT, name))
    return Resource.of(name, f"{name}@{label}".encode(), refs=to)


class Replay:
    """Run one transcript."""

    def __init__(self) -> None:
        self._stream = Stream(delta=False)
        self._delta = False
        self._snapshot: Snapshot | None = None
        self._names: dict[str, frozenset[str]] = {}
        self._accepted: dict[str, str] = {}
        self._versions: dict[str, str] = {}
        self._events: list[Event] = []
        self._said: list[Response] = []

    def run(self, text: str) -> None:
        for number, raw in enumerate(text.splitlines(), 1):
            line = raw.partition("#")[0].strip()
            if not line:
                continue
            try:
                self._line(line[0], line[1:].strip())
            except AssertionError as error:
                raise AssertionError(f"line {number}: {raw.strip()}\n{error}") from error

        assert not self._said, f"at the end, unexpected: {self._show()}"

    def _line(self, mark: str, rest: str) -> None:
        if mark == "<":
            self._expect(rest)
            return
        if mark == "!":
            kinds = [type(event).__name__ for event in self._events]

            assert kinds == rest.split(), f"the events were {kinds}"
            return

        assert not self._said, f"unexpected: {self._show()}"
        if mark == "=":
            self._act(rest)
        elif mark == ">":
            self._events = self._stream.receive(self._request(rest))
        else:
            raise AssertionError(f"{mark!r} is none of = > < !")
        self._said = list(self._stream.responses())
        self._versions |= {response.nonce: response.version for response in self._said}

    def _act(self, rest: str) -> None:
        verb, *words = rest.split()
        if verb in ("sotw", "delta"):
            self._delta = verb == "delta"
            self._stream = Stream(delta=self._delta, rows=one_row(TYPES[words[0]]) if words else ORDER)
            self._names, self._accepted = {}, {}
            if self._snapshot is not None:
                self._stream.offer(self._snapshot)
        elif verb == "offer":
            old = self._snapshot
            self._snapshot = _changed(old or Snapshot(), rest.removeprefix("offer"))
            self._stream.offer(self._snapshot, changes_between(old, self._snapshot) if old is not None else None)
        elif verb == "stop":
            self._stream.stop_waiting(TYPES[words[1]])
        else:
            raise AssertionError(f"{verb!r} is none of sotw, delta, offer, stop")

    def _request(self, rest: str) -> Request:
        match = re.fullmatch(
            r"(?P<type>\w+)(?P<edits>(?: [+-]\S+)*)(?: \{(?P<initial>[^}]*)\})?(?: \[(?P<names>[^\]]*)\])?"
            r"(?: (?P<answer>ack|nack|ignore) (?P<to>\w+)(?: (?P<error>.*))?)?(?: nonce=(?P<nonce>\w*))?",
            rest,
        )
        assert match is not None, f"cannot read {rest!r}"
        url = TYPES[match["type"]]
        nonce = match["to"] or match["nonce"] or ""
        error = Error(13, match["error"] or "") if match["answer"] == "nack" else None
        if self._delta:
            edits = match["edits"].split()
            initial = dict(each.split("@") for each in (match["initial"] or "").split())
            return DeltaRequest(
                type_url=url,
                subscribe=tuple(each[1:] for each in edits if each[0] == "+"),
                unsubscribe=tuple(each[1:] for each in edits if each[0] == "-"),
                initial_versions={name: make(url, f"{name}@{label}").version for name, label in initial.items()},
                nonce=nonce,
                error=error,
            )
        if match["names"] is not None:
            self._names[url] = frozenset(match["names"].split())
        if match["answer"] == "ack":
            self._accepted[url] = self._versions.get(nonce, "?")
        version = self._accepted.get(url, "")
        names = self._names.get(url, frozenset())
        return SotwRequest(type_url=url, names=names, version=version, nonce=nonce, error=error)

    def _expect(self, rest: str) -> None:
        match = re.fullmatch(r"(\w+) \[([^\]]*)\]((?: -\S+)*) nonce=(\w+)", rest)
        assert match is not None, f"cannot read {rest!r}"
        assert self._said, "nothing was said"
        response = self._said.pop(0)
        url = TYPES[match[1]]
        wanted = [(one.name, one.version) for one in (make(url, spec) for spec in match[2].split())]
        removed = [each[1:] for each in match[3].split()]
        got = [(one.name, one.version) for one in response.resources]

        assert (response.type_url, sorted(got), sorted(response.removed), response.nonce) == (
            url,
            sorted(wanted),
            sorted(removed),
            match[4],
        ), f"it was: {_show(response)}"
        assert response.delta is self._delta

    def _show(self) -> str:
        return "; ".join(map(_show, self._said))


def _show(response: Response) -> str:
    said = (one.body.decode(errors="replace") for one in response.resources)
    removed = "".join(f" -{name}" for name in response.removed)
    return f"< {SHORT[response.type_url]} [{' '.join(said)}]{removed} nonce={response.nonce}"


def _changed(old: Snapshot, rest: str) -> Snapshot:
    by_type = dict(old.by_type)
    for part in _parts(rest):
        short, *specs = part.split()
        url = TYPES[short]
        put = [make(url, spec) for spec in specs if not spec.startswith("-")]
        gone = [spec[1:] for spec in specs if spec.startswith("-")]
        by_type[url] = by_type.get(url, ResourceSet()).replacing(put, gone)
    return Snapshot(by_type)


def _parts(rest: str) -> Iterator[str]:
    """Split at commas that are followed by a type, for references contain commas too."""
    yield from filter(None, (each.strip() for each in re.split(r",(?=\s*[A-Z]{3}\b)", rest)))
