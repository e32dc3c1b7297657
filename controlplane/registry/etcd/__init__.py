"""Instances and common state in etcd: `EtcdRegistry`.

    registry ── writes ──► client ──► etcd
    following ◄── listing, then one watch ──┘
        └─► feed (what it tells) ─► view (what is known), events

`keys` says where things lie, `operations` what transactions are made of, `housekeeping` what is due.
"""

from controlplane.registry.etcd.connection import Credentials
from controlplane.registry.etcd.registry import EtcdRegistry

__all__ = ["Credentials", "EtcdRegistry"]
