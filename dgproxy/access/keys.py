"""Ingress keys: their format, their digest at rest, and the table in which every worker finds them.

Rules of this file:

- A key's text is seen here and in nothing that lives on: what is kept is HMAC-SHA256(pepper, key). No repr and no error
  made here holds a key, a digest or the pepper.
- One HMAC for every text that is short enough to be a key, whatever its shape; then one look-up, which always reads an
  entry (the decoy, if there is none); then one `hmac.compare_digest`. Only what follows a match may differ in time: a
  record is decoded after its secret was proven, never before.
- Randomness and the time come in as arguments.

Source of the format: spec part 5; the checksum is that of GitHub's tokens (github.blog, "Behind GitHub's new
authentication token formats", 2021): CRC32 in base62, so that a typo is told apart from a stranger without any table.
"""

import enum
import hashlib
import hmac
import io
import mmap
import re
import struct
import sys
import zlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, Literal, NewType, NoReturn

import msgspec

from dgproxy.config import Overrides
from dgproxy.wire.refusals import (
    BAD_CREDENTIAL,
    KEY_DISABLED,
    KEY_EXPIRED,
    KEY_NOT_YET_VALID,
    KEY_REVOKED,
    Refusal,
)

KeyId = NewType("KeyId", str)  # 10 base62 characters; public, the only name of a key in logs, metrics and messages

PREFIX: Final = "dgp_"
ID_LENGTH: Final = 10
SECRET_LENGTH: Final = 32  # 190 bits: one fast keyed hash is enough, no slow one for attackers to spend our CPU on
CHECKSUM_LENGTH: Final = 6  # 62^6 > 2^32
MAX_KEY_LENGTH: Final = 512  # bytes; nothing longer is hashed (bad-inputs C3)
MIN_FOREIGN_LENGTH: Final = 20  # characters; API Gateway's own bound

_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_UNBIASED: Final = 256 - 256 % len(_BASE62)  # random bytes from here on would favour the alphabet's first letters
_NATIVE: Final = re.compile(rb"dgp_([0-9A-Za-z]{10})_[0-9A-Za-z]{38}")
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{20,512}")  # RFC 7230 3.2.6


# --- format -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Minted:
    """A new key: the only moment at which its text exists on our side."""

    id: KeyId
    key: str = field(repr=False)


def mint(random_bytes: Callable[[int], bytes]) -> Minted:
    """A new key. `random_bytes(n)` gives n bytes of the system's randomness (`os.urandom`)."""
    public = _base62(ID_LENGTH, random_bytes)
    text = f"{PREFIX}{public}_{_base62(SECRET_LENGTH, random_bytes)}"
    return Minted(KeyId(public), text + _checksum(text.encode()))


def public_id(key: bytes) -> bytes | None:
    """The id inside a key that has our shape; None for any other text. Says nothing about the key's truth."""
    match = _NATIVE.fullmatch(key)
    return None if match is None else match[1]


def checksum_ok(key: bytes) -> bool:
    """Whether a key of our shape was copied whole. For people who ask; `Table.check` needs no such answer."""
    return public_id(key) is not None and _checksum(key[:-CHECKSUM_LENGTH]) == key[-CHECKSUM_LENGTH:].decode()


def is_foreign(key: bytes) -> bool:
    """Whether a text can be a key that another system made: 20 to 512 token characters, and not of our own shape.

    A text of our shape is looked up by the id inside it, never by digest, so it can't be kept as a foreign one.
    """
    return _TOKEN.fullmatch(key) is not None and public_id(key) is None


def _base62(length: int, random_bytes: Callable[[int], bytes]) -> str:
    letters: list[str] = []
    while len(letters) < length:
        drawn = random_bytes(length - len(letters))
        letters += [_BASE62[byte % len(_BASE62)] for byte in drawn if byte < _UNBIASED]
    return "".join(letters)


def _checksum(text: bytes) -> str:
    rest = zlib.crc32(text)
    letters = ""
    for _ in range(CHECKSUM_LENGTH):
        rest, digit = divmod(rest, len(_BASE62))
        letters = _BASE62[digit] + letters
    return letters


# --- digest -----------------------------------------------------------------------------------------------------


