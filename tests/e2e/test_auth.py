"""Who is let in, who is not, and that of those who are not no byte goes further."""

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any, Final

import pytest
import websockets
from websockets.asyncio.client import connect

from tests.support.clients import Answer, assert_forwarded, assert_refusal, request
from tests.support.logs import SECRETS, mentions
from tests.support.proxy import Proxy
from tests.support.upstreams import Upstream

LICENCE: Final = SECRETS.add("7f3a9c0d5e1b8264a7f3c09d5e1b8264f00dbabe")  # 40 hex digits, as Deepgram's own keys are
JWT: Final = SECRETS.add(
    "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJ0ZXN0cyIsImV4cCI6NDEwMjQ0NDgwMH0"
    ".c2lnbmVkLWJ5LW5vYm9keS1hdC1hbGwtc2lnbmVkLWJ5LW5vYm9keS1hdC1hbGwtc2lnbmVkLWI"
)
UPGRADE: Final = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
]
Headers = list[tuple[str, str]]


def ask(proxy: Proxy, method: str, target: str, headers: Headers, body: bytes | None = None) -> Answer:
    return request(proxy.base_url, proxy.client_tls(), method, target, headers, body)


def handshake(proxy: Proxy, target: str, headers: Headers) -> Answer:
    return ask(proxy, "GET", target, [*UPGRADE, *headers])


def assert_nothing_went_further(proxy: Proxy, upstream: Upstream) -> None:
    """The next honest request is served, and is all that the upstream ever saw (bad-inputs.md: `up: 0`, `next ok`)."""
    assert ask(proxy, "GET", "/v1/models?honest", [("Authorization", f"Token {proxy.key}")]).status == 200
    head = upstream.only()
    assert head["target"] == "/v1/models?honest"
    assert_forwarded(head, upstream)


def altered(key: str, at: int) -> str:
    """The key with another character at one place."""
    return SECRETS.add(key[:at] + ("a" if key[at] != "a" else "b") + key[at + 1 :])


# --- let in ----------------------------------------------------------------------------------------------------------

GOOD: Final = {
    "Token": lambda key: [("Authorization", f"Token {key}")],
    "token": lambda key: [("authorization", f"token {key}")],
    "TOKEN": lambda key: [("AUTHORIZATION", f"TOKEN {key}")],
    "Bearer": lambda key: [("Authorization", f"Bearer {key}")],
    "bearer": lambda key: [("Authorization", f"bearer {key}")],
    "BEARER": lambda key: [("Authorization", f"BEARER {key}")],
    "X-Api-Key": lambda key: [("X-Api-Key", key)],
    "x-api-key": lambda key: [("x-api-key", key)],
    "the same in two headers": lambda key: [("Authorization", f"Token {key}"), ("X-Api-Key", key)],
}


@pytest.mark.parametrize("form", GOOD.values(), ids=GOOD)
def test_every_form_of_credential_lets_a_request_in(
    proxy: Proxy, upstream: Upstream, form: Callable[[str], Headers]
) -> None:
    assert ask(proxy, "POST", "/v1/listen?model=nova-3", form(proxy.key), b"audio").status == 200
    assert_forwarded(upstream.only(), upstream)


@pytest.mark.parametrize("form", GOOD.values(), ids=GOOD)
def test_every_form_of_credential_lets_a_stream_in(
    proxy: Proxy, upstream: Upstream, form: Callable[[str], Headers]
) -> None:
    asyncio.run(_opens(proxy, form(proxy.key), None))
    assert_forwarded(upstream.only(), upstream, websocket=True)


@pytest.mark.parametrize("scheme", ["token", "bearer"])
def test_the_same_key_in_header_and_subprotocol_lets_a_stream_in(proxy: Proxy, upstream: Upstream, scheme: str) -> None:
    """JavaScript's SDK 5 on Node sends both (deepgram.md 10)."""
    asyncio.run(_opens(proxy, [("Authorization", f"Token {proxy.key}")], [scheme, proxy.key]))
    assert_forwarded(upstream.only(), upstream, websocket=True)


