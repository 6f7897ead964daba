"""Deepgram's Python SDK 7, as its documentation has users write it; only host and key are ours."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import deepgram
from deepgram import AsyncDeepgramClient, DeepgramClient, DeepgramClientEnvironment
from deepgram.core.api_error import ApiError
from deepgram.listen.v1.types import ListenV1Configure
from deepgram.speak.v1.types import SpeakV1Text
from line import Task, say, serve

RAW: dict[str, Any] = {"encoding": "linear16", "sample_rate": 16000}


def environment(task: Task) -> DeepgramClientEnvironment:
    wss = task.base.replace("https", "wss", 1).replace("http:", "ws:", 1)
    return DeepgramClientEnvironment(base=task.base, production=wss, agent=wss, agent_rest=task.base)


def connect(task: Task) -> DeepgramClient:
    return DeepgramClient(api_key=task.key, environment=environment(task))


def connect_async(task: Task) -> AsyncDeepgramClient:
    return AsyncDeepgramClient(api_key=task.key, environment=environment(task))


def failure(error: Exception) -> dict[str, Any] | None:
    if not isinstance(error, ApiError):
        return None
    body = error.body if isinstance(error.body, dict) else {"err_msg": str(error.body)}
    return {
        "status": error.status_code,
        "code": body.get("err_code"),
        "message": body.get("err_msg"),
        "request_id": (error.headers or {}).get("dg-request-id"),
    }


def version(_: Task) -> dict[str, Any]:
    return {"version": deepgram.__version__}


def heard(answer: Any) -> dict[str, Any]:
    return {
        "sha256": answer.metadata.sha256,
        "duration": answer.metadata.duration,
        "request_id": answer.metadata.request_id,
        "transcript": answer.results.channels[0].alternatives[0].transcript,
    }


def told(messages: list[Any]) -> dict[str, Any]:
    """Of a stream that ended well: anything but a proper close with 1000 would have been raised."""
    kinds = ["binary" if isinstance(message, bytes) else message.type for message in messages]
    fields = [{} if isinstance(message, bytes) else message.dict() for message in messages]
    return {
        "kinds": kinds,
        "bytes": sum(len(message) for message in messages if isinstance(message, bytes)),
        "finalized": any(each.get("from_finalize") for each in fields),
        "keyterms": next((each["keyterms"] for each in fields if each.get("type") == "ConfigureSuccess"), None),
        "sequence": [each.get("sequence_id") for each in fields],
        "duration": fields[-1].get("duration"),
    }


# --- sync ------------------------------------------------------------------------------------------------------------


def http_bytes(task: Task) -> dict[str, Any]:
    listen = connect(task).listen.v1.media
    return heard(listen.transcribe_file(request=task.file, model="nova-3", smart_format=True))


def http_file(task: Task) -> dict[str, Any]:
    with Path(task.wav).open("rb") as file:
        return heard(connect(task).listen.v1.media.transcribe_file(request=file, model="nova-3"))


def http_stream(task: Task) -> dict[str, Any]:
    def generate() -> Any:
        yield from task.frames

    return heard(connect(task).listen.v1.media.transcribe_file(request=generate(), model="nova-3"))


def http_url(task: Task) -> dict[str, Any]:
    answer = connect(task).listen.v1.media.transcribe_url(url="https://audio.example/a.wav", model="nova-3")
    return heard(answer)


def speak(task: Task) -> dict[str, Any]:
    audio = connect(task).speak.v1.audio.generate(text="hello", model="aura-2-thalia-en")
    return {"bytes": sum(len(piece) for piece in audio)}


def read(task: Task) -> dict[str, Any]:
    answer = connect(task).read.v1.text.analyze(request={"text": "hello"}, summarize=True, language="en")
    return {"summary": answer.results.summary is not None and answer.results.summary.text}


def models(task: Task) -> dict[str, Any]:
    return {"names": [model.name for model in connect(task).manage.v1.models.list().stt or []]}


def stream(task: Task) -> dict[str, Any]:
    with connect(task).listen.v1.connect(model="nova-3", **RAW) as live:
        for frame in task.frames:
            live.send_media(frame)
        live.send_close_stream()
        return told(list(live))


def stream_keepalive(task: Task) -> dict[str, Any]:
    with connect(task).listen.v1.connect(model="nova-3", **RAW) as live:
        for frame in task.frames:
            live.send_keep_alive()
            live.send_media(frame)
        live.send_close_stream()
        return told(list(live))


def stream_finalize(task: Task) -> dict[str, Any]:
    messages: list[Any] = []
    with connect(task).listen.v1.connect(model="nova-3", **RAW) as live:
        live.send_media(task.frames[0])
        live.send_finalize()
        while not (messages and messages[-1].from_finalize):
            messages.append(live.recv())
        live.send_close_stream()
        return told([*messages, *live])


def stream_configure(task: Task) -> dict[str, Any]:
    messages: list[Any] = []
    with connect(task).listen.v1.connect(model="nova-3", **RAW) as live:
        live.send_media(task.frames[0])
        live.send_configure(ListenV1Configure(keyterms=["dgproxy"]))
        while not (messages and messages[-1].type == "ConfigureSuccess"):
            messages.append(live.recv())
        live.send_close_stream()
        return told([*messages, *live])


def flux(task: Task) -> dict[str, Any]:
    with connect(task).listen.v2.connect(model="flux-general-en", **RAW) as live:
        for frame in task.frames:
            live.send_media(frame)
        live.send_close_stream()
        return told(list(live))


def speak_stream(task: Task) -> dict[str, Any]:
    messages: list[Any] = []
    with connect(task).speak.v1.connect(model="aura-2-thalia-en", **RAW) as live:
        live.send_text(SpeakV1Text(text="hello"))
        live.send_flush()
        while not (messages and getattr(messages[-1], "type", "") == "Flushed"):
            messages.append(live.recv())
        live.send_close()
        return told([*messages, *live])


def refused_stream(task: Task) -> dict[str, Any]:
    with connect(task).listen.v1.connect(model="nova-3"):
        return {}


def revoked_stream(task: Task) -> dict[str, Any]:
    with connect(task).listen.v1.connect(model="nova-3", **RAW) as live:
        live.send_media(task.frames[0])
        say(event="open")
        return told(list(live))


# --- async -----------------------------------------------------------------------------------------------------------


async def async_http_bytes(task: Task) -> dict[str, Any]:
    listen = connect_async(task).listen.v1.media
    return heard(await listen.transcribe_file(request=task.file, model="nova-3", smart_format=True))


async def async_http_file(task: Task) -> dict[str, Any]:
    with Path(task.wav).open("rb") as file:  # noqa: ASYNC230  (as users do)
        return heard(await connect_async(task).listen.v1.media.transcribe_file(request=file, model="nova-3"))


async def async_http_stream(task: Task) -> dict[str, Any]:
    async def generate() -> AsyncIterator[bytes]:
        for frame in task.frames:
            yield frame

    return heard(await connect_async(task).listen.v1.media.transcribe_file(request=generate(), model="nova-3"))


async def async_http_url(task: Task) -> dict[str, Any]:
    listen = connect_async(task).listen.v1.media
    return heard(await listen.transcribe_url(url="https://audio.example/a.wav", model="nova-3"))


async def async_speak(task: Task) -> dict[str, Any]:
    audio = connect_async(task).speak.v1.audio.generate(text="hello", model="aura-2-thalia-en")
    return {"bytes": sum([len(piece) async for piece in audio])}


async def async_read(task: Task) -> dict[str, Any]:
    answer = await connect_async(task).read.v1.text.analyze(request={"text": "hello"}, summarize=True, language="en")
    return {"summary": answer.results.summary is not None and answer.results.summary.text}


async def async_models(task: Task) -> dict[str, Any]:
    return {"names": [model.name for model in (await connect_async(task).manage.v1.models.list()).stt or []]}


async def async_stream(task: Task) -> dict[str, Any]:
    async with connect_async(task).listen.v1.connect(model="nova-3", **RAW) as live:
        for frame in task.frames:
            await live.send_media(frame)
        await live.send_close_stream()
        return told([message async for message in live])


async def async_stream_keepalive(task: Task) -> dict[str, Any]:
    async with connect_async(task).listen.v1.connect(model="nova-3", **RAW) as live:
        for frame in task.frames:
            await live.send_keep_alive()
            await live.send_media(frame)
        await live.send_close_stream()
        return told([message async for message in live])


async def async_stream_finalize(task: Task) -> dict[str, Any]:
    messages: list[Any] = []
    async with connect_async(task).listen.v1.connect(model="nova-3", **RAW) as live:
        await live.send_media(task.frames[0])
        await live.send_finalize()
        while not (messages and messages[-1].from_finalize):
            messages.append(await live.recv())
        await live.send_close_stream()
        return told([*messages, *[message async for message in live]])


async def async_stream_configure(task: Task) -> dict[str, Any]:
    messages: list[Any] = []
    async with connect_async(task).listen.v1.connect(model="nova-3", **RAW) as live:
        await live.send_media(task.frames[0])
        await live.send_configure(ListenV1Configure(keyterms=["dgproxy"]))
        while not (messages and messages[-1].type == "ConfigureSuccess"):
            messages.append(await live.recv())
        await live.send_close_stream()
        return told([*messages, *[message async for message in live]])


async def async_flux(task: Task) -> dict[str, Any]:
    async with connect_async(task).listen.v2.connect(model="flux-general-en", **RAW) as live:
        for frame in task.frames:
            await live.send_media(frame)
        await live.send_close_stream()
        return told([message async for message in live])


async def async_speak_stream(task: Task) -> dict[str, Any]:
    messages: list[Any] = []
    async with connect_async(task).speak.v1.connect(model="aura-2-thalia-en", **RAW) as live:
        await live.send_text(SpeakV1Text(text="hello"))
        await live.send_flush()
        while not (messages and getattr(messages[-1], "type", "") == "Flushed"):
            messages.append(await live.recv())
        await live.send_close()
        return told([*messages, *[message async for message in live]])


async def async_refused_stream(task: Task) -> dict[str, Any]:
    async with connect_async(task).listen.v1.connect(model="nova-3"):
        return {}


async def async_revoked_stream(task: Task) -> dict[str, Any]:
    async with connect_async(task).listen.v1.connect(model="nova-3", **RAW) as live:
        await live.send_media(task.frames[0])
        say(event="open")
        return told([message async for message in live])


serve(
    {
        "version": version,
        "http-bytes": http_bytes,
        "http-file": http_file,
        "http-stream": http_stream,
        "http-url": http_url,
        "speak": speak,
        "read": read,
        "models": models,
        "stream": stream,
        "stream-keepalive": stream_keepalive,
        "stream-finalize": stream_finalize,
        "stream-configure": stream_configure,
        "flux": flux,
        "speak-stream": speak_stream,
        "wrong-key": http_bytes,
        "jwt-key": http_bytes,
        "proxy-key": http_bytes,
        "wrong-key-stream": refused_stream,
        "revoked-stream": revoked_stream,
    },
    {
        "http-bytes": async_http_bytes,
        "http-file": async_http_file,
        "http-stream": async_http_stream,
        "http-url": async_http_url,
        "speak": async_speak,
        "read": async_read,
        "models": async_models,
        "stream": async_stream,
        "stream-keepalive": async_stream_keepalive,
        "stream-finalize": async_stream_finalize,
        "stream-configure": async_stream_configure,
        "flux": async_flux,
        "speak-stream": async_speak_stream,
        "wrong-key": async_http_bytes,
        "jwt-key": async_http_bytes,
        "proxy-key": async_http_bytes,
        "wrong-key-stream": async_refused_stream,
        "revoked-stream": async_revoked_stream,
    },
    failure,
)
