"""Clients that are no SDK: websockets, httpx and curl, on what SDKs build upon and what proxies get wrong."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import socket
import ssl
import subprocess
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect
from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from tests.conftest import second_only
from tests.support.clients import (
    assert_chunked_kept,
    assert_forwarded,
    assert_length_kept,
    connection,
    request,
)
from tests.support.logs import SECRETS
from tests.support.proxy import Proxy
from tests.support.upstreams import Upstream, values

MIB: Final = 2**20
STREAM: Final = "/v1/listen?model=nova-3&encoding=linear16&sample_rate=16000"
WRONG: Final = SECRETS.add("dgp_1111111111_11111111111111111111111111111111111111")
# RFC 6455 7.4 and 5.5: what may be sent; a reason of 123 bytes fills the frame.
CLOSES: Final = [(1000, ""), (1000, "done"), (1008, "no"), (1011, "NET-0001"), (1012, ""), (4001, "é" * 61 + "x")]


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await work()

    asyncio.run(bounded())


def token(key: str) -> dict[str, str]:
    return {"Authorization": f"Token {key}"}


@asynccontextmanager
async def stream(proxy: Proxy, *, extra: str = "&standin_echo=1", **options: Any) -> AsyncIterator[ClientConnection]:
    """A WebSocket through the proxy to an upstream that sends back what it gets."""
    if "subprotocols" not in options:
        options["additional_headers"] = token(proxy.key) | options.get("additional_headers", {})
    async with connect(proxy.wss_url + STREAM + extra, ssl=proxy.client_tls(), max_size=None, **options) as ws:
        yield ws


def response(ws: ClientConnection) -> Response:
    assert ws.response is not None
    return ws.response


# --- WebSocket: the handshake ----------------------------------------------------------------------------------------


def test_a_header_credential_opens_a_stream_without_a_subprotocol(proxy: Proxy, upstream: Upstream) -> None:
    async def work() -> None:
        async with stream(proxy) as ws:
            assert "Sec-WebSocket-Protocol" not in response(ws).headers
            uuid.UUID(response(ws).headers["dg-request-id"])  # Rust's SDK fails without it (deepgram.md 5)
            await ws.send("hello")
            assert await ws.recv() == "hello"

    run(work)
    head = upstream.only()
    assert head["target"] == f"{STREAM}&standin_echo=1"
    assert_forwarded(head, upstream, websocket=True)


@pytest.mark.parametrize("scheme", ["token", "bearer"])
@pytest.mark.parametrize("session", [[], ["x-deepgram-session-id", "6751acc2-0000-4000-8000-000000000000"]])
def test_a_subprotocol_credential_selects_its_scheme_and_never_the_key(
    proxy: Proxy, upstream: Upstream, scheme: str, session: list[str]
) -> None:
    async def work() -> None:
        async with stream(proxy, subprotocols=[scheme, proxy.key, *session]) as ws:
            assert response(ws).headers.get_all("Sec-WebSocket-Protocol") == [scheme]
            assert proxy.key not in str(response(ws).headers)
            await ws.send("hello")
            assert await ws.recv() == "hello"

    run(work)
    assert_forwarded(upstream.only(), upstream, websocket=True)


def test_compression_is_offered_by_the_client_and_not_negotiated(proxy: Proxy, upstream: Upstream) -> None:
    async def work() -> None:
        async with stream(proxy, compression="deflate") as ws:
            assert ws.request is not None
            assert "permessage-deflate" in ws.request.headers["Sec-WebSocket-Extensions"]
            assert "Sec-WebSocket-Extensions" not in response(ws).headers
            assert ws.protocol.extensions == []
            await ws.send("hello " * 1000)
            assert await ws.recv() == "hello " * 1000

    run(work)
    assert not values(upstream.only(), "Sec-WebSocket-Extensions")


def _converse(sock: socket.socket, protocol: ClientProtocol, until: Callable[[], bool]) -> None:
    for data in protocol.data_to_send():
        sock.sendall(data)
    while not until():
        data = sock.recv(65536)
        assert data, "the connection ended"
        protocol.receive_data(data)


def test_a_kept_alive_connection_may_become_a_stream(proxy: Proxy, upstream: Upstream) -> None:
    """Node's undici upgrades on the connection that it used before (deepgram.md 2)."""
    wire = connection(proxy.base_url, proxy.client_tls())
    try:
        for _ in range(2):
            wire.request("GET", "/v1/models", headers=token(proxy.key))
            with wire.getresponse() as answer:
                assert (answer.status, bool(answer.read())) == (200, True)
        sock = wire.sock
        protocol = ClientProtocol(parse_uri(f"{proxy.wss_url}{STREAM}&standin_echo=1"))
        handshake = protocol.connect()
        handshake.headers.update(token(proxy.key))
        protocol.send_request(handshake)
        _converse(sock, protocol, until=lambda: protocol.state is State.OPEN)
        protocol.send_text(b"hello")
        protocol.send_close(4000, "bye")
        _converse(sock, protocol, until=lambda: protocol.close_rcvd is not None)
        _, echoed, *_ = protocol.events_received()
        assert isinstance(echoed, Frame)
        assert bytes(echoed.data) == b"hello"
        assert protocol.close_rcvd is not None
        assert (protocol.close_rcvd.code, protocol.close_rcvd.reason) == (4000, "bye")
    finally:
        wire.close()
    assert [head["method"] for head in upstream.heads()] == ["GET"] * 3


