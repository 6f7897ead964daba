# pip install 'deepgram-sdk>=7,<8'
# a private CA only: export SSL_CERT_FILE=ca.pem
import threading

from deepgram import DeepgramClient
from deepgram.environment import DeepgramClientEnvironment

host = "speech.example.com"
client = DeepgramClient(
    api_key="dgp_YOUR_KEY",
    environment=DeepgramClientEnvironment(
        base=f"https://{host}", production=f"wss://{host}", agent=f"wss://{host}", agent_rest=f"https://{host}"
    ),
)

# a file
with open("audio.wav", "rb") as file:
    heard = client.listen.v1.media.transcribe_file(request=file, model="nova-3")
print(heard.results.channels[0].alternatives[0].transcript)

# a stream: one thread sends, this one reads
with client.listen.v1.connect(model="nova-3") as live:

    def send():
        with open("audio.wav", "rb") as audio:
            while chunk := audio.read(8192):
                live.send_media(chunk)
        live.send_close_stream()

    threading.Thread(target=send).start()
    for message in live:
        if message.type == "Results":
            print(message.channel.alternatives[0].transcript)
