"""The examples run, as their READMEs say."""

import asyncio
import os
import sys
from pathlib import Path

import grpc.aio
import pytest
from harness import PATIENCE_S, ControlPlane, Envoy, eventually

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples"


async def test_a_service_registers_itself_and_goes_when_it_stops(control_plane: ControlPlane, envoy: Envoy) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / "self_registering_service/main.py")),
        *("--name", "greeter", "--control-plane", control_plane.url),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        await envoy.serves("greeter", "greeter greets you\n")
        assert await envoy.get("/greeter/?who=Ada") == (200, "greeter greets Ada\n")
        assert process.stdout is not None
        port = (await process.stdout.readline()).split()[-1].decode()
    finally:
        process.terminate()

    assert b"deregistered" in await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)
    # Who has not heard of it yet is still answered.
    async with envoy.client.get(f"http://127.0.0.1:{port}/?who=Ada") as answer:
        assert await answer.text() == "greeter greets Ada\n"
    assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0

    async def gone() -> bool:
        return await envoy.hosts("greeter") == {}

    await eventually(gone, "Envoy has dropped it")


async def run(*command: str, **environ: str) -> str:
    """Run a command of an example to its end and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={"PATH": os.environ["PATH"], **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_grpc_clients_call_servers_without_a_proxy(control_plane: ControlPlane, tmp_path: Path) -> None:
    folder = EXAMPLES / "grpc_without_proxies"
    bootstrap = tmp_path / "grpc.json"
    xds = f"127.0.0.1:{control_plane.xds_port}"
    bootstrap.write_text(
        await run(sys.executable, "-m", "controlplane", "bootstrap", "--grpc", "--node", "caller-1", "--xds", xds)
    )
    servers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, str(folder / "server.py"), "--id", id, "--weight", weight),
            *("--control-plane", control_plane.url),
            stdout=asyncio.subprocess.PIPE,
        )
        for id, weight in (("greeter-1", "1"), ("greeter-2", "3"))
    ]
    try:
        for server in servers:
            assert server.stdout is not None
            assert b"registered" in await asyncio.wait_for(server.stdout.readline(), PATIENCE_S)
        said = await run(
            *(sys.executable, str(folder / "client.py"), "--calls", "40"), GRPC_XDS_BOOTSTRAP=str(bootstrap)
        )
    finally:
        for server in servers:
            server.terminate()
        ends = [await asyncio.wait_for(server.communicate(), PATIENCE_S) for server in servers]

    assert "times: greeter-1 greets Ada" in said
    assert "times: greeter-2 greets Ada" in said
    assert [server.returncode for server in servers] == [0, 0]
    assert all(b"deregistered" in out for out, _ in ends)


async def test_a_grpc_server_that_has_deregistered_still_answers_those_who_have_not_heard_of_it(
    control_plane: ControlPlane,
) -> None:
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / "grpc_without_proxies/server.py"), "--control-plane", control_plane.url),
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdout is not None
    try:
        registered = await asyncio.wait_for(server.stdout.readline(), PATIENCE_S)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{registered.split()[-1].decode()}") as channel:
            greet = channel.unary_unary("/example.Greeter/Greet")
            server.terminate()
            assert b"deregistered" in await asyncio.wait_for(server.stdout.readline(), PATIENCE_S)
            assert await greet(b"Ada", timeout=PATIENCE_S) == b"greeter-1 greets Ada"
    finally:
        assert await asyncio.wait_for(server.wait(), PATIENCE_S) == 0


@pytest.mark.parametrize("script", ["self_registering_service/main.py", "grpc_without_proxies/server.py"])
async def test_a_service_that_finds_no_control_plane_says_so_in_one_line(script: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / script), "--name", "greeter", "--control-plane", "http://127.0.0.1:1"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)

    assert process.returncode == 1
    assert err.startswith(b"the control plane cannot be reached")
    assert err.count(b"\n") == 1
