"""W: WebSocket handshakes (RFC 6455 4). One that is not valid is never served as plain HTTP instead."""

import json
from typing import Final

import pytest

from tests.conftest import second_only
from tests.support.clients import assert_forwarded, assert_refusal
from tests.support.proxy import Proxy
from tests.support.raw import (
    CODES,
    SECOND,
    WS,
    assert_honest_is_served_and_nothing_else_was,
    assert_refused_for_good,
    connect,
    exchange,
    read_all,
    read_head,
    ws,
)
from tests.support.upstreams import Upstream

pytestmark = [second_only]

CLOSED: Final[dict[str, tuple[bytes, int]]] = {
    "W1 POST": (ws(first=b"POST /v1/listen HTTP/1.1"), 400),
    "W1 HTTP/1.0": (ws(first=b"GET /v1/listen HTTP/1.0"), 400),
    "W1 version 12": (ws(b"Sec-WebSocket-Version: 12", without=b"Sec-WebSocket-Version"), 426),
    "W1 no version": (ws(without=b"Sec-WebSocket-Version"), 400),
    "W1 no key": (ws(without=b"Sec-WebSocket-Key"), 400),
    "W1 key twice": (ws(WS[-1]), 400),
    "W1 15 bytes": (ws(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j", without=b"Sec-WebSocket-Key"), 400),
    "W1 17 bytes": (ws(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZTE=", without=b"Sec-WebSocket-Key"), 400),
    "W1 not base64": (ws(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j!!==", without=b"Sec-WebSocket-Key"), 400),
    "W1 a length": (ws(b"Content-Length: 5") + b"audio", 400),
    "W1 chunked": (ws(b"Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    "W2 no Connection": (ws(without=b"Connection"), 400),
    "W2 another Connection": (ws(b"Connection: keep-alive", without=b"Connection"), 400),
    "W2 a path without WebSocket": (ws(target=b"/v1/models"), 404),
    "W2 a path that is not served": (ws(target=b"/v1/other"), 404),
}


@pytest.mark.parametrize(("sent", "status"), CLOSED.values(), ids=CLOSED)
def test_it_is_refused_and_nothing_after_it_is_served(
    proxy: Proxy, upstream: Upstream, sent: bytes, status: int
) -> None:
    assert_refused_for_good(proxy, upstream, status, sent)


def opened(proxy: Proxy, head: bytes) -> list[str]:
    """The lines of the 101 that this head gets; the stream is closed by the client then (a masked CLOSE of 1000)."""
    with connect(proxy) as sock:
        sock.sendall(head.replace(b"KEY", proxy.key.encode()))
        told = read_head(sock)
        sock.sendall(b"\x88\x82\0\0\0\0\x03\xe8")
        read_all(sock)
    lines = told.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    assert lines[0].startswith("HTTP/1.1 101 "), told
    return [line.lower() for line in lines[1:]]


def test_w5_an_extension_is_offered_to_nobody_and_agreed_with_nobody(proxy: Proxy, upstream: Upstream) -> None:
    lines = opened(
        proxy,
        ws(
            b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits", target=b"/v1/listen?standin_echo=1"
        ),
    )
    assert not [line for line in lines if line.startswith("sec-websocket-extensions")]
    assert_forwarded(upstream.only(), upstream, websocket=True)


@pytest.mark.parametrize("word", [b"token", b"bearer", b"Token"])
def test_w15_the_same_key_in_header_and_subprotocol_opens_a_stream(
    proxy: Proxy, upstream: Upstream, word: bytes
) -> None:
    lines = opened(proxy, ws(b"Sec-WebSocket-Protocol: " + word + b", KEY", target=b"/v1/listen?standin_echo=1"))
    chosen = [line for line in lines if line.startswith("sec-websocket-protocol")]
    assert chosen == [f"sec-websocket-protocol: {word.decode().lower()}"]
    assert_forwarded(upstream.only(), upstream, websocket=True)


OFFERS: Final[dict[str, tuple[bytes, bytes, int]]] = {
    "W14 token": (b"token", b"", 401),
    "W14 token,": (b"token,", b"", 401),
    "W14 bearer, a, b": (b"bearer, a, b", b"", 401),
    "W14 100 entries": (b"token, KEY" + b"".join(b", p%d" % n for n in range(98)), b"", 400),
    "W14 the key first": (b"KEY, token", b"", 401),
    "W14 the key twice": (b"token, KEY, KEY", b"", 400),
    "W14 two pairs": (b"token, KEY, bearer, KEY", b"", 400),
    "W14 the key alone": (b"KEY", b"", 401),
    "W15 another in the header": (b"token, KEY", b"Token another", 400),
    "W15 another in the subprotocol": (b"token, another", b"Token KEY", 400),
}


@pytest.mark.parametrize(("offer", "header", "status"), OFFERS.values(), ids=OFFERS)
def test_a_subprotocol_that_is_no_credential_is_refused_and_not_echoed(
    proxy: Proxy, upstream: Upstream, offer: bytes, header: bytes, status: int
) -> None:
    sent = ws(b"Sec-WebSocket-Protocol: " + offer).replace(
        b"Authorization: Token KEY\r\n", b"Authorization: " + header + b"\r\n" if header else b""
    )
    (answer,) = exchange(proxy, sent + SECOND)
    assert_refusal(answer, status, CODES[status])
    assert not answer.values("sec-websocket-protocol")
    assert proxy.key not in json.dumps([answer.headers, answer.body.decode()])
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)
