"""An upstream's answer: raw head bytes in, an `Answer` out, or `BadAnswer` for what no client should have to read.

Rules of this file: the upstream is held to the same framing rules as a client (spec part 5), since an answer with two
lengths splits responses as surely as a request with two splits requests. Sources: RFC 9110 7.6.1, 15.2; RFC 9112 4, 6.
"""

import re
from typing import Final

import msgspec

from dgproxy.wire import fields
from dgproxy.wire.fields import LINE, MAX_HEADERS, VALUE, Headers

MAX_INFORMATIONAL: Final = 16  # 1xx answers before the final one; nobody honest sends more than two

_HEAD = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: (" + VALUE + rb"*))?\r\n(" + LINE + rb"*+)\r\n")


class BadAnswer(Exception):  # noqa: N818 - it names what came, as the table of refusals does
    """The upstream sent what is not a valid answer; its connection must not be used again."""


class Answer(msgspec.Struct, frozen=True):
    """The head of an upstream's answer."""

    status: int
    reason: bytes
    headers: Headers
    raw: bytes
    content_length: int | None
    chunked: bool
    keeps: bool  # the connection may serve another request, by what the head says

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
    headers = fields.split(block)
    if headers is None or len(headers) > MAX_HEADERS:
        raise BadAnswer("malformed or too many headers")
    framing = fields.framing(headers, int(minor))
    if framing is None:
        raise BadAnswer("ambiguous framing")
    if status < b"200" and (minor == b"0" or framing.chunked or framing.content_length):
        raise BadAnswer("informational answer with a body, or of HTTP/1.0")  # the body would be read as an answer
    return Answer(
        status=int(status),
        reason=reason or b"",
        headers=headers,
        raw=raw,
        content_length=framing.content_length,
        chunked=framing.chunked,
        keeps=minor == b"1" and b"close" not in framing.connection,
    )