class Pepper:
    """The secret that digests are keyed with; without it a stolen store can't even be guessed against.

    It has no useful repr, can't be pickled, copied or encoded; `expose` is the one way out, for handing it to a worker.
    """

    __slots__ = ("_secret", "id")

    LENGTH: Final = 32

    def __init__(self, secret: bytes) -> None:
        if len(secret) != self.LENGTH:
            raise ValueError(f"a pepper is {self.LENGTH} bytes, this one has {len(secret)}")
        self._secret = secret
        self.id: Final = hmac.digest(secret, b"dgproxy pepper id", "sha256")[:4].hex()

    def digest(self, key: bytes) -> bytes:
        """HMAC-SHA256(pepper, key), 32 bytes."""
        return hmac.digest(self._secret, key, "sha256")

    def expose(self) -> bytes:
        """The 32 bytes themselves, for the private socketpair of a worker and for nothing else."""
        return self._secret

    def __repr__(self) -> str:
        return f"<Pepper {self.id}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a pepper is not to be pickled or copied")


# --- records ----------------------------------------------------------------------------------------------------


class State(enum.StrEnum):
    """Whether a key may be used at all; expiry is a matter of time and not a state."""

    ACTIVE = "active"
    DISABLED = "disabled"
    REVOKED = "revoked"


class Record(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What is known of a key. Times are Unix seconds.

    `id` and `digest` come first: encoded, both then have a fixed place, at which the table reads them undecoded.
    """

    id: KeyId
    digest: bytes
    name: str
    pepper_id: str
    plan: str
    overrides: Overrides
    state: State
    created: int
    not_before: int
    expires: int | None  # None: never
    foreign: bool  # made by another system and found by digest, not by id

    def __repr__(self) -> str:
        return f"<Record {self.id} {self.state} plan={self.plan!r}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # msgspec's own would show the digest in a rich traceback
        return [("id", self.id), ("state", self.state.value), ("plan", self.plan)]


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """What changed from one generation to the next: records as they are now, and ids that are no more."""

    generation: int
    records: tuple[Record, ...] = ()
    gone: tuple[KeyId, ...] = ()


def standing(record: Record, now: float) -> Refusal | None:
    """Why a key may not be used, though it is the right one; `now` in Unix seconds. Holds for what is in flight too."""
    if record.state is not State.ACTIVE:
        return KEY_REVOKED if record.state is State.REVOKED else KEY_DISABLED
    if now < record.not_before:
        return KEY_NOT_YET_VALID
    if record.expires is not None and now >= record.expires:
        return KEY_EXPIRED
    return None


class GenerationGap(Exception):  # noqa: N818 - what happened, not whose fault
    """A delta does not follow the table's generation; only a new snapshot helps."""

    def __init__(self, have: int, got: int) -> None:
        super().__init__(f"the key table is at generation {have}, the delta is for {got}")
        self.have = have
        self.got = got


# --- table ------------------------------------------------------------------------------------------------------
#
# One buffer, made once by the supervisor and mapped read-only by every worker:
#
#   header     _HEADER, with a CRC32 of itself
#   entries    each a msgpack Record; the first is the decoy
#   directory  u32 for each bucket and one more: where the bucket's marks begin; a multiple of 8 bytes in all
#   marks      64-bit fingerprints, sorted: a bucket is a run of them, as its number is the mark's leading part
#   places     u64 for each mark, its entry's offset << 24 | length; and one more for the decoy
#
# Every key has a mark made from its id, a foreign one another made from its digest. A look-up reads one run, of 4 marks
# on average, so it costs the same for 10 keys as for 1,000,000, and (unlike open addressing's probes) the same whether
# it hits or misses. Numbers have the machine's byte order: the buffer never leaves it.

_MAGIC: Final = b"dgpkeys\n"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("=8sII6Q")  # magic, version, crc; generation, keys, marks, buckets, directory, length
_RUN: Final = struct.Struct("=II")
_PLACE: Final = struct.Struct("=Q")
_PER_BUCKET: Final = 4
_SHELF_BITS: Final = 10
_LENGTH_BITS: Final = 24
_LENGTH_MASK: Final = (1 << _LENGTH_BITS) - 1

_ID: Final = slice(2, 12)  # of an encoded Record: fixarray, fixstr 10, id, bin8 32, digest
_DIGEST: Final = slice(14, 46)

_MASK64: Final = (1 << 64) - 1
# Multiply-shift (Dietzfelbinger et al. 1997): 80 bits of id to 64 that spread, whatever the ids have in common.
_MIX: Final = int.from_bytes(hashlib.sha256(b"dgproxy key table").digest()[:18], "big") | 1
_MIX_SHIFT: Final = 80
_BYTE_ORDER: Final[Literal["little", "big"]] = sys.byteorder

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Record).decode
_compare_digest: Final = hmac.compare_digest

