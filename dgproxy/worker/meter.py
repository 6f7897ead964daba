"""What a request or stream used, gathered while it runs and told once, when it ends: one log line, one usage record."""

import enum
import time
from dataclasses import dataclass, field
from typing import Any

from dgproxy import ipc, redaction
from dgproxy.access.keys import KeyId, Record as Key
from dgproxy.wire.deepgram import Class
from dgproxy.wire.forwarding import client_request_id
from dgproxy.wire.head import Head

_SHORTEST_SECRET = 8  # characters; shorter ones occur in honest text
_USER_AGENT = 128  # characters of it in the log
_UPSTREAM_ID = 128  # bytes of the upstream's own request id in the log; a UUID has 36


class End(enum.StrEnum):
    """Why a request or stream ended; the `end` field of its log line and record."""

    COMPLETE = "complete"  # both sides finished in good order
    CLIENT_GONE = "client_gone"
    UPSTREAM_GONE = "upstream_gone"
    CLIENT_FAULT = "client_fault"  # a body that breaks its framing, or comes too slowly
    UPSTREAM_FAULT = "upstream_fault"  # no valid answer, or none in time
    REFUSED = "refused"  # by the upstream's answer to a handshake, or by a limit met on the way
    IDLE = "idle"
    CUT = "cut"  # its key was revoked, disabled or expired, or an operator ended it
    SHED = "shed"  # it held bytes that its peer did not take, and there were too many of those
    FAULT = "fault"  # of our own; worker.fault says which
    STOPPED = "stopped"  # the proxy ended it


@dataclass(slots=True)
class Meter:
    """One request, from its head on."""

    request_id: str
    peer: str
    head: Head
    cls: Class | None = None
    secret: bytes | None = field(default=None, repr=False)  # the credential: no line about the request holds it
    key: Key | None = None
    owed: tuple[tuple[str, str], ...] = ()  # headers that its answer has, whatever it is (access.cors)
    upstream: str | None = None
    dg_request_id: bytes | None = None
    status: int = 0
    begun: bool = False  # the client has something of its answer, or may have
    bytes_in: int = 0  # of the request's body or the client's frames
    bytes_out: int = 0
    fault: str | None = None  # what was wrong with the peer's bytes
    code_sent: int | None = None  # of our own Close
    code_from_client: int | None = None  # of theirs; 1005 for a Close without one
    code_from_upstream: int | None = None
    wall_start: float = field(default_factory=time.time)
    started: float = field(default_factory=time.monotonic)

    def fields(self) -> dict[str, Any]:
        """What every log line about this request says of it."""
        agent = self.head.one(b"user-agent")
        own = client_request_id(self.head)
        path = redaction.target(self.head.path, self.head.query, served=self.cls is not None)
        return {
            "request_id": self.request_id,
            "peer": self.peer,
            "key_id": self.key_id,
            "class": self.cls,
            "method": self.head.method,
            "path": self._without_secret(path),
            "client_request_id": None if own is None else self._without_secret(own.decode("latin-1")),
            # Redacted before it is cut: what is left of a credential at the edge would not look like one any more.
            "user_agent": None
            if agent is None
            else redaction.redact(self._without_secret(agent.decode("latin-1")))[:_USER_AGENT],
        }

    def _without_secret(self, text: str) -> str:
        """A key that another system made looks like nothing in particular: only here is it known what to look for."""
        secret = "" if self.secret is None else self.secret.decode("latin-1")
        return text.replace(secret, redaction.REDACTED) if len(secret) >= _SHORTEST_SECRET else text

    def closing(self) -> dict[str, Any]:
        """How a WebSocket was closed, for its last line."""
        return {
            "code_sent": self.code_sent,
            "code_from_client": self.code_from_client,
            "code_from_upstream": self.code_from_upstream,
            "fault": self.fault,
        }

    def row(self) -> dict[str, Any]:
        """What `streams list` says of it while it is in flight; `began` by the clock that all processes share."""
        return {
            "id": self.request_id,
            "key_id": self.key_id,
            "class": self.cls,
            "websocket": self.head.websocket,
            "peer": self.peer,
            "upstream": self.upstream,
            "status": self.status or None,
            "began": self.started,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "dg_request_id": self._upstream_id(),
        }

    @property
    def key_id(self) -> KeyId | None:
        """Whose it is."""
        return None if self.key is None else self.key.id

    def _upstream_id(self) -> str | None:
        return None if self.dg_request_id is None else self.dg_request_id[:_UPSTREAM_ID].decode("latin-1")

    def spent(self, end: End) -> dict[str, Any]:
        """What its last line says beside `fields`."""
        return {
            "status": self.status,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "wall_s": round(time.monotonic() - self.started, 6),
            "upstream": self.upstream,
            "dg_request_id": self._upstream_id(),
            "end": end,
        }

    def record(self, end: End, *, websocket: bool) -> ipc.Record:
        """The usage record of an admitted request.

        Raises:
            ValueError: it was never admitted.
        """
        if self.key is None or self.cls is None:
            raise ValueError("not an admitted request")
        return ipc.Record(
            key_id=self.key.id,
            cls=self.cls,
            plan=self.key.plan,
            websocket=websocket,
            status=self.status,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            started=self.wall_start,
            wall=time.monotonic() - self.started,
            request_id=self.request_id,
            end=end.value,
        )
