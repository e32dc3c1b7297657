"""`make run`: one command, one line `ready`, and an Envoy that comes back."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from harness import PATIENCE_S, eventually, free_port
from servers.etcd import EtcdServer

pytestmark = pytest.mark.e2e


@dataclass(kw_only=True)
class Demo:
    """Hold a demo that runs, and where it listens."""

    process: asyncio.subprocess.Process
    service_port: int
    gateway_port: int
    admin_port: int
    environ: dict[str, str]
    said: list[str]


async def start(folder: Path, *, service_port: int, gateway_port: int, admin_port: int, **more: str) -> Demo:
    environ = {
        **more,
        "PATH": os.environ["PATH"],
        "SERVICE_PORT": str(service_port),
        "XDS_PORT": str(free_port()),
        "GATEWAY_PORT": str(gateway_port),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "controlplane", "demo"),
        *("--data-dir", str(folder / "data"), "--admin-port", str(admin_port)),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    return Demo(
        process=process,
        service_port=service_port,
        gateway_port=gateway_port,
        admin_port=admin_port,
        environ=environ,
        said=[],
    )


async def until_ready(demo: Demo) -> None:
    assert demo.process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        async for line in demo.process.stdout:
            demo.said.append(line.decode().rstrip())
            if demo.said[-1] == "ready":
                return
    raise AssertionError("\n".join(demo.said))


@pytest.fixture
async def demo(tmp_path: Path) -> AsyncIterator[Demo]:
    running = await start(tmp_path, service_port=free_port(), gateway_port=free_port(), admin_port=free_port())
    try:
        await until_ready(running)
        yield running
    finally:
        if running.process.returncode is None:
            running.process.terminate()
            await asyncio.wait_for(running.process.communicate(), PATIENCE_S)


def envoys_of(parent: int) -> list[int]:
    """Return the processes that this one has started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [pid for pid in map(int, children) if b"envoy" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def test_the_printed_commands_work_and_everything_ends_with_the_process(
    demo: Demo, client: aiohttp.ClientSession
) -> None:
    printed = "\n".join(demo.said)
    gateway = f"http://127.0.0.1:{demo.gateway_port}"
    api = f"http://127.0.0.1:{demo.service_port}"
    for url in (f"{gateway}/demo/", f"{api}/api/v1/services/demo", f"{api}/docs"):
        assert url in printed
        async with client.get(url) as answer:
            assert answer.status == 200
    async with client.get(f"{gateway}/", headers={"Host": "demo"}) as answer:
        assert (await answer.text()).startswith("hello from demo-")
    (envoy,) = envoys_of(demo.process.pid)

    demo.process.send_signal(signal.SIGINT)
    await asyncio.wait_for(demo.process.communicate(), PATIENCE_S)

    assert demo.process.returncode == 0
    assert not Path(f"/proc/{envoy}").exists()


async def test_an_envoy_that_dies_comes_back(demo: Demo, client: aiohttp.ClientSession) -> None:
    (first,) = envoys_of(demo.process.pid)
    os.kill(first, signal.SIGKILL)

    async def answers_again() -> bool:
        if envoys_of(demo.process.pid) in ([], [first]):
            return False
        try:
            async with client.get(f"http://127.0.0.1:{demo.gateway_port}/demo/") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    await eventually(answers_again, "the gateway answers again")


@pytest.mark.parametrize(
    ("taken", "named"),
    [("gateway_port", "GATEWAY_PORT"), ("service_port", "SERVICE_PORT"), ("admin_port", "--admin-port")],
)
async def test_a_port_that_is_taken_is_named(demo: Demo, tmp_path: Path, taken: str, named: str) -> None:
    ports = {name: free_port() for name in ("service_port", "gateway_port", "admin_port")}
    second = await start(tmp_path / "second", **{**ports, taken: getattr(demo, taken)})

    out, _ = await asyncio.wait_for(second.process.communicate(), PATIENCE_S)

    assert second.process.returncode == 1
    assert named in out.decode()
    assert "Traceback" not in out.decode()


@pytest.mark.etcd
async def test_it_runs_on_a_shared_registry_too(
    shared_etcd: EtcdServer, etcd_prefix: str, tmp_path: Path, client: aiohttp.ClientSession
) -> None:
    registry = {"REGISTRY_TYPE": "etcd", "ETCD_ENDPOINTS": shared_etcd.address, "ETCD_PREFIX": etcd_prefix}
    demo = await start(tmp_path, service_port=free_port(), gateway_port=free_port(), admin_port=free_port(), **registry)
    try:
        await until_ready(demo)
        assert await shared_etcd.etcdctl("get", "--prefix", "--keys-only", f"{etcd_prefix}demo/")
        async with client.get(f"http://127.0.0.1:{demo.gateway_port}/demo/") as answer:
            assert answer.status == 200
    finally:
        if demo.process.returncode is None:
            demo.process.terminate()
            await asyncio.wait_for(demo.process.communicate(), PATIENCE_S)
    assert not await shared_etcd.etcdctl("get", "--prefix", "--keys-only", f"{etcd_prefix}demo/")


async def test_a_registry_that_takes_no_registrations_is_refused_with_the_remedy(tmp_path: Path) -> None:
    ports = {name: free_port() for name in ("service_port", "gateway_port", "admin_port")}
    demo = await start(tmp_path, **ports, REGISTRY_TYPE="kubernetes")

    out, _ = await asyncio.wait_for(demo.process.communicate(), PATIENCE_S)

    assert demo.process.returncode == 1
    assert "REGISTRY_TYPE=kubernetes,memory" in out.decode()
    assert "Traceback" not in out.decode()
