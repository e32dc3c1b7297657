"""Raw resources reach a real Envoy and do there what they are for."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from harness import ControlPlane, Envoy, eventually, free_port, instances

pytestmark = pytest.mark.e2e

BOTH_PROTOCOLS = pytest.mark.parametrize("protocol", ["sotw", "delta"])
ADS = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
TYPE = "type.googleapis.com/"
FILTERS = TYPE + "envoy.extensions.filters."
ROUTER = {"name": "router", "typed_config": {"@type": FILTERS + "http.router.v3.Router"}}
UNDISTURBED = "listener_(added|modified|removed)|total_listeners_draining"


async def put(control_plane: ControlPlane, path: str, body: dict[str, Any]) -> dict[str, Any]:
    async with control_plane.client.put(f"{control_plane.api}/xds/{path}", json=body) as answer:
        assert answer.status in (200, 201), await answer.text()
        return dict(await answer.json())


async def delete(control_plane: ControlPlane, path: str) -> None:
    async with control_plane.client.delete(f"{control_plane.api}/xds/{path}") as answer:
        assert answer.status == 204, await answer.text()


def answering(text: str) -> dict[str, Any]:
    return {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": text}}}


def table(name: str, *routes: dict[str, Any], **more: Any) -> dict[str, Any]:
    hosts = [{"name": "all", "domains": ["*"], "routes": list(routes)}] if routes else []
    return {"name": name, "virtual_hosts": hosts, **more}


def listener(name: str, port: int, *, filters: tuple[Any, ...] = (), tls: Any = None, **source: Any) -> dict[str, Any]:
    manager = {
        "@type": FILTERS + "network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "http_filters": [*filters, ROUTER],
        **source,
    }
    chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": manager}]}
    if tls is not None:
        chain["transport_socket"] = {"name": "tls", "typed_config": tls}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"name": name, "address": address, "filter_chains": [chain]}


async def ask(client: aiohttp.ClientSession, port: int, **headers: str) -> tuple[int, str, dict[str, str]] | None:
    """Send a request to a listener; None while there is none."""
    try:
        async with client.get(f"http://127.0.0.1:{port}/", headers=headers) as answer:
            return answer.status, await answer.text(), {name.lower(): value for name, value in answer.headers.items()}
    except aiohttp.ClientError:
        return None


async def answers(client: aiohttp.ClientSession, port: int, status: int, text: str, **headers: str) -> None:
    async def so() -> bool:
        return (got := await ask(client, port, **headers)) is not None and got[:2] == (status, text)

    await eventually(so, f"{status} {text!r} for {headers}")


@pytest.fixture
async def flagged(
    tmp_path: Path, client: aiohttp.ClientSession, control_plane: ControlPlane, protocol: str
) -> AsyncIterator[Envoy]:
    """Run an Envoy that takes its runtime values from the layer `flags`."""
    running = Envoy(
        folder=tmp_path, client=client, control_plane=control_plane, protocol=protocol, runtime_layer="flags"
    )
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


@BOTH_PROTOCOLS
async def test_a_flag_arrives_changes_and_goes(control_plane: ControlPlane, flagged: Envoy) -> None:
    """V-05."""

    async def has(value: str) -> None:
        async def seen() -> bool:
            async with flagged.client.get(f"http://127.0.0.1:{flagged.admin_port}/runtime?format=json") as answer:
                entries = (await answer.json())["entries"]
            return str(entries.get("my.flag", {}).get("final_value", "")) == value

        await eventually(seen, f"the flag is {value!r}")

    await put(control_plane, "runtimes/flags", {"name": "flags", "layer": {"my.flag": 1}})
    await has("1")
    await put(control_plane, "runtimes/flags", {"name": "flags", "layer": {"my.flag": 2}})
    await has("2")
    await put(control_plane, "runtimes/flags", {"name": "flags", "layer": {}})
    await has("")


async def certificate(folder: Path, name: str) -> tuple[dict[str, Any], bytes]:
    """Make a self-signed certificate; return it as a secret, and in the form in which a client sees it."""
    key, chain = folder / f"{name}.key", folder / f"{name}.pem"
    process = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-subj", f"/CN={name}", "-days", "2", "-keyout", str(key), "-out", str(chain)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0
    secret = {
        "name": "server",
        "tls_certificate": {
            "certificate_chain": {"inline_string": chain.read_text()},
            "private_key": {"inline_string": key.read_text()},
        },
    }
    return secret, ssl.PEM_cert_to_DER_cert(chain.read_text())


async def presented(port: int) -> bytes | None:
    """Return the certificate that a listener presents; None while it has none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    except OSError:
        return None
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return bytes(found)


