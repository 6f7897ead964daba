"""A second stand-in Deepgram container, on aiohttp: what two stand-ins agree on is not one author's mistake.

Rules of this file: it imports nothing of dgproxy and shares no idea with `dgproxy.standin` but the names of its query
parameters; it authenticates nobody, as the real container (deepgram.md 8); and it remembers the head of every request
as it came, in its order and its letter case, with a count and a digest of the body.

`python -m tests.support.second_upstream PORT` prints its URL and serves until SIGTERM. Whatever a client asks by query:

    standin_echo=1           WebSocket: what comes goes back, the close code and reason too
    standin_close=4001       WebSocket: the first message is answered with this close (and standin_reason=...)
    standin_ping=TEXT        WebSocket: a PING with this payload right after the 101
    standin_status=429       refuse with this status, in Deepgram's shape
    standin_bytes=N          /v1/speak: N bytes of audio, byte i being i mod 251

GET /recorder/heads gives what was recorded, DELETE /recorder/heads forgets it.
"""

import asyncio
import hashlib
import json
import re
import signal
import sys
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import ClientError, WSMsgType, web
from aiohttp.http_exceptions import PayloadEncodingError

BYTES_A_SECOND: Final = 32_000  # linear16, 16 kHz, mono
WAV_HEAD: Final = 44
SILENCE: Final = 10.0  # seconds without audio or text: NET-0001 (deepgram.md 5)
LONGEST_JSON: Final = 64 * 1024
LONGEST_TEXT: Final = 1024  # characters of a text message that are kept
LONGEST_HEADER: Final = 64 * 1024  # a query of 30 KB must pass (bad-inputs.md H5)
MODEL: Final = {"name": "second-general", "version": "2026-01-01.0", "arch": "nova-3"}
MODEL_UUID: Final = "9d9f6a0e-5d0f-4c70-8d6f-0c54f9d7f1a2"
PATTERN: Final = bytes(range(251))  # a prime: no buffer size hides a shift


@dataclass
class Record:
    """One request: its head as it came, what its body was, and for a WebSocket what was said."""

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    request_id: str
    body_bytes: int = 0
    sha256: str = hashlib.sha256(b"").hexdigest()
    complete: bool = False
    cut: bool = False  # the connection ended before the body or the answer did
    messages: list[tuple[str, int]] = field(default_factory=list)  # kind and size, in order
    texts: list[str] = field(default_factory=list)  # the text ones among them
    pings: list[str] = field(default_factory=list)
    pongs: list[str] = field(default_factory=list)
    close_code: int | None = None
    close_reason: str | None = None


Handler = Callable[[web.Request, Record], Awaitable[web.StreamResponse]]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _audio(size: int) -> bytes:
    """Audio of a known pattern: the client can tell whether a byte was lost, doubled or moved."""
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


def _words(text: str, start: float, end: float) -> list[dict[str, Any]]:
    words = text.split()
    step = (end - start) / max(len(words), 1)
    return [
        {"word": word, "start": start + i * step, "end": start + (i + 1) * step, "confidence": 0.98}
        for i, word in enumerate(words)
    ]


