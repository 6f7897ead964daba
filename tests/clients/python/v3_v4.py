"""Deepgram's Python SDKs 3 and 4, as their documentation has users write it; only host and key are ours.

Both majors have the same calls, so that this one program runs in both environments.
"""

import asyncio
import json
import queue
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import deepgram
from deepgram import (
    DeepgramApiError,
    DeepgramClient,
    DeepgramClientOptions,
    LiveTranscriptionEvents,
    SpeakWebSocketEvents,
)
from line import Task, say, serve

WITHIN = 30  # seconds for an event
RAW = {"encoding": "linear16", "sample_rate": 16000}
STREAM = {"model": "nova-3", **RAW}
VOICE = {"model": "aura-2-thalia-en", **RAW}
CONFIGURE = json.dumps({"type": "Configure", "keyterms": ["dgproxy"]})
CLOSE = json.dumps({"type": "CloseStream"})
URL = {"url": "https://audio.example/a.wav"}
RAISES = {"termination_exception_connect": True}  # else start() is False and the reason is only logged


def connect(task: Task, **options: Any) -> DeepgramClient:
    return DeepgramClient(task.key, DeepgramClientOptions(url=task.base, options=options))


class EndedError(Exception):
    """The SDK told its user by an Error event."""


def failure(error: Exception) -> dict[str, Any] | None:
    if isinstance(error, DeepgramApiError):
        body = json.loads(error.original_error or "{}")
        code, request_id = body.get("err_code"), body.get("request_id")
        return {"status": int(error.status), "code": code, "message": error.message, "request_id": request_id}
    if isinstance(error, EndedError):
        (told,) = error.args
        rcvd = re.match(r"received (\d{4}) \([^)]*\) (.*); then sent", told.message)
        return {
            "error": f"Error event, {told.type}",
            "code": int(rcvd[1]) if rcvd else None,
            "message": rcvd[2] if rcvd else told.message,
        }
    return None


def version(_: Task) -> dict[str, Any]:
    return {"version": deepgram.__version__}


def heard(answer: Any) -> dict[str, Any]:
    return {
        "sha256": answer.metadata.sha256,
        "duration": answer.metadata.duration,
        "request_id": answer.metadata.request_id,
        "transcript": answer.results.channels[0].alternatives[0].transcript,
    }


def spoken(answer: Any) -> dict[str, Any]:
    return {"bytes": len(answer.stream_memory.getvalue()), "chunked": answer.transfer_encoding == "chunked"}


# --- sync ------------------------------------------------------------------------------------------------------------


class Events:
    """What a stream told, in order."""

    def __init__(self, live: Any, kinds: Any) -> None:
        self.said: list[tuple[str, Any]] = []
        self._queue: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        for kind in kinds:
            live.on(kind, self._handler(str(kind.value)))

    def _handler(self, kind: str) -> Any:
        def handle(_: Any, *args: Any, **kwargs: Any) -> None:
            self._queue.put((kind, next(iter((*args, *kwargs.values())))))

        return handle

    def until(self, wanted: str, **fields: Any) -> Any:
        while True:
            kind, message = self._queue.get(timeout=WITHIN)
            self.said.append((kind, message))
            if kind == "Error":
                raise EndedError(message)
            if kind == wanted and all(getattr(message, name) == value for name, value in fields.items()):
                return message

    def told(self) -> dict[str, Any]:
        """Of a stream that ended well: anything but a proper close would have been an Error event."""
        unhandled = [json.loads(message.raw) for kind, message in self.said if kind == "Unhandled"]
        kinds = ["binary" if kind == "AudioData" else kind for kind, _ in self.said if kind not in {"Open", "Close"}]
        for message in unhandled:
            kinds[kinds.index("Unhandled")] = message["type"]
        return {
            "kinds": kinds,
            "bytes": sum(len(message) for kind, message in self.said if kind == "AudioData"),
            "finalized": any(getattr(message, "from_finalize", False) for _, message in self.said),
            "keyterms": next((each["keyterms"] for each in unhandled if each["type"] == "ConfigureSuccess"), None),
            "duration": next((getattr(m, "duration", None) for kind, m in self.said if kind == "Metadata"), None),
        }


