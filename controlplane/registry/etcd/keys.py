"""Which keys of etcd say what. Pure.

Instances lie under the prefix that people know, everything else beside it, so that
`etcdctl get --prefix /services/` shows instances and nothing else. Both lie in one range of keys, so one watch
delivers both, in the order in which they happened.
"""

from dataclasses import dataclass

from controlplane.model import InstanceId, InstanceKey, ServiceName
from controlplane.registry.documents import Kind, Unreadable, path_of

DELETED = "deleted"
"""The path of the sign that a request deleted an instance: it is overwritten in the transaction that deletes."""

IDENTITY = "identity"
"""The path of what tells this store from another one at the same address, such as the same one emptied."""

RESUMED = "resumed"
"""The path of the mark behind which a watch that goes on has heard everything."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Spell and read keys. `prefix` is ETCD_PREFIX: it ends with a slash, and one that it lacks is added."""

    prefix: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", self.prefix.rstrip("/") + "/")

    @property
    def state(self) -> str:
        """Return the prefix of all that is not an instance."""
        return self.prefix[:-1] + ".state/"

    def span(self, *, shared: bool) -> tuple[bytes, bytes]:
        """Return the first key that is ours and the first behind: of instances, or (`shared`) of everything.

        "." sorts before "/", so the state lies before the instances. What others keep between the two is left out by
        `path` and `place`.
        """
        end = self.prefix[:-1].encode() + bytes([ord("/") + 1])
        return (self.state if shared else self.prefix).encode(), end

    def instance(self, key: InstanceKey) -> bytes:
        """Return where an instance lies."""
        return f"{self.prefix}{key.service}/{key.id}".encode()

    def document(self, kind: Kind, *name: str) -> bytes:
        """Return where a document lies."""
        return (self.state + path_of(kind, *name)).encode()

    def at(self, path: str) -> bytes:
        """Return where something else of the state lies."""
        return (self.state + path).encode()

    def path(self, key: bytes) -> str | None:
        """Return the path of a key of the state, None for any other."""
        return _behind(self.state, key)

    def place(self, key: bytes) -> str | None:
        """Return what stands behind the prefix of instances, None for a key that is elsewhere."""
        return _behind(self.prefix, key)


def instance_key(place: str) -> InstanceKey:
    """Read `<service>/<instance id>`. Whether both are good names is seen when the instance is read.

    Raises Unreadable.
    """
    service, _, instance_id = place.partition("/")
    if not service or not instance_id or "/" in instance_id:
        raise Unreadable("a key must be <service>/<instance id> behind the prefix")
    return InstanceKey(ServiceName(service), InstanceId(instance_id))


def _behind(prefix: str, key: bytes) -> str | None:
    start = prefix.encode()
    return key[len(start) :].decode(errors="backslashreplace") if key.startswith(start) else None
