"""What supervisor and workers say to each other: msgpack structs, length-prefixed, versioned, over one socketpair each.

Down go set-up, snapshots and deltas (each with its generation), verdicts and the order to stop; up go questions to the
ledger, slots given back, and records of what was served. File descriptors (listeners, the key table) travel beside the
message that names them, in the order in which it names them.

A worker of another version than its supervisor's is not talked to: both come from one installation.
"""

import struct
from typing import Any, Final, Generic, TypeVar

import msgspec

from dgproxy.access.keys import Delta, KeyId
from dgproxy.access.limits import Slot
from dgproxy.config import Config
from dgproxy.wire.deepgram import Class
from dgproxy.wire.refusals import Refusal

T = TypeVar("T")

VERSION: Final = 1
MAX_MESSAGE: Final = 64 * 1024 * 1024  # bytes; a frame that claims more is garbage
_LENGTH = struct.Struct("=I")


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """One message, either way."""


class Setup(Message, frozen=True):
    """Down, first: all that a worker starts with. Comes with one fd per listener, in the order of `listeners`."""

    version: int
    index: int
    workers: int
    config: Config
    pepper: bytes
    ticket_keys: bytes  # TLS session tickets: the same for all workers, so that sessions resume on any
    listeners: tuple[str, ...]  # names, as the config has them

    def __repr__(self) -> str:
        return f"Setup(version={self.version}, index={self.index}, listeners={self.listeners})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # msgspec's own would show the pepper in a rich traceback
        return [("version", self.version), ("index", self.index), ("listeners", self.listeners)]


class Snapshot(Message, frozen=True):
    """Down: the key table of a generation. Comes with the fd of a sealed memfd, and is followed by every later change.

    A worker accepts only once its table has reached `target`: before that it might serve a key that is revoked already.
    One that comes later takes the place of the table and is judged as a change of every key.
    """

    generation: int
    target: int


class Change(Message, frozen=True):
    """Down: the key table's next generation."""

    delta: Delta


class Verdicts(Message, frozen=True):
    """Down: the ledger's answers to one `Questions`, None where the slot is taken."""

    verdicts: tuple[tuple[Slot, Refusal | None], ...]


class Ask(Message, frozen=True):
    """Down: what is in flight, of one key or of all; `Rows` answers with the same number."""

    number: int
    key_id: KeyId | None


class Kill(Message, frozen=True):
    """Down: end the request or stream of this id; `Killed` answers with the same number."""

    number: int
    request_id: str


class Stop(Message, frozen=True):
    """Down: accept no more; end when the last request has, or after this many seconds."""

    within: float


class Ready(Message, frozen=True):
    """Up: accepting."""

    version: int
    pid: int


class Applied(Message, frozen=True):
    """Up: the key table is at this generation."""

    generation: int


class Question(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """May this key have one more in flight? The number is the asker's own and becomes the slot's."""

    slot: Slot
    key_id: KeyId
    cls: Class


class Arrival(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """May this source have one more connection? The number is the asker's own and becomes the slot's."""

    slot: Slot
    source: str


class Questions(Message, frozen=True):
    """Up: all questions of one tick of a worker's loop."""

    questions: tuple[Question | Arrival, ...]


class GiveBack(Message, frozen=True):
    """Up, one-way: slots whose requests or connections have ended."""

    slots: tuple[Slot, ...]


class Rows(Message, frozen=True):
    """Up: what is in flight, as `streams list` shows it."""

    number: int
    rows: list[dict[str, Any]]


class Killed(Message, frozen=True):
    """Up: how many requests were ended."""

    number: int
    count: int


class Record(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What one request or stream used. Bytes are of bodies and frames as the client sent and got them."""

    key_id: KeyId
    cls: Class
    plan: str
    websocket: bool
    status: int
    bytes_in: int
    bytes_out: int
    started: float  # Unix seconds
    wall: float  # seconds
    request_id: str
    end: str


class Usage(Message, frozen=True):
    """Up, each second while something changed: requests that ended since the last, and what is open now."""

    records: tuple[Record, ...]
    connections: int
    streams: int
    requests: int  # served since the worker's start


Down = Setup | Snapshot | Change | Verdicts | Ask | Kill | Stop
Up = Ready | Applied | Questions | GiveBack | Rows | Killed | Usage

_encoder: Final = msgspec.msgpack.Encoder()
DOWN: Final = msgspec.msgpack.Decoder(Down)
UP: Final = msgspec.msgpack.Decoder(Up)


class BadMessage(Exception):  # noqa: N818
    """Bytes that are no message of this version; the only remedy is to end the connection."""


def encode(message: Message) -> bytes:
    """A message as it goes over the socketpair."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class Unpacker(Generic[T]):
    """Bytes in, messages out, whatever the pieces they come in."""

    def __init__(self, decoder: "msgspec.msgpack.Decoder[T]") -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """The messages that these bytes complete.

        Raises:
            BadMessage: they are no messages.
        """
        self._buffer += data
        messages: list[T] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_MESSAGE:
                raise BadMessage("oversized message")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            try:
                messages.append(self._decoder.decode(memoryview(self._buffer)[start + _LENGTH.size : end]))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise BadMessage("unknown message") from error
            start = end
        del self._buffer[:start]
        return messages
