"""Deepgram's Go, .NET, Rust and Java SDKs: what each writes, byte for byte, on a TLS socket.

None of them is run. A head here is what the SDK sets (read in its source, at the version that the table names) as its
HTTP library writes it: Go's net/http and gorilla/websocket, .NET's SocketsHttpHandler and ClientWebSocket, Rust's
hyper below reqwest and tungstenite, Java's OkHttp 4. HOST stands for host and port, NAME for the host alone, KEY for
the key, LENGTH for the body's length.
"""

import ssl
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pytest

from dgproxy.wire.frames import BINARY, CLOSE, TEXT
from dgproxy.wire.refusals import BAD_CREDENTIAL, NO_CREDENTIAL, Refusal
from tests.clients.matrix import REPLAYED, Cell, cells, seen
from tests.clients.test_python import FRAME, KEYS, assert_posted, digest
from tests.conftest import second_only
from tests.support import raw
from tests.support.clients import Answer, assert_chunked_kept, assert_forwarded, assert_length_kept, assert_refusal
from tests.support.frames import frame
from tests.support.proxy import Proxy
from tests.support.upstreams import Upstream

ACCEPT: Final = b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # of the key in RFC 6455 1.3, which all send here
NONCE: Final = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="


@dataclass(frozen=True)
class Replay:
    """An SDK's two heads; its line with the key, and that line when there is none."""

    post: tuple[bytes, ...]
    upgrade: tuple[bytes, ...]
    credential: bytes
    none: bytes | None = None

    @property
    def chunked(self) -> bool:
        """Whether it sends a file's length."""
        return not any(b"LENGTH" in line for line in self.post)


# A file is any io.Reader to net/http, hence chunked. User-Agent comes first, then the framing, then all others by name.
# The version in User-Agent is not the SDK's.
_GO: Final = Replay(
    post=(
        b"POST /v1/listen?model=nova-3 HTTP/1.1",
        b"Host: HOST",
        b"User-Agent: @deepgram/sdk/v1.4.0 go/1.23.4",
        b"Transfer-Encoding: chunked",
        b"Accept: application/json",
        b"Authorization: token KEY",
        b"Accept-Encoding: gzip",
    ),
    upgrade=(
        b"GET /v1/listen?encoding=linear16&model=nova-3&sample_rate=16000 HTTP/1.1",
        b"Host: HOST",
        b"User-Agent: @deepgram/sdk/v1.4.0 go/1.23.4",
        b"Authorization: token KEY",
        b"Connection: Upgrade",
        NONCE,
        b"Sec-WebSocket-Version: 13",
        b"Upgrade: websocket",
    ),
    credential=b"Authorization: token KEY",
    none=b"Authorization: token",  # with its option SelfHosted it asks for no key
)

# A MemoryStream has a length, and no Content-Type is set. ClientWebSocket sends no User-Agent.
_DOTNET: Final = Replay(
    post=(
        b"POST /v1/listen?model=nova-3 HTTP/1.1",
        b"Host: HOST",
        b"Accept: application/json",
        b"User-Agent: deepgram/7.0.0.0 dotnet/NET8.0.11",
        b"Authorization: token KEY",
        b"Content-Length: LENGTH",
    ),
    upgrade=(
        b"GET /v1/listen?model=nova-3&encoding=linear16&sample_rate=16000 HTTP/1.1",
        b"Host: HOST",
        b"Authorization: token KEY",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        NONCE,
        b"Sec-WebSocket-Version: 13",
    ),
    credential=b"Authorization: token KEY",
    none=b"",  # with its option OnPrem
)

# hyper writes names in lower case, Host late; a tokio File has no length. The SDK gives the stream's Host without port.
_RUST: Final = Replay(
    post=(
        b"POST /v1/listen?model=nova-3 HTTP/1.1",
        b"content-type: audio/wav",
        b"accept: */*",
        b"user-agent: deepgram/0.9.2 rust",
        b"authorization: Token KEY",
        b"host: HOST",
        b"transfer-encoding: chunked",
    ),
    upgrade=(
        b"GET /v1/listen?model=nova-3&encoding=linear16&sample_rate=16000 HTTP/1.1",
        b"Host: NAME",
        b"Connection: upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        NONCE,
        b"user-agent: deepgram/0.9.2 rust",
        b"authorization: Token KEY",
    ),
    credential=b"uthorization: Token KEY",
    none=b"",  # Deepgram::with_base_url
)

