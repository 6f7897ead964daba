"""C: credentials and keys. One answer for whatever is no key; no byte of one where it does not belong."""

import json
import time
from typing import Final

import pytest

from tests.conftest import second_only
from tests.support.clients import Answer, assert_refusal, connection
from tests.support.logs import SECRETS, mentions
from tests.support.proxy import Key, Proxy
from tests.support.raw import (
    AUTH,
    CODES,
    HOST,
    PATIENCE,
    SECOND,
    assert_honest_is_served_and_nothing_else_was,
    assert_refused_alone,
    assert_refused_for_good,
    exchange,
    get,
    ws,
)
from tests.support.upstreams import Upstream

pytestmark = [second_only]

LICENCE: Final = SECRETS.add("0d5e1b8264f00dbabe7f3a9c0d5e1b8264a7f3c0")  # 40 hex digits, as Deepgram's own keys are

CLOSED: Final[dict[str, tuple[bytes, int]]] = {
    "C3 40,000 bytes": (
        b"GET /v1/models HTTP/1.1\r\n" + HOST + b"Authorization: Token " + b"k" * 40_000 + b"\r\n\r\n",
        431,
    ),
    "C3 40,000 bytes in X-Api-Key": (get(b"X-Api-Key: " + b"k" * 40_000), 431),
    "C3 the key of 40,000 bytes": (get().replace(b"KEY", b"KEY" + b"0" * 40_000), 431),
    "C3 40,000 bytes of subprotocol": (ws(b"Sec-WebSocket-Protocol: token, " + b"k" * 40_000), 431),
}


@pytest.mark.parametrize(("sent", "status"), CLOSED.values(), ids=CLOSED)
def test_it_is_refused_and_nothing_after_it_is_served(
    proxy: Proxy, upstream: Upstream, sent: bytes, status: int
) -> None:
    assert_refused_for_good(proxy, upstream, status, sent)


BODILESS: Final = b"GET /v1/models HTTP/1.1\r\nHost: dg\r\n"

OPEN: Final[dict[str, tuple[bytes, int]]] = {
    "C1 none": (BODILESS + b"\r\n", 401),
    "C1 empty": (BODILESS + b"Authorization:\r\n\r\n", 401),
    "C1 scheme without value": (BODILESS + b"Authorization: Token\r\n\r\n", 401),
    "C1 scheme and a space": (BODILESS + b"Authorization: Token \r\n\r\n", 401),
    "C1 key alone": (BODILESS + b"Authorization: KEY\r\n\r\n", 401),
    "C1 two spaces": (BODILESS + b"Authorization: Token  KEY\r\n\r\n", 401),
    "C1 a tab": (BODILESS + b"Authorization: Token\tKEY\r\n\r\n", 401),
    "C1 no space": (BODILESS + b"Authorization: TokenKEY\r\n\r\n", 401),
    "C1 a colon": (BODILESS + b"Authorization: Token: KEY\r\n\r\n", 401),
    "C1 leading comma": (BODILESS + b"Authorization: Token ,KEY\r\n\r\n", 401),
    "C1 a list": (BODILESS + b"Authorization: Token KEY, Bearer KEY\r\n\r\n", 401),
    "C1 non-ASCII": (BODILESS + b"Authorization: Token KEY\xe9\r\n\r\n", 401),
    "C1 empty X-Api-Key": (BODILESS + b"X-Api-Key:\r\n\r\n", 401),
    "C1 scheme in X-Api-Key": (BODILESS + b"X-Api-Key: Token KEY\r\n\r\n", 401),
    "C1 a name that looks alike": (BODILESS + b"X_Api_Key: KEY\r\nAuthorization-: Token KEY\r\n\r\n", 401),
    "C1 subprotocol without a handshake": (BODILESS + b"Sec-WebSocket-Protocol: token, KEY\r\n\r\n", 401),
    "C1 Basic": (BODILESS + b"Authorization: Basic dGVzdHM6dGVzdHM=\r\n\r\n", 401),
    "C1 unknown scheme": (BODILESS + b"Authorization: ApiKey KEY\r\n\r\n", 401),
    "C1 three words": (BODILESS + b"Authorization: Token KEY KEY\r\n\r\n", 401),
    "C1 quotes": (BODILESS + b'Authorization: Token "KEY"\r\n\r\n', 401),
    "C1 trailing comma": (BODILESS + b"Authorization: Token KEY,\r\n\r\n", 401),
    "C2 one more": (BODILESS + b"Authorization: Token KEYx\r\n\r\n", 401),
    "C2 no such id": (BODILESS + b"Authorization: Token dgp_0000000000_" + b"0" * 38 + b"\r\n\r\n", 401),
    "C3 20,000 bytes": (BODILESS + b"Authorization: Token " + b"k" * 20_000 + b"\r\n\r\n", 401),
    "C4 two Authorization": (BODILESS + AUTH + b"Authorization: Bearer KEY\r\n\r\n", 400),
    "C4 the same twice": (BODILESS + AUTH + AUTH + b"\r\n", 400),
    "C4 one of them empty": (BODILESS + AUTH + b"Authorization:\r\n\r\n", 400),
    "C4 X-Api-Key twice": (BODILESS + b"X-Api-Key: KEY\r\nx-api-key: KEY\r\n\r\n", 400),
    "C4 two that differ": (BODILESS + AUTH + b"X-Api-Key: another\r\n\r\n", 400),
    "C5 query": (b"GET /v1/models?token=KEY&api_key=KEY HTTP/1.1\r\nHost: dg\r\n\r\n", 401),
    "C5 query, beside a good one": (b"GET /v1/models?token=KEY HTTP/1.1\r\nHost: dg\r\n" + AUTH + b"\r\n", 400),
    "C5 header, beside a good one": (BODILESS + AUTH + b"X-Request-Id: KEY\r\n\r\n", 400),
    "C5 cookie": (BODILESS + b"Cookie: token=KEY\r\n\r\n", 401),
    "C5 path": (b"GET /v1/models/KEY HTTP/1.1\r\nHost: dg\r\n\r\n", 401),
    "C5 another path": (b"GET /KEY HTTP/1.1\r\nHost: dg\r\n\r\n", 404),
    "C5 Proxy-Authorization": (BODILESS + b"Proxy-Authorization: Token KEY\r\n\r\n", 401),
}


