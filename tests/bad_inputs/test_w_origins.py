"""W17: pages of other sites, as their browsers ask and as no browser would (Fetch 3.3; `[cors] origins`).

A page that is listed gets an answer that it can read, whatever the answer is. One that is not gets a 403, and so does
its WebSocket. What a browser asks before it sends anything is answered here, without a key, and never upstream.
"""

from collections.abc import Iterator
from typing import Final

import pytest

from tests.conftest import second_only
from tests.support.clients import Answer, assert_chunked_kept, assert_refusal
from tests.support.frames import frame
from tests.support.logs import is_event
from tests.support.proxy import Proxy
from tests.support.raw import (
    CODES,
    SECOND,
    assert_honest_is_served_and_nothing_else_was,
    connect,
    exchange,
    post,
    read_all,
    read_answer,
    read_head,
    send,
    ws,
)
from tests.support.raw_ws import RawStream
from tests.support.scripted import Actor, upstream as scripted_upstream
from tests.support.upstreams import Upstream

pytestmark = [second_only]

APP: Final = "http://localhost:3000"
ORIGIN: Final = f"Origin: {APP}".encode()
EVIL: Final = b"Origin: https://evil.example"
ASKED: Final = (b"Access-Control-Request-Method: POST", b"Access-Control-Request-Headers: authorization,content-type")
VARIES: Final = ["Access-Control-Request-Method, Access-Control-Request-Headers"]
GOODBYE: Final = frame(8, b"\x03\xe8", masked=True)


@pytest.fixture(scope="module")
def proxy(upstream_process: Upstream, tmp_path_factory: pytest.TempPathFactory, leaks: list[str]) -> Iterator[Proxy]:
    """One that lets pages of two origins call, in place of the session's own."""
    settings = {"cors.origins": f'["{APP}", "https://app.example.com"]', "log.level": '"debug"'}
    proxy = Proxy(tmp_path_factory.mktemp("origins"), upstream_process.url, settings)
    try:
        with proxy:
            yield proxy
    finally:
        leaks += proxy.leaks()


def preflight(*lines: bytes, path: bytes = b"/v1/listen", origin: bytes = ORIGIN, asked: bytes = b"") -> bytes:
    """What a browser sends before a page's POST: no key."""
    headers = (origin, *((ASKED[0], asked) if asked else ASKED), *lines)
    return b"\r\n".join([b"OPTIONS " + path + b" HTTP/1.1", b"Host: dg", *headers, b"", b""])


def cors(answer: Answer) -> dict[str, list[str]]:
    """All that an answer says of CORS, by name."""
    said: dict[str, list[str]] = {}
    for name, value in answer.headers:
        if name == "vary" or name.startswith("access-control-"):
            said.setdefault(name.removeprefix("access-control-"), []).append(value)
    return said


def assert_readable(answer: Answer, origin: str = APP) -> None:
    """A page of this origin can read the answer, and no cache gives it to another's."""
    said = cors(answer)
    assert set(said) == {"allow-origin", "expose-headers", "vary"}
    assert said["allow-origin"] == [origin]
    assert {"*", "dg-request-id", "dg-error", "Retry-After"} <= set(said["expose-headers"][0].split(", "))
    assert said["vary"] == ["Origin"]


def assert_permitted(answer: Answer, methods: str = "POST", headers: str | None = "authorization,content-type") -> None:
    """The answer to a preflight of the listed page."""
    assert (answer.status, answer.body) == (204, b"")
    assert not answer.values("content-length")  # RFC 9110 8.6: none in a 204
    said = cors(answer)
    assert said.pop("expose-headers")
    assert said.pop("allow-headers", None) == (None if headers is None else [headers])
    assert said == {
        "allow-origin": [APP],
        "allow-methods": [methods],
        "max-age": ["7200"],
        "vary": ["Origin", *VARIES],
    }


# --- preflights ------------------------------------------------------------------------------------------------------


def test_w17_a_preflight_needs_no_key_and_the_request_follows_on_its_connection(
    proxy: Proxy, upstream: Upstream
) -> None:
    with connect(proxy) as sock:
        send(sock, proxy, preflight())
        assert_permitted(read_answer(sock))
        assert upstream.heads() == []
        send(sock, proxy, post(ORIGIN, b"Content-Type: audio/wav", b"Content-Length: 5") + b"audio")
        answer = read_answer(sock)
    assert answer.status == 200
    assert_readable(answer)
    assert upstream.only()["method"] == "POST"
    assert proxy.stderr.wait_for(is_event("request.preflight", method="OPTIONS"))