async def _opens(proxy: Proxy, headers: Headers, subprotocols: list[Any] | None) -> None:
    async with (
        asyncio.timeout(20),
        connect(
            f"{proxy.wss_url}/v1/listen?standin_echo=1",
            ssl=proxy.client_tls(),
            additional_headers=headers,
            subprotocols=subprotocols,
        ) as ws,
    ):
        assert ws.subprotocol == (subprotocols[0] if subprotocols else None)
        await ws.send("hello")
        assert await ws.recv() == "hello"


# --- not let in ------------------------------------------------------------------------------------------------------


def _basic(key: str) -> Headers:
    return [("Authorization", f"Basic {SECRETS.add(base64.b64encode(f'tests:{key}'.encode()).decode())}")]


def _token(key: str) -> Headers:
    return [("Authorization", f"Token {key}")]


BAD: Final[dict[str, Callable[[str], Headers]]] = {
    "C1 none": lambda _: [],
    "C1 empty": lambda _: [("Authorization", "")],
    "C1 scheme alone": lambda _: [("Authorization", "Token")],
    "C1 empty X-Api-Key": lambda _: [("X-Api-Key", "")],
    "C1 key alone": lambda key: [("Authorization", key)],
    "C1 Basic": _basic,
    "C1 unknown scheme": lambda key: [("Authorization", f"ApiKey {key}")],
    "C1 three words": lambda key: [("Authorization", f"Token {key} {key}")],
    "C1 quotes": lambda key: [("Authorization", f'Token "{key}"')],
    "C1 trailing comma": lambda key: [("Authorization", f"Token {key},")],
    "C1 scheme in X-Api-Key": lambda key: [("X-Api-Key", f"Token {key}")],
    "C2 wrong secret": lambda key: _token(altered(key, len(key) - 10)),
    "C2 wrong checksum": lambda key: _token(altered(key, len(key) - 1)),
    "C2 unknown id": lambda key: _token(altered(key, len("dgp_"))),
    "C2 one less": lambda key: _token(SECRETS.add(key[:-1])),
    "C2 one more": lambda key: _token(SECRETS.add(f"{key}0")),
    "C2 other case": lambda key: _token(SECRETS.add(key.swapcase())),
    "C2 other case but for the prefix": lambda key: _token(SECRETS.add("dgp_" + key[4:].swapcase())),
    "C3 16 KB": lambda key: _token(key * 300),
    "C5 cookie": lambda key: [("Cookie", f"token={key}; Authorization=Token {key}")],
    "C5 Proxy-Authorization": lambda key: [("Proxy-Authorization", f"Token {key}")],
    "C11 a licence key": lambda _: _token(LICENCE),
    "a JWT": lambda _: [("Authorization", f"Bearer {JWT}")],
    "SDK's proxy mode": lambda _: _token("proxy"),  # deepgram.md 2
}

QUERIES: Final = ["token={key}", "api_key={key}", "access_token={key}", "key={key}", "Authorization=Token%20{key}"]

BAD_SUBPROTOCOLS: Final[dict[str, Callable[[str], str]]] = {
    "W14 scheme alone": lambda _: "token",
    "W14 nothing after the comma": lambda _: "token,",
    "W14 key alone": lambda key: key,
    "wrong secret": lambda key: f"token, {altered(key, len(key) - 10)}",
    "wrong secret as bearer": lambda key: f"bearer, {altered(key, len(key) - 10)}",
    "other case": lambda key: f"token, {SECRETS.add(key.swapcase())}",
    "a licence key": lambda _: f"token, {LICENCE}",
    "a JWT": lambda _: f"bearer,{JWT}",
    "SDK's proxy mode": lambda _: "token, proxy",
    "unknown scheme": lambda key: f"basic, {key}",
}


@pytest.mark.parametrize("form", BAD.values(), ids=BAD)
def test_a_bad_credential_is_refused_over_http(
    proxy: Proxy, upstream: Upstream, form: Callable[[str], Headers]
) -> None:
    headers = form(proxy.key)
    assert_refusal(ask(proxy, "POST", "/v1/listen?model=nova-3", headers, b"audio"), 401, "INVALID_AUTH")
    assert_refusal(ask(proxy, "GET", "/v1/models", headers), 401, "INVALID_AUTH")
    assert_nothing_went_further(proxy, upstream)


