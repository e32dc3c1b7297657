"""Instances from Kubernetes, and the control planes' common state in its ConfigMaps and Leases.

Importing this brings the official client, some 70 MB: only where REGISTRY_TYPE names `kubernetes`.
"""

from controlplane.registry.kubernetes.registry import KubernetesRegistry

__all__ = ["KubernetesRegistry"]