def test_w17_a_preflight_and_its_request_in_one_write_are_two_answers(proxy: Proxy, upstream: Upstream) -> None:
    first, second = exchange(proxy, preflight() + post(ORIGIN, b"Content-Length: 0", b"Connection: close"))
    assert_permitted(first)
    assert second.status == 200
    assert upstream.only()["method"] == "POST"


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        (b"/v1/listen?model=nova-3", "POST"),
        (b"/v1/speak", "POST"),
        (b"/v1/models", "GET, HEAD"),
        (b"/v1/models/a-b", "GET, HEAD"),
    ],
)
def test_w17_a_preflight_is_told_the_paths_own_methods(
    proxy: Proxy, upstream: Upstream, path: bytes, methods: str
) -> None:
    (answer,) = exchange(proxy, preflight(b"Connection: close", path=path))
    assert_permitted(answer, methods)
    assert answer.value("connection") == "close"
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


@pytest.mark.parametrize("credential", [b"Authorization: Token wrong", b"Authorization: Token KEY", b"X-Api-Key: a"])
def test_w17_a_preflights_key_is_looked_at_by_nobody(proxy: Proxy, upstream: Upstream, credential: bytes) -> None:
    (answer,) = exchange(proxy, preflight(b"Connection: close", credential))
    assert_permitted(answer)
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