@pytest.mark.parametrize("form", BAD.values(), ids=BAD)
def test_a_bad_credential_is_refused_on_a_handshake(
    proxy: Proxy, upstream: Upstream, form: Callable[[str], Headers]
) -> None:
    assert_refusal(handshake(proxy, "/v1/listen?model=nova-3", form(proxy.key)), 401, "INVALID_AUTH")
    assert_nothing_went_further(proxy, upstream)


@pytest.mark.parametrize("form", BAD_SUBPROTOCOLS.values(), ids=BAD_SUBPROTOCOLS)
def test_a_bad_subprotocol_credential_is_refused(proxy: Proxy, upstream: Upstream, form: Callable[[str], str]) -> None:
    answer = handshake(proxy, "/v1/listen?model=nova-3", [("Sec-WebSocket-Protocol", form(proxy.key))])
    assert_refusal(answer, 401, "INVALID_AUTH")
    assert not answer.values("Sec-WebSocket-Protocol")
    assert_nothing_went_further(proxy, upstream)


@pytest.mark.parametrize("query", QUERIES)
def test_a_key_in_the_query_is_no_credential(proxy: Proxy, upstream: Upstream, query: str) -> None:
    target = f"/v1/listen?{query.format(key=proxy.key)}"
    assert_refusal(ask(proxy, "POST", target, [], b"audio"), 401, "INVALID_AUTH")
    assert_refusal(handshake(proxy, target, []), 401, "INVALID_AUTH")
    assert_nothing_went_further(proxy, upstream)


def test_a_subprotocol_is_no_credential_over_http(proxy: Proxy, upstream: Upstream) -> None:
    headers = [("Sec-WebSocket-Protocol", f"token, {proxy.key}")]
    assert_refusal(ask(proxy, "POST", "/v1/listen", headers, b"audio"), 401, "INVALID_AUTH")
    assert_nothing_went_further(proxy, upstream)


@pytest.mark.parametrize("form", ["wrong secret", "unknown id"])
def test_a_wrong_key_and_an_unknown_one_get_the_same_answer(proxy: Proxy, upstream: Upstream, form: str) -> None:
    headers = BAD[f"C2 {form}"](proxy.key)
    answer = ask(proxy, "GET", "/v1/models", headers)
    plain = ask(proxy, "GET", "/v1/models", _token(LICENCE))
    assert answer.json()["err_msg"] == plain.json()["err_msg"]
    assert [name for name, _ in answer.headers] == [name for name, _ in plain.headers]
    assert upstream.heads() == []


def test_a_refused_stream_is_told_why_by_websockets(proxy: Proxy, upstream: Upstream) -> None:
    async def work() -> None:
        wrong = altered(proxy.key, len(proxy.key) - 10)
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with (
                asyncio.timeout(20),
                connect(
                    f"{proxy.wss_url}/v1/listen",
                    ssl=proxy.client_tls(),
                    subprotocols=[websockets.Subprotocol("token"), websockets.Subprotocol(wrong)],
                ),
            ):
                pass
        answer = refused.value.response
        headers = [(name.lower(), value) for name, value in answer.headers.raw_items()]
        assert_refusal(Answer(answer.status_code, headers, bytes(answer.body or b"")), 401, "INVALID_AUTH")

    asyncio.run(work())
    assert_nothing_went_further(proxy, upstream)


TWO: Final[dict[str, Callable[[str, str], Headers]]] = {
    "Authorization and X-Api-Key": lambda one, other: [*_token(one), ("X-Api-Key", other)],
    "two Authorization": lambda one, other: [*_token(one), *_token(other)],
    "the same Authorization twice": lambda one, _: [*_token(one), *_token(one)],
    "two schemes": lambda one, other: [*_token(one), ("authorization", f"Bearer {other}")],
    "two X-Api-Key": lambda one, other: [("X-Api-Key", one), ("X-Api-Key", other)],
}