@pytest.mark.parametrize(("sent", "status"), OPEN.values(), ids=OPEN)
def test_it_is_refused_and_what_follows_is_judged_on_its_own(
    proxy: Proxy, upstream: Upstream, sent: bytes, status: int
) -> None:
    assert_refused_alone(proxy, upstream, status, sent)


@pytest.mark.parametrize(
    "lines",
    [[b"Content-Length: 5"], [b"Transfer-Encoding: chunked"], [b"Content-Length: 5", b"Expect: 100-continue"]],
    ids=["C5 in a body", "C5 in a chunked body", "F31"],
)
def test_a_bad_key_is_answered_before_a_byte_of_the_body_is_asked_for(
    proxy: Proxy, upstream: Upstream, lines: list[bytes]
) -> None:
    head = b"\r\n".join([b"POST /v1/listen HTTP/1.1", b"Host: dg", *lines, b"", b""])
    (answer,) = exchange(proxy, head)
    assert_refusal(answer, 401, CODES[401])
    assert answer.value("connection") == "close"
    (answer,) = exchange(proxy, head + b"token=KEY" + SECOND)  # nor is what came of it taken for a request
    assert_refusal(answer, 401, CODES[401])
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


@pytest.mark.parametrize(
    "sent",
    [sent for row, (sent, _) in OPEN.items() if row.startswith("C5")],
    ids=[row for row in OPEN if row[:2] == "C5"],
)
def test_a_key_that_stands_where_none_belongs_is_not_in_the_log(proxy: Proxy, upstream: Upstream, sent: bytes) -> None:
    answer, _ = exchange(proxy, sent + SECOND)
    assert_line_tells_nothing(proxy, answer)
    assert len(upstream.heads()) == 1


def assert_line_tells_nothing(proxy: Proxy, answer: Answer) -> None:
    """The session's watch over leaks looks at all that was said, in the end; this at the line itself."""
    line = proxy.stderr.wait_for(mentions(request_id=answer.value("dg-request-id"), status=answer.status))
    assert not SECRETS.found_in(line.encode())


# --- C2, C8, C11: what is no key -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(proxy: Proxy) -> Key:
    """Another good key of the same proxy."""
    return proxy.new_key(name="other")


