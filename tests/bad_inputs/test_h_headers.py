"""H: headers and targets. A path is its bytes; what is hop-by-hop, secret or ours to say stays here."""

import json
import re
from collections.abc import Callable
from typing import Final

import pytest

from tests.conftest import second_only
from tests.support.clients import assert_forwarded, assert_refusal
from tests.support.logs import mentions
from tests.support.proxy import Proxy
from tests.support.raw import (
    AUTH,
    CODES,
    HOST,
    MAX_HEAD,
    SECOND,
    answers,
    assert_honest_is_served_and_nothing_else_was,
    assert_refused_alone,
    assert_refused_for_good,
    connect,
    exchange,
    get,
    post,
    read_all,
    read_head,
    send,
    ws,
)
from tests.support.upstreams import Upstream, values

pytestmark = [second_only]

CLOSED: Final[dict[str, tuple[bytes, int]]] = {
    "H1 none": (b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"\r\n", 400),
    "H1 none in HTTP/1.0": (b"GET /v1/models HTTP/1.0\r\n" + AUTH + b"\r\n", 400),
    "H1 one of two empty": (get(b"Host:"), 400),
    "H1 two": (b"GET /v1/models HTTP/1.1\r\n" + HOST + HOST + AUTH + b"\r\n", 400),
    **{
        f"H1 {value!r}": (b"GET /v1/models HTTP/1.1\r\nHost: " + value + b"\r\n" + AUTH + b"\r\n", 400)
        for value in (
            *(b"", b"user@dg", b"dg/path", b"d\x01g", b"dg, dg", b"dg dg", b"dg?a", b"dg#a", b"d\xe9", b"\xc3\xa9"),
            *(b"dg:port", b"dg:123456", b"[::1", b"[dg]", b"https://user@dg", b"https://dg/", b"file://dg", b"\x00"),
        )
    },
    "H2 absolute": (post(first=b"GET http://other.example/v1/models HTTP/1.1"), 400),
    "H2 absolute, our host": (post(first=b"GET https://dg/v1/models HTTP/1.1"), 400),
    "H2 authority": (post(first=b"GET dg:443 HTTP/1.1"), 400),
    "H2 asterisk": (post(first=b"OPTIONS * HTTP/1.1"), 400),
    "H2 absolute, another scheme": (post(first=b"GET file:///v1/models HTTP/1.1"), 400),
    "H2 OPTIONS of an authority": (post(first=b"OPTIONS dg HTTP/1.1"), 400),
    "H2 no slash": (post(first=b"GET v1/models HTTP/1.1"), 400),
    "H2 CONNECT of a path": (post(first=b"CONNECT /v1/models HTTP/1.1"), 405),
    "H2 CONNECT": (post(first=b"CONNECT dg:443 HTTP/1.1"), 405),
    "H2 TRACE": (post(first=b"TRACE /v1/models HTTP/1.1"), 405),
    "H4": (post(first=b"GET /v1/models#part HTTP/1.1"), 400),
    "H4 in the query": (get(target=b"/v1/models?a#part"), 400),
    "H6 one raw byte": (get(target=b"/v1/models?a=\x80"), 400),
    "H6 raw non-ASCII": (post(first="GET /v1/models?keyterm=é HTTP/1.1".encode()), 400),
    "H7 one write": (post(b"X: " + b"x" * MAX_HEAD), 431),
    "H7 a target": (post(first=b"GET /v1/models?" + b"x" * MAX_HEAD + b" HTTP/1.1"), 431),
    "H7 no end": (b"GET /v1/models HTTP/1.1\r\nX: " + b"x" * (2 * MAX_HEAD), 431),
    "H7 101 headers": (post(*[b"X: y"] * 99), 431),
    "H8 Content-Length": (post(b"Connection: close, Content-Length", b"Content-Length: 5") + b"audio", 400),
    "H8 Transfer-Encoding": (post(b"Connection: Transfer-Encoding", b"Transfer-Encoding: chunked"), 400),
    "H8 in odd case": (post(b"connection:close ,\tcontent-LENGTH\t", b"Content-Length: 5") + b"audio", 400),
    "H8 in a second line": (get(b"Connection: close", b"Connection: content-length"), 400),
    "H8 Host": (get(b"Connection: host"), 400),
    "H12 websocket, h2c": (ws(b"Upgrade: websocket, h2c", without=b"Upgrade"), 400),
    "H12 two lines": (ws(b"Upgrade: h2c"), 400),
    "H12 websocket/13": (ws(b"Upgrade: websocket/13", without=b"Upgrade"), 400),
    "H12 foo, websocket": (ws(b"Upgrade: foo, websocket", without=b"Upgrade"), 400),
}