SMUGGLED: Final[dict[str, bytes]] = {
    "W17 a length": preflight(b"Content-Length: %d" % len(SECOND)),
    "W17 a length of 5": preflight(b"Content-Length: 5") + b"audio",
    "W17 chunked": preflight(b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "W17 a body that is announced": preflight(b"Content-Length: 5", b"Expect: 100-continue"),
    "W17 HTTP/1.0": preflight().replace(b"HTTP/1.1", b"HTTP/1.0"),
}


@pytest.mark.parametrize("sent", SMUGGLED.values(), ids=SMUGGLED)
def test_nothing_behind_a_preflight_that_has_a_body_is_a_request(proxy: Proxy, upstream: Upstream, sent: bytes) -> None:
    (answer,) = exchange(proxy, sent + SECOND)
    assert_permitted(answer)
    assert answer.value("connection") == "close"
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


MALFORMED: Final[dict[str, bytes]] = {
    "W17 length, chunked": preflight(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "W17 two lengths": preflight(b"Content-Length: 5", b"Content-Length: 6"),
    "W17 an upgrade": preflight(*(line for line in ws().split(b"\r\n") if line.startswith((b"Upg", b"Conn", b"Sec-")))),
    "W17 two hosts": preflight(b"Host: evil"),
    "W17 a bare LF in the origin": preflight(origin=ORIGIN + b"\nSet-Cookie: a=b"),
    "W17 a bare CR in the origin": preflight(origin=ORIGIN + b"\rSet-Cookie: a=b"),
    "W17 a folded origin": preflight(origin=ORIGIN + b"\r\n Set-Cookie: a=b"),
    "W17 a bare LF in what is asked": preflight(asked=ASKED[1] + b"\nSet-Cookie: a=b"),
    "W17 NUL in what is asked": preflight(asked=ASKED[1] + b"\0"),
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED)
def test_a_preflight_that_is_malformed_is_refused_for_good(proxy: Proxy, upstream: Upstream, sent: bytes) -> None:
    (answer,) = exchange(proxy, sent + SECOND)
    assert_refusal(answer, 400, CODES[400])
    assert answer.value("connection") == "close"
    assert not answer.values("set-cookie")
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


ECHOED: Final[dict[str, tuple[bytes, str | None]]] = {
    "W17 one": (b"authorization", "authorization"),
    "W17 white space": (b"authorization ,\tx-deepgram-session-id", "authorization ,\tx-deepgram-session-id"),
    "W17 none": (b"", None),
    "W17 a colon": (b"authorization: a", None),
    "W17 a quoted string": (b'"authorization"', None),
    "W17 over ASCII": (b"authorization\xe2\x80\xa8set-cookie", None),
    "W17 an escaped line end": (b"authorization%0d%0aset-cookie:a", None),
    "W17 a comma behind": (b"authorization,", None),
    "W17 another line": (b"authorization\r\nAccess-Control-Request-Headers: content-type", None),
}


@pytest.mark.parametrize(("asked", "told"), ECHOED.values(), ids=ECHOED)
def test_only_names_of_headers_are_said_back(proxy: Proxy, asked: bytes, told: str | None) -> None:
    line = b"Access-Control-Request-Headers: " + asked
    (answer,) = exchange(proxy, preflight(b"Connection: close", asked=line))
    assert_permitted(answer, headers=told)


def test_w17_as_many_names_as_a_head_holds_are_said_back_and_no_more_is_read(proxy: Proxy) -> None:
    names = b",".join(b"x-%d" % number for number in range(4000))
    (answer,) = exchange(proxy, preflight(b"Connection: close", asked=b"Access-Control-Request-Headers: " + names))
    assert_permitted(answer, headers=names.decode())
    (answer,) = exchange(proxy, preflight(asked=b"Access-Control-Request-Headers: " + names * 2))
    assert_refusal(answer, 431, CODES[431])


TURNED_AWAY: Final[dict[str, tuple[bytes, int]]] = {
    "W17 a path that is not served": (preflight(path=b"/v1/projects"), 404),
    "W17 a served path in another spelling": (preflight(path=b"/v1/listen/"), 404),
    "W17 a path of WebSockets alone": (preflight(path=b"/v2/listen"), 404),
    "W17 another site": (preflight(origin=EVIL), 403),
    "W17 a page without origin": (preflight(origin=b"Origin: null"), 403),
    "W17 two origins": (preflight(ORIGIN), 403),
    "W17 two origins, one of another site": (preflight(EVIL), 403),
    "W17 a list of origins": (preflight(origin=ORIGIN + b" https://evil.example"), 403),
    "W17 an origin that begins as ours does": (preflight(origin=ORIGIN + b".evil.example"), 403),
    "W17 another port": (preflight(origin=b"Origin: http://localhost:3001"), 403),
    "W17 another scheme": (preflight(origin=b"Origin: https://localhost:3000"), 403),
    "W17 no method is asked for": (preflight().replace(ASKED[0] + b"\r\n", b""), 404),
    "W17 two methods are asked for": (preflight(ASKED[0]), 404),
    "W17 no origin": (preflight().replace(ORIGIN + b"\r\n", b""), 404),
}


@pytest.mark.parametrize(("sent", "status"), TURNED_AWAY.values(), ids=TURNED_AWAY)
def test_what_is_no_preflight_of_a_listed_page_gets_no_permission(
    proxy: Proxy, upstream: Upstream, sent: bytes, status: int
) -> None:
    first, second = exchange(proxy, sent + SECOND.replace(b"Token KEY", b"Token wrong"))
    assert_refusal(first, status, CODES[status])
    assert not {name for name, _ in first.headers} & {"access-control-allow-methods", "access-control-allow-headers"}
    if status == 403:
        assert cors(first) == {"vary": ["Origin"]}
    assert_refusal(second, 401, CODES[401])
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


# --- what follows ----------------------------------------------------------------------------------------------------


def test_w17_an_answer_keeps_its_chunks_and_says_who_may_read_it(proxy: Proxy, upstream: Upstream) -> None:
    body = b'{"text":"hello"}'
    target = b"POST /v1/speak?standin_bytes=100000 HTTP/1.1"
    with connect(proxy) as sock:
        send(sock, proxy, post(ORIGIN, b"Connection: close", b"Transfer-Encoding: chunked", first=target))
        send(sock, proxy, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        raw = read_all(sock)
    head = raw.partition(b"\r\n\r\n")[0].lower()
    assert b"\r\ntransfer-encoding: chunked" in head
    assert b"content-length" not in head
    assert head.count(b"access-control-allow-origin") == head.count(b"\r\nvary: origin") == 1
    assert raw.endswith(b"\r\n0\r\n\r\n")
    assert_chunked_kept(upstream.only())


def test_w17_a_request_that_names_no_origin_is_from_no_page_and_is_served(proxy: Proxy, upstream: Upstream) -> None:
    (answer,) = exchange(proxy, SECOND)
    assert answer.status == 200
    assert cors(answer) == {"vary": ["Origin"]}
    assert upstream.only()


def refusals(proxy: Proxy) -> dict[int, bytes]:
    """By status, what a page may send to be turned away with it."""
    wrong = post(ORIGIN, b"Content-Length: 0").replace(b"Token KEY", b"Token wrong")
    return {
        401: wrong,
        404: post(ORIGIN, first=b"GET /v1/projects HTTP/1.1"),
        403: post(ORIGIN, b"Content-Length: 0", first=b"POST /v1/listen?callback=https://other.example/ HTTP/1.1"),
        413: post(ORIGIN, b"Content-Length: 3000000000"),
        400: post(ORIGIN, b"X-Seen: " + proxy.key.encode(), b"Content-Length: 0"),
    }


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
def test_w17_a_page_can_read_why_it_was_turned_away(proxy: Proxy, upstream: Upstream, status: int) -> None:
    (answer,) = exchange(proxy, refusals(proxy)[status].replace(ORIGIN, ORIGIN + b"\r\nConnection: close"))
    assert_refusal(answer, status, CODES[status])
    assert_readable(answer)
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


def test_w17_a_page_can_read_that_it_has_too_much_in_flight(proxy: Proxy) -> None:
    key = proxy.new_key(streams="1").key
    with RawStream(proxy, key, headers=(f"Origin: {APP}",)) as stream:
        assert stream.head.startswith(b"HTTP/1.1 101 ")
        asked = post(ORIGIN, b"Content-Length: 0", b"Connection: close").replace(b"KEY", key.encode())
        (answer,) = exchange(proxy, asked)
        assert_refusal(answer, 429, "TOO_MANY_REQUESTS")
        assert_readable(answer)
        assert answer.value("retry-after")
        stream.send(GOODBYE)
        assert stream.close_code() == 1000


def test_w17_what_an_upstream_says_of_cors_reaches_nobody(
    tmp_path_factory: pytest.TempPathFactory, leaks: list[str], upstream: Upstream
) -> None:
    """In an answer, before it, behind it, and in a refused upgrade: what pages may is dgproxy's to say."""
    del upstream  # the other one speaks here
    open_ = (
        b"Access-Control-Allow-Origin: *\r\naccess-control-allow-credentials: true\r\n"
        b"ACCESS-CONTROL-ALLOW-METHODS: DELETE\r\nAccess-Control-Expose-Headers: x-secret\r\n"
    )
    early = b"HTTP/1.1 103 Early Hints\r\n" + open_ + b"\r\n"
    plain = b"HTTP/1.1 200 OK\r\n" + open_ + b"Content-Length: 2\r\n\r\n{}"
    chunked = b"HTTP/1.1 200 OK\r\n" + open_ + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + open_ + b"\r\n"
    actor = Actor()
    with scripted_upstream(actor.serve) as url:
        proxy = Proxy(tmp_path_factory.mktemp("open"), url, {"cors.origins": f'["{APP}"]'})
        try:
            with proxy:
                for line in (plain, early + plain, chunked):
                    actor.learn(line)
                    for origin in (ORIGIN, b"X-None: 1"):
                        asked = post(origin, b"Connection: close", first=b"GET /v1/models?cue HTTP/1.1")
                        with connect(proxy) as sock:
                            send(sock, proxy, asked)
                            raw = read_all(sock).lower()
                        assert raw.startswith(b"http/1.1 200 ")
                        assert raw.count(b"access-control-allow-origin: " + APP.encode()) == (origin == ORIGIN)
                        assert raw.count(b"access-control-") == 2 * (origin == ORIGIN)
                        assert b"x-secret" not in raw
                actor.learn(b"HTTP/1.1 429 Too Many Requests\r\n" + open_ + b"Content-Length: 0\r\n\r\n")
                (answer,) = exchange(proxy, ws(ORIGIN, target=b"/v1/listen?cue"))
                assert answer.status == 429
                assert_readable(answer)
        finally:
            proxy.kill()
            leaks += proxy.leaks()


# --- other sites -----------------------------------------------------------------------------------------------------

OTHERS: Final[dict[str, bytes]] = {
    "W17 another site's GET": post(EVIL, first=b"GET /v1/models HTTP/1.1"),
    "W17 another site's POST": post(EVIL, b"Content-Type: text/plain", b"Content-Length: 0"),
    "W17 no origin that can be told": post(b"Origin: null", b"Content-Length: 0"),
    "W17 both": post(ORIGIN, EVIL, b"Content-Length: 0"),
    "W17 an empty one": post(b"Origin:", b"Content-Length: 0"),
}


@pytest.mark.parametrize("sent", OTHERS.values(), ids=OTHERS)
def test_another_site_is_refused_whatever_key_it_has_and_can_not_read_why(
    proxy: Proxy, upstream: Upstream, sent: bytes
) -> None:
    first, second = exchange(proxy, sent + SECOND.replace(b"Token KEY", b"Token wrong"))
    assert_refusal(first, 403, CODES[403])
    assert cors(first) == {"vary": ["Origin"]}
    assert_refusal(second, 401, CODES[401])
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


def test_w17_no_cache_gives_a_listed_page_what_another_site_was_told(proxy: Proxy, upstream: Upstream) -> None:
    """A 404 may be kept without a word (RFC 9111 4.2.2); the listed page could not read that one."""
    (answer,) = exchange(proxy, post(EVIL, b"Connection: close", first=b"GET /v1/projects HTTP/1.1"))
    assert_refusal(answer, 404, CODES[404])
    assert cors(answer) == {"vary": ["Origin"]}
    assert upstream.heads() == []


def offered(origin: bytes, target: bytes = b"/v1/listen?standin_echo=1") -> bytes:
    """The handshake of a page: its key is in the subprotocol."""
    return ws(origin, b"Sec-WebSocket-Protocol: token, KEY", target=target).replace(
        b"Authorization: Token KEY\r\n", b""
    )


def test_w17_another_sites_websocket_is_refused(proxy: Proxy, upstream: Upstream) -> None:
    """A browser asks nobody before it opens one, and lets its page read all that comes."""
    for sent in (ws(EVIL), offered(EVIL), offered(b"Origin: null"), offered(ORIGIN + b"\r\n" + EVIL)):
        (answer,) = exchange(proxy, sent + frame(2, b"audio", masked=True))
        assert_refusal(answer, 403, CODES[403])
        assert cors(answer) == {"vary": ["Origin"]}
        assert answer.value("connection") == "close"
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


def test_w17_a_listed_pages_websocket_opens(proxy: Proxy, upstream: Upstream) -> None:
    for sent in (offered(ORIGIN), offered(b"Origin: https://app.example.com"), offered(b"X-None: 1")):
        with connect(proxy) as sock:
            send(sock, proxy, sent)
            assert read_head(sock).startswith(b"HTTP/1.1 101 ")
            send(sock, proxy, GOODBYE)
            read_all(sock)
    assert len(upstream.heads()) == 3


# --- every site, and none --------------------------------------------------------------------------------------------


def test_w17_where_every_page_may_call_each_answer_is_the_same_for_all(
    tmp_path_factory: pytest.TempPathFactory, leaks: list[str], upstream: Upstream
) -> None:
    """Also one to a request that no page sent: a cache may give it to a page."""
    proxy = Proxy(tmp_path_factory.mktemp("every"), upstream.url, {"cors.origins": '["*"]'})
    try:
        with proxy:
            for line in (EVIL, b"Origin: null", b"X-None: 1"):
                (answer,) = exchange(proxy, SECOND.replace(b"Host: dg", b"Host: dg\r\n" + line))
                assert answer.status == 200
                assert set(cors(answer)) == {"allow-origin", "expose-headers"}
                assert cors(answer)["allow-origin"] == ["*"]
            (answer,) = exchange(proxy, preflight(b"Connection: close", origin=EVIL))
            assert answer.status == 204
            assert cors(answer)["allow-origin"] == ["*"]
            assert cors(answer)["allow-headers"] == ["authorization,content-type"]  # which no "*" would allow
    finally:
        proxy.kill()
        leaks += proxy.leaks()


@pytest.fixture(scope="module")
def silent(upstream_process: Upstream, tmp_path_factory: pytest.TempPathFactory, leaks: list[str]) -> Iterator[Proxy]:
    """A proxy as `init` makes it: no origins."""
    proxy = Proxy(tmp_path_factory.mktemp("no-origins"), upstream_process.url)
    try:
        with proxy:
            yield proxy
    finally:
        leaks += proxy.leaks()


def test_w17_without_origins_nothing_is_said_and_nothing_refused(silent: Proxy, upstream: Upstream) -> None:
    (answer,) = exchange(silent, SECOND.replace(b"Host: dg", b"Host: dg\r\n" + EVIL))
    assert answer.status == 200
    assert cors(answer) == {}
    (answer,) = exchange(silent, SECOND.replace(b"Host: dg", b"Host: dg\r\n" + EVIL).replace(b"KEY", b"wrong"))
    assert_refusal(answer, 401, CODES[401])
    assert cors(answer) == {}
    assert len(upstream.heads()) == 1


def test_w17_without_origins_no_preflight_is_answered(silent: Proxy, upstream: Upstream) -> None:
    (answer,) = exchange(silent, preflight(b"Connection: close"))
    assert_refusal(answer, 404, CODES[404])
    assert cors(answer) == {}
    assert_honest_is_served_and_nothing_else_was(silent, upstream)


def test_w17_without_origins_a_page_of_any_site_opens_a_websocket_with_a_key(silent: Proxy, upstream: Upstream) -> None:
    for origin in (EVIL, b"Origin: null"):
        with connect(silent) as sock:
            send(sock, silent, offered(origin))
            assert read_head(sock).startswith(b"HTTP/1.1 101 ")
            send(sock, silent, GOODBYE)
            read_all(sock)
    assert len(upstream.heads()) == 2
