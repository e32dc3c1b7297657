"""An Envoy boots from an exported folder with no control plane at all, and follows when it is exported again (J-02)."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from harness import Upstream, eventually, free_port, running_envoy, upstream

pytestmark = pytest.mark.e2e


class Folder:
    """Export lists of services to a folder, as the operator does, and reach the Envoy that follows it."""

    def __init__(self, path: Path, client: aiohttp.ClientSession) -> None:
        self.path = path
        self.client = client
        self.gateway_port = free_port()
        self.admin_port = free_port()

    async def export(self, **services: list[tuple[Upstream, int]]) -> None:
        lines = ["services:"]
        for name, instances in services.items():
            lines.append(f"  {name}:\n    instances:")
            lines += [
                f"    - {{id: {each.name}, host: 127.0.0.1, port: {each.port}, weight: {weight}}}"
                for each, weight in instances
            ]
        file = self.path.parent / "services.yaml"
        file.write_text("\n".join(lines))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "controlplane", "render", "-f", str(file), "-o", "files", str(self.path)),
            *("--gateway-port", str(self.gateway_port), "--admin", f"127.0.0.1:{self.admin_port}"),
        )
        async with asyncio.timeout(30):
            assert await process.wait() == 0

    async def get(self, path: str) -> tuple[int, str]:
        async with self.client.get(f"http://127.0.0.1:{self.gateway_port}{path}") as answer:
            return answer.status, await answer.text()

    async def stats(self, pattern: str) -> dict[str, int]:
        url = f"http://127.0.0.1:{self.admin_port}/stats?format=json&type=All&filter={pattern}"
        async with self.client.get(url) as answer:
            return {stat["name"]: stat["value"] for stat in (await answer.json())["stats"] if "value" in stat}


@asynccontextmanager
async def following(folder: Folder) -> AsyncIterator[None]:
    async with running_envoy(folder.path / "envoy.yaml", folder.path.parent / "envoy.log", folder.admin_port):
        yield


async def test_envoy_boots_from_a_folder_and_follows_it(tmp_path: Path, client: aiohttp.ClientSession) -> None:
    folder = Folder(tmp_path / "exported", client)
    async with upstream("one") as one, upstream("two") as two:
        await folder.export(web=[(one, 1)], old=[(one, 1)])
        async with following(folder):
            assert await folder.get("/web/") == (200, "one")

            await folder.export(web=[(two, 1)], old=[(one, 1)])
            await eventually(lambda: _answers(folder, "/web/", "two"), "the moved endpoint is followed")

            await folder.export(web=[(two, 1)], new=[(one, 1)])
            await eventually(lambda: _answers(folder, "/new/", "one"), "the new service is reached")
            await eventually(lambda: _gone(folder, "/old/"), "the removed service has no route")
            assert await folder.get("/web/") == (200, "two")

            rejected = await folder.stats("update_(rejected|failure)$")
            assert rejected
            assert set(rejected.values()) == {0}
            assert (tmp_path / "envoy.log").read_text() == ""


async def test_exported_weights_hold_and_change(tmp_path: Path, client: aiohttp.ClientSession) -> None:
    folder = Folder(tmp_path / "exported", client)
    async with upstream("one") as one, upstream("two") as two:
        await folder.export(web=[(one, 1), (two, 3)])
        async with following(folder):
            assert await _share(folder, "two", 200) == pytest.approx(150, abs=4)

            updates = "cluster.web.update_success"
            before = (await folder.stats(updates))[updates]
            await folder.export(web=[(one, 3), (two, 1)])

            async def updated() -> bool:
                return (await folder.stats(updates))[updates] > before

            await eventually(updated, "the new weights are read")
            assert await _share(folder, "two", 200) == pytest.approx(50, abs=4)


async def _answers(folder: Folder, path: str, body: str) -> bool:
    return await folder.get(path) == (200, body)


async def _gone(folder: Folder, path: str) -> bool:
    return (await folder.get(path))[0] == 404


async def _share(folder: Folder, name: str, count: int) -> int:
    return [(await folder.get("/web/"))[1] for _ in range(count)].count(name)