@pytest.mark.parametrize("form", TWO.values(), ids=TWO)
def test_two_credentials_are_refused_even_if_both_are_good(
    proxy: Proxy, upstream: Upstream, second_key: str, form: Callable[[str, str], Headers]
) -> None:
    headers = form(proxy.key, second_key)
    assert_refusal(ask(proxy, "POST", "/v1/listen", headers, b"audio"), 400, "BAD_REQUEST")
    assert_refusal(handshake(proxy, "/v1/listen", headers), 400, "BAD_REQUEST")
    assert_nothing_went_further(proxy, upstream)


def test_a_header_and_another_key_in_the_subprotocol_are_refused(
    proxy: Proxy, upstream: Upstream, second_key: str
) -> None:
    headers = [*_token(proxy.key), ("Sec-WebSocket-Protocol", f"token, {second_key}")]
    answer = handshake(proxy, "/v1/listen", headers)
    assert_refusal(answer, 400, "BAD_REQUEST")
    assert not answer.values("Sec-WebSocket-Protocol")
    assert_nothing_went_further(proxy, upstream)


@pytest.fixture(scope="module")
def second_key(proxy: Proxy) -> str:
    """Another good key of the same proxy."""
    return proxy.new_key(name="second").key


# --- what is not served ----------------------------------------------------------------------------------------------

UNKNOWN: Final = [
    "/",
    "/v1",
    "/v1/status",
    "/v1/status/engine",
    "/v1/projects",
    "/v1/listen/",
    "//v1/listen",
    "/v1//listen",
    "/v1/../v1/listen",
    "/v1/./listen",
    "/v1/listen/../status",
    "/v1/models/../status",
    "/v1/models/..%2fstatus",
    "/V1/LISTEN",
    "/v1/listen;x",
    "/v1/listen%2f..",
    "/%76%31/listen",
    "/v1\\listen",
    "/v1/auth/grant",
    "/metrics",
    "/standin/heads",
    "/recorder/heads",
]


@pytest.mark.parametrize("target", UNKNOWN)
def test_a_path_that_is_not_served_is_404_even_with_a_good_key(proxy: Proxy, upstream: Upstream, target: str) -> None:
    for method, body in (("GET", None), ("POST", b"audio"), ("DELETE", None)):
        assert_refusal(ask(proxy, method, target, _token(proxy.key), body), 404, "NOT_FOUND")
    assert_refusal(handshake(proxy, target, _token(proxy.key)), 404, "NOT_FOUND")
    assert_refusal(ask(proxy, "GET", target, []), 404, "NOT_FOUND")  # before the credential is asked for
    assert_nothing_went_further(proxy, upstream)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/listen"),
        ("PUT", "/v1/listen"),
        ("DELETE", "/v1/listen"),
        ("POST", "/v1/models"),
        ("GET", "/v1/read"),
        ("GET", "/v1/speak"),
    ],
)
def test_a_method_that_is_not_served_is_404(proxy: Proxy, upstream: Upstream, method: str, target: str) -> None:
    assert_refusal(ask(proxy, method, target, _token(proxy.key)), 404, "NOT_FOUND")
    assert_nothing_went_further(proxy, upstream)


def test_a_path_that_is_a_stream_alone_is_404_without_an_upgrade(proxy: Proxy, upstream: Upstream) -> None:
    assert_refusal(ask(proxy, "GET", "/v2/listen", _token(proxy.key)), 404, "NOT_FOUND")
    assert_nothing_went_further(proxy, upstream)


# --- what is told of it ----------------------------------------------------------------------------------------------


def test_a_refusal_is_one_log_line_that_has_its_request_id_and_no_credential(proxy: Proxy, upstream: Upstream) -> None:
    wrong = altered(proxy.key, len(proxy.key) - 10)
    target = f"/v1/listen?token={wrong}"
    for answer in (ask(proxy, "POST", target, _token(wrong), b"audio"), handshake(proxy, target, _token(wrong))):
        line = proxy.stderr.wait_for(mentions(request_id=answer.value("dg-request-id")), timeout=5)
        assert not SECRETS.found_in(line.encode())
        assert isinstance(json.loads(line)["event"], str)
    assert upstream.heads() == []
