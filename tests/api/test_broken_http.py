"""What never becomes a request is answered in the same form, and in our name."""

import asyncio
import json

import pytest

pytestmark = pytest.mark.unit

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /api/v1/services HTTP/1.1\r\nHost: x\r\n"


async def ask(edge, sent):
    """Send bytes, and return the status, the headers and the body of what comes back until the connection closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.client.port)
    try:
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b"NOT HTTP AT ALL\r\n\r\n", 400, id="a request line that is none"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, id="TLS on a plain port"),
        pytest.param(GET + b"X-Long: " + b"x" * 9_000 + b"\r\n\r\n", 400, id="a header that is too long"),
        pytest.param(POST + b"Content-Length: abc\r\n\r\n", 400, id="a length that is no number"),
        pytest.param(GET + b"Expect: foo\r\n\r\n", 417, id="an expectation that is not known"),
        pytest.param(POST + b"Content-Encoding: zstd\r\nContent-Length: 1\r\n\r\nx", 415, id="an unknown encoding"),
    ],
)
async def test_what_cannot_be_read_is_refused_as_a_problem(edge, caplog, sent, status):
    got, headers, body = await ask(edge, sent)

    problem = json.loads(body)
    assert got == problem["status"] == status
    assert headers["Content-Type"].startswith("application/problem+json")
    assert headers["Server"] == "controlplane"
    assert 0 < len(problem["detail"]) <= 200
    assert caplog.records == []
