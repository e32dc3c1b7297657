"""Consul as the registry: instances in its catalog, the common state of several control planes in its keys."""

from controlplane.registry.consul.client import tls_context
from controlplane.registry.consul.registry import REGISTRY, ConsulRegistry
from controlplane.registry.consul.transport import ATTENTION

__all__ = ["ATTENTION", "REGISTRY", "ConsulRegistry", "tls_context"]
