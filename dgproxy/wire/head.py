"""A request's head: raw bytes in, a `Head` or a `Refusal` out.

Rules of this file:
- The bytes are judged before any parser sees them: one pattern says what a head may be, and all else is refused.
- A header is what its line says, once. Nothing is merged, folded, trimmed beyond optional white space, or repaired.
- h11 parses the same bytes after us (`wire.request`); where it reads something else, the head is refused.

Sources: RFC 9110, RFC 9112; spec part 5 (strictness); bad-inputs.md F and H.
"""

import re
from dataclasses import dataclass
from typing import Final

from dgproxy.wire.refusals import (
    BAD_FRAMING,
    BAD_HOST,
    BAD_METHOD,
    BAD_TARGET,
    EXPECTATION_FAILED,
    HEAD_TOO_LARGE,
    Refusal,
)

MAX_HEAD: Final = 32 * 1024  # bytes, request line to empty line; 100 keyterms fit (deepgram.md 4)
MAX_HEADERS: Final = 100

Headers = list[tuple[bytes, bytes]]  # (name in lower case, value without outer white space), in the order sent

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"  # RFC 9110 5.6.2
_LINE = rb"(?:" + _TOKEN + rb"++:[\t\x20-\x7e\x80-\xff]*+\r\n)"  # RFC 9112 5; no obs-fold, no space before the colon
_HEAD = re.compile(
    # '#' (0x23) is left out of the target: a fragment is never sent.
    rb"([A-Z]{1,16}) (/[\x21\x22\x24-\x7e]*) HTTP/1\.([01])\r\n(" + _LINE + rb"*+)\r\n"
)
_REQUEST_LINE = re.compile(rb"([!-~]+) ([!-~]+) HTTP/1\.[01]\r\n")
_STRAY = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|\x00")  # bare LF, bare CR, NUL
_LENGTH = re.compile(rb"[0-9]{1,18}")  # RFC 9112 6.2; 18 digits cannot overflow 63 bits
_HOST = re.compile(
    rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?"
    # deepgram.md 2: Go's SDK may send its raw host option, scheme and all; it says nothing that we use.
    rb"|(?:https?|wss?)://[A-Za-z0-9._-]+(?::[0-9]{1,5})?"
)
_REFUSED_METHODS = frozenset({b"CONNECT", b"TRACE"})
_FRAMING_NAMES = frozenset({b"content-length", b"transfer-encoding", b"host"})


@dataclass(frozen=True, slots=True)
class Head:
    """A request head that passed: what was asked, and how its body is framed."""

    method: bytes
    target: bytes  # path and query as sent
    path: bytes
    query: bytes  # without '?'; byte for byte
    minor: int  # HTTP/1.<minor>
    headers: Headers
    raw: bytes  # the head's own bytes, empty line included
    content_length: int | None
    chunked: bool
    connection: frozenset[bytes]  # options of Connection, in lower case
    expects_continue: bool
    upgrade: bytes | None  # the Upgrade header in lower case

    @property
    def has_body(self) -> bool:
        """Whether bytes of a body follow."""
        return self.chunked or bool(self.content_length)

    @property
    def websocket(self) -> bool:
        """Whether a WebSocket is asked for, validly or not."""
        return self.upgrade is not None and b"websocket" in self.upgrade

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a header, in order; `name` in lower case."""
        return [value for key, value in self.headers if key == name]

    def one(self, name: bytes) -> bytes | None:
        """The value of a header that was sent exactly once, else None."""
        values = self.all(name)
        return values[0] if len(values) == 1 else None


def find_end(buffer: bytes | bytearray, seen: int = 0) -> int | Refusal | None:
    """Where the head that the buffer begins with ends, None when more bytes are needed.

    The first `seen` bytes were looked at before, so that a head that comes byte by byte costs no more than one that
    comes whole. A stray byte refuses at once, so that nobody waits for a line end that will not come.
    """
    start = max(0, seen - 3)
    end = buffer.find(b"\r\n\r\n", start, MAX_HEAD + 4)
    if end < 0:
        if _STRAY.search(buffer, start, MAX_HEAD) is not None:
            return BAD_FRAMING
        return HEAD_TOO_LARGE if len(buffer) > MAX_HEAD else None
    return end + 4 if end + 4 <= MAX_HEAD else HEAD_TOO_LARGE


def judge(raw: bytes) -> Head | Refusal:
    """What a whole head, empty line included, asks for."""
    match = _HEAD.fullmatch(raw)
    if match is None:
        return _explain(raw)
    method, target, minor, block = match.groups()
    lines = block[:-2].split(b"\r\n") if block else []
    if len(lines) > MAX_HEADERS:
        return HEAD_TOO_LARGE
    if method in _REFUSED_METHODS:
        return BAD_METHOD
    headers: Headers = []
    for line in lines:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _FRAMING_NAMES and b"\t" in value:
            return BAD_FRAMING  # optional white space by RFC 9110 5.6.3, which strict parsers refuse here all the same
        headers.append((name, value.strip(b" \t")))
    return _frame(raw, method, target, int(minor), headers)


def _frame(raw: bytes, method: bytes, target: bytes, minor: int, headers: Headers) -> Head | Refusal:
    """The rules that span headers: Host, length, chunking, Connection, Expect (RFC 9112 3.2, 6; 9110 7.6.1, 10.1.1)."""
    lengths: list[bytes] = []
    codings: list[bytes] = []
    hosts: list[bytes] = []
    expects: list[bytes] = []
    upgrades: list[bytes] = []
    options: set[bytes] = set()
    for name, value in headers:
        match name:
            case b"content-length":
                lengths.append(value)
            case b"transfer-encoding":
                codings.append(value)
            case b"host":
                hosts.append(value)
            case b"expect":
                expects.append(value.lower())
            case b"upgrade":
                upgrades.append(value.lower())
            case b"connection":
                options.update(option.strip(b" \t").lower() for option in value.split(b","))
    if len(hosts) != 1 or _HOST.fullmatch(hosts[0]) is None:
        return BAD_HOST
    if lengths and (codings or len(lengths) > 1 or _LENGTH.fullmatch(lengths[0]) is None):
        return BAD_FRAMING
    if codings and (minor == 0 or len(codings) > 1 or codings[0].lower() != b"chunked"):
        return BAD_FRAMING
    if options & _FRAMING_NAMES:
        return BAD_FRAMING
    if expects and (minor == 0 or expects != [b"100-continue"]):
        return EXPECTATION_FAILED
    path, _, query = target.partition(b"?")
    return Head(
        method=method,
        target=target,
        path=path,
        query=query,
        minor=minor,
        headers=headers,
        raw=raw,
        content_length=int(lengths[0]) if lengths else None,
        chunked=bool(codings),
        connection=frozenset(options),
        expects_continue=bool(expects),
        upgrade=b", ".join(upgrades) if upgrades else None,
    )


def _explain(raw: bytes) -> Refusal:
    """The most telling refusal for a head that the pattern does not know."""
    line = _REQUEST_LINE.match(raw)
    if line is None:
        return BAD_FRAMING
    method, target = line.groups()
    if method in _REFUSED_METHODS:
        return BAD_METHOD
    if not target.startswith(b"/") or b"#" in target:
        return BAD_TARGET
    return BAD_FRAMING
