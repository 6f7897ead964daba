import asyncio
import hashlib
import json
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
import websockets
from deepgram.speak.v1.types import SpeakV1Text
from websockets.asyncio.client import connect

from tests.support.clients import async_sdk, sdk
from tests.support.second_upstream import SecondUpstream
from tests.support.upstreams import Upstream, values

KEY = "any-key-will-do"  # the container authenticates nobody


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    upstream = Upstream("second", tmp_path_factory.mktemp("second"))
    yield upstream
    upstream.stop()


@pytest.fixture(autouse=True)
def _forget(second: Upstream) -> None:
    second.clear()


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await work()

    asyncio.run(bounded())


def test_it_transcribes_for_the_sdk_and_records_the_head_as_it_came(second: Upstream, wav: bytes) -> None:
    with sdk(second.url, KEY) as client:
        answer = client.listen.v1.media.transcribe_file(request=wav, model="nova-3", smart_format=True)
    assert answer.metadata.duration == 3.0
    assert answer.results.channels[0].alternatives[0].transcript == f"second upstream heard {len(wav)} bytes"
    head = second.only()
    assert (head["method"], head["target"]) == ("POST", "/v1/listen?model=nova-3&smart_format=true")
    assert (head["body_bytes"], head["sha256"]) == (len(wav), hashlib.sha256(wav).hexdigest())
    assert [name for name, _ in head["headers"]][:4] == ["Host", "Accept", "Accept-Encoding", "Connection"]
    assert values(head, "authorization") == [f"Token {KEY}"]


def test_it_answers_chunked_url_read_models_and_status(second: Upstream, wav: bytes) -> None:
    with sdk(second.url, KEY) as client:
        chunked = client.listen.v1.media.transcribe_file(request=iter([wav[:1000], wav[1000:]]))
        assert chunked.metadata.sha256 == hashlib.sha256(wav).hexdigest()
        fetched = client.listen.v1.media.transcribe_url(url="https://audio.example/a.wav")
        assert "https://audio.example/a.wav" in fetched.results.channels[0].alternatives[0].transcript
        assert client.read.v1.text.analyze(request={"text": "hello"}, summarize=True).results is not None
        assert client.manage.v1.models.list().stt[0].name == "second-general"
    assert values(second.heads()[0], "transfer-encoding") == ["chunked"]
    health = httpx.get(f"{second.url}/v1/status")
    assert health.json()["system_health"] == "Healthy"
    uuid.UUID(health.headers["dg-request-id"])
    assert httpx.get(f"{second.url}/v1/status/engine").text.startswith('{"engine_connection_status": "Connected"')


def test_its_speech_is_chunked_and_dated(second: Upstream) -> None:
    with httpx.stream("POST", f"{second.url}/v1/speak?standin_bytes=100000", json={"text": "hello"}) as answer:
        audio = answer.read()
    assert audio == (bytes(range(251)) * 400)[:100_000]
    assert answer.headers["transfer-encoding"] == "chunked"
    assert {"date", "dg-request-id", "dg-model-name", "dg-model-uuid", "dg-char-count"} <= set(answer.headers)
    with sdk(second.url, KEY) as client:
        assert b"".join(client.speak.v1.audio.generate(text="hi")) == (bytes(range(251)) * 3)[:512]


def test_its_streams_give_results_and_end_with_1000(second: Upstream, pcm: bytes) -> None:
    async def work() -> None:
        async with (
            async_sdk(second.url, KEY) as client,
            client.listen.v1.connect(model="nova-3", encoding="linear16", sample_rate=16000) as stream,
        ):
            await stream.send_media(pcm)
            await stream.send_keep_alive()
            await stream.send_finalize()
            await stream.send_close_stream()
            seen: list[Any] = [message async for message in stream]
            assert [message.type for message in seen] == ["Results", "Results", "Results", "Metadata"]
            assert seen[1].from_finalize is True
            assert seen[-1].duration == 3.0
            assert stream._websocket.close_code == 1000

    run(work)
    assert list(second.only()["messages"][0]) == ["binary", len(pcm)]