def http_bytes(task: Task) -> dict[str, Any]:
    listen = connect(task).listen.rest.v("1")
    return heard(listen.transcribe_file({"buffer": task.file}, {"model": "nova-3", "smart_format": True}))


def http_file(task: Task) -> dict[str, Any]:
    with Path(task.wav).open("rb") as file:
        return heard(connect(task).listen.rest.v("1").transcribe_file({"stream": file}, {"model": "nova-3"}))


def http_stream(task: Task) -> dict[str, Any]:
    def generate() -> Iterator[bytes]:
        yield from task.frames

    return heard(connect(task).listen.rest.v("1").transcribe_file({"stream": generate()}, {"model": "nova-3"}))


def http_url(task: Task) -> dict[str, Any]:
    return heard(connect(task).listen.rest.v("1").transcribe_url(URL, {"model": "nova-3"}))


def speak(task: Task) -> dict[str, Any]:
    return spoken(connect(task).speak.rest.v("1").stream_memory({"text": "hello"}, {"model": "aura-2-thalia-en"}))


def read(task: Task) -> dict[str, Any]:
    options = {"summarize": True, "language": "en"}
    answer = connect(task).read.analyze.v("1").analyze_text({"buffer": b'{"text":"hello"}'}, options)
    return {"summary": answer.results.summary.text}


def models(task: Task) -> dict[str, Any]:
    return {"names": [model.name for model in connect(task).manage.v("1").get_models().stt]}


def opened(task: Task, **options: Any) -> tuple[Any, Events]:
    live = connect(task, **options).listen.websocket.v("1")
    events = Events(live, LiveTranscriptionEvents)
    if live.start(STREAM) is False:
        raise AssertionError("start() is False")
    return live, events


def ended(live: Any, events: Events) -> dict[str, Any]:
    # finish() sends it too, but gives the last words half a second only
    live.send(CLOSE)
    events.until("Metadata")
    live.finish()
    events.until("Close")
    return events.told()


def stream(task: Task) -> dict[str, Any]:
    live, events = opened(task)
    for frame in task.frames:
        live.send(frame)
    return ended(live, events)


def stream_keepalive(task: Task) -> dict[str, Any]:
    live, events = opened(task)
    for frame in task.frames:
        live.keep_alive()
        live.send(frame)
    return ended(live, events)


def stream_finalize(task: Task) -> dict[str, Any]:
    live, events = opened(task)
    live.send(task.frames[0])
    live.finalize()
    events.until("Results", from_finalize=True)
    return ended(live, events)


def stream_configure(task: Task) -> dict[str, Any]:
    live, events = opened(task)
    live.send(task.frames[0])
    live.send(CONFIGURE)
    events.until("Unhandled")
    return ended(live, events)


def speak_stream(task: Task) -> dict[str, Any]:
    live = connect(task).speak.websocket.v("1")
    events = Events(live, SpeakWebSocketEvents)
    if live.start(VOICE) is False:
        raise AssertionError("start() is False")
    live.send_text("hello")
    live.flush()
    events.until("Flushed")
    live.finish()
    events.until("Close")
    return events.told()


def refused_stream(task: Task) -> dict[str, Any]:
    if connect(task).listen.websocket.v("1").start(STREAM) is not False:
        raise AssertionError("it started")
    opened(task, **RAISES)
    return {}


def revoked_stream(task: Task) -> dict[str, Any]:
    live, events = opened(task)
    live.send(task.frames[0])
    say(event="open")
    events.until("Close")
    return events.told()


# --- async -----------------------------------------------------------------------------------------------------------


class AsyncEvents(Events):
    """The same for an async client, whose handlers are coroutines."""

    def _handler(self, kind: str) -> Any:
        handle = super()._handler(kind)

        async def handle_async(*args: Any, **kwargs: Any) -> None:
            handle(*args, **kwargs)

        return handle_async

    async def seen(self, wanted: str, **fields: Any) -> Any:
        return await asyncio.to_thread(self.until, wanted, **fields)


async def async_http_bytes(task: Task) -> dict[str, Any]:
    listen = connect(task).listen.asyncrest.v("1")
    return heard(await listen.transcribe_file({"buffer": task.file}, {"model": "nova-3", "smart_format": True}))


