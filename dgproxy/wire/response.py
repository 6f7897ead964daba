"""An upstream's answer: raw head bytes in, an `Answer` out, or `BadAnswer` for what no client should have to read.

Rules of this file: the upstream is held to the same framing rules as a client (spec part 5), since an answer with two
lengths splits responses as surely as a request with two splits requests. Sources: RFC 9110 7.6.1, 15.2; RFC 9112 4, 6.
"""

import re
from dataclasses import dataclass
from typing import Final

from dgproxy.wire.head import MAX_HEADERS, Headers

MAX_INFORMATIONAL: Final = 16  # 1xx answers before the final one; nobody honest sends more than two

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_LINE = rb"(?:" + _TOKEN + rb"++:[\t\x20-\x7e\x80-\xff]*+\r\n)"
_HEAD = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n(" + _LINE + rb"*+)\r\n")
_FRAMING_NAMES = frozenset({b"content-length", b"transfer-encoding"})
_LENGTH = re.compile(rb"[0-9]{1,18}")


class BadAnswer(Exception):  # noqa: N818 - it names what came, as the table of refusals does
    """The upstream sent what is not a valid answer; its connection must not be used again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an upstream's answer."""

    status: int
    reason: bytes
    headers: Headers
    raw: bytes
    content_length: int | None
    chunked: bool

    def one(self, name: bytes) -> bytes | None:
        """The value of a header that was sent exactly once, else None; `name` in lower case."""
        values = [value for key, value in self.headers if key == name]
        return values[0] if len(values) == 1 else None


def judge(raw: bytes) -> Answer:
    """The answer whose whole head, empty line included, is `raw`.

    Raises:
        BadAnswer: for a head that is malformed or whose framing is ambiguous.
    """
    match = _HEAD.fullmatch(raw)
    if match is None:
        raise BadAnswer("malformed head")
    minor, status, reason, block = match.groups()
    lines = block[:-2].split(b"\r\n") if block else []
    if len(lines) > MAX_HEADERS:
        raise BadAnswer("too many headers")
    headers: Headers = []
    lengths: list[bytes] = []
    codings: list[bytes] = []
    options: set[bytes] = set()
    for line in lines:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        headers.append((name, value))
        if name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
        elif name == b"connection":
            options.update(option.strip(b" \t").lower() for option in value.split(b","))
    if lengths and (codings or len(lengths) > 1 or _LENGTH.fullmatch(lengths[0]) is None):
        raise BadAnswer("ambiguous length")
    if codings and (minor == b"0" or len(codings) > 1 or codings[0].lower() != b"chunked"):
        raise BadAnswer("unknown transfer coding")
    if options & _FRAMING_NAMES:
        raise BadAnswer("framing headers named in Connection")
    if status < b"200" and (minor == b"0" or codings or any(length.strip(b"0") for length in lengths)):
        raise BadAnswer("informational answer with a body, or of HTTP/1.0")  # the body would be read as an answer
    return Answer(
        status=int(status),
        reason=reason or b"",
        headers=headers,
        raw=raw,
        content_length=int(lengths[0]) if lengths else None,
        chunked=bool(codings),
    )
