"""What a person sees on the documentation page, in a real browser where the machine has one."""

import asyncio
import json
import os
import shutil
import signal
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]

WIDTH = 400
"""A phone's width in pixels."""

OPEN_ALL = """
new Promise((done) => {
  const all = () => [...document.querySelectorAll("details:not([open])")];
  const next = () => {
    if (!document.querySelector("details")) return setTimeout(next, 20);
    const closed = all();
    if (!closed.length) return done(true);
    closed.forEach((each) => { each.open = true; });
    setTimeout(next, 50);
  };
  next();
})
"""


class Page:
    """Talk to one page of a browser by the DevTools protocol."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = count(1)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method and return its result; events in between are passed over."""
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while (message := await self._socket.receive_json()).get("id") != number:
            pass
        assert "error" not in message, message
        return dict(message["result"])

    async def value(self, expression: str) -> Any:
        """Return what an expression, or the promise that it is, comes to."""
        result = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")


@asynccontextmanager
async def browsing(url: str, profile: Path) -> AsyncIterator[Page]:
    """Show `url` in a browser of its own for as long as the block lasts."""
    assert BROWSER is not None
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-breakpad")
    process = await asyncio.create_subprocess_exec(
        BROWSER,
        *options,
        f"--user-data-dir={profile}",
        "--remote-debugging-port=0",
        "about:blank",
        stdout=DEVNULL,
        stderr=PIPE,
        start_new_session=True,
    )
    talk = process.stderr
    assert talk is not None
    try:
        async with asyncio.timeout(40):
            line = b""
            while b"DevTools listening on " not in line:
                line = await talk.readline()
                assert line, "the browser ended before it listened"
        base = line.decode().split("ws://")[1].split("/")[0]
        async with ClientSession() as session:
            async with session.put(f"http://{base}/json/new?about:blank") as response:
                target = json.loads(await response.text())
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                await page.call(
                    "Emulation.setDeviceMetricsOverride", width=WIDTH, height=800, deviceScaleFactor=1, mobile=True
                )
                await page.call("Page.navigate", url=url)
                yield page
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        while await talk.read(65_536):  # so that the pipe is closed before the loop is
            pass
        await process.wait()


async def test_the_page_shows_the_api_to_a_person(edge, tmp_path):
    async with browsing(str(edge.client.make_url("/docs")), tmp_path) as page:
        await page.value(OPEN_ALL)
        text = await page.value("document.body.innerText")
        codes = await page.value("[...document.querySelectorAll('#about code')].map((each) => each.textContent)")
        types = await page.value(
            "[...document.querySelectorAll('#pickInstance tr')].map((each) => each.innerText).join('\\n')"
        )
        family = await page.value("getComputedStyle(document.querySelector('textarea')).fontFamily")
        widths = await page.value(
            "[...document.querySelectorAll('body *')].map((each) => Math.ceil(each.getBoundingClientRect().right))"
        )
        scrolled = await page.value("document.documentElement.scrollWidth")
        found = await page.value(
            """(() => {
              const find = document.getElementById("find");
              find.value = "drain";
              find.dispatchEvent(new Event("input"));
              return [...document.querySelectorAll("details[data-words]:not([hidden])")].map((each) => each.id);
            })()"""
        )

    assert "`" not in text, "backticks are drawn as code"
    assert "ETag" in codes
    assert "round_robin | weighted_round_robin" in types, "an enumeration lists its values"
    assert "monospace" in family
    assert max(scrolled, *widths) <= WIDTH, "nothing runs off a phone"
    assert found == ["deleteInstance"], "a parameter's name is found"
