"""The common state as documents: what is written can be read, and what cannot be read says why."""

from typing import Any

import orjson
import pytest
from builders import instance, key, verdict
from hypothesis import given
from hypothesis import strategies as st

from controlplane.model import (
    DeletePolicy,
    DeleteResource,
    HealthStatus,
    PutPolicy,
    PutResource,
    RawResource,
    Recorded,
    Release,
    ResourceKey,
    ServiceName,
    same_instance,
    target_of,
)
from controlplane.policy import ConsistentHash, Policy, Strategy
from controlplane.registry.documents import (
    Document,
    Kind,
    Unreadable,
    event_of,
    instance_body,
    parse_path,
    path_of,
    policy_document,
    read_instance,
    read_removal,
    removal_document,
    resource_document,
    verdict_document,
)

pytestmark = pytest.mark.unit

WEB = ServiceName("web")
A = key("web", "a")
SECRET = RawResource(
    type_url="type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
    name="edge/cert 1",
    body='{"name":"edge/cert 1"}',
    node_clusters=("edge",),
)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)


@given(st.sampled_from([Kind.RESOURCE, Kind.VERDICT, Kind.REMOVAL]), TEXT, TEXT)
def test_a_path_of_two_parts_gives_its_kind_and_name_back(kind: Kind, first: str, second: str) -> None:
    path = path_of(kind, first, second)
    assert path.count("/") == 2
    assert path.isascii()
    assert parse_path(path) == (kind, (first, second))


@given(st.sampled_from([Kind.POLICY, Kind.MEMBER, Kind.RELEASE]), TEXT)
def test_a_path_of_one_part_gives_its_kind_and_name_back(kind: Kind, name: str) -> None:
    assert parse_path(path_of(kind, name)) == (kind, (name,))


@pytest.mark.parametrize("name", [".", ".."])
def test_a_name_that_is_a_step_of_a_path_is_none_in_the_path(name: str) -> None:
    path = path_of(Kind.RESOURCE, name, name)
    assert not {".", ".."} & set(path.split("/"))
    assert parse_path(path) == (Kind.RESOURCE, (name, name))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        pytest.param("", "no kind of document is called ''", id="nothing"),
        pytest.param("surprises/web", "no kind of document is called 'surprises'", id="an unknown kind"),
        pytest.param(
            "policies", "a path of policies has 1 parts behind it, and this one 0", id="a kind without a name"
        ),
        pytest.param("policies/", "has 1 parts", id="an empty name"),
        pytest.param("policies/web/x", "and this one 2", id="a part too many"),
        pytest.param("verdicts/web", "a path of verdicts has 2 parts behind it, and this one 1", id="a part too few"),
        pytest.param("verdicts//a", "has 2 parts", id="an empty part"),
    ],
)
def test_a_path_that_no_document_can_have_is_refused(path: str, said: str) -> None:
    with pytest.raises(Unreadable, match=said):
        parse_path(path)


def read(document: Document) -> object:
    kind, name = parse_path(document.path)
    return event_of(kind, name, document.body, "etcd")


POLICY = Policy(
    strategy=Strategy.CONSISTENT_HASH,
    timeout=2.5,
    panic_threshold=0,
    consistent_hash=ConsistentHash(algorithm="maglev"),
)


def test_what_is_written_tells_what_was_meant() -> None:
    assert read(policy_document(WEB, POLICY)) == PutPolicy(service=WEB, policy=POLICY, registry="etcd")
    assert read(resource_document(SECRET)) == PutResource(resource=SECRET, registry="etcd")
    judged = instance("web", "a", health_check={"type": "http", "http_path": "/up"})
    sick = verdict(HealthStatus.TIMEOUT, since=12.5, score=40, reason="no answer in 2 s")
    assert read(verdict_document(sick, judged)) == Recorded(
        key=A, target=target_of(judged), verdict=sick, registry="etcd"
    )


def test_what_is_deleted_is_told_as_gone() -> None:
    assert event_of(Kind.POLICY, ("web",), None, "etcd") == DeletePolicy(service=WEB, registry="etcd")
    gone = DeleteResource(key=ResourceKey("t", "n"), registry="etcd")
    assert event_of(Kind.RESOURCE, ("t", "n"), None, "etcd") == gone
    forgotten = Recorded(key=A, target="", verdict=None, registry="etcd")
    assert event_of(Kind.VERDICT, ("web", "a"), None, "etcd") == forgotten


def test_a_release_is_told_when_it_appears_and_not_when_it_runs_out() -> None:
    for hold in ("web", "_everything", "web/a"):
        kind, name = parse_path(path_of(Kind.RELEASE, hold))
        assert event_of(kind, name, b"{}", "etcd") == Release(hold=hold, registry="etcd")
        assert event_of(kind, name, None, "etcd") is None