@BOTH_PROTOCOLS
async def test_a_secret_is_rotated_without_a_listener_noticing(
    tmp_path: Path, control_plane: ControlPlane, envoy: Envoy
) -> None:
    """V-04: the secret alone is pushed."""
    port = free_port()
    first, first_seen = await certificate(tmp_path, "first")
    second, second_seen = await certificate(tmp_path, "second")
    tls = {
        "@type": TYPE + "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"tls_certificate_sds_secret_configs": [{"name": "server", "sds_config": ADS}]},
    }
    await put(control_plane, "secrets/server?node_clusters=e2e", first)
    inline = {"route_config": table("inline", answering("hello"))}
    await put(control_plane, "listeners/tls", listener("tls", port, tls=tls, **inline))

    async def shows_first() -> bool:
        return await presented(port) == first_seen

    await eventually(shows_first, "the listener presents the first certificate")
    before = await envoy.stats(UNDISTURBED)
    await put(control_plane, "secrets/server?node_clusters=e2e", second)

    async def shows_second() -> bool:
        return await presented(port) == second_seen

    await eventually(shows_second, "the listener presents the second certificate")
    assert await envoy.stats(UNDISTURBED) == before
    assert "PRIVATE KEY" not in control_plane.log()


@BOTH_PROTOCOLS
async def test_a_filters_configuration_changes_without_a_listener_noticing(
    control_plane: ControlPlane, envoy: Envoy
) -> None:
    """V-06."""
    port = free_port()
    mutation = FILTERS + "http.header_mutation.v3.HeaderMutation"

    def marking(value: str) -> dict[str, Any]:
        header = {"append": {"header": {"key": "x-mark", "value": value}}}
        config = {"@type": mutation, "mutations": {"response_mutations": [header]}}
        return {"name": "mark", "typed_config": config}

    discovered = {"name": "mark", "config_discovery": {"config_source": ADS, "type_urls": [mutation]}}
    inline = {"route_config": table("inline", answering("hello"))}
    await put(control_plane, "extension-configs/mark", marking("one"))
    made = await put(control_plane, "listeners/marked", listener("marked", port, filters=(discovered,), **inline))
    assert made["warnings"] == []

    async def marked(value: str) -> None:
        async def so() -> bool:
            return (got := await ask(envoy.client, port)) is not None and got[2].get("x-mark") == value

        await eventually(so, f"answers are marked {value}")

    await marked("one")
    before = await envoy.stats(UNDISTURBED)
    await put(control_plane, "extension-configs/mark", marking("two"))
    await marked("two")

    assert await envoy.stats(UNDISTURBED) == before