class SecondUpstream:
    """The stand-in: `records` is what reached it."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._runner: web.AppRunner | None = None
        self._http: dict[tuple[str, str], Handler] = {
            ("POST", "/v1/listen"): self._listen,
            ("POST", "/v1/speak"): self._speak,
            ("POST", "/v1/read"): self._read,
            ("GET", "/v1/models"): self._models,
            ("HEAD", "/v1/models"): self._models,
            ("GET", "/v1/status"): self._status,
            ("GET", "/v1/status/engine"): self._engine,
        }
        self._websocket: dict[str, Callable[[Record, web.WebSocketResponse, web.Request], Awaitable[None]]] = {
            "/v1/listen": self._stream,
            "/v1/listen/stream": self._stream,
            "/v2/listen": self._flux,
            "/v1/speak": self._speak_stream,
        }

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Serve, and return the URL."""
        app = web.Application()
        app.router.add_get("/recorder/heads", self._recorder)
        app.router.add_delete("/recorder/heads", self._recorder)
        app.router.add_route("*", "/{anything:.*}", self._dispatch)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            auto_decompress=False,  # a body is counted as it came
            max_line_size=LONGEST_HEADER,
            max_field_size=LONGEST_HEADER,
            shutdown_timeout=1.0,
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        bound = self._runner.addresses[0]
        return f"http://{bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        """Stop serving and drop what is open."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # --- the recorder and the way in ---------------------------------------------------------------------------------

    async def _recorder(self, request: web.Request) -> web.Response:
        if request.method == "DELETE":
            self.records.clear()
            return web.Response(status=204)
        return web.json_response([asdict(record) for record in self.records])

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        record = Record(
            method=request.method,
            target=request.raw_path,
            version=f"{request.version.major}.{request.version.minor}",
            headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers],
            request_id=str(uuid.uuid4()),
        )
        self.records.append(record)
        try:
            return await self._answer(request, record)
        except (ConnectionError, ClientError, PayloadEncodingError):
            record.cut = True
            return web.Response(status=499)  # to nobody

    async def _answer(self, request: web.Request, record: Record) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        refused = request.query.get("standin_status")
        if "websocket" in request.headers.get("Upgrade", "").lower():
            if refused is not None or path not in self._websocket:
                return self._refusal(record, int(refused or 404))
            return await self._open(request, record, path)
        handler = self._http.get((request.method, path))
        if refused is not None or handler is None:
            await self._body(request, record)
            return self._refusal(record, int(refused or 404))
        return await handler(request, record)

    def _refusal(self, record: Record, status: int) -> web.Response:
        code, message = {
            404: ("NOT_FOUND", "Nothing here."),
            429: ("TOO_MANY_REQUESTS", "Too many requests. Please try again later"),
        }.get(status, ("REFUSED", f"The second upstream was asked for {status}."))
        headers = {"dg-request-id": record.request_id, "dg-error": message}
        if status in {429, 503}:
            headers["Retry-After"] = "1"
        body = {"err_code": code, "err_msg": message, "request_id": record.request_id}
        return web.json_response(body, status=status, headers=headers)

    async def _body(self, request: web.Request, record: Record) -> bytes:
        """Read all of a body in bounded memory; what is returned is its first 64 KiB."""
        digest = hashlib.sha256()
        first = bytearray()
        async for chunk in request.content.iter_any():
            digest.update(chunk)
            record.body_bytes += len(chunk)
            first += chunk[: LONGEST_JSON - len(first)]
        record.sha256 = digest.hexdigest()
        record.complete = True
        return bytes(first)

    def _json(self, record: Record, body: Any) -> web.Response:
        return web.json_response(body, headers={"dg-request-id": record.request_id})

    # --- HTTP --------------------------------------------------------------------------------------------------------

    async def _listen(self, request: web.Request, record: Record) -> web.StreamResponse:
        body = await self._body(request, record)
        if "callback" in request.query:
            return self._json(record, {"request_id": record.request_id})
        if request.content_type == "application/json":
            try:
                text = f"second upstream fetched {json.loads(body)['url']}"
            except (ValueError, KeyError, TypeError):
                return self._refusal(record, 400)
            duration = 1.0
        else:
            text = f"second upstream heard {record.body_bytes} bytes"
            duration = max(record.body_bytes - WAV_HEAD * body.startswith(b"RIFF"), 0) / BYTES_A_SECOND
        metadata = {
            "transaction_key": "deprecated",
            "request_id": record.request_id,
            "sha256": record.sha256,
            "created": _now(),
            "duration": duration,
            "channels": 1,
            "models": [MODEL_UUID],
            "model_info": {MODEL_UUID: MODEL},
        }
        alternative = {"transcript": text, "confidence": 0.98, "words": _words(text, 0.0, duration)}
        return self._json(record, {"metadata": metadata, "results": {"channels": [{"alternatives": [alternative]}]}})

    async def _speak(self, request: web.Request, record: Record) -> web.StreamResponse:
        body = await self._body(request, record)
        try:
            text = json.loads(body)["text"]
        except (ValueError, KeyError, TypeError):
            return self._refusal(record, 400)
        size = int(request.query.get("standin_bytes", 256 * len(text)))
        response = web.StreamResponse(
            headers={
                "Content-Type": "audio/mpeg",
                "dg-request-id": record.request_id,
                "dg-model-name": "second-voice",
                "dg-model-uuid": MODEL_UUID,
                "dg-char-count": str(len(text)),
            }
        )
        response.enable_chunked_encoding()  # Python SDK 3 and 4 need it, and Date (deepgram.md 6)
        await response.prepare(request)
        piece = PATTERN * 256
        while size > 0:
            await response.write(piece[:size])
            size -= len(piece)
        await response.write_eof()
        return response

    async def _read(self, request: web.Request, record: Record) -> web.StreamResponse:
        body = await self._body(request, record)
        try:
            text = json.loads(body)["text"]
        except (ValueError, KeyError, TypeError):
            return self._refusal(record, 400)
        metadata = {"request_id": record.request_id, "created": _now(), "language": "en"}
        return self._json(
            record, {"metadata": metadata, "results": {"summary": {"text": f"second upstream read {len(text)}"}}}
        )

    async def _models(self, request: web.Request, record: Record) -> web.StreamResponse:
        await self._body(request, record)
        model = {
            "name": "second-general",
            "canonical_name": "second-general",
            "architecture": "nova-3",
            "languages": ["en"],
            "version": "2026-01-01.0",
            "uuid": MODEL_UUID,
            "batch": True,
            "streaming": True,
            "formatted_output": True,
        }
        return self._json(record, {"stt": [model], "tts": []})

    async def _status(self, request: web.Request, record: Record) -> web.StreamResponse:
        await self._body(request, record)
        busy = {"active_batch_requests": 0, "active_stream_requests": 0, "active_listen_v2_stream_requests": 0}
        return self._json(record, {"system_health": "Healthy", **busy})

    async def _engine(self, request: web.Request, record: Record) -> web.StreamResponse:
        await self._body(request, record)
        return self._json(record, {"engine_connection_status": "Connected", "active_engine_connection_count": 1})

    # --- WebSocket ---------------------------------------------------------------------------------------------------

    async def _open(self, request: web.Request, record: Record, path: str) -> web.StreamResponse:
        # Compression is left on: were a client's offer to come through, it would be taken, and a test would see it.
        ws = web.WebSocketResponse(autoping=False, autoclose=False, max_msg_size=0)
        ws.headers["dg-request-id"] = record.request_id
        await ws.prepare(request)
        if (ping := request.query.get("standin_ping")) is not None:
            await ws.ping(ping.encode())
        if request.query.get("standin_echo"):
            await self._echo(record, ws, request)
        elif (code := request.query.get("standin_close")) is not None:
            await self._next(record, ws, silence=None)
            await ws.close(code=int(code), message=request.query.get("standin_reason", "").encode())
            record.close_code = ws.close_code
        else:
            await self._websocket[path](record, ws, request)
        record.complete = True
        return ws

    async def _next(
        self, record: Record, ws: web.WebSocketResponse, *, silence: float | None = SILENCE
    ) -> str | bytes | None:
        """The next text or audio; None when the stream is over. PINGs are answered, closes mirrored, on the way."""
        while True:
            try:
                message = await ws.receive(timeout=silence)
            except TimeoutError:
                await ws.close(
                    code=1011,
                    message=b"Deepgram did not receive audio data or a text message within the timeout window. "
                    b"See https://dpgr.am/net0001",
                )
                return None
            if message.type == WSMsgType.PING:
                record.pings.append(bytes(message.data).decode("latin-1"))
                await ws.pong(message.data)
            elif message.type == WSMsgType.PONG:
                record.pongs.append(bytes(message.data).decode("latin-1"))
            elif message.type == WSMsgType.TEXT:
                record.messages.append(("text", len(message.data.encode())))
                record.texts.append(str(message.data)[:LONGEST_TEXT])
                return str(message.data)
            elif message.type == WSMsgType.BINARY:
                record.messages.append(("binary", len(message.data)))
                return bytes(message.data)
            else:
                if message.type == WSMsgType.CLOSE:
                    record.close_code, record.close_reason = message.data, message.extra
                    await ws.close(code=message.data or 1000, message=(message.extra or "").encode())
                return None

    async def _echo(self, record: Record, ws: web.WebSocketResponse, _: web.Request) -> None:
        while (message := await self._next(record, ws, silence=None)) is not None:
            if isinstance(message, str):
                await ws.send_str(message)
            else:
                await ws.send_bytes(message)

    async def _stream(self, record: Record, ws: web.WebSocketResponse, _: web.Request) -> None:
        digest = hashlib.sha256()
        heard = told = 0  # bytes

        async def results(*, from_finalize: bool = False) -> None:
            nonlocal told
            start, duration = told / BYTES_A_SECOND, (heard - told) / BYTES_A_SECOND
            told = heard
            text = f"heard {heard} bytes"
            alternative = {"transcript": text, "confidence": 0.97, "words": _words(text, start, start + duration)}
            await ws.send_json(
                {
                    "type": "Results",
                    "channel_index": [0, 1],
                    "duration": duration,
                    "start": start,
                    "is_final": True,
                    "speech_final": from_finalize,
                    "channel": {"alternatives": [alternative]},
                    "metadata": {"request_id": record.request_id, "model_info": MODEL, "model_uuid": MODEL_UUID},
                    "from_finalize": from_finalize,
                }
            )

        while (message := await self._next(record, ws)) is not None:
            if isinstance(message, bytes) and message:
                digest.update(message)
                heard += len(message)
                record.body_bytes, record.sha256 = heard, digest.hexdigest()
                if heard - told >= BYTES_A_SECOND:
                    await results()
                continue
            kind = _kind(message) if isinstance(message, str) else "CloseStream"  # a zero-length frame ends it too
            if kind == "Finalize":
                await results(from_finalize=True)
            elif kind == "CloseStream":
                await results()
                await ws.send_json(
                    {
                        "type": "Metadata",
                        "transaction_key": "deprecated",
                        "request_id": record.request_id,
                        "sha256": digest.hexdigest(),
                        "created": _now(),
                        "duration": heard / BYTES_A_SECOND,
                        "channels": 1,
                    }
                )
                await ws.close(code=1000)
                record.close_code = ws.close_code
            elif kind == "Configure":
                asked = json.loads(str(message)).get("keyterms")
                kept = {} if asked is None else {"keyterms": asked}
                await ws.send_json({"type": "ConfigureSuccess", "request_id": record.request_id, **kept})
            elif kind != "KeepAlive":
                await ws.close(code=1008, message=b"DATA-0000: the message could not be understood")

    async def _flux(self, record: Record, ws: web.WebSocketResponse, _: web.Request) -> None:
        heard = sequence = 0

        async def tell(kind: str, **fields: Any) -> None:
            nonlocal sequence
            await ws.send_json({"type": kind, "request_id": record.request_id, "sequence_id": sequence, **fields})
            sequence += 1

        async def turn(event: str, **fields: Any) -> None:
            end = heard / BYTES_A_SECOND
            words = [{"word": "heard", "confidence": 0.97, "start": 0.0, "end": end}]
            fields |= {"audio_window_start": 0.0, "audio_window_end": end, "transcript": "heard", "words": words}
            await tell("TurnInfo", event=event, turn_index=0, end_of_turn_confidence=0.5, **fields)

        await tell("Connected")
        while (message := await self._next(record, ws)) is not None:
            if isinstance(message, bytes):
                event = "Update" if heard else "StartOfTurn"
                heard += len(message)
                await turn(event)
            elif (kind := _kind(message)) == "ForceEndTurn":
                await turn("EndOfTurn", trigger="manual")
            elif kind == "Configure":
                asked = json.loads(str(message))
                await tell(
                    "ConfigureSuccess", thresholds=asked.get("thresholds") or {}, keyterms=asked.get("keyterms") or []
                )
            elif kind == "CloseStream":
                await turn("EndOfTurn", trigger="model")
                await ws.close(code=1000)
                record.close_code = ws.close_code
            else:
                await tell("Error", code="UNPARSABLE_CLIENT_MESSAGE", description="The message was not understood.")
                await ws.close(code=1008, message=b"UNPARSABLE_CLIENT_MESSAGE")

    async def _speak_stream(self, record: Record, ws: web.WebSocketResponse, _: web.Request) -> None:
        pending = ""
        sequence = 0
        metadata = {"model_name": "second-voice", "model_version": "2026-01-01.0", "model_uuid": MODEL_UUID}
        await ws.send_json({"type": "Metadata", "request_id": record.request_id, **metadata})
        while (message := await self._next(record, ws, silence=None)) is not None:
            kind = _kind(message)
            if isinstance(message, str) and kind == "Speak":
                pending += json.loads(message)["text"]
            elif kind in {"Flush", "Clear"}:
                if kind == "Flush" and pending:
                    await ws.send_bytes(_audio(256 * len(pending)))
                pending = ""
                await ws.send_json({"type": "Flushed" if kind == "Flush" else "Cleared", "sequence_id": sequence})
                sequence += 1
            elif kind == "Close":
                await ws.close(code=1000)
                record.close_code = ws.close_code
            else:
                await ws.close(code=1003, message=b"MESSAGE-0000: the message was not understood")


def _kind(message: str | bytes) -> str | None:
    """The `type` of a client's message; None for what is not one."""
    try:
        parsed = json.loads(message)
    except ValueError:
        return None
    kind = parsed.get("type") if isinstance(parsed, dict) else None
    return kind if isinstance(kind, str) and re.fullmatch(r"[A-Za-z]+", kind) else None


async def _serve(port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    upstream = SecondUpstream()
    print(await upstream.start(port=port), flush=True)  # noqa: T201  (the line that whoever started it waits for)
    await stop.wait()
    await upstream.stop()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