async def async_http_file(task: Task) -> dict[str, Any]:
    with Path(task.wav).open("rb") as file:  # noqa: ASYNC230  (as users do)
        listen = connect(task).listen.asyncrest.v("1")
        return heard(await listen.transcribe_file({"stream": file}, {"model": "nova-3"}))


async def async_http_stream(task: Task) -> dict[str, Any]:
    async def generate() -> AsyncIterator[bytes]:
        for frame in task.frames:
            yield frame

    listen = connect(task).listen.asyncrest.v("1")
    return heard(await listen.transcribe_file({"stream": generate()}, {"model": "nova-3"}))


async def async_http_url(task: Task) -> dict[str, Any]:
    return heard(await connect(task).listen.asyncrest.v("1").transcribe_url(URL, {"model": "nova-3"}))


async def async_speak(task: Task) -> dict[str, Any]:
    voice = connect(task).speak.asyncrest.v("1")
    return spoken(await voice.stream_memory({"text": "hello"}, {"model": "aura-2-thalia-en"}))


async def async_read(task: Task) -> dict[str, Any]:
    options = {"summarize": True, "language": "en"}
    answer = await connect(task).read.asyncanalyze.v("1").analyze_text({"buffer": b'{"text":"hello"}'}, options)
    return {"summary": answer.results.summary.text}


async def async_models(task: Task) -> dict[str, Any]:
    return {"names": [model.name for model in (await connect(task).asyncmanage.v("1").get_models()).stt]}


async def async_opened(task: Task, **options: Any) -> tuple[Any, AsyncEvents]:
    live = connect(task, **options).listen.asyncwebsocket.v("1")
    events = AsyncEvents(live, LiveTranscriptionEvents)
    if await live.start(STREAM) is False:
        raise AssertionError("start() is False")
    return live, events


async def async_ended(live: Any, events: AsyncEvents) -> dict[str, Any]:
    await live.send(CLOSE)
    await events.seen("Metadata")
    await live.finish()
    await events.seen("Close")
    return events.told()


async def async_stream(task: Task) -> dict[str, Any]:
    live, events = await async_opened(task)
    for frame in task.frames:
        await live.send(frame)
    return await async_ended(live, events)


async def async_stream_keepalive(task: Task) -> dict[str, Any]:
    live, events = await async_opened(task)
    for frame in task.frames:
        await live.keep_alive()
        await live.send(frame)
    return await async_ended(live, events)


async def async_stream_finalize(task: Task) -> dict[str, Any]:
    live, events = await async_opened(task)
    await live.send(task.frames[0])
    await live.finalize()
    await events.seen("Results", from_finalize=True)
    return await async_ended(live, events)


async def async_stream_configure(task: Task) -> dict[str, Any]:
    live, events = await async_opened(task)
    await live.send(task.frames[0])
    await live.send(CONFIGURE)
    await events.seen("Unhandled")
    return await async_ended(live, events)


async def async_speak_stream(task: Task) -> dict[str, Any]:
    live = connect(task).speak.asyncwebsocket.v("1")
    events = AsyncEvents(live, SpeakWebSocketEvents)
    if await live.start(VOICE) is False:
        raise AssertionError("start() is False")
    await live.send_text("hello")
    await live.flush()
    await events.seen("Flushed")
    await live.finish()
    await events.seen("Close")
    return events.told()


async def async_refused_stream(task: Task) -> dict[str, Any]:
    if await connect(task).listen.asyncwebsocket.v("1").start(STREAM) is not False:
        raise AssertionError("it started")
    await async_opened(task, **RAISES)
    return {}


async def async_revoked_stream(task: Task) -> dict[str, Any]:
    live, events = await async_opened(task)
    await live.send(task.frames[0])
    say(event="open")
    await events.seen("Close")
    return events.told()


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
        "speak-stream": speak_stream,
        "wrong-key": http_bytes,
        "no-key": http_bytes,
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
        "speak-stream": async_speak_stream,
        "wrong-key": async_http_bytes,
        "no-key": async_http_bytes,
        "jwt-key": async_http_bytes,
        "proxy-key": async_http_bytes,
        "wrong-key-stream": async_refused_stream,
        "revoked-stream": async_revoked_stream,
    },
    failure,
)
