"""An upstream's head: an `Answer` that h11 reads the same, or `BadAnswer`; nothing else."""

from typing import Final

import h11

from dgproxy.wire.fields import MAX_HEADERS
from dgproxy.wire.response import BadAnswer, judge
from tests.fuzz.harness import Harness


def check(data: bytes) -> None:
    """The whole property."""
    try:
        answer = judge(data)
    except BadAnswer:
        return
    assert answer.raw == data
    assert data.startswith(b"HTTP/1.")
    assert data.count(b"\r\n\r\n") == 1
    assert len(answer.headers) == data.count(b"\r\n") - 2 <= MAX_HEADERS
    lengths = [value for name, value in answer.headers if name == b"content-length"]
    codings = [value for name, value in answer.headers if name == b"transfer-encoding"]
    assert len(lengths) + len(codings) <= 1
    assert answer.chunked == bool(codings)
    assert answer.content_length == (int(lengths[0]) if lengths else None)

    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=len(data) + 1)
    asked = [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")] if answer.status == 101 else []
    parser.send(h11.Request(method=b"GET", target=b"/", headers=[(b"Host", b"dg"), *asked]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(data)
    event = parser.next_event()
    assert isinstance(event, h11.Response | h11.InformationalResponse)
    assert event.status_code == answer.status
    assert len(event.headers) == len(answer.headers)
    if not answer.chunked:  # h11 lowers the coding's case
        assert [(name, value) for name, value in event.headers] == answer.headers


HARNESS: Final = Harness(
    check,
    seeds=(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\ndg-request-id: a\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX: a\r\n\r\n",
        b"HTTP/1.1 100 \r\n\r\n",
        b"HTTP/1.0 503\r\nRetry-After: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
    ),
    words=(
        b"\r\n", b"\r\n\r\n", b"\n", b"\r", b": ", b" ", b"\t", b"\0", b"HTTP/1.0 ", b"HTTP/1.1 ", b"Content-Length: ",
        b"Transfer-Encoding: ", b"chunked", b"Connection: ", b"Upgrade: ", b" 204", b" 304", b" 101",
    ),
)  # fmt: skip