@pytest.mark.parametrize("status", [400, 429, 503])
def test_an_upstream_that_refuses_a_stream_is_quoted(proxy: Proxy, upstream: Upstream, status: int) -> None:
    async def work() -> None:
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with stream(proxy, extra=f"&standin_status={status}"):
                pass
        answer = refused.value.response
        assert answer.status_code == status
        assert json.loads(answer.body or b"")["request_id"] == answer.headers["dg-request-id"]
        assert answer.headers["dg-error"]

    run(work)
    assert_forwarded(upstream.only(), upstream, websocket=True)


# --- WebSocket: frames and messages ----------------------------------------------------------------------------------


def test_messages_come_back_equal_and_in_order(proxy: Proxy, upstream: Upstream) -> None:
    sent: list[str | bytes] = [f"text {n}" if n % 2 else n.to_bytes(2) * (n % 300) for n in range(1000)]

    async def work() -> None:
        async with stream(proxy) as ws, asyncio.TaskGroup() as group:

            async def send() -> None:
                for message in sent:
                    await ws.send(message)

            group.create_task(send())
            assert [await ws.recv() for _ in sent] == sent

    run(work)
    assert upstream.only()


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"", id="W16 empty binary"),
        pytest.param("", id="W16 empty text"),
        pytest.param("é" * 35_000, id="W16 text of 70 KB"),
        pytest.param(b'{"type": "CloseStream"}', id="W16 CloseStream in binary"),
        pytest.param(bytes(125), id="longest 7-bit length"),
        pytest.param(bytes(126), id="shortest 16-bit length"),
        pytest.param(bytes(65_536), id="shortest 64-bit length"),
        pytest.param(os.urandom(MIB), id="1 MiB binary"),
        pytest.param("x" * MIB, id="1 MiB text"),
        pytest.param(os.urandom(16 * MIB), id="16 MiB binary"),
    ],
)
def test_a_message_of_any_size_comes_back(proxy: Proxy, upstream: Upstream, message: str | bytes) -> None:
    async def work() -> None:
        async with stream(proxy) as ws:
            await ws.send(message)
            assert await ws.recv() == message

    run(work)
    assert upstream.only()


def test_fragments_are_neither_merged_nor_split(proxy: Proxy, upstream: Upstream) -> None:
    fragments = [b"one", b"", b"three" * 30_000, b"four"]

    async def work() -> None:
        async with stream(proxy) as ws:
            await ws.send(fragments)
            back = [fragment async for fragment in ws.recv_streaming(decode=False)]
            assert b"".join(back) == b"".join(fragments)
            if upstream.name == "standin":  # which echoes frame by frame; aiohttp joins them
                assert [fragment for fragment in back if fragment] == [fragment for fragment in fragments if fragment]

    run(work)


def test_an_empty_binary_frame_ends_a_transcription(proxy: Proxy, upstream: Upstream, pcm: bytes) -> None:
    async def work() -> None:
        async with stream(proxy, extra="") as ws:
            await ws.send(pcm)
            await ws.send(b"")
            messages = [json.loads(message) async for message in ws]
            assert messages[-1]["type"] == "Metadata"
            assert messages[-1]["duration"] == pytest.approx(3.0, abs=0.01)
            assert ws.close_code == 1000

    run(work)
    assert upstream.only()


