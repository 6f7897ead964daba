"""F: framing and smuggling. What two parsers could read as two things is read by nobody."""

from typing import Final

import pytest

from tests.conftest import second_only
from tests.support.clients import assert_forwarded, assert_refusal
from tests.support.proxy import Proxy
from tests.support.raw import (
    AUTH,
    CODES,
    HOST,
    SECOND,
    answers,
    assert_honest_is_served_and_nothing_else_was,
    assert_refused_for_good,
    connect,
    exchange,
    post,
    read_all,
    ws,
)
from tests.support.upstreams import Upstream, values

pytestmark = [second_only]

LENGTHS: Final = (b"", b"+5", b"-5", b"0x5", b"5.0", b"5\t5", b"1_000", b"\xd9\xa5", b"5 5", b"5,")
CODINGS: Final = (
    b"gzip",
    b"gzip, chunked",
    b"identity",
    b"chunked, chunked",
    b"chunked;q=1",
    b'"chunked"',
    b"",
    b"chunked\r\nTransfer-Encoding: chunked",
)
ODD: Final = {"VT": b"\x0b", "FF": b"\x0c", "NBSP": b"\xa0", "NUL": b"\x00"}
CONTROLS: Final = (b"\x00", b"\x01", b"\x07", b"\x08", b"\x1b", b"\x7f")

