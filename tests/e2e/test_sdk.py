"""The official SDK, unmodified, through the proxy: only its host, its key and the CA's place are set (deepgram.md 1).

What it is given must be what the container said; what the container got must be what the SDK sent, without the key.
"""

import asyncio
import contextlib
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import websockets
from deepgram.core.api_error import ApiError
from deepgram.errors import BadRequestError
from deepgram.speak.v1.types import SpeakV1Text

from tests.support.clients import (
    assert_chunked_kept,
    assert_forwarded,
    assert_length_kept,
    async_sdk,
    sdk,
)
from tests.support.logs import SECRETS
from tests.support.proxy import Proxy
from tests.support.upstreams import Head, Upstream, values

FRAME: Final = 3200  # bytes: 100 ms
KEYTERMS: Final = ["a b", "c&d"]  # what the SDK writes as + and %26
LISTEN: Final = "/v1/listen?keyterm=a+b&keyterm=c%26d&model=nova-3&smart_format=true"  # byte for byte
STREAM: Final = (
    "/v1/listen?encoding=linear16&interim_results=true&keyterm=a+b&keyterm=c%26d&model=nova-3&sample_rate=16000"
)
WRONG: Final = SECRETS.add("dgp_0000000000_00000000000000000000000000000000000000")


@pytest.fixture(autouse=True)
def _trusted(monkeypatch: pytest.MonkeyPatch, proxy: Proxy) -> None:
    """The one thing that an SDK's user must do for a private CA."""
    monkeypatch.setenv("SSL_CERT_FILE", str(proxy.ca))
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await work()

    asyncio.run(bounded())


def frames(pcm: bytes) -> list[bytes]:
    return [pcm[at : at + FRAME] for at in range(0, len(pcm), FRAME)]


def assert_heard(answer: Any, head: Head, wav: bytes) -> None:
    """The transcript is of these bytes, and came from where the head went."""
    assert answer.metadata.sha256 == hashlib.sha256(wav).hexdigest()
    assert answer.metadata.duration == pytest.approx(3.0, abs=0.01)
    assert answer.results.channels[0].alternatives[0].transcript
    assert (head["body_bytes"], head["sha256"]) == (len(wav), hashlib.sha256(wav).hexdigest())


# --- HTTP, sync ------------------------------------------------------------------------------------------------------


def test_bytes_are_transcribed_and_keep_their_length(proxy: Proxy, upstream: Upstream, wav: bytes) -> None:
    with sdk(proxy.base_url, proxy.key) as client:
        answer = client.listen.v1.media.with_raw_response.transcribe_file(
            request=wav, model="nova-3", smart_format=True, keyterm=KEYTERMS
        )
    head = upstream.only()
    assert_heard(answer.data, head, wav)
    assert answer.headers["dg-request-id"] == answer.data.metadata.request_id
    assert (head["method"], head["target"]) == ("POST", LISTEN)
    assert_length_kept(head, len(wav))
    assert_forwarded(head, upstream)
    assert values(head, "Content-Type") == ["application/octet-stream"]
    (session,) = values(head, "x-deepgram-session-id")
    uuid.UUID(session)
    assert values(head, "User-Agent")[0].startswith("deepgram-sdk/7.")