def test_a_ping_is_answered_with_its_payload(proxy: Proxy, upstream: Upstream) -> None:
    async def work() -> None:
        async with stream(proxy) as ws:
            await ws.send([b"a ping may come ", b"between fragments"])
            await (await ws.ping(b"marco"))
            await (await ws.ping(b""))
            assert await ws.recv() == b"a ping may come between fragments"

    run(work)
    assert upstream.only()


@second_only
def test_a_ping_goes_all_the_way_both_ways(proxy: Proxy, upstream: Upstream) -> None:
    async def work() -> None:
        async with stream(proxy, extra="&standin_echo=1&standin_ping=polo") as ws:
            await (await ws.ping(b"marco"))
            await ws.send("and the stream goes on")
            assert await ws.recv() == "and the stream goes on"

    run(work)
    (head,) = upstream.wait_for(lambda heads: bool(heads) and bool(heads[0]["complete"]))
    assert head["pings"] == ["marco"]
    assert head["pongs"] == ["polo"]


# --- WebSocket: the end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "reason"), CLOSES)
def test_the_clients_close_comes_back_as_it_was_sent(proxy: Proxy, upstream: Upstream, code: int, reason: str) -> None:
    async def work() -> None:
        async with stream(proxy) as ws:
            await ws.send("hello")
            await ws.recv()
            await ws.close(code, reason)
            assert (ws.close_code, ws.close_reason) == (code, reason)

    run(work)
    if upstream.name == "second":
        (head,) = upstream.wait_for(lambda heads: bool(heads) and bool(heads[0]["complete"]))
        assert (head["close_code"], head["close_reason"]) == (code, reason)


@second_only
@pytest.mark.parametrize(("code", "reason"), CLOSES)
def test_the_upstreams_close_arrives_as_it_was_sent(proxy: Proxy, upstream: Upstream, code: int, reason: str) -> None:
    async def work() -> None:
        query = httpx.QueryParams({"standin_close": code, "standin_reason": reason})
        async with stream(proxy, extra=f"&{query}") as ws:
            await ws.send("now")
            with pytest.raises(websockets.ConnectionClosed):
                await ws.recv()
            assert (ws.close_code, ws.close_reason) == (code, reason)

    run(work)
    (head,) = upstream.wait_for(lambda heads: bool(heads) and bool(heads[0]["complete"]))
    assert head["close_code"] == code  # the client's answer got back, too


@second_only
def test_a_client_that_vanishes_ends_its_stream_upstream(proxy: Proxy, upstream: Upstream) -> None:
    async def work() -> None:
        async with stream(proxy) as ws:
            await ws.send("hello")
            await ws.recv()
            ws.transport.abort()

    run(work)
    upstream.wait_for(lambda heads: bool(heads) and bool(heads[0]["complete"]), timeout=5)


# --- HTTP ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def http(proxy: Proxy) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=proxy.base_url, verify=proxy.client_tls(), headers=token(proxy.key), trust_env=False, timeout=30
    ) as client:
        yield client


def test_one_connection_serves_many_requests(http: httpx.Client, upstream: Upstream, wav: bytes) -> None:
    seen = set()
    for n in range(6):
        answer = http.get("/v1/models") if n % 2 else http.post("/v1/listen?model=nova-3", content=wav)
        assert answer.status_code == 200
        seen.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(seen) == 1
    assert len(upstream.heads()) == 6


