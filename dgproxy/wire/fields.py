"""Header fields and the framing that they announce: one rule for a request's head, an answer's, and trailers.

Rules of this file: a header is what its line says, once; nothing is merged, folded, repaired, or trimmed but for white
space; what could be read in two ways is not read at all. Sources: RFC 9110 5.5, 5.6.2, 7.6.1; RFC 9112 5, 6.
"""

import re
from typing import Final

import msgspec

Headers = list[tuple[bytes, bytes]]  # (name in lower case, value without outer white space), in the order sent

MAX_HEADERS: Final = 100

TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"  # RFC 9110 5.6.2
VALUE: Final = rb"[\t\x20-\x7e\x80-\xff]"  # RFC 9110 5.5
LINE: Final = rb"(?:" + TOKEN + rb"++:" + VALUE + rb"*+\r\n)"  # RFC 9112 5; no obs-fold, no space before the colon

_BLOCK = re.compile(LINE + rb"*+")
_LENGTH = re.compile(rb"[0-9]{1,18}")  # RFC 9112 6.2; 18 digits cannot overflow 63 bits
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"host"})


class Framing(msgspec.Struct, frozen=True):
    """How a message's body is framed, and what its Connection says (in lower case)."""

    content_length: int | None
    chunked: bool
    connection: frozenset[bytes]


def split(block: bytes) -> Headers | None:
    """The fields of a block of LINEs; None where strict parsers would not read one of the framing's as we do."""
    headers: Headers = []
    for line in block[:-2].split(b"\r\n") if block else ():
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _FRAMING and b"\t" in value:  # white space by RFC 9110 5.6.3, but llhttp and nginx refuse it here
            return None
        headers.append((name, value.strip(b" \t")))
    return headers


def write(first: bytes, headers: Headers) -> bytes:
    """A head: its first line and these fields, as they are, and the empty line.

    Raises:
        ValueError: what would be written is not exactly these fields.
    """
    block = b"".join([b"%b: %b\r\n" % line for line in headers])
    if _BLOCK.fullmatch(block) is None or block.count(b"\r\n") != len(headers) or b"\n" in first:
        raise ValueError("headers that can't be passed on")
    return b"%b\r\n%b\r\n" % (first, block)


def framing(headers: Headers, minor: int) -> Framing | None:
    """The framing of an HTTP/1.<minor> message; None if it is ambiguous, or more than a length or `chunked`."""
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    connection = options(headers)
    if lengths and (codings or len(lengths) > 1 or _LENGTH.fullmatch(lengths[0]) is None):
        return None
    if codings and (minor == 0 or len(codings) > 1 or codings[0].lower() != b"chunked"):
        return None
    if connection & _FRAMING:  # what a hop drops, the next does not frame by
        return None
    return Framing(int(lengths[0]) if lengths else None, bool(codings), connection)


def options(headers: Headers) -> frozenset[bytes]:
    """The options of every Connection header, in lower case (RFC 9110 7.6.1)."""
    return frozenset(
        option.strip(b" \t").lower() for name, value in headers if name == b"connection" for option in value.split(b",")
    )
