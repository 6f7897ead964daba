"""How far transcripts lag behind the audio that they cover, over N live streams at the pace of speech.

Rules of this file: a chunk is due at its time whatever the other end does; a transcript's lag counts from when the last
chunk was due whose audio it covers (`start + duration` of a Results message), so that a slow sender hides nothing.
"""

import asyncio
import contextlib
import json
import math
import socket
import ssl
import struct
import time
from dataclasses import dataclass, field
from typing import Final

import picows

RATE: Final = 16_000  # samples a second, of two bytes
CHUNK: Final = 0.1  # seconds of audio in a message
TARGET: Final = f"/v1/listen?model=nova-3&encoding=linear16&sample_rate={RATE}&interim_results=true"
_AT_ONCE: Final = 16  # handshakes in flight
_LAST_WORDS: Final = 10.0  # seconds for what comes after CloseStream
_CLOSE: Final = b'{"type":"CloseStream"}'
_TIMER: Final = 0.002  # seconds; the loop's timers are no finer
_TONE: Final = struct.pack(
    f"<{RATE // 10}h", *(int(8000 * math.sin(i * 2 * math.pi * 440 / RATE)) for i in range(1600))
)


def covering(seconds: float) -> int:
    """The number of the chunk that holds the last of so many seconds of audio, from 0."""
    return max(0, math.ceil(seconds / CHUNK - 1e-6) - 1)


def covered(text: bytes) -> float | None:
    """Seconds of audio to whose end a message's transcript reaches; None for a message that is no transcript."""
    try:
        message = json.loads(text)
        if message["type"] != "Results" or not message["duration"]:
            return None
        return float(message["start"]) + float(message["duration"])
    except (ValueError, TypeError, KeyError):
        return None


@dataclass
class Heard:
    """What all streams got."""

    opened: int = 0
    refused: list[str] = field(default_factory=list)
    closed: dict[str, int] = field(default_factory=dict)  # close code -> streams
    transcripts: int = 0
    lags: list[float] = field(default_factory=list)  # seconds
    late: list[float] = field(default_factory=list)  # seconds from due to sent: our own


class _Talk(picows.WSListener):
    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self.begun = 0.0  # when its first chunk was due
        self.over = asyncio.Event()
        self.transport: picows.WSTransport | None = None
        self._code = "none"  # of the other end's Close
        self._text = b""  # of a message that has not ended

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.transport = transport
        self._heard.opened += 1

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:  # noqa: ARG002 - picows' signature
        self._heard.closed[self._code] = self._heard.closed.get(self._code, 0) + 1
        self.transport = None
        self.over.set()

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type is picows.WSMsgType.CLOSE:
            self._code = str(int.from_bytes(frame.get_payload_as_bytes()[:2], "big") or "empty")
            transport.send_close(picows.WSCloseCode.OK)
            transport.disconnect()
        elif frame.msg_type in (picows.WSMsgType.TEXT, picows.WSMsgType.CONTINUATION):
            self._text += frame.get_payload_as_bytes()
            if frame.fin:
                text, self._text = self._text, b""
                if (audio := covered(text)) is not None:
                    self._heard.transcripts += 1
                    self._heard.lags.append(time.monotonic() - self.begun - CHUNK * covering(audio))


async def talk(
    url: str, key: str, tls: ssl.SSLContext | None, streams: int, seconds: float, address: tuple[str, int] | None = None
) -> Heard:
    """Opens the streams, has each speak so many seconds, and ends them as clients do.

    `url` is wss:// or ws://; `address`, an IP address and a port, is where that is, if the resolver need not be asked.
    """
    heard = Heard()

    async def dialled(_: object) -> socket.socket | None:
        if address is None:
            return None
        made = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
        made.settimeout(0)
        try:
            await asyncio.get_running_loop().sock_connect(made, address)
        except BaseException:
            made.close()
            raise
        return made

    gate = asyncio.Semaphore(_AT_ONCE)

    async def opened() -> _Talk | None:
        async with gate:
            try:
                _, listener = await picows.ws_connect(
                    lambda: _Talk(heard),
                    url,
                    ssl_context=tls,
                    extra_headers={"Authorization": f"Token {key}"} if key else {},
                    websocket_handshake_timeout=30,
                    socket_factory=dialled,
                )
            except (OSError, picows.WSError, TimeoutError) as error:
                heard.refused.append(str(error).splitlines()[0][:200])
                return None
        assert isinstance(listener, _Talk)
        return listener

    everyone = [one for one in await asyncio.gather(*(opened() for _ in range(streams))) if one is not None]
    if everyone:
        await _speak(everyone, heard, seconds)
    return heard


async def _speak(everyone: list[_Talk], heard: Heard, seconds: float) -> None:
    step = CHUNK / len(everyone)
    start = time.monotonic() + 0.1
    for index, one in enumerate(everyone):
        one.begun = start + index * step
    total = round(seconds / CHUNK) * len(everyone)
    for number in range(total):
        due = start + number * step
        while (wait := due - time.monotonic()) > 0:  # noqa: ASYNC110 - it is time that is waited for
            await asyncio.sleep(wait - _TIMER if wait > _TIMER else 0)
        if not number % 64:
            await asyncio.sleep(0)  # late or not, what has come is read
        one = everyone[number % len(everyone)]
        if one.transport is not None:
            one.transport.send(picows.WSMsgType.BINARY, _TONE)
            heard.late.append(time.monotonic() - due)
    for one in everyone:
        if one.transport is not None:
            one.transport.send(picows.WSMsgType.TEXT, _CLOSE)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_WORDS):
            for one in everyone:
                await one.over.wait()
    for one in everyone:
        if one.transport is not None:
            one.transport.disconnect()
