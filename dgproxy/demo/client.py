"""What a client does: the official SDK, unmodified, and one request without a key.

Importing this file imports the SDK. Only its host and key are set, and SSL_CERT_FILE for the process (deepgram.md 1).
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import httpx
from deepgram import AsyncDeepgramClient, DeepgramClientEnvironment
from deepgram.listen.v1.types import ListenV1Metadata, ListenV1Results

from dgproxy.demo.place import DemoError

MODEL: Final = "nova-3"
RATE: Final = 16_000  # Hz, of the bundled audio: linear16, mono
WIDTH: Final = 2  # bytes a sample
CHUNK_SECONDS: Final = 0.1
CHUNK: Final = int(RATE * WIDTH * CHUNK_SECONDS)
PACE: Final = 4  # times as fast as speech
_WITHIN: Final = 30.0  # seconds for a request, or a stream, to end


@dataclass(frozen=True, slots=True)
class Posted:
    """What came of a file that was posted."""

    status: int
    seconds: float
    transcript: str


@dataclass(frozen=True, slots=True)
class Result:
    """A `Results` message: where its audio starts (s), and how long after that audio's last chunk it came (s)."""

    start: float
    final: bool
    transcript: str
    latency: float


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise DemoError(f"{what}: no end within {_WITHIN:.0f} s") from None
    except Exception as error:  # noqa: BLE001 - whatever a client can raise is news, not a fault of the demo
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        raise DemoError(f"{what} failed: {type(error).__name__}: {error}") from None


class Client:
    """A client of the proxy at a URL, with a key."""

    def __init__(self, url: str, key: str, http: httpx.AsyncClient) -> None:
        self._url = url
        self.http = http
        live = url.replace("https", "wss", 1)
        self._sdk = AsyncDeepgramClient(
            api_key=key,
            environment=DeepgramClientEnvironment(base=url, production=live, agent=live, agent_rest=url),
            httpx_client=http,
        )

    async def post(self, wav: bytes) -> Posted:
        """Posts a file over HTTPS, on a connection that is opened for it."""
        with _told("the SDK's request over HTTPS"):
            media = self._sdk.listen.v1.media.with_raw_response  # here it imports what it needs
            began = time.perf_counter()
            answer = await media.transcribe_file(request=wav, model=MODEL)
            took = time.perf_counter() - began
            heard: Any = answer.data  # with a callback it would be another type
            return Posted(answer.status_code, took, heard.results.channels[0].alternatives[0].transcript or "")

    async def stream(self, pcm: bytes, on_tick: Callable[[int], None], on_result: Callable[[Result], None]) -> None:
        """Streams audio over WSS; `on_tick(chunks sent)` is called between chunks, so that drawing delays nothing."""
        with _told("the SDK's stream over WSS"):
            async with (
                asyncio.timeout(_WITHIN),
                self._sdk.listen.v1.connect(
                    model=MODEL, encoding="linear16", sample_rate=RATE, interim_results=True
                ) as live,
                asyncio.TaskGroup() as tasks,
            ):
                sent: list[float] = []
                tasks.create_task(_send(live, pcm, sent, on_tick))
                ended = await _receive(live, sent, math.ceil(len(pcm) / CHUNK), on_result)
            if not ended:
                raise ConnectionError("the stream ended without its Metadata")

    async def post_without_key(self, wav: bytes) -> tuple[int, str]:
        """The same request as any HTTP client sends it, without a key: status and Deepgram's error code."""
        with _told("a request without a key"):
            answer = await self.http.post(f"{self._url}/v1/listen", params={"model": MODEL}, content=wav)
            try:
                return answer.status_code, str(answer.json().get("err_code", ""))
            except ValueError:
                return answer.status_code, answer.text


async def _send(live: Any, pcm: bytes, sent: list[float], on_tick: Callable[[int], None]) -> None:
    """Each chunk at its time; `sent` gets when each was handed to the SDK, and last when CloseStream was."""
    slot = CHUNK_SECONDS / PACE
    began = time.perf_counter()
    for number, at in enumerate(range(0, len(pcm), CHUNK)):
        await asyncio.sleep(began + number * slot - time.perf_counter())
        sent.append(time.perf_counter())
        await live.send_media(pcm[at : at + CHUNK])
        await asyncio.sleep(slot / 2)
        on_tick(number + 1)
    await asyncio.sleep(slot / 2)
    sent.append(time.perf_counter())
    await live.send_close_stream()


async def _receive(live: Any, sent: list[float], chunks: int, on_result: Callable[[Result], None]) -> bool:
    """Every message to the stream's end; whether that was a good one."""
    ended = False
    async for message in live:
        now = time.perf_counter()
        if isinstance(message, ListenV1Results):
            # nothing can be said of audio before its last chunk came, nor of the stream's very end before CloseStream
            last = math.ceil(round((message.start + message.duration) / CHUNK_SECONDS, 3)) - 1
            last = chunks if last == chunks - 1 and len(sent) > chunks else last
            words = message.channel.alternatives[0].transcript or ""
            on_result(Result(message.start, bool(message.is_final), words, now - sent[last]))
        ended = ended or isinstance(message, ListenV1Metadata)
    return ended


async def heads(http: httpx.AsyncClient, upstream: str) -> list[dict[str, Any]]:
    """Every request that reached the stand-in, by its own recorder; the proxy's health polls left out."""
    with _told("the stand-in's record of requests"):
        answer = (await http.get(f"{upstream}/standin/heads")).raise_for_status().json()
        return [head for head in answer if not head["target"].startswith("/v1/status")]


def new_http() -> httpx.AsyncClient:
    """The HTTP client of a demo: certificates as SSL_CERT_FILE says."""
    return httpx.AsyncClient(timeout=_WITHIN, follow_redirects=True)
