"""WebSocket handshakes: the client's is valid or refused, ours is new and its answer verified.

Sources: RFC 6455 4; bad-inputs.md W1, W2, W4, W5, H12.
"""

import base64
import hashlib
from typing import Final

import pytest
from hypothesis import given, strategies as st

from dgproxy.wire.handshake import DownstreamHandshake, UpstreamHandshake
from dgproxy.wire.head import Head, judge
from dgproxy.wire.refusals import BAD_HANDSHAKE, BAD_WS_VERSION, Refusal
from dgproxy.wire.response import Answer, BadAnswer, judge as answer_of

KEY: Final = b"dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 1.3, with the accept below
ACCEPT: Final = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
LINES: Final = (
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: " + KEY,
)


def head(*lines: bytes, without: bytes = b"-", first: bytes = b"GET /v1/listen HTTP/1.1") -> Head:
    kept = [line for line in LINES if not line.startswith(without)]
    made = judge(b"\r\n".join([first, b"Host: dg", *kept, *lines, b"", b""]))
    assert isinstance(made, Head), made
    return made


GOOD: Final = {
    "RFC 6455's own": head(),
    "JS: Host last": judge(b"GET /v1/listen HTTP/1.1\r\n" + b"\r\n".join(LINES) + b"\r\nHost: dg\r\n\r\n"),
    "undici": head(b"connection: upgrade", b"upgrade: websocket", without=b"U"),
    "other cases": head(b"UPGRADE: WebSocket", b"CONNECTION: keep-alive, UPGRADE", without=b"U"),
    "an extension offered": head(b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"),
    "a subprotocol offered": head(b"Sec-WebSocket-Protocol: token, abc"),
    "JS 4's Content-Type": head(b"Content-Type: application/json"),
    "a length of none": head(b"Content-Length: 0"),
    "non-ASCII in a header": head(b"User-Agent: caf\xe9"),
}


@pytest.mark.parametrize("asked", GOOD.values(), ids=GOOD)
def test_a_valid_handshake_is_taken_and_answered_without_an_extension(asked: Head) -> None:
    assert asked.websocket
    handshake = DownstreamHandshake.begin(asked)
    assert isinstance(handshake, DownstreamHandshake)
    raw = handshake.accept(None, [(b"dg-request-id", b"r")])
    answer = answer_of(raw)
    assert answer.status == 101
    assert answer.one(b"sec-websocket-accept") == ACCEPT
    assert answer.one(b"dg-request-id") == b"r"
    assert answer.one(b"upgrade") is not None
    names = [name for name, _ in answer.headers]
    assert b"sec-websocket-extensions" not in names
    assert b"sec-websocket-protocol" not in names


@pytest.mark.parametrize("subprotocol", ["token", "Bearer"])
def test_the_101_selects_exactly_the_word_and_not_the_key(subprotocol: str) -> None:
    handshake = DownstreamHandshake.begin(head(f"Sec-WebSocket-Protocol: {subprotocol}, dgp_x_y, other".encode()))
    assert isinstance(handshake, DownstreamHandshake)
    answer = answer_of(handshake.accept(subprotocol, []))
    assert answer.one(b"sec-websocket-protocol") == subprotocol.encode()
    assert b"dgp_x_y" not in answer.raw


def key(raw: bytes) -> bytes:
    return b"Sec-WebSocket-Key: " + base64.b64encode(raw)


BAD: Final[dict[str, tuple[Head, Refusal]]] = {
    "W1 POST": (head(first=b"POST /v1/listen HTTP/1.1"), BAD_HANDSHAKE),
    "W1 HEAD": (head(first=b"HEAD /v1/listen HTTP/1.1"), BAD_HANDSHAKE),
    "W1 HTTP/1.0": (head(first=b"GET /v1/listen HTTP/1.0"), BAD_HANDSHAKE),
    "W1 version 12": (head(b"Sec-WebSocket-Version: 12", without=b"Sec-WebSocket-V"), BAD_WS_VERSION),
    "W1 version 013": (head(b"Sec-WebSocket-Version: 013", without=b"Sec-WebSocket-V"), BAD_WS_VERSION),
    "W1 two versions": (head(b"Sec-WebSocket-Version: 8"), BAD_WS_VERSION),
    "W1 a list of versions": (head(b"Sec-WebSocket-Version: 13, 8", without=b"Sec-WebSocket-V"), BAD_WS_VERSION),
    "W1 an empty version": (head(b"Sec-WebSocket-Version:", without=b"Sec-WebSocket-V"), BAD_WS_VERSION),
    "W1 no version": (head(without=b"Sec-WebSocket-V"), BAD_HANDSHAKE),
    "W1 no key": (head(without=b"Sec-WebSocket-K"), BAD_HANDSHAKE),
    "W1 key twice": (head(LINES[-1]), BAD_HANDSHAKE),
    "W1 an empty key": (head(b"Sec-WebSocket-Key:", without=b"Sec-WebSocket-K"), BAD_HANDSHAKE),
    "W1 15 bytes": (head(key(bytes(15)), without=b"Sec-WebSocket-K"), BAD_HANDSHAKE),
    "W1 17 bytes": (head(key(bytes(17)), without=b"Sec-WebSocket-K"), BAD_HANDSHAKE),
    "W1 no base64": (head(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j!!==", without=b"Sec-WebSocket-K"), BAD_HANDSHAKE),
    "W1 base64url": (head(b"Sec-WebSocket-Key: _-_-IHNhbXBsZSBub25jZQ==", without=b"Sec-WebSocket-K"), BAD_HANDSHAKE),
    "W1 no padding": (head(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ", without=b"Sec-WebSocket-K"), BAD_HANDSHAKE),
    "W1 stray bits": (head(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR==", without=b"Sec-WebSocket-K"), BAD_HANDSHAKE),
    "W1 a key and more": (head(b"Sec-WebSocket-Key: " + KEY + b", x", without=b"Sec-WebSocket-K"), BAD_HANDSHAKE),
    "W1 a length": (head(b"Content-Length: 1"), BAD_HANDSHAKE),
    "W1 chunked": (head(b"Transfer-Encoding: chunked"), BAD_HANDSHAKE),
    "W2 no Connection": (head(without=b"Connection"), BAD_HANDSHAKE),
    "W2 another Connection": (head(b"Connection: close", without=b"Connection"), BAD_HANDSHAKE),
    "W2 upgrades": (head(b"Connection: upgrades", without=b"Connection"), BAD_HANDSHAKE),
    "H12 foo, websocket": (head(b"Upgrade: foo, websocket", without=b"Upgrade"), BAD_HANDSHAKE),
    "H12 websocket twice": (head(b"Upgrade: websocket"), BAD_HANDSHAKE),
    "H12 websocket/13": (head(b"Upgrade: websocket/13", without=b"Upgrade"), BAD_HANDSHAKE),
}


@pytest.mark.parametrize(("asked", "refusal"), BAD.values(), ids=BAD)
def test_a_handshake_that_is_none_is_refused_and_never_served_as_plain_http(asked: Head, refusal: Refusal) -> None:
    assert asked.websocket
    assert DownstreamHandshake.begin(asked) is refusal
    assert refusal.close


def test_a_wrong_version_is_told_the_right_one() -> None:
    assert BAD_WS_VERSION.status == 426
    assert ("Sec-WebSocket-Version", "13") in BAD_WS_VERSION.headers


@given(st.binary(max_size=40))
def test_only_sixteen_bytes_are_a_key(raw: bytes) -> None:
    handshake = DownstreamHandshake.begin(head(key(raw), without=b"Sec-WebSocket-K"))
    assert isinstance(handshake, DownstreamHandshake) is (len(raw) == 16)


# --- towards the container -------------------------------------------------------------------------------------------


def ours(target: bytes = b"/v1/listen?keyterm=a%20b&x=%00") -> tuple[UpstreamHandshake, Head]:
    handshake = UpstreamHandshake(target, [(b"Host", b"dg:8080"), (b"X-Request-Id", b"r"), (b"User-Agent", b"caf\xe9")])
    sent = judge(handshake.head)
    assert isinstance(sent, Head)
    return handshake, sent


def accept(sent: Head) -> bytes:
    sent_key = sent.one(b"sec-websocket-key")
    assert sent_key is not None
    return base64.b64encode(hashlib.sha1(sent_key + GUID).digest())  # noqa: S324 - RFC 6455's


def answer(*lines: bytes, status: bytes = b"101 Switching Protocols") -> Answer:
    return answer_of(b"\r\n".join([b"HTTP/1.1 " + status, *lines, b"", b""]))


def test_our_handshake_is_one_that_we_would_take() -> None:
    _, sent = ours()
    assert sent.target == b"/v1/listen?keyterm=a%20b&x=%00"
    assert isinstance(DownstreamHandshake.begin(sent), DownstreamHandshake)
    assert sent.all(b"host") == [b"dg:8080"]
    assert (sent.one(b"x-request-id"), sent.one(b"user-agent")) == (b"r", b"caf\xe9")
    assert not sent.all(b"sec-websocket-extensions")
    assert not sent.all(b"sec-websocket-protocol")
    assert sent.one(b"sec-websocket-key") != ours()[1].one(b"sec-websocket-key")


def test_the_answer_to_our_key_is_taken() -> None:
    handshake, sent = ours()
    handshake.verify(
        answer(b"upgrade: WebSocket", b"CONNECTION: Upgrade", b"Sec-WebSocket-Accept: " + accept(sent), b"X: \xe9")
    )


UPGRADE: Final = (b"Upgrade: websocket", b"Connection: Upgrade")
WRONG: Final[dict[str, tuple[bytes, ...]]] = {
    "no accept": UPGRADE,
    "accept of another key": (*UPGRADE, b"Sec-WebSocket-Accept: " + ACCEPT),
    "an empty accept": (*UPGRADE, b"Sec-WebSocket-Accept:"),
    "no Upgrade": (UPGRADE[1], b"Sec-WebSocket-Accept: OURS"),
    "another Upgrade": (b"Upgrade: h2c", UPGRADE[1], b"Sec-WebSocket-Accept: OURS"),
    "no Connection": (UPGRADE[0], b"Sec-WebSocket-Accept: OURS"),
    "another Connection": (UPGRADE[0], b"Connection: close", b"Sec-WebSocket-Accept: OURS"),
    "an extension": (*UPGRADE, b"Sec-WebSocket-Accept: OURS", b"Sec-WebSocket-Extensions: permessage-deflate"),
    "a subprotocol": (*UPGRADE, b"Sec-WebSocket-Accept: OURS", b"Sec-WebSocket-Protocol: token"),
}


@pytest.mark.parametrize("lines", WRONG.values(), ids=WRONG)
def test_w4_a_101_that_does_not_answer_our_handshake_opens_nothing(lines: tuple[bytes, ...]) -> None:
    handshake, sent = ours()
    with pytest.raises(BadAnswer):
        handshake.verify(answer(*[line.replace(b"OURS", accept(sent)) for line in lines]))


@pytest.mark.parametrize("status", [b"200 OK", b"401 Unauthorized", b"426 Upgrade Required", b"100 Continue"])
def test_w4_another_status_opens_nothing(status: bytes) -> None:
    handshake, sent = ours()
    with pytest.raises(BadAnswer):
        handshake.verify(answer(*UPGRADE, b"Sec-WebSocket-Accept: " + accept(sent), status=status))
