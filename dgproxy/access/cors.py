"""Which pages of other origins may call, and what their browsers are told (`[cors] origins`).

Rules of this file: without configured origins nothing is said, and nothing refused: browsers then let no page read an
HTTP answer. With origins, a request that names another origin is refused, a WebSocket too (browsers have no CORS for
these, bad-inputs W17); one that names none comes from no page. Credentials mode is never allowed: a key is sent by the
page's own code, never by the browser on its own, so no other site can borrow it. Every answer, to whomever, is one that
a cache may keep: it says that it varies with the origin, or is the same for all.

Source: Fetch, 3.3 (fetch.spec.whatwg.org/#http-cors-protocol).
"""

import re
from collections.abc import Iterable
from typing import Final

from dgproxy import redaction
from dgproxy.wire.fields import TOKEN
from dgproxy.wire.head import Head
from dgproxy.wire.refusals import ORIGIN_NOT_ALLOWED, Refusal

Lines = tuple[tuple[str, str], ...]

MAX_AGE: Final = 7200  # seconds for which a browser keeps a preflight's answer; Chromium's own most
# What pages may read: all, and by name what hosted Deepgram exposes, for browsers that do not know "*" there.
_EXPOSED: Final = (
    "*, dg-request-id, dg-error, dg-model-name, dg-model-uuid, dg-char-count, "
    "Retry-After, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset"
)
_NAMED: Final = 300  # characters of a refused Origin in the log; a name has up to 253
_VARY: Final = ("Vary", "Origin")
_NAMES = re.compile(TOKEN + rb"++(?:[ \t]*,[ \t]*" + TOKEN + rb"++)*")


class Cors:
    """The configured origins."""

    def __init__(self, origins: Iterable[str]) -> None:
        """`origins` as browsers write them ("https://app.example.com"), or "*" for every one."""
        self._origins = frozenset(origin.encode() for origin in origins)
        self._any = b"*" in self._origins

    def judge(self, head: Head) -> Refusal | None:
        """The refusal of the request's origin, if it is none that may call."""
        if not self._origins or self._any:
            return None
        origins = head.all(b"origin")
        return ORIGIN_NOT_ALLOWED if len(origins) > 1 or not self._origins.issuperset(origins) else None

    def owed(self, head: Head) -> Lines:
        """What every answer to this request says of CORS, a refusal of its origin too."""
        if not self._origins:
            return ()
        if self._any:
            return (("Access-Control-Allow-Origin", "*"), ("Access-Control-Expose-Headers", _EXPOSED))
        origin = head.one(b"origin")
        if origin is None or origin not in self._origins:
            return (_VARY,)
        return (
            ("Access-Control-Allow-Origin", origin.decode("ascii")),
            ("Access-Control-Expose-Headers", _EXPOSED),
            _VARY,
        )

    def is_preflight(self, head: Head) -> bool:
        """Whether a browser asks, without a key, if it may send what a page wants to."""
        return (
            bool(self._origins)
            and head.method == b"OPTIONS"
            and bool(head.all(b"origin"))
            and head.one(b"access-control-request-method") is not None
        )


def named(head: Head) -> str:
    """What a request says its origin is, for the log: whoever is to allow it must know how it is written."""
    origins = ", ".join(origin.decode("latin-1") for origin in head.all(b"origin"))
    return redaction.redact(origins)[:_NAMED]  # in this order: half a key does not look like one


def permission(head: Head, methods: Iterable[bytes], owed: Lines, date: str, *, close: bool) -> bytes:
    """The answer to a preflight: these methods, and the headers that it asked for. `owed` is Cors'.

    Which headers a request has is no matter of CORS here: none of them has any right of its own, and those that could
    mislead the upstream never reach it (wire.forwarding).
    """
    lines = [
        "HTTP/1.1 204 No Content",
        f"Date: {date}",
        *(f"{name}: {value}" for name, value in owed),
        f"Access-Control-Allow-Methods: {b', '.join(sorted(methods)).decode('ascii')}",
        f"Access-Control-Max-Age: {MAX_AGE}",
        "Vary: Access-Control-Request-Method, Access-Control-Request-Headers",
    ]
    asked = head.one(b"access-control-request-headers")
    if asked is not None and _NAMES.fullmatch(asked):
        lines.append(f"Access-Control-Allow-Headers: {asked.decode('ascii')}")
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("ascii")
