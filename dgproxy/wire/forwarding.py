"""Which headers cross the proxy, and which are ours to set. One list for each question, used both ways.

Sources: RFC 9110 7.6.1 (hop-by-hop); deepgram.md 10; spec part 5 (towards the upstream); W3C Trace Context.
"""

import re
from typing import Final

from dgproxy.wire.fields import Headers, options
from dgproxy.wire.head import Head

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
CREDENTIALS: Final = frozenset({b"authorization", b"proxy-authorization", b"x-api-key", b"cookie"})
# Ours to set (some of them framing): what a client says here is never passed on.
OURS: Final = frozenset(
    {
        b"host",
        b"expect",
        b"content-length",
        b"forwarded",
        b"x-real-ip",
        b"x-request-id",
        b"traceparent",
        b"tracestate",
    }
)
_CORS: Final = b"access-control-"  # ours to say, or nobody's: an upstream's would open what `[cors]` keeps shut
_NEVER_UPSTREAM = HOP_BY_HOP | CREDENTIALS | OURS
_REQUEST_ID = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context 3.2


def client_request_id(head: Head) -> bytes | None:
    """The client's own X-Request-Id, if it is one that can be passed on and logged."""
    value = head.one(b"x-request-id")
    return value if value is not None and _REQUEST_ID.fullmatch(value) else None


def upstream_headers(
    head: Head, *, host: bytes, peer: bytes, scheme: bytes, request_id: bytes, trace_id: bytes, span_id: bytes
) -> list[tuple[bytes, bytes]]:
    """The headers for the upstream, framing excepted: the client's, less what is hop-by-hop, secret or ours, and ours.

    Headers that Connection names are dropped like hop-by-hop ones; ours are set after that, so that naming one there
    removes nothing. A name that is one of ours but for `_` in place of `-` is dropped too: CGI, and what came after
    it, reads both as one (RFC 3875 4.1.18). `peer` is the client's address as text, `trace_id` 32 and `span_id` 16
    hex digits.
    """
    named = head.connection
    headers = [(b"Host", host)]
    headers += [
        (name, value)
        for name, value in head.headers
        if (plain := name.replace(b"_", b"-")) not in _NEVER_UPSTREAM
        and name not in named
        and not plain.startswith((b"x-forwarded-", b"sec-websocket-"))
    ]
    headers += [
        (b"X-Forwarded-For", peer),
        (b"X-Forwarded-Proto", scheme),
        (b"X-Request-Id", client_request_id(head) or request_id),
    ]
    trace = head.one(b"traceparent")
    if trace is not None and _TRACEPARENT.fullmatch(trace):
        headers.append((b"traceparent", trace))
        headers += [(b"tracestate", state) for state in head.all(b"tracestate")]
    else:
        headers.append((b"traceparent", b"00-%b-%b-00" % (trace_id, span_id)))
    return headers


def downstream_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The upstream's response headers for the client, framing included as it was (wire.exchange writes it)."""
    named = options(headers)
    return [
        (name, value)
        for name, value in headers
        if (name not in HOP_BY_HOP and name not in named and not name.startswith(_CORS)) or name == b"transfer-encoding"
    ]


def upgrade_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """What of the upstream's 101 goes on to the client: all but the handshake itself, which we answer ourselves."""
    named = options(headers)
    return [
        (name, value)
        for name, value in headers
        if name not in HOP_BY_HOP
        and name not in named
        and name not in (b"content-length", b"transfer-encoding")
        and not name.startswith((b"sec-websocket-", _CORS))
    ]