CLOSED: Final[dict[str, tuple[bytes, int]]] = {
    "F1 length, chunked": (post(b"Content-Length: 6", b"Transfer-Encoding: chunked") + b"0\r\n\r\nX", 400),
    "F1 chunked, length": (post(b"Transfer-Encoding: chunked", b"Content-Length: 6") + b"0\r\n\r\nX", 400),
    "F2 equal": (post(b"Content-Length: 5", b"Content-Length: 5") + b"audio", 400),
    "F2 not equal": (post(b"Content-Length: 5", b"Content-Length: 6") + b"audio", 400),
    "F2 a list": (post(b"Content-Length: 5, 5") + b"audio", 400),
    **{f"F3 {value!r}": (post(b"Content-Length: " + value) + b"audio", 400) for value in LENGTHS},
    "F3 white space inside": (post(b"Content-Length: 1 0") + b"audioaudio", 400),
    "F3 a second line": (post(b"Content-Length: 5", b"Content-Length:") + b"audio", 400),
    "F4 20 digits": (post(b"Content-Length: 00000000000000000005") + b"audio", 400),
    "F4 2^63": (post(b"Content-Length: 9223372036854775808"), 400),
    "F4 2^64+1": (post(b"Content-Length: 18446744073709551617") + b"a", 400),
    "F4 19 digits": (post(b"Content-Length: 1000000000000000000"), 400),
    "F5 over max_body": (post(b"Content-Length: 3000000000") + b"audio", 413),
    "F5 as long as a length may be": (post(b"Content-Length: 999999999999999999") + b"audio", 413),
    "F6": (post(b"Transfer-Encoding: chunked", first=b"POST /v1/listen HTTP/1.0") + b"0\r\n\r\n", 400),
    **{f"F7 {value!r}": (post(b"Transfer-Encoding: " + value) + b"0\r\n\r\n", 400) for value in CODINGS},
    **{f"F9 {name} before": (post(b"Transfer-Encoding: " + odd + b"chunked"), 400) for name, odd in ODD.items()},
    **{f"F9 {name} after": (post(b"Transfer-Encoding: chunked" + odd), 400) for name, odd in ODD.items()},
    **{f"F9 {name} in the name": (post(b"Transfer-Encoding" + odd + b": chunked"), 400) for name, odd in ODD.items()},
    "F10 space": (post(b"Content-Length : 5") + b"audio", 400),
    "F10 tab": (post(b"Transfer-Encoding\t: chunked") + b"0\r\n\r\n", 400),
    "F11 space": (post(b"X-A: b", b" Content-Length: 5"), 400),
    "F11 tab": (post(b"X-A: b", b"\tc"), 400),
    "F11 first": (b"GET /v1/models HTTP/1.1\r\n Host: dg\r\n" + AUTH + b"\r\n", 400),
    "F12 LF in the head": (b"GET /v1/models HTTP/1.1\r\nHost: dg\n" + AUTH + b"\r\n", 400),
    "F12 LF for the empty line": (b"GET /v1/models HTTP/1.1\r\n" + HOST + AUTH + b"\n", 400),
    "F12 LF everywhere": (b"GET /v1/models HTTP/1.1\nHost: dg\nAuthorization: Token KEY\n\n", 400),
    "F12 LF in a line": (post(b"X-A: b\nContent-Length: 5") + b"audio", 400),
    "F12 CRLF LF": (b"GET /v1/models HTTP/1.1\r\n" + HOST + AUTH + b"\n\r\n", 400),
    "F13 in a value": (post(b"X-A: b\rContent-Length: 5"), 400),
    "F13 CR CR LF": (b"GET /v1/models HTTP/1.1\r\n" + HOST + b"X: y\r\r\n" + AUTH + b"\r\n", 400),
    **{f"F14 {byte!r} in a name": (post(b"X" + byte + b"Y: a"), 400) for byte in CONTROLS},
    **{f"F14 {byte!r} in a value": (post(b"X: a" + byte), 400) for byte in CONTROLS},
    **{f"F14 {byte!r} in the target": (post(first=b"GET /v1/mod" + byte + b" HTTP/1.1"), 400) for byte in CONTROLS},
    **{f"F14 {byte!r} in the method": (post(first=b"GE" + byte + b"T /v1/models HTTP/1.1"), 400) for byte in CONTROLS},
    "F15 no colon": (post(b"X-A"), 400),
    "F15 empty name": (post(b": a"), 400),
    **{
        f"F15 {byte!r} in a name": (post(b"X" + byte + b"Y: a"), 400) for byte in (b"(", b"@", b'"', "é".encode(), b" ")
    },
    "F22": (ws(without=b"Sec-WebSocket-Key"), 400),
    **{
        f"F24 {line!r}": (line + b"\r\n" + HOST + AUTH + b"\r\n", 400)
        for line in (
            b"GET  /v1/models HTTP/1.1",
            b"GET /v1/models  HTTP/1.1",
            b"GET\t/v1/models HTTP/1.1",
            b" GET /v1/models HTTP/1.1",
            b"GET /v1/models HTTP/1.1 ",
            b"get /v1/models HTTP/1.1",
            b"GET /v1/models",
            b"GET /v1/models ",
            b"Get /v1/models HTTP/1.1",
            b"GET /v1/models\tHTTP/1.1",
            b"GET /v1/models HTTP/1.1\t",
            b"GET /v1/models HTTP/1.1 HTTP/1.1",
            b"GET /v1/a b HTTP/1.1",
            b"GETTINGMODELSFROM /v1/models HTTP/1.1",
        )
    },
    "F25 two empty lines": (b"\r\n\r\n" + SECOND, 400),
    "F25 an empty line of LF": (b"\n" + SECOND, 400),
    "F25 CR alone": (b"\rG", 400),
    **{
        f"F26 {version!r}": (b"GET /v1/models " + version + b"\r\n" + HOST + AUTH + b"\r\n", 400)
        for version in (
            *(b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/3", b"http/1.1"),
            *(b"HTTP/1.11", b"HTTP/01.1", b"HTTP/1.", b"HTTP/11", b"HTTP/1:1", b"HTTPS/1.1"),
        )
    },
    "F26 HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 400),
    "F32": (post(b"Content-Length: 5", b"Expect: 200-maybe"), 417),
    "F32 empty": (post(b"Content-Length: 5", b"Expect:"), 417),
    "F32 twice": (post(b"Content-Length: 5", b"Expect: 100-continue", b"Expect: 100-continue"), 417),
    "F32 in HTTP/1.0": (post(b"Expect: 100-continue", first=b"POST /v1/listen HTTP/1.0"), 417),
}


@pytest.mark.parametrize(("sent", "status"), CLOSED.values(), ids=CLOSED)
def test_it_is_refused_and_nothing_after_it_is_served(
    proxy: Proxy, upstream: Upstream, sent: bytes, status: int
) -> None:
    assert_refused_for_good(proxy, upstream, status, sent)


def test_f5_the_answer_reaches_a_client_that_is_still_uploading(proxy: Proxy, upstream: Upstream) -> None:
    with connect(proxy) as sock:
        sock.sendall(post(b"Content-Length: 3000000000").replace(b"KEY", proxy.key.encode()))
        for _ in range(64):
            sock.sendall(bytes(256 * 1024))
        (answer,) = answers(read_all(sock))
    assert_refusal(answer, 413, CODES[413])
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


def test_f8_chunked_in_any_case_is_chunked(proxy: Proxy, upstream: Upstream) -> None:
    body = b"5\r\naudio\r\n0\r\n\r\n"
    (answer,) = exchange(proxy, post(b"Transfer-Encoding: ChUnKeD", b"Connection: close") + body)
    assert answer.status == 200
    head = upstream.only()
    assert (values(head, "Transfer-Encoding"), head["body_bytes"]) == (["chunked"], 5)


def test_f20_bytes_after_an_empty_body_are_the_next_request_and_need_their_own_key(
    proxy: Proxy, upstream: Upstream
) -> None:
    inner = b"GET /v1/models?inner HTTP/1.1\r\nHost: dg\r\n\r\n"
    statuses = [answer.status for answer in exchange(proxy, post(b"Content-Length: 0") + inner + SECOND)]
    assert statuses == [200, 401, 200]
    assert [head["target"] for head in upstream.heads()] == ["/v1/listen", "/v1/models?second"]


def test_f21_two_requests_in_one_packet_are_answered_in_their_order(proxy: Proxy, upstream: Upstream) -> None:
    asked = [b"GET /v1/models?n=%d HTTP/1.1\r\n" % n + HOST + AUTH + b"\r\n" for n in range(3)]
    asked.insert(1, post(b"Content-Length: 5", first=b"POST /v1/listen?standin_status=429 HTTP/1.1") + b"audio")
    asked.insert(3, b"GET /v1/nothing HTTP/1.1\r\n" + HOST + AUTH + b"\r\n")
    statuses = [answer.status for answer in exchange(proxy, b"".join(asked) + SECOND)]
    assert statuses == [200, 429, 200, 404, 200, 200]
    targets = [head["target"] for head in upstream.heads()]
    assert targets == [
        "/v1/models?n=0",
        "/v1/listen?standin_status=429",
        "/v1/models?n=1",
        "/v1/models?n=2",
        "/v1/models?second",
    ]


def test_f22_nothing_behind_a_refused_upgrade_is_served(proxy: Proxy, upstream: Upstream) -> None:
    wrong = ws().replace(b"Authorization: Token KEY", b"Authorization: Token wrong")
    (answer,) = exchange(proxy, wrong + SECOND)
    assert_refusal(answer, 401, CODES[401])
    assert answer.value("connection") == "close"
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


def test_f22_nor_behind_one_that_the_upstream_refuses(proxy: Proxy, upstream: Upstream) -> None:
    (answer,) = exchange(proxy, ws(target=b"/v1/listen?standin_status=429") + SECOND)
    assert (answer.status, answer.json()["err_code"]) == (429, "TOO_MANY_REQUESTS")
    assert [head["target"] for head in upstream.heads()] == ["/v1/listen?standin_status=429"]


def test_f23_a_get_with_a_body_leaves_none_of_it_in_the_connection(proxy: Proxy, upstream: Upstream) -> None:
    inner = b"GET /v1/models?inner HTTP/1.1\r\nHost: dg\r\nAuthorization: Token KEY\r\n\r\n"
    size = len(inner) - len("KEY") + len(proxy.key)
    get = post(b"Content-Length: %d" % size, first=b"GET /v1/models?first HTTP/1.1")
    statuses = [answer.status for answer in exchange(proxy, get + inner + SECOND)]
    assert statuses[0] == 200
    targets = [head["target"] for head in upstream.heads()]
    assert targets in (["/v1/models?first"], ["/v1/models?first", "/v1/models?second"])
    assert len(statuses) == len(targets)


def test_f25_one_empty_line_before_a_request_is_forgiven(proxy: Proxy, upstream: Upstream) -> None:
    for pieces in ((b"\r\n" + SECOND,), (b"\r", b"\n", SECOND)):
        (answer,) = exchange(proxy, *pieces)
        assert answer.status == 200
    assert len(upstream.heads()) == 2


def test_f31_a_good_key_gets_its_100_and_then_its_answer(proxy: Proxy, upstream: Upstream) -> None:
    with connect(proxy) as sock:
        head = post(b"Content-Length: 5", b"Expect: 100-continue", b"Connection: close")
        sock.sendall(head.replace(b"KEY", proxy.key.encode()))
        told = b""
        while not told.endswith(b"\r\n\r\n"):
            told += sock.recv(4096)
        assert told.startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"audio")
        (answer,) = answers(read_all(sock))
    assert answer.status == 200
    assert_forwarded(upstream.only(), upstream)  # Expect is answered here and not there