def test_c2_c8_every_wrong_key_gets_the_same_answer(proxy: Proxy, upstream: Upstream, other: Key) -> None:
    """That the work is the same too, one digest and one comparison, is counted in tests/unit/test_key_table.py."""
    key, id_ends = proxy.key, proxy.key.rindex("_") + 1
    wrong = {
        "right id, wrong secret": key[:id_ends] + other.key[id_ends:],
        "right secret, other id": other.key[:id_ends] + key[id_ends:],
        "wrong from the first byte of the secret": key[:id_ends]
        + ("a" if key[id_ends] != "a" else "b")
        + key[id_ends + 1 :],
        "wrong in the middle": key[:30] + ("a" if key[30] != "a" else "b") + key[31:],
        "bad checksum": key[:-1] + ("a" if key[-1] != "a" else "b"),
        "one more": key + "0",
        "one less": key[:-1],
        "other case": key.swapcase(),
        "no such id": "dgp_0000000000_" + "0" * (len(key) - id_ends),
        "none of ours": "x",
        "C11": LICENCE,
    }
    told = set()
    for text in wrong.values():
        (answer,) = exchange(proxy, SECOND.replace(b"KEY", SECRETS.add(text).encode()))
        assert_refusal(answer, 401, CODES[401])
        request_id = answer.value("dg-request-id")
        headers = [(name, value.replace(request_id, "")) for name, value in answer.headers if name != "date"]
        told.add(repr((headers, answer.body.replace(request_id.encode(), b""))))
    assert len(told) == 1
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


@pytest.mark.parametrize(
    "sent",
    [
        BODILESS + b"Authorization: Token LICENCE\r\n\r\n",
        BODILESS + b"X-Api-Key: LICENCE\r\n\r\n",
        ws(b"Sec-WebSocket-Protocol: token, LICENCE").replace(AUTH, b""),
    ],
    ids=["Authorization", "X-Api-Key", "subprotocol"],
)
def test_c11_a_licence_key_of_deepgrams_is_named_in_the_log_without_being_shown(
    proxy: Proxy, upstream: Upstream, sent: bytes
) -> None:
    answer = exchange(proxy, sent.replace(b"LICENCE", LICENCE.encode()) + SECOND)[0]
    assert_refusal(answer, 401, CODES[401])
    line = proxy.stderr.wait_for(mentions(request_id=answer.value("dg-request-id")))
    assert "Deepgram's own" in json.loads(line)["hint"]
    assert "Deepgram" not in answer.json()["err_msg"]
    assert_line_tells_nothing(proxy, answer)
    assert not SECRETS.found_in(line.encode())
    upstream.clear()
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


# --- C6, C10: what is a key no more, or not for this -----------------------------------------------------------------


def test_c6_c10_a_key_that_ends_is_refused_from_the_next_request_on_even_on_a_kept_connection(
    proxy: Proxy, upstream: Upstream
) -> None:
    """By its expiry here. Revoked, disabled and not-yet-valid keys: tests/unit/test_key_table.py."""
    key = proxy.new_key(name="short-lived", expires="2s")
    wire = connection(proxy.base_url, proxy.client_tls())
    wire.connect()
    kept = wire.sock
    deadline = time.monotonic() + PATIENCE
    served = 0
    while True:
        wire.request("GET", "/v1/models", headers={"Authorization": f"Token {key.key}"})
        response = wire.getresponse()
        headers = [(name.lower(), value) for name, value in response.getheaders()]
        answer = Answer(response.status, headers, response.read())
        if answer.status != 200:
            break
        served += 1
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert wire.sock is kept
    wire.close()
    assert served
    assert_refusal(answer, 401, CODES[401])
    assert "expired" in answer.json()["err_msg"]
    assert key.id not in answer.json()["err_msg"]
    line = json.loads(proxy.stderr.wait_for(mentions(request_id=answer.value("dg-request-id"))))
    assert (line["phase"], line["reason"]) == ("key", answer.json()["err_msg"])
    assert len(upstream.heads()) == served


@pytest.mark.parametrize(
    "sent",
    [ws(target=b"/v1/agent/converse"), get(target=b"/v1/agent/settings/think/models")],
    ids=["stream", "request"],
)
def test_c6_a_key_whose_plan_has_not_the_class_is_told_so(proxy: Proxy, upstream: Upstream, sent: bytes) -> None:
    answer = exchange(proxy, sent + SECOND)[0]
    assert_refusal(answer, 403, CODES[403])
    assert "plan" in answer.json()["err_msg"]
    upstream.clear()
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