_DECOY: Final = Record(
    id=KeyId("-" * ID_LENGTH),  # no id that is looked up has these letters
    digest=bytes(32),
    name="",
    pepper_id="",
    plan="",
    overrides=Overrides(),
    state=State.REVOKED,
    created=0,
    not_before=0,
    expires=None,
    foreign=False,
)


def _entry(record: Record) -> bytes:
    entry = _encode(record)
    if entry[_ID] != record.id.encode() or entry[_DIGEST] != record.digest or len(entry) >> _LENGTH_BITS:
        raise ValueError(f"not a record for the table: id {record.id!r}, {len(entry)} bytes")
    return entry


def _mark_of_id(public: bytes) -> int:
    return (int.from_bytes(public, "big") * _MIX >> _MIX_SHIFT) & _MASK64


def _mark_of_digest(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")


def write(records: Iterable[Record], generation: int, out: BinaryIO) -> None:
    """Writes the table of these records (each id once) into an empty seekable file, such as a memfd.

    Beside the file it needs some 60 bytes of memory a key for sorting. Sorting is done in many small steps, between
    which other threads run: one sort of all would hold up the supervisor's loop.
    """
    out.write(bytes(_HEADER.size))
    decoy = _entry(_DECOY)
    offset = _HEADER.size + out.write(decoy)
    keys = 0
    marked: list[list[int]] = [[] for _ in range(1 << _SHELF_BITS)]  # mark << 64 | place, by the mark's leading bits
    for record in records:
        entry = _entry(record)
        place = offset << _LENGTH_BITS | len(entry)
        for mark in (_mark_of_id(entry[_ID]), *((_mark_of_digest(entry[_DIGEST]),) if record.foreign else ())):
            marked[mark >> 64 - _SHELF_BITS].append(mark << 64 | place)
        offset += out.write(entry)
        keys += 1
    marks = array("Q")
    places = array("Q")
    for shelf in marked:
        shelf.sort()
        marks.extend([both >> 64 for both in shelf])
        places.extend([both & _MASK64 for both in shelf])
        shelf.clear()
    places.append(_HEADER.size << _LENGTH_BITS | len(decoy))
    buckets = len(marks) // _PER_BUCKET | 1  # odd, so that directory is a multiple of 8 bytes
    directory = array("I", bytes(4 * (buckets + 1)))
    for mark in marks:
        directory[(mark * buckets >> 64) + 1] += 1
    total = 0
    for bucket, size in enumerate(directory):
        total += size
        directory[bucket] = total
    begin = offset + -offset % 8
    out.write(bytes(begin - offset))
    out.writelines((directory, marks, places))
    length = begin + 4 * len(directory) + 8 * len(marks) + 8 * len(places)
    out.seek(0)
    header = (generation, keys, len(marks), buckets, begin, length)
    crc = zlib.crc32(_HEADER.pack(_MAGIC, _VERSION, 0, *header))
    out.write(_HEADER.pack(_MAGIC, _VERSION, crc, *header))
    out.flush()


def build(records: Iterable[Record], generation: int) -> bytes:
    """The table of these records (each id once) as bytes."""
    out = io.BytesIO()
    write(records, generation, out)
    return out.getvalue()


class Table:
    """All keys, as one worker sees them: an immutable buffer shared by all workers, under its own overlay of changes.

    `buffer` is what `write` made (bytes, or a read-only mmap that the caller keeps open); ValueError if it is not.
    """

    def __init__(self, buffer: bytes | mmap.mmap) -> None:
        if len(buffer) < _HEADER.size:
            raise ValueError("not a key table: shorter than its header")
        magic, version, crc, *header = _HEADER.unpack_from(buffer)
        if magic != _MAGIC:
            raise ValueError("not a key table: bad magic")
        if version != _VERSION:
            raise ValueError(f"a key table of version {version}, this is for version {_VERSION}")
        if crc != zlib.crc32(_HEADER.pack(magic, version, 0, *header)):
            raise ValueError("a damaged key table: its header does not match its checksum")
        generation, keys, marks, self._buckets, self._directory, length = header
        if length != len(buffer):
            raise ValueError(f"a damaged key table: {len(buffer)} bytes instead of {length}")
        self.generation: int = generation
        self._keys: int = keys
        self._buffer = buffer
        self._marks = self._directory + 4 * (self._buckets + 1)
        self._places = self._marks + 8 * marks
        self._miss = self._marks + 8 * marks  # where the decoy's mark would be
        self._decoy = _entry(_DECOY)
        self._changed: dict[bytes, bytes] = {}  # id -> entry; the decoy for an id that is no more
        self._foreign: dict[bytes, bytes] = {}  # digest -> entry, for foreign ones among the changed

    def __len__(self) -> int:
        return self._keys

    def get(self, key_id: KeyId) -> Record | None:
        """The record of an id, foreign or not, whatever its state."""
        entry = self._by_id(key_id.encode())
        return None if entry == self._decoy else _decode(entry)

    def check(self, key: bytes, pepper: Pepper, now: float) -> Record | Refusal:
        """Who sent this key, or why it is refused. `now` in Unix seconds.

        A wrong checksum needs no look: no digest of such a text was ever stored, so it fails like any wrong secret.
        """
        # hot: once a request; see bench
        if len(key) > MAX_KEY_LENGTH:
            return BAD_CREDENTIAL
        digest = pepper.digest(key)
        match = _NATIVE.fullmatch(key)
        entry = self._by_digest(digest) if match is None else self._by_id(match[1])
        if not _compare_digest(entry[_DIGEST], digest):
            return BAD_CREDENTIAL
        record = _decode(entry)
        if record.pepper_id != pepper.id:
            return BAD_CREDENTIAL
        return standing(record, now) or record

    def apply(self, delta: Delta) -> None:
        """Brings the table to the next generation, all of the delta or nothing; GenerationGap if it is not the next."""
        if delta.generation != self.generation + 1:
            raise GenerationGap(self.generation, delta.generation)
        changed = [(record, _entry(record)) for record in delta.records]
        for key_id in delta.gone:
            self._replace(key_id.encode(), self._decoy)
        for _, entry in changed:
            self._replace(entry[_ID], entry)
        self._foreign |= {record.digest: entry for record, entry in changed if record.foreign}
        self.generation = delta.generation

    def _replace(self, public: bytes, entry: bytes) -> None:
        old = self._by_id(public)
        self._foreign.pop(old[_DIGEST], None)
        self._changed[public] = entry
        self._keys += (old == self._decoy) - (entry == self._decoy)

    def _by_id(self, public: bytes) -> bytes:
        base = self._find(_mark_of_id(public), public, _ID)  # also for a changed one, so that it takes no less time
        return self._changed.get(public, base)

    def _by_digest(self, digest: bytes) -> bytes:
        base = self._find(_mark_of_digest(digest), digest, _DIGEST)
        return self._foreign.get(digest, self._decoy if base[_ID] in self._changed else base)

    def _find(self, mark: int, sought: bytes, part: slice) -> bytes:
        """The entry under this mark that has the sought bytes at this part; the decoy if there is none."""
        # hot: a hit and a miss read alike: one run, one place, one entry
        buffer = self._buffer
        marks = self._marks
        first, last = _RUN.unpack_from(buffer, self._directory + 4 * (mark * self._buckets >> 64))
        needle = mark.to_bytes(8, _BYTE_ORDER)
        end = marks + 8 * last
        at = marks + 8 * first
        while True:
            at = buffer.find(needle, at, end)
            index, misfit = divmod((self._miss if at < 0 else at) - marks, 8)
            if not misfit:
                (place,) = _PLACE.unpack_from(buffer, self._places + 8 * index)
                offset = place >> _LENGTH_BITS
                entry: bytes = buffer[offset : offset + (place & _LENGTH_MASK)]
                if entry[part] == sought or at < 0:
                    return entry
            at += 1
