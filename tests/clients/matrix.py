"""The compatibility matrix: which clients, which features, and what was seen of each.

Rules of this file: a cell of the table is what a test saw, never what somebody believes; a feature that an SDK does not
have is said here, with the reason, and is the only cell that no test fills.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

Transport = Literal["http", "websocket"]


@dataclass(frozen=True, slots=True)
class Sdk:
    """A client as its users install it. `version` is the one that is locked; it is asserted against what runs."""

    id: str  # "python-7"; names the program, the environment and the row
    title: str  # "Python deepgram-sdk 7"
    version: str
    lacks: dict[str, str] = field(default_factory=dict)  # feature id -> why this SDK has no such thing


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that users do with an SDK; a column."""

    id: str
    title: str


FEATURES: Final = (
    Feature("http-bytes", "POST of bytes"),
    Feature("http-file", "POST of an open file (or a path)"),
    Feature("http-stream", "POST of a generator or stream, chunked"),
    Feature("http-url", 'POST of {"url": ...}'),
    Feature("stream", "WSS /v1/listen: audio, results, CloseStream"),
    Feature("stream-keepalive", "KeepAlive on a stream"),
    Feature("stream-finalize", "Finalize on a stream"),
    Feature("stream-configure", "Configure on a stream"),
    Feature("flux", "WSS /v2/listen"),
    Feature("speak", "POST /v1/speak"),
    Feature("speak-stream", "WSS /v1/speak"),
    Feature("read", "POST /v1/read"),
    Feature("models", "GET /v1/models"),
    Feature("wrong-key", "a wrong key over HTTP: 401 INVALID_AUTH as the SDK's own error"),
    Feature("wrong-key-stream", "a wrong key on a stream: the handshake is refused with 401"),
    Feature("no-key", "no key at all: 401"),
    Feature("jwt-key", "a key shaped like a JWT: 401"),
    Feature("proxy-key", "the literal key `proxy` (JavaScript's proxy mode): 401"),
    Feature("revoked-stream", "a key revoked in mid-stream: close 1008, and what the SDK makes of it"),
)
