"""The registry of Kubernetes: instances from Services and EndpointSlices, common state in ConfigMaps and Leases.

`run` is a row of sessions. In one, every collection is listed, what differs is told, then changes are told as the
watches bring them. A session ends when the API cannot be heard (`Lost`) or has forgotten the past (410, no `Lost`);
the next lists again. Registrations are Kubernetes' own: here they are only read.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import NoReturn, Self

import orjson

from controlplane.model import (
    Instance,
    InstanceKey,
    Lost,
    RawResource,
    RegistryEvent,
    ResourceKey,
    ServiceName,
    Synced,
    Verdict,
    same_target,
)
from controlplane.policy import Policy
from controlplane.registry import Attention, Emit, ReadOnly, RegistryError, RegistryUnavailable, Sharing
from controlplane.registry.backoff import Backoff
from controlplane.registry.documents import (
    Document,
    Kind,
    path_of,
    policy_document,
    resource_document,
    verdict_document,
)
from controlplane.registry.kubernetes.access import SERVICE_ACCOUNT, Access, AccessError
from controlplane.registry.kubernetes.api import Api, ApiFailure, Collection, Gone, Refused
from controlplane.registry.kubernetes.commons import MANAGED_BY, OURS, Commons
from controlplane.registry.kubernetes.documents import Documents
from controlplane.registry.kubernetes.index import Index, Policies
from controlplane.registry.kubernetes.membership import Membership
from controlplane.registry.kubernetes.remarks import Remarks
from controlplane.registry.kubernetes.verdicts import VerdictShards
from controlplane.registry.kubernetes.watching import Follower, follow

REGISTRY = "kubernetes"

STEADY_S = 10.0
"""How long a session must have been in sync for the next to be tried without back-off."""

SWEEP_EVERY_S = 60.0
"""How often releases are looked through; what one look has seen, the next deletes."""

CLOSING_S = 2.0
"""How long a clean stop may take to say good-bye."""

_SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 - the name of a type

_SLICE = 200
"""How many events go out before others get a turn of the event loop."""


class KubernetesRegistry:
    """Read instances from Kubernetes, and keep the control planes' common state there. Implements WritableRegistry.

    `kubeconfig` is as KUBECONFIG is; without, it is the pod's service account, or `~/.kube/config`. `namespaces`
    (empty: all) and `label_selector` say which Services count. `namespace` is our own, where the common state lies
    and whose services go by their short names; None: the pod's, or the kubeconfig's context's. `clock` is monotonic,
    `wall_clock` since the epoch, both in seconds.

    Raises RegistryError where `namespace` is None and cannot be found out.
    """

    name = REGISTRY

    def __init__(
        self,
        *,
        kubeconfig: str | None,
        namespaces: tuple[str, ...] = (),
        label_selector: str = "",
        namespace: str | None = None,
        sharing: Sharing | None,
        attention: Attention | None = None,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        random: Random,
        environ: Mapping[str, str],
        service_account: Path = SERVICE_ACCOUNT,
    ) -> None:
        access = Access(kubeconfig=kubeconfig, environ=environ, service_account=service_account)
        try:
            own = namespace or access.namespace()
        except AccessError as error:
            raise RegistryError(f"{error}; set KUBECONFIG, or run in a pod with a service account") from None
        self._attention = attention or Attention()
        self._clock = clock
        self._wall_clock = wall_clock
        self._backoff = Backoff(random)
        self._api = Api(access, random)
        self._remarks = Remarks()
        self._policies = Policies(REGISTRY)
        self._index = Index(
            registry=REGISTRY, own_namespace=own, policies=self._policies, remarks=self._remarks, now=wall_clock
        )
        ours = f"{MANAGED_BY}={OURS}"
        self._maps = Collection(group="v1", plural="configmaps", namespace=own, selector=ours)
        self._commons = Commons(registry=REGISTRY, policies=self._policies, remarks=self._remarks)
        self._written = Documents(self._api, self._maps, self._commons)
        self._verdicts = VerdictShards(self._api, self._maps, self._commons, self._remarks)
        self._followers = _sources(self._index, namespaces, label_selector)
        self._membership: Membership | None = None
        if sharing is not None:
            leases = Collection(group="coordination.k8s.io/v1", plural="leases", namespace=own, selector=ours)
            self._membership = Membership(
                api=self._api,
                leases=leases,
                sharing=sharing,
                registry=REGISTRY,
                clock=clock,
                wall_clock=wall_clock,
            )
            self._followers += [
                Follower(what=self._maps, list=self._commons.list, changed=self._commons.changed),
                Follower(what=leases, list=self._membership.list, changed=self._membership.changed),
            ]
        self._running = False
        self._lost = False
        self._synced_at: float | None = None
        self._heard_at = clock()
        self._wake = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Withdraw from the members, write the verdicts that wait, close the connections; within seconds.

        Where the API cannot be heard the others notice when our Lease is not renewed, and check again themselves.
        """
        try:
            with suppress(ApiFailure, TimeoutError):
                async with asyncio.timeout(CLOSING_S):
                    if self._membership is not None:
                        await self._membership.withdraw()
                    if self._synced_at is not None:
                        await self._verdicts.flush()
        finally:
            await self._api.renew()

    @property
    def remarks(self) -> Mapping[str, str]:
        """Return what the cluster holds and cannot be used; see Registry."""
        return MappingProxyType(self._remarks.said)

    def age_s(self) -> float:
        """Return the seconds since the last sign of life; see Registry. Before the first listing, since the start."""
        return self._clock() - self._heard_at

    async def run(self, emit: Emit) -> None:
        """Emit what is there, then every change; see Registry."""
        if self._running:
            raise RuntimeError("the registry runs already")
        self._running = True
        while True:
            reason = await self._session(emit)
            steady = self._synced_at is not None and self._clock() - self._synced_at > STEADY_S
            self._synced_at = None
            if steady:
                self._backoff.reset()
            if reason is not None and not self._lost:
                self._lost = True
                emit(Lost(registry=self.name, reason=reason))
            await self._api.renew()
            await asyncio.sleep(self._backoff.next_s())

    async def _session(self, emit: Emit) -> str | None:
        """List, tell, follow; return why the API cannot be heard any more, None where it must be listed again."""
        missing = set(map(id, self._followers))
        complete = asyncio.Event()

        def listed(follower: Follower) -> None:
            missing.discard(id(follower))
            self._heard()
            if not missing:
                complete.set()

        reason: str | None = None
        try:
            if self._membership is not None:
                await self._membership.renew()  # before the listing, so that it holds us as well
            async with asyncio.TaskGroup() as tasks:
                for follower in self._followers:
                    tasks.create_task(follow(follower, self._api, self._remarks, listed, self._heard))
                tasks.create_task(self._probe())
                tasks.create_task(self._tell(complete, emit))
                if self._membership is not None:
                    tasks.create_task(self._membership.keep())
                    tasks.create_task(self._count_out(self._membership))
                    tasks.create_task(self._verdicts.run())
                    tasks.create_task(self._sweep())
        except* Gone:
            pass
        except* ApiFailure as group:
            reason = str(_first(group))
        return reason

    def _heard(self) -> None:
        if self._synced_at is not None:
            self._heard_at = self._clock()
        self._wake.set()

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(self._attention.probe_s)
            await self._api.probe(self._attention.patience_s)
            if self._synced_at is not None:
                self._heard_at = self._clock()

    async def _tell(self, complete: asyncio.Event, emit: Emit) -> None:
        await complete.wait()
        members = self._membership.events if self._membership is not None else tuple
        await self._emit(chain(self._commons.events(), self._index.everything(), members()), emit)
        emit(Synced(registry=self.name))
        self._lost = False
        self._synced_at = self._heard_at = self._clock()
        while True:
            self._wake.clear()
            await self._emit(chain(self._commons.events(), self._index.changes(), members()), emit)
            await self._wake.wait()

    async def _emit(self, events: Iterable[RegistryEvent], emit: Emit) -> None:
        for count, event in enumerate(events, start=1):
            emit(event)
            if count % _SLICE == 0:
                await asyncio.sleep(0)

    async def _count_out(self, membership: Membership) -> None:
        while True:
            await asyncio.sleep(membership.next_end_s())
            self._wake.set()

    async def _sweep(self) -> None:
        """Delete releases that everybody has heard."""
        seen: set[tuple[str, str]] = set()
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            there = self._commons.releases()
            for name, _ in there & seen:
                await self._api.delete(self._maps, name)
            seen = there

    async def put(self, instance: Instance, *, expected: Instance | None = None) -> bool:
        """Refuse: see `_owned`."""
        self._owned(instance.key)

    async def delete(self, key: InstanceKey) -> bool:
        """Refuse: see `_owned`."""
        self._owned(key)

    async def drain(self, key: InstanceKey, delay_s: float) -> None:
        """Refuse: see `_owned`."""
        self._owned(key)

    async def heartbeat(self, key: InstanceKey) -> float | None:
        """Refuse: see `_owned`."""
        self._owned(key)

    async def record(self, key: InstanceKey, verdict: Verdict, of: Instance) -> None:
        """Keep a verdict; it is written within a second. See WritableRegistry."""
        self._must_share()
        if self._synced_at is None:
            raise RegistryUnavailable("the Kubernetes API cannot be heard; the verdict was not kept")
        known = self._index.delivered.get(key)
        if known is None or same_target(known, of):
            document = verdict_document(verdict, of)
            self._verdicts.set(document.path, document.body)

    async def forget(self, key: InstanceKey) -> None:
        """Drop a verdict, within a second; see WritableRegistry."""
        self._must_share()
        if self._synced_at is None:
            raise RegistryUnavailable("the Kubernetes API cannot be heard; the verdict was not dropped")
        self._verdicts.set(path_of(Kind.VERDICT, key.service, key.id), None)

    async def release(self, hold: str) -> None:
        """Tell every control plane; see WritableRegistry."""
        body = orjson.dumps({"at": self._wall_clock()})
        await self._documents().store(Document(kind=Kind.RELEASE, name=(hold,), body=body))

    async def put_policy(self, service: ServiceName, policy: Policy) -> bool:
        """Store a service's policy; it goes before an annotation's. See WritableRegistry."""
        return await self._documents().store(policy_document(service, policy))

    async def delete_policy(self, service: ServiceName) -> bool:
        """Remove a service's stored policy; see WritableRegistry."""
        return await self._documents().remove(path_of(Kind.POLICY, service))

    async def put_resource(self, resource: RawResource) -> bool:
        """Store a raw resource; see WritableRegistry. Raises ReadOnly for secrets."""
        if resource.type_url == _SECRET:
            raise ReadOnly(
                f"secret {resource.name!r} is not stored: raw resources lie in ConfigMaps here, which are no place for "
                "keys; mount it into Envoy as a Kubernetes Secret, or keep it in another registry (REGISTRY_TYPE)"
            )
        return await self._documents().store(resource_document(resource))

    async def delete_resource(self, key: ResourceKey) -> bool:
        """Remove a raw resource; see WritableRegistry."""
        return await self._documents().remove(path_of(Kind.RESOURCE, key.type_url, key.name))

    def _owned(self, key: InstanceKey) -> NoReturn:
        raise ReadOnly(
            f"Kubernetes owns the instances of {key.service!r}: scale or label its Deployment instead; "
            "set REGISTRY_TYPE=kubernetes,etcd (or another) to register others"
        )

    def _documents(self) -> Documents:
        self._must_share()
        return self._written

    def _must_share(self) -> None:
        if self._membership is None:
            raise ReadOnly(
                "this registry gives instances only; policies, resources and verdicts go to another in REGISTRY_TYPE"
            )


def _sources(index: Index, namespaces: tuple[str, ...], label_selector: str) -> list[Follower]:
    """Say what is followed for instances; the selector is for Services: slices belong to one by its name."""
    followers = [
        Follower(
            what=Collection(group="v1", plural="nodes", bare=True),
            list=index.list_nodes,
            changed=index.node,
            optional=True,
        )
    ]
    for namespace in namespaces or ("",):
        followers += [
            Follower(
                what=Collection(group="v1", plural="services", namespace=namespace, selector=label_selector),
                list=lambda things, namespace=namespace: index.list_services(namespace, things),  # type: ignore[misc]
                changed=index.service,
            ),
            Follower(
                what=Collection(group="discovery.k8s.io/v1", plural="endpointslices", namespace=namespace),
                list=lambda things, namespace=namespace: index.list_slices(namespace, things),  # type: ignore[misc]
                changed=index.endpoint_slice,
            ),
        ]
    return followers


def _first(failures: BaseExceptionGroup[ApiFailure]) -> BaseException:
    """Return the failure that came first; where a refusal is among them, it says most."""
    flat = [_first(each) if isinstance(each, BaseExceptionGroup) else each for each in failures.exceptions]
    return next((each for each in flat if isinstance(each, Refused)), flat[0])
