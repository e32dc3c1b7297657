"""The examples run, as their READMEs say."""

import asyncio
import sys
from pathlib import Path

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
    finally:
        process.terminate()
        out, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)

    assert process.returncode == 0
    assert b"deregistered" in out

    async def gone() -> bool:
        return await envoy.hosts("greeter") == {}

    await eventually(gone, "Envoy has dropped it")
