"""WebSocket handshakes, both sides: wsproto's, held to what RFC 6455 says and wsproto lets pass.

Rules of this file: a request that asks for `websocket` is a valid handshake or refused, never served as plain HTTP; a
client sees 101 only after the upstream's own 101 was verified; no extension is ever agreed, so that frames can be read.
Sources: RFC 6455 4; deepgram.md 2-3.
"""

import base64
import binascii
from typing import Final

import h11
from wsproto import ConnectionType
from wsproto.events import AcceptConnection, Request
from wsproto.handshake import H11Handshake
from wsproto.utilities import RemoteProtocolError

from dgproxy.wire.fields import Headers
from dgproxy.wire.head import Head
from dgproxy.wire.refusals import BAD_HANDSHAKE, BAD_WS_VERSION, Refusal
from dgproxy.wire.response import Answer, BadAnswer

_KEY_BYTES: Final = 16  # RFC 6455 4.1
_VERSION: Final = b"13"


def judge(head: Head) -> Refusal | None:
    """Why a request for a WebSocket is no valid handshake (RFC 6455 4.2.1), None where it is one."""
    if head.method != b"GET" or head.minor != 1 or head.chunked or head.content_length:
        return BAD_HANDSHAKE
    if head.upgrade != b"websocket" or b"upgrade" not in head.connection:
        return BAD_HANDSHAKE
    versions = head.all(b"sec-websocket-version")
    if versions and versions != [_VERSION]:
        return BAD_WS_VERSION
    key = head.one(b"sec-websocket-key")
    if not versions or key is None or not _is_key(key):
        return BAD_HANDSHAKE
    return None


def _is_key(key: bytes) -> bool:
    try:
        raw = base64.b64decode(key, validate=True)
    except binascii.Error:
        return False
    return len(raw) == _KEY_BYTES and base64.b64encode(raw) == key


class DownstreamHandshake:
    """The client's: checked before anything is asked of the upstream, answered after the upstream's was verified."""

    def __init__(self, server: H11Handshake) -> None:
        self._wsproto = server

    @classmethod
    def begin(cls, head: Head) -> "DownstreamHandshake | Refusal":
        """The handshake of a head that asks for a WebSocket, or why it is none."""
        refusal = judge(head)
        if refusal is not None:
            return refusal
        server = H11Handshake(ConnectionType.SERVER)
        try:
            server.receive_data(head.raw)
        except (RemoteProtocolError, UnicodeError):
            return BAD_HANDSHAKE
        if not any(isinstance(event, Request) for event in server.events()):
            return BAD_HANDSHAKE
        return cls(server)

    def accept(self, subprotocol: str | None, headers: Headers) -> bytes:
        """Our 101. `subprotocol` is one of the client's offers; `headers` are the upstream's that go on.

        Raises:
            BadAnswer: the upstream's headers can't be passed on.
        """
        try:
            return self._wsproto.send(AcceptConnection(subprotocol=subprotocol, extra_headers=headers))
        except h11.LocalProtocolError as error:
            raise BadAnswer("headers that can't be passed on") from error


class UpstreamHandshake:
    """Ours to the container: a fresh key, no subprotocol, no extension; its answer verified."""

    def __init__(self, target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """`headers` are those of `forwarding.upstream_headers`, Host first."""
        (_, host), *extra = headers
        self._wsproto = H11Handshake(ConnectionType.CLIENT)
        self.head: Final = self._wsproto.send(
            Request(host=host.decode("ascii"), target=target.decode("ascii"), extra_headers=extra)
        )

    def verify(self, answer: Answer) -> None:
        """Whether this 101 answers our key (RFC 6455 4.1: Upgrade, Connection, Accept, nothing that we did not offer).

        Raises:
            BadAnswer: it does not.
        """
        try:
            self._wsproto.receive_data(answer.raw)
        except (RemoteProtocolError, UnicodeError) as error:
            raise BadAnswer("not an answer to our handshake") from error
        if not any(isinstance(event, AcceptConnection) for event in self._wsproto.events()):
            raise BadAnswer("not an answer to our handshake")
