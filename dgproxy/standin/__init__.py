"""The stand-in: what a self-hosted Deepgram container looks like on the wire, without a model behind it.

It serves the demo, the tests and bench: `dgproxy standin` runs it, `serve()` puts it into a test. Its transcripts
describe the audio that it heard ("6.2 s of audio, loudness -21 dB") and invent no words. Its facts are those of
deepgram.md, sections 5-9 and 11; what nobody has seen on a wire is said where it is decided.

| module | does |
|---|---|
| `options` | every fault and figure that a test can ask for, per server or per request |
| `request` | a request's head as it was received, and its query |
| `audio` | seconds and loudness of audio bytes; tones |
| `engine` | listen conversations (v1, v2), without I/O |
| `speech` | speak and agent conversations, without I/O |
| `answers` | HTTP answers, without I/O |
| `frames` | the echo of load tests, without I/O |
| `connection` | the life of one connection |
| `server` | starting and stopping |
"""

from dgproxy.standin.options import Options
from dgproxy.standin.server import Server, background, run, serve

__all__ = ["Options", "Server", "background", "run", "serve"]
