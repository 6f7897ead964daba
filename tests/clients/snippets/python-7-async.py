# pip install 'deepgram-sdk>=7,<8'
# a private CA only: export SSL_CERT_FILE=ca.pem
import asyncio

from deepgram import AsyncDeepgramClient
from deepgram.environment import DeepgramClientEnvironment

host = "speech.example.com"
client = AsyncDeepgramClient(
    api_key="dgp_YOUR_KEY",
    environment=DeepgramClientEnvironment(
        base=f"https://{host}", production=f"wss://{host}", agent=f"wss://{host}", agent_rest=f"https://{host}"
    ),
)


async def main():
    # a file: its bytes, or an async generator of them
    with open("audio.wav", "rb") as file:
        heard = await client.listen.v1.media.transcribe_file(request=file.read(), model="nova-3")
    print(heard.results.channels[0].alternatives[0].transcript)

    # a stream: one task sends, this one reads
    async with client.listen.v1.connect(model="nova-3") as live:

        async def send():
            with open("audio.wav", "rb") as audio:
                while chunk := audio.read(8192):
                    await live.send_media(chunk)
            await live.send_close_stream()

        sending = asyncio.create_task(send())
        async for message in live:
            if message.type == "Results":
                print(message.channel.alternatives[0].transcript)
        await sending


asyncio.run(main())
