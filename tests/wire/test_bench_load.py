"""The load generator of bench/ against servers that answer as HTTP lets them, each in its own way."""

import contextlib
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from bench.native import Load, faults
from tests.support.scripted import upstream

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
LAST = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;note=x\r\nhel\r\n00B\r\nlo, it is I\r\n0\r\nTrailer: yes\r\n\r\n"
)
UNTIL_END = b"HTTP/1.0 200 OK\r\n\r\nhello"
NO_CHUNK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhello"
REFUSED = b'HTTP/1.1 429 Too "many"\r\nContent-Length: 0\r\n\r\n'
Serve = Callable[[socket.socket], None]


def answering(*answers: bytes, pieces: int = 1 << 20, seen: list[bytes] | None = None) -> Serve:
    """A connection: an answer a request, in pieces of so many bytes, the last of the answers again and again."""

    def serve(sock: socket.socket) -> None:
        data = b""
        number = 0
        while True:
            while b"\r\n\r\n" not in data:
                if not (piece := sock.recv(65536)):
                    return
                data += piece
            head, _, data = data.partition(b"\r\n\r\n")
            for line in head.split(b"\r\n"):
                if line.startswith(b"Content-Length: "):
                    size = int(line[16:])
                    while len(data) < size:
                        data += sock.recv(65536)
                    head, data = head + b"\r\n\r\n" + data[:size], data[size:]
            if seen is not None:
                seen.append(head)
            answer = answers[min(number, len(answers) - 1)]
            number += 1
            for at in range(0, len(answer), pieces):
                sock.sendall(answer[at : at + pieces])
            if answer in (LAST, UNTIL_END):
                return

    return serve


def run(serve: Serve, mode: str = "requests", **options: Any) -> tuple[Load, dict[str, Any]]:
    """What is found; {} if nothing opened."""
    with upstream(serve) as url:
        wanted = {"n": 2, "seconds": 0.3, "target": "/x", "tls": False, **options}
        with Load(mode, None, port=urlsplit(url).port, **wanted) as load:
            return load, load.run(20) if load.opened or mode == "upload" else {}


@pytest.mark.parametrize("pieces", [1 << 20, 1], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("answer", [LENGTH, CHUNKED, LAST, UNTIL_END], ids=["length", "chunked", "close", "until end"])
@pytest.mark.parametrize("mode", ["requests", "handshake"])
def test_an_answer_is_understood_however_it_is_framed(mode: str, answer: bytes, pieces: int) -> None:
    load, found = run(answering(answer, pieces=pieces), mode)
    assert (load.opened, load.why) == (2, "")
    assert not faults(found)
    assert found["done"] > 2
    # One that ends after the last look, or before the first, may have its bytes counted and not itself.
    body = 14 if answer is CHUNKED else 5
    assert 0 <= found["bytes"] - body * found["done"] <= 2 * body


def test_a_server_that_closes_after_some_requests_is_dialled_again() -> None:
    load, found = run(answering(LENGTH, LENGTH, LAST))
    assert load.opened == 2
    assert found["done"] > 6
    assert not faults(found)


def test_what_is_refused_is_told_and_not_pressed() -> None:
    seen: list[bytes] = []
    load, found = run(answering(REFUSED, seen=seen), "handshake")
    assert load.opened == 0
    assert load.why == "HTTP/1.1 429 Too ?many?"  # as it may stand in JSON
    assert found == {}
    assert len(seen) == 2


def test_what_is_refused_later_ends_that_connection_for_good() -> None:
    seen: list[bytes] = []
    load, found = run(answering(LENGTH, REFUSED, seen=seen))
    assert load.opened == 2
    assert faults(found) == ["2 refused: HTTP/1.1 429 Too ?many?"]
    assert len(seen) == 4


def test_a_body_that_is_none_is_a_fault() -> None:
    assert run(answering(NO_CHUNK))[0].why == "a chunked answer that is none"


def test_nobody_there_is_told() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    with Load("requests", None, port=port, tls=False, n=2) as load:
        assert (load.opened, load.why) == (0, "Connection refused")


def test_a_wav_file_is_uploaded_and_text_is_sent_to_be_spoken() -> None:
    seen: list[bytes] = []
    load, found = run(answering(LENGTH, seen=seen), "upload", bytes=100_000, wav=True)
    assert not faults(found)
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert b"Content-Type: audio/wav" in head
    assert len(body) == 100_000
    assert (body[:4], body[8:16], body[36:40]) == (b"RIFF", b"WAVEfmt ", b"data")
    assert int.from_bytes(body[40:44], "little") == 100_000 - 44
    seen.clear()
    load, found = run(answering(CHUNKED, seen=seen), text=20)
    assert load.opened == 2
    assert found["first_us"][-1][1] <= found["latency_us"][-1][1]
    assert seen[0].startswith(b"POST /x HTTP/1.1\r\n")
    assert seen[0].endswith(b'\r\n\r\n{"text":"The quick brown fox "}')


def test_the_key_is_sent_and_is_none_of_the_arguments() -> None:
    seen: list[bytes] = []
    with (
        upstream(answering(LENGTH, seen=seen)) as url,
        Load("requests", None, key="dgp_secret", port=urlsplit(url).port, tls=False, n=1) as load,
    ):
        arguments = Path(f"/proc/{load.pid}/cmdline").read_bytes()
    assert b"requests" in arguments
    assert b"secret" not in arguments
    assert b"\r\nAuthorization: Token dgp_secret" in seen[0]