@BOTH_PROTOCOLS
async def test_scopes_choose_among_route_tables_and_a_removed_one_chooses_no_more(
    control_plane: ControlPlane, envoy: Envoy
) -> None:
    """V-07: the scopes come by ADS, and so do the tables that they name."""
    port = free_port()
    extractor = {"name": "x-scope", "element_separator": ";", "index": 0}
    scopes = {
        "name": "scopes",
        "scope_key_builder": {"fragments": [{"header_value_extractor": extractor}]},
        "rds_config_source": ADS,
        "scoped_rds": {"scoped_rds_config_source": ADS},
    }

    def scope(name: str) -> dict[str, Any]:
        return {"name": name, "route_configuration_name": name, "key": {"fragments": [{"string_key": name}]}}

    await put(control_plane, "routes/red", table("red", answering("red")))
    await put(control_plane, "routes/blue", table("blue", answering("blue")))
    await put(control_plane, "scoped-routes/red", scope("red"))
    await put(control_plane, "listeners/scoped", listener("scoped", port, scoped_routes=scopes))
    await answers(envoy.client, port, 200, "red", **{"x-scope": "red"})
    await answers(envoy.client, port, 404, "", **{"x-scope": "blue"})

    await put(control_plane, "scoped-routes/blue", scope("blue"))
    await answers(envoy.client, port, 200, "blue", **{"x-scope": "blue"})
    await delete(control_plane, "scoped-routes/red")
    await answers(envoy.client, port, 404, "", **{"x-scope": "red"})
    await answers(envoy.client, port, 200, "blue", **{"x-scope": "blue"})


async def test_a_virtual_host_is_found_on_demand_and_an_unknown_one_is_refused_promptly(
    control_plane: ControlPlane, envoy: Envoy
) -> None:
    """V-01, V-02; Delta alone has virtual hosts on demand."""
    port = free_port()
    on_demand = {"name": "on_demand", "typed_config": {"@type": FILTERS + "http.on_demand.v3.OnDemand"}}
    source = {"rds": {"config_source": ADS, "route_config_name": "r1"}}
    await put(control_plane, "routes/r1", table("r1", vhds={"config_source": {**ADS, "initial_fetch_timeout": "0.5s"}}))
    host = {"name": "shop", "domains": ["shop.example", "store.example"], "routes": [answering("shop")]}
    await put(control_plane, "virtual-hosts/r1/shop", host)
    await put(control_plane, "listeners/demand", listener("demand", port, filters=(on_demand,), **source))

    await answers(envoy.client, port, 200, "shop", Host="shop.example")
    await answers(envoy.client, port, 200, "shop", Host="store.example")
    async with asyncio.timeout(3):
        got = await ask(envoy.client, port, Host="nobody.example")
    assert got is not None
    assert got[0] == 404

    await put(
        control_plane,
        "routes/r1",
        table(
            "r1",
            vhds={"config_source": {**ADS, "initial_fetch_timeout": "0.5s"}},
            max_direct_response_body_size_bytes=99,
        ),
    )
    await answers(envoy.client, port, 200, "shop", Host="shop.example")
    await put(control_plane, "virtual-hosts/r1/shop", {**host, "routes": [answering("changed")]})
    await answers(envoy.client, port, 200, "changed", Host="shop.example")
    await delete(control_plane, "virtual-hosts/r1/shop")
    await answers(envoy.client, port, 404, "", Host="shop.example")


@BOTH_PROTOCOLS
async def test_a_raw_cluster_and_listener_serve_beside_those_of_services(
    control_plane: ControlPlane, envoy: Envoy
) -> None:
    port = free_port()
    async with instances(control_plane, "web", "web-1") as started:
        await envoy.serves("web", "web-1")
        eds = {"eds_config": ADS}
        await put(
            control_plane,
            "clusters/legacy_web",
            {"name": "legacy_web", "type": "EDS", "connect_timeout": "1s", "eds_cluster_config": eds},
        )
        address = {"socket_address": {"address": "127.0.0.1", "port_value": started["web-1"].port}}
        group = {"locality": {}, "load_balancing_weight": 1, "lb_endpoints": [{"endpoint": {"address": address}}]}
        await put(control_plane, "endpoints/legacy_web", {"cluster_name": "legacy_web", "endpoints": [group]})
        route = {"match": {"prefix": "/"}, "route": {"cluster": "legacy_web"}}
        inline = {"route_config": table("inline", route)}
        await put(control_plane, "listeners/legacy", listener("legacy", port, **inline))

        await answers(envoy.client, port, 200, "web-1")
        await envoy.serves("web", "web-1")
        assert (await envoy.stats("update_rejected|warming_clusters"))["cluster_manager.warming_clusters"] == 0
