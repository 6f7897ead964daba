"""A live stream with the official SDK, as from a microphone, until Ctrl-C. `dgproxy demo` puts a copy beside its audio.

SSL_CERT_FILE=ca.pem DEEPGRAM_API_KEY=KEY python live.py https://HOST:PORT FILE.wav [HOW MANY AT ONCE]
"""

import asyncio
import contextlib
import sys
import wave
from typing import Any

from deepgram import AsyncDeepgramClient, DeepgramClientEnvironment
from deepgram.core.api_error import ApiError
from websockets.exceptions import ConnectionClosed


async def stream(client: AsyncDeepgramClient, path: str, label: str) -> None:
    """Says the file's audio over and over at the pace of speech, and prints what is heard; then how it ended."""
    with wave.open(path) as audio:
        connection = client.listen.v1.connect(
            model="nova-3", encoding="linear16", sample_rate=audio.getframerate(), channels=audio.getnchannels()
        )
        try:
            async with connection as live:
                voice = asyncio.create_task(speak(live, audio))
                try:
                    async for message in live:
                        if message.type == "Results":
                            said = message.channel.alternatives[0].transcript
                            print(f"{label}{message.start:5.1f} s  {said}", flush=True)
                finally:
                    voice.cancel()
        except ApiError as refused:
            print(f"{label}refused: HTTP {refused.status_code}", flush=True)
        except ConnectionClosed as closed:
            print(f"{label}ended: {closed}", flush=True)


async def speak(live: Any, audio: wave.Wave_read) -> None:
    """A tenth of a second of audio each tenth of a second."""
    with contextlib.suppress(ConnectionClosed):  # who listens says it
        while True:
            chunk = audio.readframes(audio.getframerate() // 10)
            if not chunk:
                audio.rewind()
                continue
            await live.send_media(chunk)
            await asyncio.sleep(0.1)


async def main(url: str, path: str, count: str = "1") -> None:
    """Only the SDK's host is set here; its key is in DEEPGRAM_API_KEY."""
    live = url.replace("https", "wss", 1)
    host = DeepgramClientEnvironment(base=url, production=live, agent=live, agent_rest=url)
    client = AsyncDeepgramClient(environment=host)
    many = int(count)
    async with asyncio.TaskGroup() as tasks:
        for number in range(many):
            tasks.create_task(stream(client, path, f"stream {number + 1}  " if many > 1 else ""))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
