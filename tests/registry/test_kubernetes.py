"""The registry of Kubernetes against a real API server: what the contract suite cannot ask of every registry."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from builders import instance, verdict
from harness import eventually
from registry.cluster import Cluster, a_service, a_slice, an_endpoint
from registry.harness import PATIENCE_S, Told
from servers.kubernetes import NOBODY, WATCHER, KubernetesServer
from servers.process import ServerFailed

from controlplane.model import (
    DeleteInstance,
    HealthStatus,
    InstanceId,
    InstanceKey,
    Lost,
    Missing,
    PutInstance,
    PutPolicy,
    RawResource,
    Release,
    ServiceName,
    Synced,
)
from controlplane.policy import Policy
from controlplane.registry import ReadOnly, RegistryError, RegistryUnavailable
from controlplane.registry.kubernetes import KubernetesRegistry
from controlplane.registry.kubernetes.access import Access, AccessError
from controlplane.registry.kubernetes.api import Api, Collection, Listing

pytestmark = pytest.mark.k8s

WEB = ServiceName("web")
RBAC = Path(__file__).parents[2] / "k8s" / "rbac.yaml"


@pytest.fixture
def cluster(shared_kubernetes: KubernetesServer, kubernetes_namespace: str) -> Cluster:
    return Cluster(server=shared_kubernetes, namespace=kubernetes_namespace)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mortal(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KubernetesServer]:
    """Run an API server that tests may kill, pause and wipe."""
    async with KubernetesServer(tmp_path_factory.mktemp("mortal")) as server:
        yield server


@pytest.fixture
async def exposed(mortal: KubernetesServer) -> AsyncIterator[Cluster]:
    """Give a test a namespace on that server, with two instances of `web` in two slices."""
    name = f"exposed-{time.monotonic_ns()}"
    await mortal.add_namespace(name)
    cluster = Cluster(server=mortal, namespace=name)
    await cluster.put(a_service("web"))
    for pod, address in (("web-a", "10.0.0.1"), ("web-b", "10.0.0.2")):
        await cluster.put(a_slice("web", an_endpoint(address, pod), name=pod))
    yield cluster
    await mortal.empty(name)


@asynccontextmanager
async def listening(registry: KubernetesRegistry) -> AsyncIterator[Told]:
    """Open and run a registry; its listing has not been read."""
    async with registry:
        told = Told(registry)
        task = asyncio.create_task(registry.run(told.emit))
        try:
            yield told
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled(), "run ends by cancellation only"


@asynccontextmanager
async def following(registry: KubernetesRegistry) -> AsyncIterator[Told]:
    """Open and run a registry, past its listing."""
    async with listening(registry) as told:
        await told.listing()
        yield told


def key(pod: str) -> InstanceKey:
    return InstanceKey(WEB, InstanceId(pod))


class TestOutages:
    async def test_a_server_that_is_killed_is_lost_once_and_found_again_with_nothing_to_tell(
        self, exposed: Cluster
    ) -> None:
        async with following(exposed.registry()) as told:
            await exposed.server.kill()
            lost = await told.next()
            assert isinstance(lost, Lost)
            with pytest.raises(RegistryUnavailable, match="nothing was stored"):
                await told.registry.put_policy(WEB, Policy())
            await exposed.server.start()
            assert await told.next() == Synced(registry="kubernetes")
            await told.silence()

    async def test_what_is_missing_after_it_came_back_is_doubted_all_at_once(self, exposed: Cluster) -> None:
        async with following(exposed.registry()) as told:
            await exposed.server.kill()
            await exposed.server.store.etcdctl(
                "del", "--prefix", f"/registry/discovery.k8s.io/endpointslices/{exposed.namespace}/"
            )
            await exposed.server.start()
            assert isinstance(await told.next(), Lost)
            assert await told.next() == Missing(
                keys=(key("web-a"), key("web-b")), registry="kubernetes", reason="missing after a reconnect"
            )
            assert await told.next() == Synced(registry="kubernetes")

    async def test_a_server_that_hangs_is_lost_within_ten_seconds_and_refuses_writes_within_five(
        self, exposed: Cluster
    ) -> None:
        async with following(exposed.registry()) as told:
            exposed.server.pause()
            try:
                began = time.monotonic()
                with pytest.raises(RegistryUnavailable):
                    await told.registry.put_policy(WEB, Policy())
                refused_after = time.monotonic() - began
                assert isinstance(await told.next(), Lost)
                lost_after = time.monotonic() - began
            finally:
                exposed.server.resume()
            assert refused_after < 5
            assert lost_after < 10
            assert await told.next() == Synced(registry="kubernetes")
            await exposed.put(a_slice("web", an_endpoint("10.0.0.3", "web-c"), name="web-c"))
            event = await told.next()
            assert isinstance(event, PutInstance)
            assert event.instance.id == "web-c"

    async def test_a_clean_stop_does_not_wait_for_a_server_that_hangs(self, exposed: Cluster) -> None:
        async with following(exposed.registry()) as told:
            exposed.server.pause()
            began = time.monotonic()
        try:
            assert time.monotonic() - began < 4
            assert told.members == {"one"}
        finally:
            exposed.server.resume()

    async def test_a_version_that_is_too_old_is_listed_anew_without_a_loss(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server itself says 410: the listing is made to look as old as can be."""
        await cluster.put(a_service("web"))
        await cluster.put(a_slice("web", an_endpoint("10.0.0.1", "web-a"), name="web-a"))
        await cluster.put(a_slice("web", an_endpoint("10.0.0.2", "web-b"), name="web-b"))
        listing_of, listed = Api.list, 0

        async def once_too_old(api: Api, what: Collection) -> Listing:
            nonlocal listed
            listing = await listing_of(api, what)
            if what.plural != "endpointslices":
                return listing
            listed += 1
            if listed > 1:
                return listing
            await cluster.delete("EndpointSlice", "web-b")
            return Listing(items=listing.items, version="1")

        monkeypatch.setattr(Api, "list", once_too_old)
        async with following(cluster.registry()) as told:
            assert await told.next() == Missing(
                keys=(key("web-b"),), registry="kubernetes", reason="missing after a reconnect"
            )
            assert await told.next() == Synced(registry="kubernetes")
            await told.silence()

    async def test_a_watch_that_is_over_is_resumed_without_a_word(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("controlplane.registry.kubernetes.api.WATCH_S", 2.0)
        watches, third = 0, asyncio.Event()
        watch_of = Api.watch

        def counted(api: Api, what: Collection, version: str) -> Any:
            nonlocal watches
            watches += what.plural == "endpointslices"
            if watches == 3:
                third.set()
            return watch_of(api, what, version)

        monkeypatch.setattr(Api, "watch", counted)
        await cluster.put(a_service("web"))
        async with following(cluster.registry()) as told:
            await asyncio.wait_for(third.wait(), PATIENCE_S)
            await cluster.put(a_slice("web", an_endpoint("10.0.0.1", "web-a")))
            event = await told.next()
            assert isinstance(event, PutInstance)
            await cluster.delete("EndpointSlice", "web-1")
            assert await told.next() == DeleteInstance(key=key("web-a"), registry="kubernetes")


class TestRights:
    def test_a_kubeconfig_that_is_not_there_is_said_to_be_missing(self, tmp_path: Path) -> None:
        access = Access(kubeconfig=str(tmp_path / "config"), environ={})
        with pytest.raises(AccessError, match="config: there is no such file"):
            access.namespace()

    async def test_wrong_credentials_are_said_once_and_good_ones_are_taken_up(self, cluster: Cluster) -> None:
        kubeconfig = cluster.server.kubeconfig(namespace=cluster.namespace, token="wrong")
        async with listening(cluster.registry(kubeconfig=kubeconfig)) as told:
            lost = await told.next()
            assert isinstance(lost, Lost)
            assert "401" in lost.reason
            assert "KUBECONFIG" in lost.reason
            assert "wrong" not in lost.reason
            cluster.server.kubeconfig(namespace=cluster.namespace)
            assert await told.next() == Synced(registry="kubernetes")

    async def test_a_token_that_runs_out_is_read_again_without_a_loss(self, cluster: Cluster) -> None:
        """As a kubeconfig's plugin renews it: the token is bound to a Secret, and ends with it."""
        server, namespace = cluster.server, cluster.namespace
        await server.allow(
            f"system:serviceaccount:{namespace}:reader",
            {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
        )
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        await server.request("POST", accounts, {"metadata": {"name": "reader"}})
        secrets = f"/api/v1/namespaces/{namespace}/secrets"
        secret = await server.request("POST", secrets, {"metadata": {"name": "life"}})
        bound = {"kind": "Secret", "apiVersion": "v1", "name": "life", "uid": secret["metadata"]["uid"]}
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"boundObjectRef": bound}}
        token = (await server.request("POST", f"{accounts}/reader/token", asked))["status"]["token"]

        async with following(cluster.registry(token=token)) as told:
            await server.request("DELETE", f"{secrets}/life")
            cluster.server.kubeconfig(namespace=namespace)

            async def refused() -> bool:
                try:
                    await server.request("GET", "/readyz", user=token)
                except ServerFailed as error:
                    return " 401 " in str(error)
                return False

            await eventually(refused, "the server does not take the old token any more")
            await told.silence()

    async def test_a_missing_right_is_named_with_verb_resource_and_namespace(self, cluster: Cluster) -> None:
        async with listening(cluster.registry(None, user=NOBODY)) as told:
            lost = await told.next()
        assert isinstance(lost, Lost)
        assert "may not list " in lost.reason
        assert f"in namespace {cluster.namespace}" in lost.reason
        assert "403" in lost.reason
        assert "k8s/rbac.yaml" in lost.reason

    async def test_who_shares_needs_to_write_in_its_own_namespace(self, cluster: Cluster) -> None:
        async with listening(cluster.registry(user=WATCHER)) as told:
            lost = await told.next()
        assert isinstance(lost, Lost)
        assert f"may not create leases in namespace {cluster.namespace}" in lost.reason

    async def test_without_a_right_on_nodes_it_goes_on_with_a_remark(self, cluster: Cluster) -> None:
        read = ("get", "list", "watch")
        await cluster.server.allow(
            NOBODY,
            {"apiGroups": [""], "resources": ["services"], "verbs": read},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read},
            namespace=cluster.namespace,
        )
        registry = cluster.registry(None, user=NOBODY)
        async with listening(registry) as told:
            assert await told.listing() == []
            assert "may not list nodes" in registry.remarks["right to nodes"]

    async def test_who_shares_nothing_takes_no_writes_and_says_where_to_make_them(self, cluster: Cluster) -> None:
        async with following(cluster.registry(None, user=WATCHER)) as told:
            for write in (
                told.registry.put_policy(WEB, Policy()),
                told.registry.delete_policy(WEB),
                told.registry.release("hold"),
                told.registry.record(key("a"), verdict(HealthStatus.HEALTHY), instance("web", "a")),
            ):
                with pytest.raises(ReadOnly, match="REGISTRY_TYPE"):
                    await write

    async def test_the_rules_that_we_ship_suffice_from_inside_a_cluster(self, cluster: Cluster, tmp_path: Path) -> None:
        """A pod's files, the real server, and the ServiceAccount of k8s/rbac.yaml with a token of its own."""
        server, home = cluster.server, "service-discovery"
        await apply(server, RBAC)
        account = f"/api/v1/namespaces/{home}/serviceaccounts/{home}/token"
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        token = (await server.request("POST", account, asked))["status"]["token"]
        (tmp_path / "token").write_text(token)
        (tmp_path / "namespace").write_text(home)
        (tmp_path / "ca.crt").write_bytes(server.authority.file.read_bytes())
        await cluster.put(a_service("web"))
        registry = cluster.registry(
            kubeconfig="",
            environ={"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.port)},
            service_account=tmp_path,
            namespaces=(),
        )
        away = ServiceName(f"web.{cluster.namespace}")
        judged = instance(away, "web-a", host="10.0.0.1")

        async with following(registry) as told:
            await cluster.put(a_slice("web", an_endpoint("10.0.0.1", "web-a")))
            event = await told.next()
            assert isinstance(event, PutInstance)
            assert event.instance.name == away
            assert await registry.put_policy(away, Policy(timeout=2.0))
            assert await told.next() == PutPolicy(service=away, policy=Policy(timeout=2.0), registry="kubernetes")
            assert await registry.delete_policy(away)
            await registry.record(judged.key, verdict(HealthStatus.HEALTHY), judged)
            await told.until(lambda: told.verdict_of(judged) is not None)
            assert registry.remarks == {}
        for forbidden in ("/api/v1/secrets", "/api/v1/pods", "/api/v1/configmaps"):
            with pytest.raises(ServerFailed, match="403"):
                await server.request("GET", forbidden, user=token)

    async def test_a_kubeconfig_that_says_nothing_stops_the_start_and_shows_no_secret(
        self, cluster: Cluster, tmp_path: Path
    ) -> None:
        broken = tmp_path / "kubeconfig"
        broken.write_text("users:\n- {token: s3cret\n- [}")
        with pytest.raises(RegistryError, match="not YAML in line 3") as error:
            cluster.registry(kubeconfig=broken)
        assert "s3cret" not in str(error.value)


class TestCommonState:
    async def test_members_see_each_other_and_a_clean_stop_at_once(self, cluster: Cluster) -> None:
        async with following(cluster.registry("one", ttl_s=600)) as one:
            assert one.members == {"one"}
            async with following(cluster.registry("two", ttl_s=600)) as two:
                assert two.members == {"one", "two"}
                await one.until(lambda: one.members == {"one", "two"})
                assert sorted(await cluster.leases()) == ["one", "two"]
            await one.until(lambda: one.members == {"one"})
        assert await cluster.leases() == []

    async def test_a_member_that_is_silent_is_counted_out_by_our_own_clock_and_swept_later(
        self, cluster: Cluster
    ) -> None:
        lease = {
            "metadata": {
                "name": "somebody",
                "labels": {"app.kubernetes.io/managed-by": "service-discovery", "service-discovery/kind": "members"},
            },
            "spec": {"holderIdentity": "dead", "leaseDurationSeconds": 1, "renewTime": "2099-01-01T00:00:00.000000Z"},
        }
        await cluster.server.request(
            "POST", f"/apis/coordination.k8s.io/v1/namespaces/{cluster.namespace}/leases", lease
        )
        async with following(cluster.registry("one", ttl_s=0.6)) as one:
            assert one.members == {"one", "dead"}
            await one.until(lambda: one.members == {"one"})
            async with asyncio.timeout(PATIENCE_S):
                while "dead" in await cluster.leases():
                    await asyncio.sleep(0.1)

    async def test_verdicts_are_told_to_every_member_and_to_those_who_come_later(self, cluster: Cluster) -> None:
        judged = [instance("elsewhere", f"i{n}", host=f"10.0.1.{n}") for n in range(40)]
        sick = verdict(HealthStatus.UNHEALTHY, reason="HTTP 503")
        async with following(cluster.registry("one")) as one, following(cluster.registry("two")) as two:
            for registry, mine in ((one.registry, judged[:20]), (two.registry, judged[20:])):
                for each in mine:
                    await registry.record(each.key, sick, each)
            for told in (one, two):
                await told.until(lambda told=told: all(told.verdict_of(each) == sick for each in judged))
            await one.registry.forget(judged[0].key)
            await two.until(lambda: two.verdict_of(judged[0]) is None)
        async with following(cluster.registry("three")) as three:
            assert [three.verdict_of(each) for each in judged] == [None, *[sick] * 39]
        path = f"/api/v1/namespaces/{cluster.namespace}/configmaps?labelSelector=service-discovery/kind=verdicts"
        assert len((await cluster.server.request("GET", path))["items"]) == 1, "one service is in one shard"

    async def test_verdicts_that_wait_are_written_at_a_clean_stop(self, cluster: Cluster) -> None:
        judged = [instance("elsewhere", f"i{n}", host=f"10.0.1.{n}") for n in range(2)]
        well = verdict(HealthStatus.HEALTHY)
        async with following(cluster.registry("one")) as one:
            await one.registry.record(judged[0].key, well, judged[0])
            await one.until(lambda: one.verdict_of(judged[0]) == well)
            await one.registry.record(judged[1].key, well, judged[1])  # within the second after the first was written
        async with following(cluster.registry("two")) as two:
            assert two.verdict_of(judged[1]) == well

    async def test_a_release_is_told_to_everybody_each_time(self, cluster: Cluster) -> None:
        released = Release(hold="web/web-a", registry="kubernetes")
        async with following(cluster.registry("one")) as one, following(cluster.registry("two")) as two:
            for _ in range(2):
                await one.registry.release("web/web-a")
                assert await one.next() == released
                assert await two.next() == released

    async def test_a_policy_is_a_configmap_that_a_person_can_read_and_spoil_without_harm(
        self, cluster: Cluster
    ) -> None:
        registry = cluster.registry()
        async with following(registry) as told:
            await registry.put_policy(WEB, Policy(timeout=3.0))
            await told.next()
            path = f"/api/v1/namespaces/{cluster.namespace}/configmaps?labelSelector=service-discovery/kind=policies"
            (stored,) = (await cluster.server.request("GET", path))["items"]
            assert stored["metadata"]["annotations"]["service-discovery/name"] == "policies/web"
            assert '"timeout":3.0' in stored["data"]["document"]

            spoilt = {"apiVersion": "v1", "kind": "ConfigMap", **stored, "data": {"document": '{"timeout":-1}'}}
            await cluster.put(spoilt)
            async with asyncio.timeout(PATIENCE_S):
                while not registry.remarks:
                    await asyncio.sleep(0.02)
            assert "timeout" in registry.remarks["policies/web"]
            await registry.put_policy(WEB, Policy(timeout=4.0))
            assert await told.next() == PutPolicy(service=WEB, policy=Policy(timeout=4.0), registry="kubernetes")
            assert registry.remarks == {}

    async def test_of_two_who_write_one_policy_at_once_each_is_answered_and_the_last_stays(
        self, cluster: Cluster
    ) -> None:
        async with following(cluster.registry("one")) as one, following(cluster.registry("two")) as two:
            await asyncio.gather(
                *(told.registry.put_policy(WEB, Policy(timeout=n)) for told in (one, two) for n in (1.0, 2.0))
            )
            await one.registry.put_policy(WEB, Policy(timeout=9.0))
            for told in (one, two):
                last = PutPolicy(service=WEB, policy=Policy(timeout=9.0), registry="kubernetes")
                while await told.next() != last:
                    pass


class TestWhatItRefuses:
    async def test_registrations_are_kubernetes_own(self, cluster: Cluster) -> None:
        async with cluster.registry() as registry:
            one = instance("web", "a")
            for write in (
                registry.put(one),
                registry.delete(one.key),
                registry.drain(one.key, 1.0),
                registry.heartbeat(one.key),
            ):
                with pytest.raises(ReadOnly, match=r"Kubernetes owns the instances of 'web'.*REGISTRY_TYPE"):
                    await write

    async def test_a_secret_is_not_put_into_a_configmap(self, cluster: Cluster) -> None:
        secret = RawResource(
            type_url="type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", name="tls", body="{}"
        )
        async with cluster.registry() as registry:
            with pytest.raises(ReadOnly, match="no place for keys"):
                await registry.put_resource(secret)


class TestSelection:
    async def test_only_services_with_the_labels_count(self, cluster: Cluster) -> None:
        for name, tier in (("web", "front"), ("db", "back")):
            await cluster.put(a_service(name, labels={"tier": tier}))
            await cluster.put(a_slice(name, an_endpoint("10.0.0.1", f"{name}-a")))
        async with listening(cluster.registry(label_selector="tier=front")) as told:
            found = [event.instance.name for event in await told.listing() if isinstance(event, PutInstance)]
        assert found == ["web"]

    async def test_a_listing_of_many_pages_is_whole(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("controlplane.registry.kubernetes.api.PAGE", 3)
        await cluster.put(a_service("web"))
        for n in range(10):
            await cluster.put(a_slice("web", an_endpoint(f"10.0.0.{n}", f"web-{n}"), name=f"web-{n}"))
        async with listening(cluster.registry()) as told:
            found = [event.instance.id for event in await told.listing() if isinstance(event, PutInstance)]
        assert sorted(found) == [f"web-{n}" for n in range(10)]

    async def test_zones_and_regions_come_from_the_nodes(self, cluster: Cluster) -> None:
        node = f"node-{cluster.namespace}"
        labels = {"topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": "eu-1"}
        await cluster.server.request("POST", "/api/v1/nodes", {"metadata": {"name": node, "labels": labels}})
        try:
            await cluster.put(a_service("web"))
            async with following(cluster.registry()) as told:
                await cluster.put(a_slice("web", an_endpoint("10.0.0.1", "web-a", nodeName=node)))
                event = await told.next()
                assert isinstance(event, PutInstance)
                assert (event.instance.locality.region, event.instance.locality.zone) == ("eu", "eu-1")
        finally:
            await cluster.server.request("DELETE", f"/api/v1/nodes/{node}")


async def apply(server: KubernetesServer, manifest: Path) -> None:
    """Make every object of a manifest that is not there yet."""
    plurals = {"Namespace": "namespaces", "ServiceAccount": "serviceaccounts"}
    for thing in yaml.safe_load_all(manifest.read_text()):
        group, kind = thing["apiVersion"], thing["kind"]
        base = f"/api/{group}" if group == "v1" else f"/apis/{group}"
        if namespace := thing["metadata"].get("namespace"):
            base += f"/namespaces/{namespace}"
        try:
            await server.request("POST", f"{base}/{plurals.get(kind, f'{kind.lower()}s')}", thing)
        except ServerFailed as error:
            if " 409 " not in str(error):
                raise
