"""A chunked body: the same payload, end and fault in whatever pieces it comes; h11 reads the same in what passes."""

from typing import Final

import h11

from dgproxy.wire.chunked import BadChunks, Chunked
from tests.fuzz.harness import Harness

_HEAD: Final = b"POST / HTTP/1.1\r\nHost: dg\r\nTransfer-Encoding: chunked\r\n\r\n"


def _read(pieces: list[bytes]) -> tuple[bytes, bool, bool, bytes]:
    """Payload, whether it broke, whether it ended, and what came after it."""
    body, payload = Chunked(), b""
    try:
        for piece in pieces:
            body.feed(piece)
            while (part := body.read()) is not None:
                assert part
                payload += part
    except BadChunks:
        return payload, True, False, b""
    return payload, False, body.ended, body.rest() if body.ended else b""


def check(data: bytes) -> None:
    """The whole property."""
    payload, broke, ended, rest = whole = _read([data])
    assert _read([data[at : at + 1] for at in range(len(data))]) == whole
    half = len(data) // 2
    assert _read([data[:half], data[half:]]) == whole
    assert data.endswith(rest)
    if not ended or broke:
        return
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=len(data) + len(_HEAD))
    parser.receive_data(_HEAD + data)
    events = [parser.next_event()]
    while not isinstance(events[-1], h11.EndOfMessage):
        events.append(parser.next_event())
    assert b"".join(bytes(event.data) for event in events if isinstance(event, h11.Data)) == payload
    assert parser.trailing_data[0] == rest


HARNESS: Final = Harness(
    check,
    seeds=(
        b"5\r\naudio\r\n0\r\n\r\n",
        b"5;a=b\r\naudio\r\nA\r\n0123456789\r\n000\r\nX-Sum: 1\r\n\r\nGET / HTTP/1.1\r\n",
        b"0\r\n\r\n",
        b"5\r\naudio\n0\r\n\r\n",
        b"ffffffffffffffff\r\na",
    ),
    words=(b"\r\n", b"0\r\n\r\n", b"\n", b"\r", b";", b"1\r\na\r\n", b"00000000", b"X: y\r\n", b"\0", b"\t", b" "),
    longest=512,
)