@pytest.mark.parametrize(("sent", "status"), CLOSED.values(), ids=CLOSED)
def test_it_is_refused_and_nothing_after_it_is_served(
    proxy: Proxy, upstream: Upstream, sent: bytes, status: int
) -> None:
    assert_refused_for_good(proxy, upstream, status, sent)


OPEN: Final[dict[str, tuple[bytes, int]]] = {
    **{
        f"H3 {target!r}": (b"GET " + target + b" HTTP/1.1\r\n" + HOST + AUTH + b"\r\n", 404)
        for target in (
            b"/v1/listen/../status",
            b"/v1/./listen",
            b"//v1/listen",
            b"/v1/models/",
            b"/V1/MODELS",
            b"/v1/models;x",
            b"/v1/listen%2f..",
            b"/%76%31/models",
            b"/v1\\models",
            b"/v1/models/..%5cstatus",
            b"/v1/models/%2e%2e",
            b"/v1/status",
            b"/v1/models%00",
            b"/v1/models%20",
            b"/v1/models%3fa",
            b"/v1/models/a/b",
            b"/v1/models/a%2fb",
            b"/v1/models/" + b"a" * 129,
            b"/v1%2Fmodels",
            b"/v1/%6dodels",
            b"/v1\\..\\models",
            b"/v1/models&a",
            b"/v1",
            b"/",
        )
    },
}


@pytest.mark.parametrize(("sent", "status"), OPEN.values(), ids=OPEN)
def test_it_is_refused_and_what_follows_is_judged_on_its_own(
    proxy: Proxy, upstream: Upstream, sent: bytes, status: int
) -> None:
    assert_refused_alone(proxy, upstream, status, sent)


LONG: Final = b"r" * 10_000


def test_h7_a_head_that_comes_byte_by_byte_is_bounded_too(proxy: Proxy, upstream: Upstream) -> None:
    with connect(proxy) as sock:
        for byte in b"GET /v1/models HTTP/1.1\r\nX: " + b"x" * MAX_HEAD:
            sock.send(bytes((byte,)))
        (answer,) = answers(read_all(sock))
    assert_refusal(answer, 431, CODES[431])
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


def test_h5_a_query_of_30_kb_passes_byte_for_byte(proxy: Proxy, upstream: Upstream) -> None:
    query = "&".join(f"keyterm=term%20{n:03}+" + "x" * 280 for n in range(100))
    assert len(query) > 29_000
    (answer,) = exchange(
        proxy,
        post(b"Content-Length: 5", b"Connection: close", first=f"POST /v1/listen?{query} HTTP/1.1".encode()) + b"audio",
    )
    assert answer.status == 200
    assert upstream.only()["target"] == f"/v1/listen?{query}"


def test_h6_escapes_in_a_query_pass_unread(proxy: Proxy, upstream: Upstream) -> None:
    query = "a=%00&b=%0d%0aX:%20y&c=%&d=%zz&e=%C3%A9&e=%c3%28&f=a+b%2Bc&&=&g"
    (answer,) = exchange(
        proxy,
        post(b"Content-Length: 5", b"Connection: close", first=f"POST /v1/listen?{query} HTTP/1.1".encode()) + b"audio",
    )
    assert answer.status == 200
    assert upstream.only()["target"] == f"/v1/listen?{query}"