def test_members_and_removals_are_the_backends_own_business() -> None:
    removal = removal_document(A, 1_700_000_000.25)
    assert (removal.path, read_removal(removal.body)) == ("removals/web/a", 1_700_000_000.25)
    assert read(removal) is None
    assert event_of(Kind.MEMBER, ("me",), b"{}", "etcd") is None


INSTANCES: st.SearchStrategy[Any] = st.builds(
    instance,
    name=st.just("web"),
    id=st.from_regex(r"[A-Za-z0-9._:-]{1,20}", fullmatch=True),
    host=st.sampled_from(["10.0.0.1", "::1", "api.internal"]),
    port=st.integers(1, 65_535),
    weight=st.integers(1, 1_000),
    tags=st.lists(st.sampled_from(["v1", "api", "é"]), unique=True),
    metadata=st.dictionaries(
        st.sampled_from(["a", "b"]),
        st.one_of(
            st.booleans(),
            st.integers(-5, 5),
            st.floats(-5, 5),
            st.text(st.characters(categories=("L", "N")), max_size=9),
        ),
    ),
    ttl=st.one_of(st.none(), st.integers(1, 100)),
    draining=st.booleans(),
    health_check=st.sampled_from([None, {"type": "tcp", "interval": 2}]),
)


@given(INSTANCES)
def test_an_instance_that_is_written_can_be_read_and_is_the_same_to_envoy(written: Any) -> None:
    again = read_instance(instance_body(written), written.key)
    assert again == written
    assert same_instance(again, written)


def test_an_instance_can_be_put_with_the_backends_own_tools_in_few_words() -> None:
    """As `etcdctl put /services/web/a '{"host": …}'` does: name and id are the key's to say."""
    assert read_instance(b'{"host": "10.0.0.1", "port": 8080}', A) == instance("web", "a")


def test_what_the_rest_api_answers_can_be_stored_as_it_is() -> None:
    shown = {
        **orjson.loads(instance_body(instance("web", "a"))),
        "status": "healthy",
        "held": True,
        "registry": "etcd",
        "revision": "e.7",
    }
    assert read_instance(orjson.dumps(shown), A) == instance("web", "a")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param(b"{", "not JSON", id="no JSON"),
        pytest.param(b"\xff\xfe", "not JSON", id="no text"),
        pytest.param(b"[]", "must be a JSON object", id="a list"),
        pytest.param(b"{}", "host", id="no address"),
        pytest.param(b'{"host": "10.0.0.1", "port": 99999}', "port", id="no port"),
        pytest.param(b'{"host": "10.0.0.1", "port": 1, "wieght": 3}', "wieght", id="a field that there is not"),
        pytest.param(
            b'{"name": "db", "host": "10.0.0.1", "port": 1}',
            "says that it is db/a, and lies under web/a",
            id="another service's",
        ),
        pytest.param(b'{"id": "b", "host": "10.0.0.1", "port": 1}', "says that it is web/b", id="another instance's"),
    ],
)
def test_an_instance_that_cannot_be_read_says_why(body: bytes, said: str) -> None:
    with pytest.raises(Unreadable, match=said):
        read_instance(body, A)


@pytest.mark.parametrize(
    ("kind", "name", "body", "said"),
    [
        pytest.param(Kind.POLICY, ("web",), b'{"strategy": "fastest"}', "strategy", id="no such strategy"),
        pytest.param(Kind.POLICY, ("web",), b"null", "must be a JSON object", id="no policy at all"),
        pytest.param(Kind.VERDICT, ("web", "a"), b'{"target": "x"}', "verdict", id="a verdict without a verdict"),
        pytest.param(Kind.VERDICT, ("web", "a"), b"nonsense", "not JSON", id="no JSON"),
        pytest.param(
            Kind.RESOURCE,
            (SECRET.type_url, "other"),
            resource_document(SECRET).body,
            "says that it is Secret edge/cert 1, and lies under Secret other",
            id="a resource under another's name",
        ),
    ],
)
def test_a_document_that_cannot_be_read_says_why(kind: Kind, name: tuple[str, ...], body: bytes, said: str) -> None:
    with pytest.raises(Unreadable, match=said):
        event_of(kind, name, body, "etcd")


def test_a_private_key_that_cannot_be_read_is_not_shown() -> None:
    body = orjson.dumps({"type_url": "t", "name": 5, "body": "PRIVATE KEY"})
    with pytest.raises(Unreadable) as failure:
        event_of(Kind.RESOURCE, ("t", "n"), body, "etcd")
    assert "PRIVATE" not in str(failure.value)


def test_a_newer_version_may_say_more_of_a_verdict() -> None:
    document = verdict_document(verdict(), instance("web", "a"))
    newer = orjson.dumps({**orjson.loads(document.body), "by": "somebody"})
    assert event_of(document.kind, document.name, newer, "etcd") == event_of(
        document.kind, document.name, document.body, "etcd"
    )
