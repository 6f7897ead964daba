# pip install 'deepgram-sdk>=4,<5'
# a private CA only: export SSL_CERT_FILE=ca.pem
import json
import threading

from deepgram import DeepgramClient, DeepgramClientOptions, LiveTranscriptionEvents

client = DeepgramClient(
    "dgp_YOUR_KEY", DeepgramClientOptions(url="https://speech.example.com", options={"keepalive": True})
)

# a file
with open("audio.wav", "rb") as file:
    heard = client.listen.rest.v("1").transcribe_file({"stream": file}, {"model": "nova-3"})
print(heard.results.channels[0].alternatives[0].transcript)

# a stream
ended = threading.Event()
live = client.listen.websocket.v("1")


def on_results(client, result, **kwargs):
    print(result.channel.alternatives[0].transcript)


def on_error(client, error, **kwargs):
    print(error.message)  # "received 1008 (policy violation) This ingress API key was revoked. ..."


live.on(LiveTranscriptionEvents.Transcript, on_results)
live.on(LiveTranscriptionEvents.Error, on_error)
live.on(LiveTranscriptionEvents.Close, lambda *args, **kwargs: ended.set())
if not live.start({"model": "nova-3"}):
    raise SystemExit("the handshake was refused; the reason is in the log")
with open("audio.wav", "rb") as file:
    while chunk := file.read(8192):
        live.send(chunk)
live.send(json.dumps({"type": "CloseStream"}))  # finish() alone leaves half a second for the last words
ended.wait()
live.finish()