def test_h8_headers_of_ours_are_set_whatever_connection_names(proxy: Proxy, upstream: Upstream) -> None:
    (answer,) = exchange(
        proxy,
        post(
            b"Connection: close, X-Forwarded-For, X-Forwarded-Proto, Authorization, X-Request-Id, traceparent, X-Mine",
            b"X-Mine: 1",
            b"X-Other: 2",
            first=b"GET /v1/models HTTP/1.1",
        ),
    )
    assert answer.status == 200
    head = upstream.only()
    assert_forwarded(head, upstream)
    assert (values(head, "X-Mine"), values(head, "X-Other")) == ([], ["2"])


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"client-id.1", True),
        (b"r" * 128, True),
        (b"r" * 129, False),
        (LONG, False),
        (b"a b", False),
        (b'a"b', False),
        (b"caf\xe9", False),
        (b"", False),
    ],
    ids=["token", "128", "129", "10 KB", "space", "quote", "non-ASCII", "empty"],
)
def test_h9_what_a_client_says_of_itself_is_replaced(
    proxy: Proxy, upstream: Upstream, sent: bytes, *, kept: bool
) -> None:
    (answer,) = exchange(
        proxy,
        post(
            b"X-Forwarded-For: 10.0.0.1",
            b"X-Forwarded-Proto: gopher",
            b"X-Forwarded-Host: evil.example",
            b"X-Forwarded-Port: 1",
            b"Forwarded: for=10.0.0.1",
            b"X-Real-IP: 10.0.0.1",
            b"X-Request-Id: " + sent,
            b"Connection: close",
            first=b"GET /v1/models HTTP/1.1",
        ),
    )
    assert answer.status == 200
    head = upstream.only()
    assert_forwarded(head, upstream)
    assert not values(head, "X-Forwarded-Host")
    assert not values(head, "X-Forwarded-Port")
    assert (values(head, "X-Request-Id") == [sent.decode("latin-1")]) is kept


@pytest.mark.parametrize("upgrade", [b"h2c", b"TLS/1.0", b"h2c, TLS/1.0"])
def test_h12_an_upgrade_to_anything_else_is_stripped(proxy: Proxy, upstream: Upstream, upgrade: bytes) -> None:
    statuses = [
        answer.status
        for answer in exchange(
            proxy,
            post(
                b"Upgrade: " + upgrade,
                b"Connection: Upgrade, HTTP2-Settings",
                b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
                first=b"GET /v1/models?first HTTP/1.1",
            )
            + SECOND,
        )
    ]
    assert statuses == [200, 200]  # still HTTP/1.1 after it: no tunnel
    head = upstream.heads()[0]
    assert not values(head, "Upgrade")
    assert not values(head, "HTTP2-Settings")
    assert "upgrade" not in "".join(values(head, "Connection")).lower()


def test_h13_what_is_hop_by_hop_or_secret_stays_here(proxy: Proxy, upstream: Upstream) -> None:
    (answer,) = exchange(
        proxy,
        post(
            b"Cookie: a=b",
            b"Proxy-Authorization: Basic dGVzdHM6dGVzdHM=",
            b"TE: trailers",
            b"Trailer: X",
            b"Keep-Alive: timeout=5",
            b"Proxy-Connection: keep-alive",
            b"X-Passes: yes",
            b"Connection: close, TE",
            first=b"GET /v1/models HTTP/1.1",
        ),
    )
    assert answer.status == 200
    head = upstream.only()
    assert_forwarded(head, upstream)
    assert (values(head, "Trailer"), values(head, "X-Passes")) == ([], ["yes"])


