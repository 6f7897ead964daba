"""The stand-in itself, with no proxy before it: what the other tests build on."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
import wave
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterator
from io import BytesIO
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import pytest
import websockets
from deepgram import AsyncDeepgramClient, DeepgramClient, DeepgramClientEnvironment
from deepgram.core.api_error import ApiError
from deepgram.listen.v2.types import ListenV2TurnInfo
from deepgram.speak.v1.types import SpeakV1Text
from deepgram.speak.v2.types import SpeakV2Speak
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import connect as connect_sync

from dgproxy.standin import Options, Server, background, serve

RAW: Final = "encoding=linear16&sample_rate=16000"
SECOND: Final = bytes(32000)
MIB: Final = 1 << 20
HANDSHAKE: Final = (
    b"Host: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
MASKED_CLOSE: Final = b"\x88\x82\0\0\0\0\x03\xe8"


@pytest.fixture
def server() -> Iterator[Server]:
    with background() as server:
        yield server


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        yield client


def until(come: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not come():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.005)


def read_to_the_end(sock: socket.socket) -> tuple[bytes, bool]:
    """All that comes, and whether an RST ended it."""
    data = b""
    try:
        while piece := sock.recv(65536):
            data += piece
    except ConnectionResetError:
        return data, True
    return data, False


def is_uuid(text: str) -> bool:
    return str(uuid.UUID(text)) == text


def environment(server: Server) -> DeepgramClientEnvironment:
    ws = server.url.replace("http", "ws")
    return DeepgramClientEnvironment(base=server.url, production=ws, agent=ws, agent_rest=server.url)


@pytest.fixture
def sdk(server: Server) -> Iterator[DeepgramClient]:
    with httpx.Client(trust_env=False) as client:
        yield DeepgramClient(api_key="ignored", environment=environment(server), httpx_client=client)


@contextlib.asynccontextmanager
async def async_sdk(server: Server) -> AsyncIterator[AsyncDeepgramClient]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield AsyncDeepgramClient(api_key="ignored", environment=environment(server), httpx_client=client)


def ws_url(server: Server, target: str) -> str:
    return server.url.replace("http", "ws") + target


def plain(server: Server) -> socket.socket:
    where = urlsplit(server.url)
    return socket.create_connection((where.hostname, where.port), timeout=10)


def read_until(sock: socket.socket, end: bytes) -> bytes:
    data = b""
    while end not in data:
        piece = sock.recv(65536)
        assert piece, f"the connection ended after {data!r}"
        data += piece
    return data


async def told(ws: ClientConnection) -> list[Any]:
    """Every message up to the close; text parsed."""
    return [json.loads(message) if isinstance(message, str) else message async for message in ws]


# --- HTTP ------------------------------------------------------------------------------------------------------------


def test_the_sdk_transcribes_a_file(server: Server, sdk: DeepgramClient, wav: bytes) -> None:
    answer = sdk.listen.v1.media.transcribe_file(request=wav, model="nova-3", tag=["a", "b"])
    assert answer.metadata.duration == 3.0
    assert answer.metadata.sha256 == hashlib.sha256(wav).hexdigest()
    assert answer.metadata.tags == ["a", "b"]
    (model,) = answer.metadata.models
    assert answer.metadata.model_info[model]["arch"] == "nova-3"
    alternatives = answer.results.channels[0].alternatives
    assert alternatives is not None
    assert alternatives[0].transcript == "3.0 s of audio, loudness -12 dB"
    assert server.heads[0].header("authorization") == "Token ignored"


def test_the_async_sdk_transcribes_a_generator_which_comes_chunked(server: Server, wav: bytes) -> None:
    async def pieces() -> Any:
        for at in range(0, len(wav), 10_000):
            yield wav[at : at + 10_000]

    async def work() -> Any:
        async with async_sdk(server) as client:
            return await client.listen.v1.media.transcribe_file(request=pieces(), model="nova-3")

    answer = asyncio.run(work())
    assert (answer.metadata.duration, answer.metadata.sha256) == (3.0, hashlib.sha256(wav).hexdigest())
    assert server.heads[0].header("transfer-encoding") == "chunked"
    assert server.heads[0].body_bytes == len(wav)


def test_the_sdk_transcribes_a_url_that_is_not_fetched(sdk: DeepgramClient) -> None:
    answer = sdk.listen.v1.media.transcribe_url(url="http://audio.invalid/a.wav", model="nova-3")
    assert answer.metadata.duration == 10.0
    alternatives = answer.results.channels[0].alternatives
    assert alternatives is not None
    assert alternatives[0].transcript == "audio of audio.invalid, not fetched, taken as 10.0 s"


def test_a_callback_leaves_only_a_request_id(http: httpx.Client, wav: bytes) -> None:
    answer = http.post("/v1/listen?callback=https%3A%2F%2Fcb.invalid", content=wav)
    assert answer.json() == {"request_id": answer.headers["dg-request-id"]}


def test_the_sdk_reads_models_and_think_models(sdk: DeepgramClient) -> None:
    assert sdk.read.v1.text.analyze(request={"text": "hi"}, summarize=True, language="en").results.summary is not None
    listed = sdk.manage.v1.models.list()
    assert listed.stt
    assert listed.tts
    assert sdk.manage.v1.models.get(listed.stt[0].uuid_ or "").name == listed.stt[0].name
    assert sdk.agent.v1.settings.think.models.list().models[0].id == "stand-in"


def test_the_sdk_speaks(sdk: DeepgramClient) -> None:
    mp3 = b"".join(sdk.speak.v1.audio.generate(text="hello"))
    assert mp3.startswith(b"\xff\xfb")
    boxed = b"".join(sdk.speak.v1.audio.generate(text="hello", encoding="linear16", sample_rate=16000))
    with wave.open(BytesIO(boxed), "rb") as reader:
        assert (reader.getframerate(), reader.getnframes()) == (16000, 4800)
    flux = sdk.speak.v2.audio.generate(model="flux-alexis-en", text="hello", encoding="mulaw", container="none")
    assert len(b"".join(flux)) == 2400


def test_speech_is_chunked_and_carries_what_old_sdks_read(http: httpx.Client) -> None:
    answer = http.post("/v1/speak?model=aura-2-zeus-en", json={"text": "hello"})
    assert answer.headers["content-type"] == "audio/mpeg"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.headers["date"].endswith("GMT")
    assert answer.headers["dg-model-name"] == "aura-2-zeus-en"
    assert answer.headers["dg-char-count"] == "5"
    assert is_uuid(answer.headers["dg-request-id"])
    assert is_uuid(answer.headers["dg-model-uuid"])


def test_the_status_pages_are_those_of_the_container_and_count(server: Server, http: httpx.Client) -> None:
    assert http.get("/v1/status/engine").content.startswith(b'{"engine_connection_status":"Connected"')
    quiet = {
        "system_health": "Healthy",
        "active_batch_requests": 0,
        "active_stream_requests": 0,
        "active_listen_v2_stream_requests": 0,
    }
    assert http.get("/v1/status").json() == quiet
    with (
        connect_sync(ws_url(server, f"/v1/listen/stream?{RAW}")),
        connect_sync(ws_url(server, f"/v2/listen?{RAW}")),
        plain(server) as upload,
    ):
        upload.sendall(b"POST /v1/listen HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n")
        until(lambda: len(server.heads) == 5, "the upload's head")
        assert list(http.get("/v1/status").json().values()) == ["Healthy", 1, 1, 1]
        assert http.get("/standin/live").json() == {"connections": 3, "websockets": 2}
    until(lambda: http.get("/v1/status").json() == quiet, "the counters to come down")


@pytest.mark.parametrize("target", ["/", "/v1/listen", "/v1/models/none", "/v1/projects", "//v1/models", "/standin/x"])
def test_what_is_unknown_is_404_in_deepgrams_shape(http: httpx.Client, target: str) -> None:
    answer = http.get(target)
    assert answer.status_code == 404
    assert answer.json().keys() == {"err_code", "err_msg", "request_id"}
    assert answer.json()["request_id"] == answer.headers["dg-request-id"]
    assert answer.headers["dg-error"] == answer.json()["err_msg"]


@pytest.mark.parametrize(
    ("target", "body", "kind", "status"),
    [
        ("/v1/listen", b"", "audio/wav", 400),
        ("/v1/listen?encoding=linear16&sample_rate=x", b"1234", "audio/wav", 400),
        ("/v1/listen", b"{", "application/json; charset=utf-8", 400),
        ("/v1/listen", b'{"text":"x"}', "Application/JSON", 400),
        ("/v1/read", b'{"text":"x","url":"http://x.invalid"}', "application/json", 400),
        ("/v1/speak", b"[]", "application/json", 400),
        ("/v1/speak?encoding=opus", b'{"text":"x"}', "application/json", 400),
        ("/v1/speak", b'"%s"' % bytes(2 * MIB).replace(b"\0", b"a"), "application/json", 413),
        ("/v1/listen?standin_stauts=429", b"1234", "audio/wav", 400),
    ],
)
def test_bad_requests_are_told_so(http: httpx.Client, target: str, body: bytes, kind: str, status: int) -> None:
    answer = http.post(target, content=body, headers={"content-type": kind})
    assert answer.status_code == status
    assert answer.json()["err_code"]


def test_a_connection_is_kept_for_many_requests(server: Server, http: httpx.Client, wav: bytes) -> None:
    assert http.head("/v1/models").content == b""
    for _ in range(3):
        assert http.post("/v1/listen", content=wav).status_code == 200
        assert http.post("/v1/listen", content=iter([wav[:100], wav[100:]])).json()["metadata"]["duration"] == 3.0
    assert http.get("/v1/nothing").status_code == 404
    assert server.live.connections == 1


def test_pipelined_requests_are_answered_in_order_even_behind_a_body(server: Server) -> None:
    with plain(server) as sock:
        sock.sendall(
            b"POST /v1/read HTTP/1.1\r\nHost: h\r\nContent-Length: 13\r\n\r\n"
            b'{"text":"hi"}GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n'
            b"GET /v1/status HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        )
        answers, _ = read_to_the_end(sock)
    assert answers.count(b"HTTP/1.1 200 ") == 3
    assert answers.index(b'"metadata"') < answers.index(b'"stt"') < answers.index(b'"system_health"')
    assert [head.ended for head in server.heads] == ["complete"] * 3


def test_an_expected_100_comes_before_the_body_is_asked_for(server: Server) -> None:
    with plain(server) as sock:
        sock.sendall(b"POST /v1/read HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 13\r\n\r\n")
        assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        sock.sendall(b'{"text":"hi"}')
        assert read_until(sock, b"}}").startswith(b"HTTP/1.1 200 ")


def test_an_upload_of_any_size_is_taken_in_constant_memory(server: Server) -> None:
    # in a process of its own, whose peak memory is that of the stand-in alone
    script = (
        "import resource, sys, threading, os\n"
        "from dgproxy.standin import background\n"
        "with background() as server:\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    print(server.url, flush=True)\n"
        "    sys.stdin.readline()\n"
        "    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    print((after - before) // 1024, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        url = process.stdout.readline().strip()
        block = bytes(range(256)) * 4096
        digest = hashlib.sha256()
        for _ in range(256):
            digest.update(block)
        answer = httpx.post(f"{url}/v1/listen?{RAW}", content=(block for _ in range(256)), timeout=60, trust_env=False)
        assert answer.json()["metadata"]["sha256"] == digest.hexdigest()
        assert answer.json()["metadata"]["duration"] == 256 * MIB / 32000
        process.stdin.write("\n")
        process.stdin.flush()
        assert int(process.stdout.readline()) < 32  # MiB, of 256
    assert process.returncode == 0
    assert server.heads == []


# --- heads -----------------------------------------------------------------------------------------------------------


def test_heads_are_recorded_as_they_came(server: Server, http: httpx.Client) -> None:
    raw = b"POST /v1/read?a=b%20c&a=+ HTTP/1.1\r\nhOST: h\r\nX-One:  1 \r\nx-one: 2\r\nContent-Length: 13\r\n\r\n"
    with plain(server) as sock:
        sock.sendall(raw + b'{"text":"hi"}')
        read_until(sock, b"}}")
    (head,) = http.get("/standin/heads").json()
    assert head["method"] == "POST"
    assert head["target"] == "/v1/read?a=b%20c&a=+"
    assert head["headers"] == [["hOST", "h"], ["X-One", "1"], ["x-one", "2"], ["Content-Length", "13"]]
    assert b64decode(head["raw"]) == raw
    assert (head["body_bytes"], head["ended"]) == (13, "complete")
    assert head["sha256"] == hashlib.sha256(b'{"text":"hi"}').hexdigest()
    assert http.delete("/standin/heads").status_code == 200
    assert http.get("/standin/heads").json() == []


def test_a_head_that_is_no_request_is_recorded_and_refused(server: Server) -> None:
    with plain(server) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost : h\r\n\r\n")
        assert read_until(sock, b"}").startswith(b"HTTP/1.1 400 ")
    assert server.heads[0].headers == [("Host ", "h")]
    assert server.heads[0].ended == "cut"


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 1000\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"]
)
def test_an_upload_that_ends_too_soon_is_cut(server: Server, framing: bytes) -> None:
    with plain(server) as sock:
        sock.sendall(b"POST /v1/listen HTTP/1.1\r\nHost: h\r\n" + framing)
        until(lambda: bool(server.heads) and server.heads[0].body_bytes == 3, "the body's beginning")
        assert server.heads[0].ended is None
    until(lambda: server.heads[0].ended == "cut", "the end to be noticed")


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 402, 403, 413, 429, 500, 503])
def test_a_status_comes_with_deepgrams_body_and_keeps_the_connection(
    server: Server, http: httpx.Client, wav: bytes, status: int
) -> None:
    for headers, target in (
        ({}, f"/v1/listen?standin_status={status}"),
        ({"x-standin-status": str(status)}, "/v1/models"),
    ):
        answer = http.request("POST", target, content=wav, headers=headers)
        assert answer.status_code == status
        assert answer.json()["request_id"] == answer.headers["dg-request-id"]
    assert server.live.connections == 1


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_has_none(server: Server, http: httpx.Client, status: int) -> None:
    for _ in range(2):
        answer = http.get(f"/v1/status?standin_status={status}")
        assert (answer.status_code, answer.content) == (status, b"")
        assert ("content-length" in answer.headers) is (status == 304)  # RFC 9110 8.6
    assert server.live.connections == 1


def test_a_reset_that_an_answer_does_not_reach_is_not_the_next_ones(http: httpx.Client) -> None:
    for target in ("/v1/models?standin_reset_after=100000", "/v1/models?standin_stauts=1", "/standin/heads") * 2:
        assert http.get(target).content


def test_the_servers_options_are_every_requests(server: Server, http: httpx.Client) -> None:
    server.options = Options(status=503)
    assert http.get("/v1/status/engine").status_code == 503
    server.options = Options(system_health="Critical", engine_connection="Disconnected")
    assert http.get("/v1/status").json()["system_health"] == "Critical"
    assert http.get("/v1/status/engine").json() == {"engine_connection_status": "Disconnected"}


def test_a_delay_is_kept_and_a_client_that_goes_away_in_it_is_noticed(server: Server, http: httpx.Client) -> None:
    begin = time.monotonic()
    assert http.get("/v1/models?standin_delay=0.2").status_code == 200
    assert time.monotonic() - begin >= 0.2
    with plain(server) as sock:
        sock.sendall(b"POST /v1/listen?standin_delay=60 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc")
        until(lambda: server.active["batch"] == 1 and server.heads[-1].body_bytes == 3, "the request")
    until(lambda: server.heads[-1].ended == "cut", "the client's end to be noticed")
    assert server.active["batch"] == 0


def test_hanging_up_is_an_end_without_an_answer(server: Server) -> None:
    with plain(server) as sock:
        sock.sendall(b"GET /v1/models?standin_hangup=1 HTTP/1.1\r\nHost: h\r\n\r\n")
        assert sock.recv(1) == b""
    assert server.heads[0].ended == "cut"


@pytest.mark.parametrize("framing", ["", "&standin_chunked=1"])
@pytest.mark.parametrize("after", [0, 1, 300_000])
def test_a_reset_comes_after_exactly_so_many_bytes(server: Server, after: int, framing: str) -> None:
    with plain(server) as sock:
        target = f"/v1/models?standin_bytes={MIB}&standin_reset_after={after}{framing}"
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        data, reset = read_to_the_end(sock)
        assert reset
    assert len(data.partition(b"\r\n\r\n")[2]) == after
    until(lambda: server.heads[0].ended == "cut", "the record of it")


def test_an_early_answer_does_not_wait_for_the_body(server: Server) -> None:
    with plain(server) as sock:
        sock.sendall(
            b"POST /v1/listen?standin_early=1&standin_status=413 HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nabc"
        )
        assert read_until(sock, b"}").startswith(b"HTTP/1.1 413 ")
        assert server.heads[0].body_bytes < 6
        sock.sendall(b"defGET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n")  # the connection lives on
        assert read_until(sock, b"]}").startswith(b"HTTP/1.1 200 ")
    assert (server.heads[0].body_bytes, server.heads[0].ended) == (6, "complete")


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [0, 1, 262_044, 3 * MIB])
def test_bytes_are_as_many_as_asked_for_and_known(http: httpx.Client, size: int, chunked: bool) -> None:  # noqa: FBT001
    answer = http.get(f"/v1/models?standin_bytes={size}&standin_chunked={int(chunked)}")
    assert answer.content == (bytes(range(251)) * (size // 251 + 1))[:size]
    assert ("content-length" in answer.headers) is not chunked
    assert ("transfer-encoding" in answer.headers) is chunked


# --- WebSocket: listen -----------------------------------------------------------------------------------------------


def test_the_sdk_streams_and_closes_cleanly(server: Server, sdk: DeepgramClient, pcm: bytes) -> None:
    with sdk.listen.v1.connect(
        model="nova-3", encoding="linear16", sample_rate=16000, interim_results="true"
    ) as stream:
        for at in range(0, len(pcm), 3200):
            stream.send_media(pcm[at : at + 3200])
        stream.send_keep_alive()
        stream.send_close_stream()
        got = list(stream)
    finals: list[Any] = [each for each in got if each.type == "Results" and each.is_final]
    assert [(each.start, each.duration) for each in finals] == [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (3.0, 0.0)]
    assert finals[0].channel.alternatives[0].transcript == "1.0 s of audio, loudness -12 dB"
    assert len([each for each in got if each.type == "Results" and not each.is_final]) == 3
    metadata: Any = got[-1]
    assert (metadata.type, metadata.duration) == ("Metadata", 3.0)
    assert metadata.sha256 == hashlib.sha256(pcm).hexdigest()
    until(lambda: server.heads[0].ended == "complete", "the closing handshake")


def test_the_async_sdk_finalizes(server: Server) -> None:
    async def work() -> tuple[Any, Any]:
        async with (
            async_sdk(server) as client,
            client.listen.v1.connect(model="nova-3", encoding="linear16", sample_rate=16000) as stream,
        ):
            await stream.send_media(SECOND[:8000])
            await stream.send_finalize()
            results = await stream.recv()
            await stream.send_close_stream()
            return results, [each async for each in stream][-1]

    results, metadata = asyncio.run(work())
    assert (results.duration, results.from_finalize) == (0.25, True)
    assert metadata.type == "Metadata"


def test_the_sdk_hears_flux_turns(sdk: DeepgramClient) -> None:
    with sdk.listen.v2.connect(model="flux-general-en", encoding="linear16", sample_rate=16000) as stream:
        stream.send_media(SECOND)
        stream.send_close_stream()
        got: list[Any] = list(stream)
    assert [each.sequence_id for each in got] == [0, 1, 2, 3, 4]
    assert got[0].type == "Connected"
    assert all(isinstance(each, ListenV2TurnInfo) for each in got[1:])
    assert [each.event for each in got[1:]] == ["StartOfTurn", "Update", "Update", "EndOfTurn"]


@pytest.mark.parametrize("end", [b"", '{"type":"CloseStream"}'], ids=["empty message", "CloseStream"])
def test_a_stream_ends_with_results_metadata_and_1000(server: Server, end: str | bytes) -> None:
    async def work() -> tuple[list[Any], int | None]:
        async with connect(ws_url(server, f"/v1/listen?{RAW}"), proxy=None) as ws:
            await ws.send(SECOND[:3200])
            await ws.send(end)
            return await told(ws), ws.close_code

    messages, code = asyncio.run(work())
    assert [each["type"] for each in messages] == ["Results", "Metadata"]
    assert code == 1000


@pytest.mark.parametrize(
    ("sent", "code", "reason"),
    [("junk", 1008, "DATA-0000"), ('{"type":"Nonsense"}', 1008, "DATA-0000"), ("a" * (MIB + 1), 1009, "BIG-0000")],
    ids=["junk", "unknown", "too big"],
)
def test_a_message_that_makes_no_sense_closes_the_stream(server: Server, sent: str, code: int, reason: str) -> None:
    async def work() -> ConnectionClosed:
        async with connect(ws_url(server, f"/v1/listen?{RAW}"), proxy=None) as ws:
            with pytest.raises(ConnectionClosed) as closed:  # noqa: PT012 - the close may meet either
                await ws.send(sent)
                await ws.recv()
            return closed.value

    closed = asyncio.run(work())
    assert closed.rcvd is not None
    assert closed.rcvd.code == code
    assert reason in closed.rcvd.reason


@pytest.mark.parametrize("keepalive", [False, True])
def test_silence_closes_with_net_0001_though_pings_and_keepalives_come(server: Server, keepalive: bool) -> None:  # noqa: FBT001
    async def work() -> ConnectionClosed:
        async with connect(ws_url(server, f"/v1/listen?{RAW}&standin_silence=0.3"), proxy=None) as ws:
            with pytest.raises(ConnectionClosed) as closed:  # noqa: PT012 - one of them meets the close
                while True:
                    await (ws.send('{"type": "KeepAlive"}') if keepalive else ws.ping())
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(ws.recv(), 0.05)
            return closed.value

    closed = asyncio.run(work())
    assert closed.rcvd is not None
    assert (closed.rcvd.code, closed.rcvd.reason[:8]) == (1011, "NET-0001")


def test_keepalive_holds_a_stream_that_has_had_audio(server: Server) -> None:
    async def work() -> list[Any]:
        async with connect(ws_url(server, f"/v1/listen?{RAW}&standin_silence=0.4"), proxy=None) as ws:
            await ws.send(SECOND[:3200])
            for _ in range(8):
                await ws.send('{"type":"KeepAlive"}')
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ws.recv(), 0.1)
            await ws.send('{"type":"CloseStream"}')
            return await told(ws)

    assert [each["type"] for each in asyncio.run(work())] == ["Results", "Metadata"]


def test_a_101_has_a_request_id_and_no_subprotocol_or_extension(server: Server) -> None:
    async def work() -> Any:
        async with connect(ws_url(server, f"/v1/listen?{RAW}"), proxy=None) as ws:
            assert await (await ws.ping(b"polo"))
            assert ws.response is not None
            return ws.response.headers

    headers = asyncio.run(work())
    assert is_uuid(headers["dg-request-id"])
    assert "sec-websocket-protocol" not in headers
    assert "sec-websocket-extensions" not in headers


def test_an_upgrade_works_on_a_used_connection_and_early_bytes_are_not_lost(server: Server) -> None:
    with plain(server) as sock:
        sock.sendall(b"GET /v1/status/engine HTTP/1.1\r\nHost: h\r\n\r\n")
        read_until(sock, b"}")
        audio = b"\x82\x80\0\0\0\0"  # an empty message: the end of the stream
        sock.sendall(b"GET /v1/listen HTTP/1.1\r\n" + HANDSHAKE + audio)
        data = read_until(sock, b"\x88\x02\x03\xe8")
        sock.sendall(MASKED_CLOSE)
    assert data.startswith(b"HTTP/1.1 101 ")
    assert b'"type":"Metadata"' in data


def test_a_frame_against_the_rules_ends_the_stream_with_1002(server: Server) -> None:
    with plain(server) as sock:
        sock.sendall(b"GET /v1/listen HTTP/1.1\r\n" + HANDSHAKE)
        read_until(sock, b"\r\n\r\n")
        sock.sendall(b"\x81\x01x")  # not masked
        data = read_until(sock, b"\x03\xea")
        assert data[0] == 0x88


# --- WebSocket: speak, agent -----------------------------------------------------------------------------------------


def test_the_sdk_speaks_over_a_websocket(sdk: DeepgramClient) -> None:
    with sdk.speak.v1.connect(model="aura-2-zeus-en", encoding="linear16", sample_rate=16000) as stream:
        stream.send_text(SpeakV1Text(type="Speak", text="hello"))
        stream.send_flush()
        stream.send_clear()
        stream.send_close()
        got: list[Any] = list(stream)
    kinds = ["audio" if isinstance(each, bytes) else each.type for each in got]
    assert (kinds[0], kinds[-2:]) == ("Metadata", ["Flushed", "Cleared"])
    assert [each.sequence_id for each in got[-2:]] == [0, 1]
    assert sum(len(each) for each in got[1:-2]) == 5 * 0.06 * 32000


def test_the_async_sdk_speaks_flux(server: Server) -> None:
    async def work() -> list[Any]:
        async with async_sdk(server) as client, client.speak.v2.connect(model="flux-alexis-en") as stream:
            await stream.send_speak(SpeakV2Speak(type="Speak", text="hello"))
            await stream.send_flush()
            await stream.send_close()
            return [each async for each in stream]

    got = asyncio.run(work())
    kinds = [each.type for each in got if not isinstance(each, bytes)]
    assert kinds == ["Connected", "SpeechStarted", "SpeechMetadata", "Flushed", "SessionMetadata"]
    assert got[-1].total_billable_character_count == 5


def test_the_sdk_talks_to_an_agent(sdk: DeepgramClient) -> None:
    with sdk.agent.v1.connect() as agent:
        assert agent.recv().type == "Welcome"
        agent.send_raw({"type": "Settings", "audio": {}, "agent": {}})
        assert agent.recv().type == "SettingsApplied"
        agent.send_raw({"type": "InjectUserMessage", "content": "hi"})
        said: Any = agent.recv()
        assert (said.type, said.role, said.content) == ("ConversationText", "user", "hi")


# --- WebSocket: faults and echo --------------------------------------------------------------------------------------


def test_a_refused_upgrade_says_why_and_leaves_the_connection_usable(server: Server) -> None:
    with plain(server) as sock:
        sock.sendall(b"GET /v1/listen?standin_status=429 HTTP/1.1\r\n" + HANDSHAKE)
        refused = read_until(sock, b"}").decode()
        assert refused.startswith("HTTP/1.1 429 ")
        headers = dict(line.lower().split(": ", 1) for line in refused.partition("\r\n\r\n")[0].split("\r\n")[1:])
        body = json.loads(refused.partition("\r\n\r\n")[2])
        assert headers["dg-error"] == body["err_msg"].lower()
        assert headers["dg-request-id"] == body["request_id"]
        sock.sendall(b"GET /v1/status HTTP/1.1\r\nHost: h\r\n\r\n")
        assert read_until(sock, b"}").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("status", [401, 503])
def test_the_sdks_see_a_refused_upgrade(server: Server, sdk: DeepgramClient, status: int) -> None:
    server.options = Options(status=status)

    async def work() -> None:
        async with async_sdk(server) as client, client.listen.v1.connect(model="nova-3"):
            raise AssertionError("opened")

    with pytest.raises(InvalidStatus), sdk.listen.v1.connect(model="nova-3"):
        raise AssertionError("opened")
    with pytest.raises(ApiError) as refused:
        asyncio.run(work())
    assert refused.value.status_code == status


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        ("/v1/nothing", HANDSHAKE, 404),
        ("/v1/listen?encoding=linear16&sample_rate=0", HANDSHAKE, 400),
        ("/v1/listen?standin_nonsense=1", HANDSHAKE, 400),
        ("/v1/listen", HANDSHAKE.replace(b"Version: 13", b"Version: 8"), 426),
        ("/v1/listen", HANDSHAKE.replace(b"Sec-WebSocket-Key", b"X-Key"), 400),
    ],
    ids=["path", "parameter", "option", "version", "no key"],
)
def test_a_bad_upgrade_is_refused(server: Server, request_line: str, headers: bytes, status: int) -> None:
    with plain(server) as sock:
        sock.sendall(f"GET {request_line} HTTP/1.1\r\n".encode() + headers)
        assert read_until(sock, b"}").startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("fault", ["hangup=1", "wrong_accept=1"])
def test_clients_take_no_101_that_is_none(server: Server, fault: str) -> None:
    with pytest.raises((InvalidHandshake, EOFError)), connect_sync(ws_url(server, f"/v1/listen?standin_{fault}")):
        raise AssertionError("opened")


def test_a_delay_holds_back_the_101(server: Server) -> None:
    begin = time.monotonic()
    with connect_sync(ws_url(server, "/v1/listen?standin_delay=0.2")):
        assert time.monotonic() - begin >= 0.2


def test_a_stream_can_be_reset_behind_its_101(server: Server) -> None:
    with plain(server) as sock:
        sock.sendall(b"GET /v2/listen?standin_reset_after=5 HTTP/1.1\r\n" + HANDSHAKE)
        data, reset = read_to_the_end(sock)
        assert reset
    assert data.partition(b"\r\n\r\n")[2][2:] == b'{"t'  # of the Connected message: two bytes of head, three of text
    until(lambda: server.heads[0].ended == "cut", "the record of it")


def test_an_echo_gives_everything_back_and_the_close_too(server: Server) -> None:
    messages: list[str | bytes] = ["x", "", b"", b"y" * 125, "z" * 126, bytes(70_000), os.urandom(5 * MIB), "last"]

    async def work() -> None:
        async with connect(ws_url(server, "/v2/listen?standin_echo=1"), proxy=None, max_size=None) as ws:
            for message in messages:
                await ws.send(message)
                assert await ws.recv() == message
            await ws.send(["frag", "men", "ted"])
            assert [part async for part in ws.recv_streaming()] == ["frag", "men", "ted", ""]
            assert await (await ws.ping(b"polo"))
            await ws.close(4321, "enough")
            assert (ws.close_code, ws.close_reason) == (4321, "enough")

    asyncio.run(work())
    until(lambda: server.heads[0].ended == "complete", "the record of it")
    assert server.heads[0].body_bytes == sum(map(len, messages)) + len("fragmented")
    assert server.heads[0].sha256 is None


def test_an_echo_that_is_cut_is_recorded_as_cut(server: Server) -> None:
    with plain(server) as sock:
        sock.sendall(b"GET /v1/listen?standin_echo=1 HTTP/1.1\r\n" + HANDSHAKE)
        read_until(sock, b"\r\n\r\n")
        assert server.live == (1, 1)
    until(lambda: server.heads[0].ended == "cut", "the record of it")
    until(lambda: server.live == (0, 0), "the connection to be gone")


def test_an_echo_reads_no_more_than_its_client_takes(server: Server) -> None:
    with plain(server) as sock:
        sock.sendall(b"GET /v1/listen?standin_echo=1 HTTP/1.1\r\n" + HANDSHAKE)
        read_until(sock, b"\r\n\r\n")
        sock.settimeout(0)  # nothing is read from here on
        frame = b"\x82\xff" + struct.pack(">Q", 1 << 40) + bytes(4)
        payload = bytes(MIB)
        sock.send(frame)
        sent, quiet_since = 0, time.monotonic()
        while time.monotonic() - quiet_since < 1.0:
            assert sent < 256 * MIB, "the stand-in buffers without bound"
            try:
                sent += sock.send(payload)
                quiet_since = time.monotonic()
            except BlockingIOError:
                time.sleep(0.01)
        assert server.heads[0].body_bytes <= sent


# --- running ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_is_and_ends_cleanly_with_streams_open(number: signal.Signals) -> None:
    script = "from dgproxy.standin import run; run('127.0.0.1', 0)"
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("stand-in Deepgram on http://127.0.0.1:")
        url = line.split()[-1]
        ws = url.replace("http", "ws")
        with (
            connect_sync(f"{ws}/v1/listen") as stream,
            connect_sync(f"{ws}/v1/listen?standin_echo=1") as echo,
            httpx.Client(base_url=url, trust_env=False) as http,
        ):
            assert http.get("/standin/live").json() == {"connections": 2, "websockets": 2}
            process.send_signal(number)
            assert process.wait(10) == 0
            for each in (stream, echo):
                with pytest.raises(ConnectionClosed):
                    each.recv(timeout=10)
        assert process.stderr.read() == ""
        assert process.stdout.read() == ""


def test_serve_ends_with_nothing_left() -> None:
    async def work() -> None:
        async with serve(options=Options(results_ms=100)) as server:
            ws = await connect(ws_url(server, f"/v1/listen?{RAW}"), proxy=None)
            await ws.send(SECOND[:3200])
            assert json.loads(await ws.recv())["duration"] == 0.1
            before = asyncio.current_task()
        with pytest.raises(websockets.ConnectionClosed):
            await ws.recv()
        assert server.live == (0, 0)
        assert [task for task in asyncio.all_tasks() if "standin" in repr(task) and task is not before] == []
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await connect(ws_url(server, "/v1/listen"), proxy=None)

    asyncio.run(work())


def test_a_port_that_is_taken_is_an_error(server: Server) -> None:
    with pytest.raises(OSError, match="in use"), background(port=urlsplit(server.url).port or 0):
        raise AssertionError("listens")