# The SDK's own headers are in the order of a HashMap; OkHttp puts its own behind them.
_JAVA_OWN: Final = (
    b"Authorization: Token KEY",
    b"User-Agent: com.deepgram:deepgram-java-sdk/0.3.0",
    b"X-Fern-Language: JAVA",
    b"x-deepgram-session-id: 0d5a2c34-7c5e-4f0e-9f53-2f6f6b3f9a11",
    b"X-Fern-SDK-Name: com.deepgram:deepgram-java-sdk",
    b"X-Fern-SDK-Version: 0.3.0",
)
_JAVA: Final = Replay(
    post=(
        b"POST /v1/listen?model=nova-3 HTTP/1.1",
        *_JAVA_OWN,
        b"Accept: application/json",
        b"Content-Type: application/octet-stream",
        b"Content-Length: LENGTH",
        b"Host: HOST",
        b"Connection: Keep-Alive",
        b"Accept-Encoding: gzip",
    ),
    upgrade=(
        b"GET /v1/listen?encoding=linear16&model=nova-3&sample_rate=16000 HTTP/1.1",
        *_JAVA_OWN,
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        NONCE,
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Extensions: permessage-deflate",
        b"Host: HOST",
        b"Accept-Encoding: gzip",
    ),
    credential=b"Authorization: Token KEY",
)

REPLAYS: Final = {"go-3": _GO, "dotnet-7": _DOTNET, "rust-0.9": _RUST, "java-0.3": _JAVA}


