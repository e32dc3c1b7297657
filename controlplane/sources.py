"""The registries that the settings name, made and opened; each one's code is imported only where it is used."""

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, assert_never

from pydantic import SecretStr

from controlplane.registry import Attention, Registry, RegistryError, Sharing, WritableRegistry
from controlplane.registry.journal import Journal, JournalError
from controlplane.registry.memory import MemoryRegistry
from controlplane.settings import Settings

if TYPE_CHECKING:
    from controlplane.registry.consul import ConsulRegistry
    from controlplane.registry.etcd import EtcdRegistry
    from controlplane.registry.kubernetes import KubernetesRegistry

EMBEDDED = "memory"

MEMBER_TTL_S = 10.0
"""How long a control plane may be silent before others take over what it checks; less where checks are closer."""

SHORTEST_MEMBER_TTL_S = 2.0


class SourceError(Exception):
    """Report why a registry cannot be opened, and what would help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Hold the registries in the order of REGISTRY_TYPE.

    `store` takes the writes, and keeps what control planes share: policies, raw resources, verdicts, members. It is
    the first that takes registrations, else the first. `journal` is that of the embedded one, where it has one.
    """

    registries: tuple[Registry, ...]
    store: WritableRegistry
    journal: Journal | None

    @property
    def shared(self) -> bool:
        """Tell whether other control planes may be at work on the store."""
        return self.store.name != EMBEDDED


async def open_sources(settings: Settings, member: str, stack: AsyncExitStack) -> Sources:
    """Make every registry that REGISTRY_TYPE names; `stack` closes them. Raises SourceError.

    Only what needs no network is waited for: a registry that is down is no reason not to start (law 1).
    """
    names = settings.registry_type
    store = next((name for name in names if name != "kubernetes"), names[0])
    ttl_s = max(SHORTEST_MEMBER_TTL_S, min(MEMBER_TTL_S, settings.health_check_interval))
    opened: list[WritableRegistry] = []
    journal: Journal | None = None
    for name in names:
        sharing = Sharing(member=member, ttl_s=ttl_s) if name == store else None
        try:
            match name:
                case "memory":
                    journal = await _journal(settings, stack)
                    opened.append(MemoryRegistry(journal=journal))
                case "etcd":
                    opened.append(await stack.enter_async_context(_etcd(settings, sharing)))
                case "consul":
                    opened.append(await stack.enter_async_context(_consul(settings, sharing)))
                case "kubernetes":
                    opened.append(await stack.enter_async_context(_kubernetes(settings, sharing)))
                case _:
                    assert_never(name)
        except (RegistryError, OSError, ValueError) as error:
            raise SourceError(f"REGISTRY_TYPE={name}: {error}") from error
    return Sources(registries=tuple(opened), store=opened[names.index(store)], journal=journal)


def _etcd(settings: Settings, sharing: Sharing | None) -> "EtcdRegistry":
    from controlplane.registry.etcd import Credentials, EtcdRegistry  # noqa: PLC0415

    return EtcdRegistry(
        endpoints=settings.etcd_endpoints,
        prefix=settings.etcd_prefix,
        credentials=Credentials(
            username=settings.etcd_username,
            password=_revealed(settings.etcd_password),
            ca_file=settings.etcd_ca_file,
            cert_file=settings.etcd_cert_file,
            key_file=settings.etcd_key_file,
        ),
        sharing=sharing,
        attention=Attention.within(settings.cache_ttl),
        random=Random(),  # noqa: S311 - jitter
    )


def _consul(settings: Settings, sharing: Sharing | None) -> "ConsulRegistry":
    from controlplane.registry.consul import ATTENTION, ConsulRegistry, tls_context  # noqa: PLC0415

    files = (settings.consul_ca_file, settings.consul_cert_file, settings.consul_key_file)
    return ConsulRegistry(
        host=settings.consul_host,
        port=settings.consul_port,
        scheme=settings.consul_scheme,
        token=_revealed(settings.consul_token),
        datacenter=settings.consul_datacenter,
        context=tls_context(*(None if file is None else str(file) for file in files))
        if settings.consul_scheme == "https"
        else None,
        sharing=sharing,
        attention=Attention.within(settings.cache_ttl, at_most=ATTENTION),
        clock=time.monotonic,
        wall_clock=time.time,
        random=Random(),  # noqa: S311 - jitter
    )


def _kubernetes(settings: Settings, sharing: Sharing | None) -> "KubernetesRegistry":
    from controlplane.registry.kubernetes import KubernetesRegistry  # noqa: PLC0415 - brings 70 MB

    return KubernetesRegistry(
        kubeconfig=settings.kubeconfig,
        namespaces=settings.kubernetes_namespaces,
        label_selector=settings.kubernetes_label_selector,
        namespace=settings.pod_namespace,
        sharing=sharing,
        attention=Attention.within(settings.cache_ttl),
        clock=time.monotonic,
        wall_clock=time.time,
        random=Random(),  # noqa: S311 - jitter
        environ=os.environ,
    )


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


async def _journal(settings: Settings, stack: AsyncExitStack) -> Journal | None:
    if settings.data_dir is None:
        return None
    try:
        opened = await asyncio.to_thread(Journal.open, settings.data_dir)
    except JournalError as error:
        raise SourceError(str(error)) from error
    return await stack.enter_async_context(opened)


def required(settings: Settings) -> Sequence[str]:
    """Return the registries that must have spoken before anything is published (law 2)."""
    return [name for name in settings.registry_type if name not in settings.registry_optional]