def test_a_file_object_is_transcribed_and_keeps_its_length(
    proxy: Proxy, upstream: Upstream, wav: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "tone.wav"
    path.write_bytes(wav)
    with sdk(proxy.base_url, proxy.key) as client, path.open("rb") as file:
        answer = client.listen.v1.media.transcribe_file(request=file, model="nova-3")
    head = upstream.only()
    assert_heard(answer, head, wav)
    assert_length_kept(head, len(wav))
    assert_forwarded(head, upstream)


def test_a_generator_is_transcribed_and_stays_chunked(proxy: Proxy, upstream: Upstream, wav: bytes) -> None:
    with sdk(proxy.base_url, proxy.key) as client:
        answer = client.listen.v1.media.transcribe_file(request=iter(frames(wav)), model="nova-3")
    head = upstream.only()
    assert_heard(answer, head, wav)
    assert_chunked_kept(head)
    assert_forwarded(head, upstream)


def test_a_url_is_transcribed(proxy: Proxy, upstream: Upstream) -> None:
    with sdk(proxy.base_url, proxy.key) as client:
        answer = client.listen.v1.media.transcribe_url(url="https://audio.example/a.wav", model="nova-3")
    assert answer.results.channels[0].alternatives[0].transcript
    head = upstream.only()
    body = json.dumps({"url": "https://audio.example/a.wav"}, separators=(",", ":")).encode()
    assert values(head, "Content-Type") == ["application/json"]
    assert (head["body_bytes"], head["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    assert_length_kept(head, len(body))
    assert_forwarded(head, upstream)


def test_a_callback_query_arrives_as_the_sdk_encoded_it(
    new_proxy: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch, upstream: Upstream, wav: bytes
) -> None:
    with new_proxy({"plans.default.allow_callback": '["cb.example"]'}) as own:
        monkeypatch.setenv("SSL_CERT_FILE", str(own.ca))
        with sdk(own.base_url, own.key) as client:
            answer = client.listen.v1.media.transcribe_file(
                request=wav, model="nova-3", callback="https://cb.example/x?y=1"
            )
        head = upstream.only()
    assert answer.request_id
    assert head["target"] == "/v1/listen?callback=https%3A%2F%2Fcb.example%2Fx%3Fy%3D1&model=nova-3"
    assert_forwarded(head, upstream)


def test_speech_comes_back_chunked_with_its_dg_headers(proxy: Proxy, upstream: Upstream) -> None:
    with sdk(proxy.base_url, proxy.key) as client:
        with client.speak.v1.audio.with_raw_response.generate(
            text="hello", model="aura-2-thalia-en", encoding="linear16", sample_rate=16000
        ) as answer:
            audio = b"".join(answer.data)
        assert audio
        # What Python SDK 3 and 4 cannot do without (deepgram.md 6).
        assert answer.headers["transfer-encoding"] == "chunked"
        for name in ("date", "content-type", "dg-request-id", "dg-model-name", "dg-model-uuid", "dg-char-count"):
            assert answer.headers[name], name
    head = upstream.only()
    assert head["target"] == "/v1/speak?encoding=linear16&model=aura-2-thalia-en&sample_rate=16000"
    assert_forwarded(head, upstream)


def test_text_is_read(proxy: Proxy, upstream: Upstream) -> None:
    with sdk(proxy.base_url, proxy.key) as client:
        answer = client.read.v1.text.analyze(request={"text": "hello"}, summarize=True, language="en")
    assert answer.results is not None
    head = upstream.only()
    assert (head["method"], head["target"]) == ("POST", "/v1/read?summarize=true&language=en")
    assert_forwarded(head, upstream)


def test_models_are_listed(proxy: Proxy, upstream: Upstream) -> None:
    with sdk(proxy.base_url, proxy.key) as client:
        models = client.manage.v1.models.list()
    assert models.stt
    head = upstream.only()
    assert (head["method"], head["target"]) == ("GET", "/v1/models")
    assert not values(head, "Content-Length")
    assert not values(head, "Transfer-Encoding")
    assert_forwarded(head, upstream)


def test_an_access_token_is_a_key_too(proxy: Proxy, upstream: Upstream, wav: bytes) -> None:
    with sdk(proxy.base_url, "ignored", access_token=proxy.key) as client:  # sends `bearer KEY`, in lower case
        assert_heard(client.listen.v1.media.transcribe_file(request=wav), upstream.only(), wav)
    assert_forwarded(upstream.only(), upstream)


# --- HTTP, async -----------------------------------------------------------------------------------------------------


def test_async_bytes_and_generator_are_transcribed(proxy: Proxy, upstream: Upstream, wav: bytes) -> None:
    async def generate() -> AsyncIterator[bytes]:
        for frame in frames(wav):
            yield frame

    async def work() -> None:
        async with async_sdk(proxy.base_url, proxy.key) as client:
            answer = await client.listen.v1.media.transcribe_file(
                request=wav, model="nova-3", smart_format=True, keyterm=KEYTERMS
            )
            head = upstream.only()
            assert_heard(answer, head, wav)
            assert head["target"] == LISTEN
            assert_length_kept(head, len(wav))
            assert_forwarded(head, upstream)
            upstream.clear()
            answer = await client.listen.v1.media.transcribe_file(request=generate(), model="nova-3")
            head = upstream.only()
            assert_heard(answer, head, wav)
            assert_chunked_kept(head)
            assert_forwarded(head, upstream)

    run(work)


def test_async_url_speak_read_and_models(proxy: Proxy, upstream: Upstream) -> None:
    async def work() -> None:
        async with async_sdk(proxy.base_url, proxy.key) as client:
            fetched = await client.listen.v1.media.transcribe_url(url="https://audio.example/a.wav", model="nova-3")
            assert fetched.results.channels[0].alternatives[0].transcript
            audio = [chunk async for chunk in client.speak.v1.audio.generate(text="hello", model="aura-2-thalia-en")]
            assert b"".join(audio)
            assert (await client.read.v1.text.analyze(request={"text": "hello"}, summarize=True)).results is not None
            assert (await client.manage.v1.models.list()).stt

    run(work)
    heads = upstream.heads()
    assert [(head["method"], head["target"]) for head in heads] == [
        ("POST", "/v1/listen?model=nova-3"),
        ("POST", "/v1/speak?model=aura-2-thalia-en"),
        ("POST", "/v1/read?summarize=true"),
        ("GET", "/v1/models"),
    ]
    for head in heads:
        assert_forwarded(head, upstream)


def test_async_calls_at_once_each_get_their_own_answer(proxy: Proxy, upstream: Upstream, wav: bytes) -> None:
    bodies = [wav + bytes(2 * n) for n in range(20)]

    async def work() -> None:
        async with async_sdk(proxy.base_url, proxy.key) as client:
            listen = client.listen.v1.media.transcribe_file
            answers = await asyncio.gather(*(listen(request=body, model="nova-3") for body in bodies))
        assert [a.metadata.sha256 for a in answers] == [hashlib.sha256(body).hexdigest() for body in bodies]

    run(work)
    assert len(upstream.heads()) == len(bodies)


# --- WebSocket -------------------------------------------------------------------------------------------------------


def assert_stream(messages: list[Any], head: Head, upstream: Upstream) -> None:
    """Results, one of them from Finalize, then Metadata last; and a head that keeps every promise."""
    kinds = [message.type for message in messages]
    assert kinds[-1] == "Metadata"
    assert set(kinds[:-1]) == {"Results"}
    assert any(message.from_finalize for message in messages[:-1])
    assert messages[-1].duration == pytest.approx(3.0, abs=0.01)
    assert head["method"] == "GET"
    assert head["target"] == STREAM
    assert_forwarded(head, upstream, websocket=True)
    assert values(head, "Upgrade") == ["websocket"]
    assert values(head, "Sec-WebSocket-Version") == ["13"]


def test_a_sync_stream_gives_results_metadata_and_1000(proxy: Proxy, upstream: Upstream, pcm: bytes) -> None:
    with (
        sdk(proxy.base_url, proxy.key) as client,
        client.listen.v1.connect(
            model="nova-3", encoding="linear16", sample_rate=16000, interim_results=True, keyterm=KEYTERMS
        ) as stream,
    ):
        uuid.UUID(stream._websocket.response.headers["dg-request-id"])
        assert "Sec-WebSocket-Protocol" not in stream._websocket.response.headers
        for frame in frames(pcm):
            stream.send_media(frame)
        stream.send_keep_alive()
        stream.send_finalize()
        messages: list[Any] = []
        while not (messages and messages[-1].from_finalize):
            messages.append(stream.recv())
        stream.send_close_stream()
        messages += list(stream)
        assert stream._websocket.close_code == 1000
    assert_stream(messages, upstream.only(), upstream)


def test_an_async_stream_gives_results_metadata_and_1000(proxy: Proxy, upstream: Upstream, pcm: bytes) -> None:
    messages: list[Any] = []

    async def work() -> None:
        async with (
            async_sdk(proxy.base_url, proxy.key) as client,
            client.listen.v1.connect(
                model="nova-3", encoding="linear16", sample_rate=16000, interim_results=True, keyterm=KEYTERMS
            ) as stream,
        ):
            for frame in frames(pcm):
                await stream.send_media(frame)
            await stream.send_keep_alive()
            await stream.send_finalize()
            while not (messages and messages[-1].from_finalize):
                messages.append(await stream.recv())
            await stream.send_close_stream()
            messages.extend([message async for message in stream])
            assert stream._websocket.close_code == 1000

    run(work)
    assert_stream(messages, upstream.only(), upstream)


def assert_flux(messages: list[Any], head: Head, upstream: Upstream) -> None:
    assert messages[0].type == "Connected"
    assert {message.type for message in messages[1:]} == {"TurnInfo"}
    # The server counts its own messages: one that the proxy lost, doubled or invented would show.
    assert [message.sequence_id for message in messages] == list(range(len(messages)))
    assert head["target"] == "/v2/listen?model=flux-general-en&encoding=linear16&sample_rate=16000"
    assert_forwarded(head, upstream, websocket=True)


def test_a_sync_flux_stream_gives_turns_and_1000(proxy: Proxy, upstream: Upstream, pcm: bytes) -> None:
    with (
        sdk(proxy.base_url, proxy.key) as client,
        client.listen.v2.connect(model="flux-general-en", encoding="linear16", sample_rate=16000) as stream,
    ):
        for frame in frames(pcm):
            stream.send_media(frame)
        stream.send_close_stream()
        messages = list(stream)
        assert stream._websocket.close_code == 1000
    assert_flux(messages, upstream.only(), upstream)


def test_an_async_flux_stream_gives_turns_and_1000(proxy: Proxy, upstream: Upstream, pcm: bytes) -> None:
    messages: list[Any] = []

    async def work() -> None:
        async with (
            async_sdk(proxy.base_url, proxy.key) as client,
            client.listen.v2.connect(model="flux-general-en", encoding="linear16", sample_rate=16000) as stream,
        ):
            for frame in frames(pcm):
                await stream.send_media(frame)
            await stream.send_close_stream()
            messages.extend([message async for message in stream])
            assert stream._websocket.close_code == 1000

    run(work)
    assert_flux(messages, upstream.only(), upstream)


def assert_speech(messages: list[Any], head: Head, upstream: Upstream) -> None:
    assert messages[0].type == "Metadata"
    assert any(isinstance(message, bytes) and message for message in messages)
    assert [message.type for message in messages if not isinstance(message, bytes)][1:] == ["Flushed"]
    assert head["target"] == "/v1/speak?encoding=linear16&model=aura-2-thalia-en&sample_rate=16000"
    assert_forwarded(head, upstream, websocket=True)


def test_a_sync_speech_stream_gives_audio_and_1000(proxy: Proxy, upstream: Upstream) -> None:
    with (
        sdk(proxy.base_url, proxy.key) as client,
        client.speak.v1.connect(model="aura-2-thalia-en", encoding="linear16", sample_rate=16000) as stream,
    ):
        stream.send_text(SpeakV1Text(text="hello"))
        stream.send_flush()
        messages: list[Any] = []
        while not (messages and getattr(messages[-1], "type", "") == "Flushed"):
            messages.append(stream.recv())
        stream.send_close()
        messages += list(stream)
        assert stream._websocket.close_code == 1000
    assert_speech(messages, upstream.only(), upstream)


def test_an_async_speech_stream_gives_audio_and_1000(proxy: Proxy, upstream: Upstream) -> None:
    messages: list[Any] = []

    async def work() -> None:
        async with (
            async_sdk(proxy.base_url, proxy.key) as client,
            client.speak.v1.connect(model="aura-2-thalia-en", encoding="linear16", sample_rate=16000) as stream,
        ):
            await stream.send_text(SpeakV1Text(text="hello"))
            await stream.send_flush()
            while not (messages and getattr(messages[-1], "type", "") == "Flushed"):
                messages.append(await stream.recv())
            await stream.send_close()
            messages.extend([message async for message in stream])
            assert stream._websocket.close_code == 1000

    run(work)
    assert_speech(messages, upstream.only(), upstream)


# --- refusals, as the SDK reports them (deepgram.md 5 and 6) ---------------------------------------------------------


@contextlib.contextmanager
def refused(status: int, code: str) -> Iterator[None]:
    with pytest.raises(ApiError) as error:
        yield
    assert error.value.status_code == status
    assert error.value.body["err_code"] == code
    assert error.value.headers is not None
    assert error.value.headers["dg-request-id"] == error.value.body["request_id"]
    assert error.value.headers["dg-error"] == error.value.body["err_msg"]


def test_a_wrong_key_is_an_api_error_401_over_http(proxy: Proxy, upstream: Upstream, wav: bytes) -> None:
    with sdk(proxy.base_url, WRONG) as client:
        with refused(401, "INVALID_AUTH"):
            client.listen.v1.media.transcribe_file(request=wav, model="nova-3")
        with refused(401, "INVALID_AUTH"):
            client.manage.v1.models.list()

    async def work() -> None:
        async with async_sdk(proxy.base_url, WRONG) as client:
            with refused(401, "INVALID_AUTH"):
                await client.listen.v1.media.transcribe_file(request=wav, model="nova-3")

    run(work)
    assert upstream.heads() == []


def test_a_wrong_key_ends_a_stream_before_it_begins(proxy: Proxy, upstream: Upstream) -> None:
    with sdk(proxy.base_url, WRONG) as client:
        # The sync client's own mapping of 401 misses: this is what it raises with Deepgram itself.
        with pytest.raises(websockets.InvalidStatus) as status, client.listen.v1.connect(model="nova-3"):
            pass
        assert status.value.response.status_code == 401
        assert json.loads(status.value.response.body or b"")["err_code"] == "INVALID_AUTH"

    async def work() -> None:
        async with async_sdk(proxy.base_url, WRONG) as client:
            with pytest.raises(ApiError) as error:
                async with client.listen.v1.connect(model="nova-3"):
                    pass
            assert error.value.status_code == 401

    run(work)
    assert upstream.heads() == []


def test_a_large_upload_with_a_wrong_key_still_gets_its_401(proxy: Proxy, upstream: Upstream) -> None:
    """The SDK reads the answer after it wrote all: a reset meanwhile would hide it (deepgram.md 6)."""
    body = bytes(8 * 2**20)
    with sdk(proxy.base_url, WRONG, max_retries=0) as client, refused(401, "INVALID_AUTH"):
        client.listen.v1.media.transcribe_file(request=body, model="nova-3")

    async def work() -> None:
        async with async_sdk(proxy.base_url, WRONG, max_retries=0) as client:
            with refused(401, "INVALID_AUTH"):
                await client.listen.v1.media.transcribe_file(request=body, model="nova-3")

    run(work)
    assert upstream.heads() == []


def test_two_credentials_are_a_bad_request_error(proxy: Proxy, upstream: Upstream) -> None:
    other = proxy.new_key().key
    with sdk(proxy.base_url, proxy.key) as client, pytest.raises(BadRequestError) as error:
        client.manage.v1.models.list(request_options={"additional_headers": {"X-Api-Key": other}})
    assert error.value.body["err_code"] == "BAD_REQUEST"
    assert upstream.heads() == []


def test_a_management_call_is_an_api_error_404(proxy: Proxy, upstream: Upstream) -> None:
    with sdk(proxy.base_url, proxy.key) as client, refused(404, "NOT_FOUND"):
        client.manage.v1.projects.list()
    assert upstream.heads() == []