def parametrised(*features: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test of these features with every replayed SDK."""
    each = pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.id) for cell in cells(REPLAYED, *features)])
    return lambda test: each(second_only(test))


def written(lines: tuple[bytes, ...], proxy: Proxy, key: str, length: int = 0) -> bytes:
    """The bytes of a head."""
    head = b"".join(line + b"\r\n" for line in lines if line) + b"\r\n"
    host = f"127.0.0.1:{proxy.port}".encode()
    for name, value in ((b"HOST", host), (b"NAME", b"127.0.0.1"), (b"KEY", key.encode()), (b"LENGTH", b"%d" % length)):
        head = head.replace(name, value)
    return head


def without_key(replay: Replay, lines: tuple[bytes, ...]) -> tuple[bytes, ...]:
    assert replay.none is not None
    return tuple(replay.none if replay.credential in line else line for line in lines)


def framed(replay: Replay, body: bytes) -> bytes:
    """The body, as it follows the head."""
    if not replay.chunked:
        return body
    pieces = [body[at : at + FRAME] for at in range(0, len(body), FRAME)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


# --- HTTP ------------------------------------------------------------------------------------------------------------


def posted(proxy: Proxy, replay: Replay, lines: tuple[bytes, ...], key: str, body: bytes) -> Answer:
    with raw.connect(proxy) as sock:
        sock.sendall(written(lines, proxy, key, len(body)) + framed(replay, body))
        return raw.read_answer(sock)


@parametrised("http-file")
def test_a_file(proxy: Proxy, upstream: Upstream, wav: bytes, cell: Cell) -> None:
    replay = REPLAYS[cell.sdk.id]
    answer = posted(proxy, replay, replay.post, proxy.key, wav)
    assert answer.status == 200
    assert answer.json()["metadata"]["sha256"] == digest(wav)[1]
    head = upstream.only()
    assert_posted(head, upstream, "/v1/listen?model=nova-3", wav)
    if replay.chunked:
        assert_chunked_kept(head)
    else:
        assert_length_kept(head, len(wav))
    seen(cell.sdk.id, cell.feature.id, "green")


@parametrised("wrong-key")
def test_a_wrong_key(proxy: Proxy, upstream: Upstream, wav: bytes, cell: Cell) -> None:
    replay = REPLAYS[cell.sdk.id]
    assert_told(posted(proxy, replay, replay.post, KEYS["wrong-key"], wav), BAD_CREDENTIAL)
    assert upstream.heads() == []
    seen(cell.sdk.id, cell.feature.id, "green", "Status 401 and the JSON body.")


@parametrised("no-key")
def test_no_key(proxy: Proxy, upstream: Upstream, wav: bytes, cell: Cell) -> None:
    replay = REPLAYS[cell.sdk.id]
    refusal = BAD_CREDENTIAL if replay.none else NO_CREDENTIAL
    assert_told(posted(proxy, replay, without_key(replay, replay.post), "", wav), refusal)
    head = written(without_key(replay, replay.upgrade), proxy, "")
    with raw.connect(proxy) as sock:
        sock.sendall(head)
        assert_told(raw.read_answer(sock), refusal)
    assert upstream.heads() == []
    seen(cell.sdk.id, cell.feature.id, "green", "Status 401 and the JSON body.")


def assert_told(answer: Answer, refusal: Refusal) -> None:
    assert_refusal(answer, 401, refusal.code)
    assert answer.json()["err_msg"] == refusal.message


# --- streams ---------------------------------------------------------------------------------------------------------


def upgraded(sock: ssl.SSLSocket, head: bytes) -> tuple[list[bytes], bytearray]:
    """The lines of the 101, and what already came behind it."""
    sock.sendall(head)
    told, _, rest = raw.read_head(sock).partition(b"\r\n\r\n")
    lines = told.split(b"\r\n")
    assert lines[0].startswith(b"HTTP/1.1 101 "), told
    assert ACCEPT in lines
    return lines, bytearray(rest)


def messages(sock: ssl.SSLSocket, got: bytearray) -> list[tuple[int, bytes]]:
    """Every frame up to and with Close."""

    def exactly(size: int) -> bytes:
        while len(got) < size:
            piece = sock.recv(65536)
            assert piece, "ended within a frame"
            got.extend(piece)
        taken = bytes(got[:size])
        del got[:size]
        return taken

    frames: list[tuple[int, bytes]] = []
    while not frames or frames[-1][0] != CLOSE:
        first, size = exactly(2)
        assert first & 0xF0 == 0x80  # whole, and not compressed
        if size >= 126:
            size = int.from_bytes(exactly(2 if size == 126 else 8), "big")
        frames.append((first & 0x0F, exactly(size)))
    return frames


def converse(sock: ssl.SSLSocket, head: bytes, pcm: bytes) -> list[bytes]:
    """A whole stream; the lines of its 101."""
    lines, rest = upgraded(sock, head)
    audio = b"".join(frame(BINARY, pcm[at : at + FRAME]) for at in range(0, len(pcm), FRAME))
    sock.sendall(audio + frame(TEXT, b'{"type":"CloseStream"}'))
    *texts, (_, close) = messages(sock, rest)
    assert {opcode for opcode, _ in texts} == {TEXT}
    assert b'"Metadata"' in texts[-1][1]
    assert close[:2] == b"\x03\xe8"
    sock.sendall(frame(CLOSE, close))
    return lines


def assert_streamed(upstream: Upstream, pcm: bytes, target: str) -> None:
    (head,) = upstream.wait_for(lambda heads: len(heads) == 1 and heads[0]["complete"])
    assert (head["method"], head["target"]) == ("GET", target)
    assert_forwarded(head, upstream, websocket=True)
    assert (head["body_bytes"], head["sha256"]) == digest(pcm)
    assert head["texts"] == ['{"type":"CloseStream"}']


@parametrised("stream")
def test_a_stream(proxy: Proxy, upstream: Upstream, pcm: bytes, cell: Cell) -> None:
    replay = REPLAYS[cell.sdk.id]
    with raw.connect(proxy) as sock:
        lines = converse(sock, written(replay.upgrade, proxy, proxy.key), pcm)
    (request_id,) = [line.partition(b": ")[2] for line in lines if line.lower().startswith(b"dg-request-id:")]
    uuid.UUID(request_id.decode())  # else Rust's gives up
    names = {line.partition(b":")[0].lower() for line in lines}
    assert not names & {b"sec-websocket-protocol", b"sec-websocket-extensions"}
    assert_streamed(upstream, pcm, replay.upgrade[0].split()[1].decode())
    notes = {
        "go-3": "Give the host without a scheme: of `wss://…` Go makes an empty `Host`, which is refused with 400.",
        "rust-0.9": "Its `Host` has no port; it needs the `dg-request-id` of the 101 to be a UUID, which it is.",
    }
    seen(cell.sdk.id, cell.feature.id, "green", notes.get(cell.sdk.id, ""))


@parametrised("wrong-key-stream")
def test_a_wrong_key_on_a_stream(proxy: Proxy, upstream: Upstream, cell: Cell) -> None:
    with raw.connect(proxy) as sock:
        sock.sendall(written(REPLAYS[cell.sdk.id].upgrade, proxy, KEYS["wrong-key-stream"]))
        assert_told(raw.read_answer(sock), BAD_CREDENTIAL)
    assert upstream.heads() == []
    note = "Status 401 and the JSON body."
    if cell.sdk.id == "go-3":
        note += " The SDK tries three times, 2 s apart."
    elif cell.sdk.id == "java-0.3":
        note += " The SDK tries again, 1 to 10 s apart, until `disconnect()`."
    seen(cell.sdk.id, cell.feature.id, "green", note)


@second_only
@pytest.mark.parametrize("host", ["wss://NAME", "https://NAME", "wss:"])
def test_gos_host_with_a_scheme_passes(proxy: Proxy, upstream: Upstream, pcm: bytes, host: str) -> None:
    """docs/security.md, "What passes on purpose"; the last is what Go before 1.20.6 makes of the first."""
    lines = tuple(line.replace(b"HOST", host.encode()) for line in _GO.upgrade)
    with raw.connect(proxy) as sock:
        converse(sock, written(lines, proxy, proxy.key), pcm)
    assert_streamed(upstream, pcm, _GO.upgrade[0].split()[1].decode())


@second_only
def test_gos_empty_host_is_refused(proxy: Proxy, upstream: Upstream) -> None:
    """What Go since 1.20.7 makes of a host option with a scheme."""
    lines = tuple(line.replace(b"HOST", b"") for line in _GO.upgrade)
    with raw.connect(proxy) as sock:
        sock.sendall(written(lines, proxy, proxy.key))
        assert_refusal(raw.read_answer(sock), 400, "BAD_REQUEST")
    assert upstream.heads() == []


@second_only
def test_rusts_bearer_is_as_good(proxy: Proxy, upstream: Upstream, pcm: bytes) -> None:
    """Deepgram::with_base_url_and_temp_token, with a key."""
    lines = tuple(line.replace(b"Token", b"Bearer") for line in _RUST.upgrade)
    with raw.connect(proxy) as sock:
        converse(sock, written(lines, proxy, proxy.key), pcm)
    assert_streamed(upstream, pcm, _RUST.upgrade[0].split()[1].decode())


# Node 20's native WebSocket, captured: it upgraded the connection that fetch() had used.
UNDICI: Final = (
    b"GET /v1/listen?model=nova-3 HTTP/1.1",
    b"host: HOST",
    b"connection: upgrade",
    b"upgrade: websocket",
    NONCE.replace(b"Sec-WebSocket-Key", b"sec-websocket-key"),
    b"sec-websocket-version: 13",
    b"sec-websocket-protocol: token, KEY",
    b"sec-websocket-extensions: permessage-deflate; client_max_window_bits",
    b"accept: */*",
    b"accept-language: *",
    b"sec-fetch-mode: websocket",
    b"user-agent: node",
    b"pragma: no-cache",
    b"cache-control: no-cache",
    b"accept-encoding: gzip, deflate",
)


@second_only
def test_undici_upgrades_a_connection_that_two_requests_have_used(proxy: Proxy, upstream: Upstream, pcm: bytes) -> None:
    with raw.connect(proxy) as sock:
        for _ in range(2):
            sock.sendall(
                written((b"GET /v1/models HTTP/1.1", b"host: HOST", b"authorization: Token KEY"), proxy, proxy.key)
            )
            assert raw.read_answer(sock).status == 200
        upstream.clear()
        lines = converse(sock, written(UNDICI, proxy, proxy.key), pcm)
    assert [line for line in lines if line.lower().startswith(b"sec-websocket-protocol")] == [
        b"Sec-WebSocket-Protocol: token"
    ]
    assert_streamed(upstream, pcm, "/v1/listen?model=nova-3")