def test_configure_is_answered_and_what_was_said_is_remembered(second: Upstream) -> None:
    configure = {"type": "Configure", "keyterms": ["a b"]}
    said = [json.dumps(message) for message in (configure, {"type": "Configure"}, {"type": "CloseStream"})]

    async def ask(target: str) -> list[Any]:
        async with connect(f"ws://{second.host}{target}") as ws:
            for text in said:
                await ws.send(text)
            return [json.loads(message) async for message in ws]

    async def work() -> None:
        first, again, *_ = await ask("/v1/listen?model=nova-3")
        assert (first["type"], first["keyterms"]) == ("ConfigureSuccess", ["a b"])
        assert set(again) == {"type", "request_id"}
        _, first, again, *_ = await ask("/v2/listen?model=flux-general-en")
        assert (first["type"], first["sequence_id"], first["keyterms"]) == ("ConfigureSuccess", 1, ["a b"])
        assert (again["sequence_id"], again["keyterms"], again["thresholds"]) == (2, [], {})

    run(work)
    assert [head["texts"] for head in second.heads()] == [said, said]


def test_a_zero_length_binary_frame_ends_a_stream(second: Upstream) -> None:
    async def work() -> None:
        async with connect(f"ws://{second.host}/v1/listen?model=nova-3") as ws:
            await ws.send(b"")
            kinds = [json.loads(message)["type"] async for message in ws]
            assert kinds == ["Results", "Metadata"]
            assert ws.close_code == 1000

    run(work)


def test_flux_counts_its_messages(second: Upstream, pcm: bytes) -> None:
    async def work() -> None:
        async with (
            async_sdk(second.url, KEY) as client,
            client.listen.v2.connect(model="flux-general-en", encoding="linear16", sample_rate=16000) as stream,
        ):
            await stream.send_media(pcm[:3200])
            await stream.send_media(pcm[3200:6400])
            await stream.send_close_stream()
            seen: list[Any] = [message async for message in stream]
            assert [message.sequence_id for message in seen] == [0, 1, 2, 3]
            assert [message.event for message in seen[1:]] == ["StartOfTurn", "Update", "EndOfTurn"]

    run(work)


def test_speech_streams_flush_clear_and_close(second: Upstream) -> None:
    async def work() -> None:
        async with async_sdk(second.url, KEY) as client, client.speak.v1.connect(model="aura-2-thalia-en") as stream:
            await stream.send_text(SpeakV1Text(text="hello"))
            await stream.send_flush()
            await stream.send_clear()
            await stream.send_close()
            seen: list[Any] = [message async for message in stream]
            assert seen[0].type == "Metadata"
            assert seen[1] == (bytes(range(251)) * 6)[:1280]
            assert [message.type for message in seen[2:]] == ["Flushed", "Cleared"]

    run(work)


def test_what_tests_ask_of_it_by_query_happens(second: Upstream) -> None:
    async def work() -> None:
        url = f"ws://{second.host}/v1/listen"
        async with connect(f"{url}?standin_echo=1", max_size=None) as ws:
            for message in (b"", b"\0\1", "text", "x" * 2**21):
                await ws.send(message)
                assert await ws.recv() == message
            await (await ws.ping(b"marco"))
            await ws.close(4002, "bye")
            assert (ws.close_code, ws.close_reason) == (4002, "bye")
        async with connect(f"{url}?standin_close=4001&standin_reason=why") as ws:
            await ws.send("now")
            with pytest.raises(websockets.ConnectionClosedError) as closed:
                await ws.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "why")
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect(f"{url}?standin_status=429")
        assert refused.value.response.status_code == 429
        assert refused.value.response.headers["Retry-After"] == "1"

    run(work)
    echo = second.wait_for(lambda heads: bool(heads) and bool(heads[0]["complete"]))[0]
    assert (echo["pings"], echo["close_code"], echo["close_reason"]) == (["marco"], 4002, "bye")


def test_it_also_serves_inside_a_test() -> None:
    async def work() -> None:
        upstream = SecondUpstream()
        url = await upstream.start()
        try:
            async with httpx.AsyncClient() as client:
                assert (await client.get(f"{url}/nowhere")).status_code == 404
        finally:
            await upstream.stop()
        assert [record.target for record in upstream.records] == ["/nowhere"]

    run(work)
