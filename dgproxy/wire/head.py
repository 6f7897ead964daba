"""A request's head: raw bytes in, a `Head` or a `Refusal` out.

Rules of this file:
- The bytes are judged before any parser sees them: one pattern says what a head may be, and all else is refused.
- What header lines are, and how they frame a body, is `wire.fields`' to say.
- h11 parses the same bytes after us (`wire.exchange`); where it reads something else, the head is refused.

Sources: RFC 9110, RFC 9112; spec part 5 (strictness); bad-inputs.md F and H.
"""

import re
from typing import Final

import msgspec

from dgproxy.wire import fields
from dgproxy.wire.fields import LINE, MAX_HEADERS, Headers
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

_HEAD = re.compile(
    # '#' (0x23) is left out of the target: a fragment is never sent.
    rb"([A-Z]{1,16}) (/[\x21\x22\x24-\x7e]*) HTTP/1\.([01])\r\n(" + LINE + rb"*+)\r\n"
)
_REQUEST_LINE = re.compile(rb"([!-~]+) ([!-~]+) HTTP/1\.[01]\r\n")
_STRAY = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|\x00")  # bare LF, bare CR, NUL
_HOST = re.compile(
    rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?"
    # deepgram.md 2: Go's SDK may send its raw host option, scheme and all; it says nothing that we use.
    rb"|(?:https?|wss?)://[A-Za-z0-9._-]+(?::[0-9]{1,5})?"
)
_REFUSED_METHODS = frozenset({b"CONNECT", b"TRACE"})


class Head(msgspec.Struct, frozen=True):
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

    def __repr__(self) -> str:
        return f"Head({self.method!r}, {len(self.raw)} bytes)"  # the rest may be, or hold, a credential

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
    headers = fields.split(block)
    if headers is None:
        return BAD_FRAMING
    if len(headers) > MAX_HEADERS:
        return HEAD_TOO_LARGE
    if method in _REFUSED_METHODS:
        return BAD_METHOD
    return _frame(raw, method, target, int(minor), headers)


def _frame(raw: bytes, method: bytes, target: bytes, minor: int, headers: Headers) -> Head | Refusal:
    """The rules that span headers: Host, the body's framing, Expect (RFC 9112 3.2, 6; 9110 10.1.1)."""
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1 or _HOST.fullmatch(hosts[0]) is None:
        return BAD_HOST
    framing = fields.framing(headers, minor)
    if framing is None:
        return BAD_FRAMING
    expects = [value.lower() for name, value in headers if name == b"expect"]
    if expects and (minor == 0 or expects != [b"100-continue"]):
        return EXPECTATION_FAILED
    upgrades = [value.lower() for name, value in headers if name == b"upgrade"]
    path, _, query = target.partition(b"?")
    return Head(
        method=method,
        target=target,
        path=path,
        query=query,
        minor=minor,
        headers=headers,
        raw=raw,
        content_length=framing.content_length,
        chunked=framing.chunked,
        connection=framing.connection,
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
