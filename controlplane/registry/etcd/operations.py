"""What a transaction of etcd is made of, by name. Pure."""

from aetcd import rpc

from controlplane.model import InstanceKey
from controlplane.registry.documents import Kind
from controlplane.registry.etcd.keys import DELETED, Keys


def unchanged(key: bytes, revision: int) -> rpc.Compare:
    """Demand that a key has not been written since `revision`; 0: that it does not exist."""
    return rpc.Compare(result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, key=key, mod_revision=revision)


def exists(key: bytes) -> rpc.Compare:
    """Demand that a key exists."""
    return rpc.Compare(result=rpc.Compare.GREATER, target=rpc.Compare.VERSION, key=key, version=0)


def holds(key: bytes, value: bytes) -> rpc.Compare:
    """Demand that a key has this value."""
    return rpc.Compare(result=rpc.Compare.EQUAL, target=rpc.Compare.VALUE, key=key, value=value)


def put(key: bytes, value: bytes, lease: int = 0) -> rpc.RequestOp:
    """Write a key, under a lease or (0) none."""
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=lease))


def rewrite(key: bytes, value: bytes) -> rpc.RequestOp:
    """Write a key that exists, under the lease that it has."""
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, ignore_lease=True))


def lay_under(key: bytes, lease: int) -> rpc.RequestOp:
    """Change the lease of a key that exists, and nothing else."""
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, lease=lease, ignore_value=True))


def delete(key: bytes) -> rpc.RequestOp:
    """Delete a key, if it exists."""
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))


def get(key: bytes) -> rpc.RequestOp:
    """Read a key."""
    return rpc.RequestOp(request_range=rpc.RangeRequest(key=key))


def deregister(keys: Keys, key: InstanceKey) -> list[rpc.RequestOp]:
    """Delete an instance and what belongs to it, with the sign that this is meant."""
    return [
        delete(keys.instance(key)),
        delete(keys.document(Kind.VERDICT, key.service, key.id)),
        delete(keys.document(Kind.REMOVAL, key.service, key.id)),
        put(keys.at(DELETED), str(key).encode()),
    ]