def test_h13_nor_does_it_pass_with_a_handshake(proxy: Proxy, upstream: Upstream) -> None:
    with connect(proxy) as sock:
        lines = (b"Cookie: a=b", b"TE: trailers", b"Proxy-Authorization: Basic YTpi", b"X-Passes: yes")
        send(sock, proxy, ws(*lines, target=b"/v1/listen?standin_echo=1"))
        assert read_head(sock).startswith(b"HTTP/1.1 101 ")
    head = upstream.only()
    assert_forwarded(head, upstream, websocket=True)
    assert values(head, "X-Passes") == ["yes"]


# --- H15: what is told of it -----------------------------------------------------------------------------------------

FORGED: Final = b'{"event":"forged"}'
CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
TOLD: Final[dict[str, tuple[bytes, str]]] = {
    "H15 CR LF in a query": (get(target=b"/v1/models?model=%0d%0a" + FORGED.replace(b'"', b"'")), "/v1/models?model=*"),
    "H15 a name in a query": (get(target=b"/v1/models?" + FORGED + b"%0a=1"), "/v1/models?*=*"),
    "H15 a path": (get(target=b'/"},' + FORGED + b"%1b[2J\\n"), '/"},{"event":"forged"}%1b[2J\\n'),
    "H15 quotes": (get(b'User-Agent: "},' + FORGED), '"},{"event":"forged"}'),
    "H15 backslashes": (get(b"User-Agent: \\n\\u000a\\"), "\\n\\u000a\\"),
    "H15 a C1 escape": (get(b"User-Agent: a\x9b31mred\x9d0;title\x9c"), r"a\u009b31mred\u009d0;title\u009c"),
    "H15 NEL": (get(b"User-Agent: a\x85" + FORGED), r'a\u0085{"event":"forged"}'),
    "H15 marks of direction": (get("User-Agent: a\u202eb\u2066c".encode()), "a\xe2\\u0080\xaeb\xe2\\u0081\xa6c"),
    "H15 a tab": (get(b"User-Agent: a\tb"), r"a\u0009b"),
}


@pytest.mark.parametrize(("sent", "shown"), TOLD.values(), ids=TOLD)
def test_a_line_of_the_log_stays_one_object_whatever_stands_in_a_head(
    proxy: Proxy, upstream: Upstream, sent: bytes, shown: str
) -> None:
    sent = sent.replace(b"Token KEY", b"Token wrong")
    before = len(proxy.stderr.lines())
    (first, _) = exchange(proxy, sent + SECOND)
    assert first.status in {401, 404}
    line = proxy.stderr.wait_for(mentions(request_id=first.value("dg-request-id")))
    assert shown in {str(value) for value in json.loads(line).values()}
    for one in proxy.stderr.lines()[before:]:
        assert not CONTROL.search(one)
        assert json.loads(one)["event"] != "forged"
    assert len(upstream.heads()) == 1


@pytest.mark.parametrize("escape", [b"\x1b[2J", b"\x1b]0;title\x07", b"a\rb", b"a\nb", b"\x7f"])
def test_h15_an_escape_in_user_agent_is_refused_before_it_could_be_told(
    proxy: Proxy, upstream: Upstream, escape: bytes
) -> None:
    assert_refused_for_good(proxy, upstream, 400, get(b"User-Agent: " + escape))


def test_h15_on_a_console_they_are_shown_and_not_obeyed(new_proxy: Callable[..., Proxy], upstream: Upstream) -> None:
    with new_proxy({"log.format": '"console"'}) as proxy:
        for sent, shown in TOLD.values():
            (first, _) = exchange(proxy, sent.replace(b"Token KEY", b"Token wrong") + SECOND)
            request_id = first.value("dg-request-id")
            line = proxy.stderr.wait_for(lambda line, wanted=request_id: wanted in line)  # type: ignore[misc]
            assert shown.replace('"', r"\"") in line
        assert not any(CONTROL.search(line) for line in proxy.stderr.lines())
    assert len(upstream.heads()) == len(TOLD)
