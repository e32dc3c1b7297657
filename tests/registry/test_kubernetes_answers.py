"""The registry of Kubernetes before something that is no Kubernetes API, such as a proxy that answers for one."""

import asyncio
import random
import time
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from controlplane.model import Lost, RegistryEvent
from controlplane.registry.kubernetes import KubernetesRegistry

pytestmark = pytest.mark.k8s

EMPTY = '{"metadata": {"resourceVersion": "1"}, "items": []}'


@pytest.mark.parametrize(
    ("listing", "watch"),
    [
        pytest.param('{"items": [', "", id="a listing that is cut off"),
        pytest.param('{"items": [{"kind": "Service"}]}', "", id="objects without metadata"),
        pytest.param(EMPTY, "upstream connect error\n", id="a watch that says no JSON"),
        pytest.param(EMPTY, '{"type": "ADDED"}\n', id="a change of nothing"),
        pytest.param(EMPTY, '{"type": "ADDED", "object": {}}\n', id="a change of an object without metadata"),
    ],
)
async def test_an_answer_that_is_not_kubernetes_is_a_loss_and_ends_nothing(
    tmp_path: Path, listing: str, watch: str
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=watch if "watch" in request.query else listing, content_type="application/json")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    config = tmp_path / "kubeconfig"
    config.write_text(
        yaml.safe_dump(
            {
                "clusters": [{"name": "c", "cluster": {"server": f"http://{host}:{port}"}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}],
                "current-context": "x",
            }
        )
    )
    lost: asyncio.Future[Lost] = asyncio.get_running_loop().create_future()

    def emit(event: RegistryEvent) -> None:
        if isinstance(event, Lost) and not lost.done():
            lost.set_result(event)

    try:
        async with KubernetesRegistry(
            kubeconfig=str(config),
            sharing=None,
            clock=time.monotonic,
            wall_clock=time.time,
            random=random.Random(1),
            environ={},
        ) as registry:
            task = asyncio.create_task(registry.run(emit))
            await asyncio.wait([task, lost], timeout=10, return_when=asyncio.FIRST_COMPLETED)
            assert not task.done(), task
            assert "not Kubernetes' JSON" in lost.result().reason
            task.cancel()
            await asyncio.wait([task])
    finally:
        await runner.cleanup()