# --- C9: a key in a head that is none --------------------------------------------------------------------------------

MALFORMED: Final[dict[str, bytes]] = {
    "C9 the first word": b"KEY",
    "C9 the method": b"KEY /v1/models HTTP/1.1\r\nHost: dg",
    "C9 the path": b"GET /KEY HTTP/9\r\nHost: dg",
    "C9 the path alone": b"GET /KEY",
    "C9 a target without slash": b"GET KEY HTTP/1.1\r\nHost: dg",
    "C9 a user": b"GET http://KEY@dg/ HTTP/1.1\r\nHost: dg",
    "C9 the query": b"GET /v1/models?token=KEY\x00 HTTP/1.1\r\nHost: dg",
    "C9 the fragment": b"GET /v1/models#KEY HTTP/1.1\r\nHost: dg",
    "C9 the version": b"GET /v1/models KEY\r\nHost: dg",
    "C9 after the version": b"GET /v1/models HTTP/1.1 KEY\r\nHost: dg",
    "C9 a line without colon": b"GET /v1/models HTTP/1.1\r\nHost: dg\r\nKEY",
    "C9 a name": b"GET /v1/models HTTP/1.1\r\nHost: dg\r\nKEY : a",
    "C9 a folded line": b"GET /v1/models HTTP/1.1\r\nHost: dg\r\nAuthorization: Token\r\n KEY",
    "C9 a name with a space": b"GET /v1/models HTTP/1.1\r\nHost: dg\r\nAuthorization : Token KEY",
    "C9 a value with a control byte": b"GET /v1/models HTTP/1.1\r\nHost: dg\r\nAuthorization: Token KEY\x01",
    "C9 a bare line feed": b"GET /v1/models HTTP/1.1\r\nHost: dg\nAuthorization: Token KEY",
    "C9 Host": b"GET /v1/models HTTP/1.1\r\nHost: KEY@dg",
    "C9 Host twice": b"GET /v1/models HTTP/1.1\r\nHost: dg\r\nHost: KEY",
    "C9 a length": b"POST /v1/listen HTTP/1.1\r\nHost: dg\r\nContent-Length: KEY",
    "C9 a coding": b"POST /v1/listen HTTP/1.1\r\nHost: dg\r\nTransfer-Encoding: KEY",
    "C9 an expectation": b"POST /v1/listen HTTP/1.1\r\nHost: dg\r\nExpect: KEY",
    "C9 Connection": b"GET /v1/models HTTP/1.1\r\nHost: dg\r\nConnection: Host, KEY",
    "C9 User-Agent": b"GET /v1/models HTTP/1.1\r\nHost: dg\r\nUser-Agent: KEY\r\nUpgrade: websocket",
    "C9 X-Request-Id": b"GET /v1/models HTTP/1.1\r\nHost: dg\r\nX-Request-Id: KEY\r\nUpgrade: websocket",
    "C9 a nonce": ws(b"Sec-WebSocket-Key: KEY", without=b"Sec-WebSocket-Key")[:-4],
    "C9 a version of WebSocket": ws(b"Sec-WebSocket-Version: KEY", without=b"Sec-WebSocket-Version")[:-4],
    "C9 an upgrade": ws(b"Upgrade: websocket KEY", without=b"Upgrade")[:-4],
    "C9 a path of a bad handshake": ws(target=b"/v1/listen/KEY?KEY=KEY", without=b"Connection")[:-4],
    "C9 a head too large": b"GET /KEY HTTP/1.1\r\nHost: KEY\r\nX: " + b"KEY" * 800,
    "C9 too many headers": b"GET /KEY HTTP/1.1\r\nHost: dg" + b"\r\nX: KEY" * 110,
}


@pytest.mark.parametrize("head", MALFORMED.values(), ids=MALFORMED)
def test_a_key_in_any_place_of_a_head_that_is_refused_is_nowhere(proxy: Proxy, upstream: Upstream, head: bytes) -> None:
    (answer,) = exchange(proxy, head + b"\r\n\r\n" + SECOND)
    assert_refusal(answer, answer.status, CODES[answer.status])
    assert answer.status in {400, 417, 426, 431}
    assert_line_tells_nothing(proxy, answer)
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)
