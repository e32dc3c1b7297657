"""What a stranger sends to the control plane's ports does not get into its log as if it were ours."""

import asyncio

import pytest
from harness import ControlPlane

pytestmark = pytest.mark.e2e


async def test_the_text_of_a_goaway_does_not_get_into_the_log(control_plane: ControlPlane) -> None:
    text = b"\nI1124 all is well"
    body = bytes(4) + (9).to_bytes(4, "big") + text
    frames = b"\0\0\0\4\0\0\0\0\0" + len(body).to_bytes(3, "big") + b"\7\0\0\0\0\0" + body
    reader, writer = await asyncio.open_connection("127.0.0.1", control_plane.xds_port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frames)
    writer.write_eof()
    async with asyncio.timeout(10):
        await reader.read()
    writer.close()
    await writer.wait_closed()
    await control_plane.stop()

    assert "all is well" not in control_plane.log()