def test_a_20_mib_upload_arrives_whole(http: httpx.Client, upstream: Upstream) -> None:
    body = os.urandom(20 * MIB)
    assert http.post("/v1/listen?model=nova-3", content=body).status_code == 200
    head = upstream.only()
    assert (head["body_bytes"], head["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    assert_length_kept(head, len(body))


def test_a_20_mib_chunked_upload_arrives_whole(http: httpx.Client, upstream: Upstream) -> None:
    body = os.urandom(20 * MIB)
    sizes = [1, 3, 65_535, 65_536, 300_001]  # of chunks, over and over

    def generate() -> Iterator[bytes]:
        at = n = 0
        while at < len(body):
            yield body[at : at + sizes[n % len(sizes)]]
            at, n = at + sizes[n % len(sizes)], n + 1

    assert http.post("/v1/listen?model=nova-3", content=generate()).status_code == 200
    head = upstream.only()
    assert (head["body_bytes"], head["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    assert_chunked_kept(head)


def test_a_20_mib_download_arrives_whole_and_chunked(http: httpx.Client, upstream: Upstream) -> None:
    size = 20 * MIB
    target = f"/v1/speak?standin_bytes={size}&standin_chunked=1"
    with http.stream("POST", target, json={"text": "hello"}) as answer:
        assert answer.status_code == 200
        assert answer.headers["transfer-encoding"] == "chunked"
        assert "content-length" not in answer.headers
        audio = b"".join(answer.iter_raw())
    assert len(audio) == size
    assert audio == (bytes(range(251)) * (size // 251 + 1))[:size]
    assert upstream.only()["target"] == target


@second_only
def test_a_download_that_is_left_behind_is_cancelled_upstream(http: httpx.Client, upstream: Upstream) -> None:
    with http.stream("POST", f"/v1/speak?standin_bytes={200 * MIB}", json={"text": "hello"}) as answer:
        next(answer.iter_raw())
    assert http.get("/v1/models").status_code == 200
    upstream.wait_for(lambda heads: bool(heads[0]["cut"]), timeout=5)


@second_only
@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_an_upload_that_ends_too_soon_is_cut_upstream_and_not_completed(
    proxy: Proxy, upstream: Upstream, framing: str
) -> None:
    wire = connection(proxy.base_url, proxy.client_tls())
    try:
        wire.putrequest("POST", "/v1/listen?model=nova-3")
        for name, value in [*token(proxy.key).items(), tuple(framing.split(": "))]:
            wire.putheader(name, value)
        wire.endheaders(b"10\r\n0123456789abcdef\r\n")  # a part of the length, or one chunk without the last
        upstream.wait_for(lambda heads: bool(heads) and heads[0]["body_bytes"] > 0)
    finally:
        wire.close()
    (head,) = upstream.wait_for(lambda heads: bool(heads[0]["cut"]), timeout=5)
    assert not head["complete"]


def test_head_of_models_has_no_body_and_keeps_the_connection(http: httpx.Client, upstream: Upstream) -> None:
    answers = [http.head("/v1/models"), http.get("/v1/models")]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].content == b""
    assert answers[0].headers.get("content-length") == answers[1].headers.get("content-length")
    assert len({answer.extensions["network_stream"].get_extra_info("client_addr") for answer in answers}) == 1
    assert [head["method"] for head in upstream.heads()] == ["HEAD", "GET"]


@pytest.mark.parametrize("status", [400, 402, 429, 500, 503])
def test_an_upstreams_error_is_quoted(http: httpx.Client, upstream: Upstream, wav: bytes, status: int) -> None:
    answer = http.post(f"/v1/listen?standin_status={status}", content=wav)
    assert answer.status_code == status
    assert answer.json()["request_id"] == answer.headers["dg-request-id"]
    assert answer.headers["dg-error"]
    assert upstream.only()["body_bytes"] == len(wav)


def test_what_a_client_says_about_itself_is_replaced_and_the_rest_passes(
    proxy: Proxy, http: httpx.Client, upstream: Upstream
) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    sent = [
        ("X-Forwarded-For", "203.0.113.9"),
        ("X-Forwarded-Proto", "gopher"),
        ("X-Forwarded-Host", "evil.example"),
        ("Forwarded", "for=203.0.113.9"),
        ("X-Real-IP", "203.0.113.9"),
        ("Cookie", "a=b"),
        ("Proxy-Authorization", "Basic eA=="),
        ("TE", "trailers"),
        ("Keep-Alive", "timeout=5"),
        ("X-Request-Id", "my-own.id_1"),
        ("traceparent", trace),
        ("X-Anything", "passes"),
        # Naming a header in Connection must not remove what the proxy sets.
        ("Connection", "keep-alive, X-Forwarded-For, X-Request-Id, X-Named"),
        ("X-Named", "hop by hop"),
    ]
    assert http.get("/v1/models", headers=sent).status_code == 200
    head = upstream.only()
    assert_forwarded(head, upstream)
    assert values(head, "X-Forwarded-Host") in ([], [f"127.0.0.1:{proxy.port}"])
    assert values(head, "X-Anything") == ["passes"]
    assert values(head, "X-Named") == []
    assert values(head, "X-Request-Id") == ["my-own.id_1"]
    assert values(head, "traceparent")[0].split("-")[1] == trace.split("-")[1]


# --- curl ------------------------------------------------------------------------------------------------------------


def curl(proxy: Proxy, target: str, *options: str, key: str | None = None) -> tuple[int, str, bytes, str]:
    """Status, HTTP version, body and verbose log of one curl."""
    done = subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--verbose", "--globoff", "--path-as-is", "--max-time", "30"),
            *("--cacert", str(proxy.ca), "--header", f"Authorization: Token {key or proxy.key}"),
            *("--write-out", "\n%{http_code} %{http_version}", *options, proxy.base_url + target),
        ],
        capture_output=True,
        timeout=60,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
    )
    verbose = done.stderr.decode("utf-8", "replace")
    assert done.returncode == 0, verbose
    body, _, figures = done.stdout.rpartition(b"\n")
    status, version = figures.decode().split()
    return int(status), version, body, verbose


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("upload") / "large.bin"
    path.write_bytes(os.urandom(2 * MIB + 17))  # over 1 MiB: curl sends Expect (deepgram.md 2)
    return path


@pytest.mark.parametrize("options", [[], ["--header", "Transfer-Encoding: chunked"]], ids=["length", "chunked"])
def test_curls_large_upload_is_told_to_continue(
    proxy: Proxy, upstream: Upstream, large_file: Path, options: list[str]
) -> None:
    status, _, body, verbose = curl(
        proxy, "/v1/listen?model=nova-3", *options, "--data-binary", f"@{large_file}", "--expect100-timeout", "20"
    )
    assert status == 200
    assert re.search(r"^> Expect: 100-continue", verbose, re.MULTILINE)
    assert re.search(r"^< HTTP/1\.1 100\b", verbose, re.MULTILINE)
    content = large_file.read_bytes()
    assert json.loads(body)["metadata"]["sha256"] == hashlib.sha256(content).hexdigest()
    head = upstream.only()
    assert (head["body_bytes"], head["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert_forwarded(head, upstream)
    if options:
        assert_chunked_kept(head)
    else:
        assert_length_kept(head, len(content))


def test_curls_large_upload_with_a_wrong_key_is_refused_before_it_begins(
    proxy: Proxy, upstream: Upstream, large_file: Path
) -> None:
    status, _, body, verbose = curl(
        proxy, "/v1/listen?model=nova-3", "--data-binary", f"@{large_file}", "--expect100-timeout", "20", key=WRONG
    )
    assert status == 401
    assert json.loads(body)["err_code"] == "INVALID_AUTH"
    assert "< HTTP/1.1 100" not in verbose
    assert upstream.heads() == []


def test_curls_large_upload_with_a_wrong_key_that_does_not_wait_still_gets_its_401(
    proxy: Proxy, upstream: Upstream, large_file: Path
) -> None:
    status, _, body, _ = curl(
        proxy, "/v1/listen?model=nova-3", "--data-binary", f"@{large_file}", "--header", "Expect:", key=WRONG
    )
    assert status == 401
    assert json.loads(body)["err_code"] == "INVALID_AUTH"
    assert upstream.heads() == []


@pytest.mark.parametrize("options", [[], ["--http1.1"], ["--http2"]])
def test_curl_gets_http_1_1_whatever_it_offers(proxy: Proxy, upstream: Upstream, options: list[str]) -> None:
    status, version, _, verbose = curl(proxy, "/v1/models", *options)
    assert (status, version) == (200, "1.1")
    assert "server accepted http/1.1" in verbose
    assert upstream.only()["target"] == "/v1/models"


def test_a_client_that_offers_no_alpn_is_served(proxy: Proxy, upstream: Upstream) -> None:
    tls = proxy.client_tls()
    assert request(proxy.base_url, tls, "GET", "/v1/models", token(proxy.key).items()).status == 200
    assert upstream.only()


def test_a_client_that_speaks_h2_alone_is_not_misled(proxy: Proxy) -> None:
    tls = proxy.client_tls()
    tls.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as raw,
        contextlib.suppress(ssl.SSLError),  # no_application_protocol: what RFC 7301 3.2 would have
        tls.wrap_socket(raw, server_hostname="127.0.0.1") as wire,
    ):
        assert wire.selected_alpn_protocol() is None


@pytest.mark.parametrize(
    "query",
    [
        "keyterm=a%20b&keyterm=a+b&keyterm=a%2Bb",
        "x=%2f%2F&flag&empty=&&==&k==v&;",
        "redact=%00%0d%0a%ff&broken=%zz%",
        "brackets=[1]&braces={a}&quote='\"&pipe=|&caret=^&back=`\\",
        "language=en&language=de&model=nova-3&language=en",
        "long=" + "x" * 6000,
    ],
)
def test_a_query_passes_byte_for_byte(proxy: Proxy, upstream: Upstream, query: str) -> None:
    status, *_ = curl(proxy, f"/v1/models?{query}")
    assert status == 200
    assert upstream.only()["target"] == f"/v1/models?{query}"
