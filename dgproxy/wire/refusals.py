"""Every answer by which a client is turned away, in one table.

Rules of this file: a message never holds anything that the client sent, nor anything that tells one wrong key from
another; whatever writes a 4xx or 5xx of our own takes it from here, so that all have Deepgram's shape (deepgram.md 7).
"""

from http import HTTPStatus
from typing import Final

import msgspec


class Refusal(msgspec.Struct, frozen=True):
    """What a client is told when it is turned away: status, Deepgram's code, a sentence without secrets."""

    status: int
    code: str
    message: str
    close: bool = False  # nothing after it may be parsed as a request
    retry_after: int | None = None  # seconds; sent as Retry-After
    headers: tuple[tuple[str, str], ...] = ()

    def body(self, request_id: str) -> bytes:
        """Deepgram's legacy error object, the one that all its SDKs read (deepgram.md 7)."""
        return msgspec.json.encode({"err_code": self.code, "err_msg": self.message, "request_id": request_id})

    def answer(
        self, request_id: str, date: str, *, close: bool, bodiless: bool, extra: tuple[tuple[str, str], ...] = ()
    ) -> bytes:
        """All of it as it goes to a client. `date` is RFC 9110 5.6.7's; `bodiless`: the request began as HEAD does.

        `extra`: headers that the request is owed whatever its answer is (access.cors).
        """
        body = self.body(request_id)
        lines = [
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            f"Date: {date}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            f"dg-request-id: {request_id}",
            f"dg-error: {self.message}",
            *(f"{name}: {value}" for name, value in (*self.headers, *extra)),
        ]
        if self.retry_after is not None:
            lines.append(f"Retry-After: {self.retry_after}")
        if close:
            lines.append("Connection: close")
        head = "\r\n".join([*lines, "", ""]).encode()
        return head if bodiless else head + body  # RFC 9110 9.3.2, whatever else is wrong with the head


# Framing: the head cannot be trusted, so the connection ends with the answer.
BAD_FRAMING = Refusal(400, "BAD_REQUEST", "The request's framing is malformed or ambiguous.", close=True)
BAD_HOST = Refusal(400, "BAD_REQUEST", "A request needs exactly one valid Host header.", close=True)
BAD_TARGET = Refusal(400, "BAD_REQUEST", "The request target must be an absolute path without a fragment.", close=True)
BAD_METHOD = Refusal(405, "METHOD_NOT_ALLOWED", "This method is not served.", close=True)
BAD_HANDSHAKE = Refusal(400, "BAD_REQUEST", "The WebSocket handshake is not valid.", close=True)
BAD_WS_VERSION = Refusal(
    426,
    "UPGRADE_REQUIRED",
    "WebSocket version 13 is required.",
    close=True,
    headers=(("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket")),
)
HEAD_TOO_LARGE = Refusal(
    431, "HEADERS_TOO_LARGE", "The request head is over 32 KiB or has over 100 headers.", close=True
)
HEAD_TIMEOUT = Refusal(408, "REQUEST_TIMEOUT", "The request head did not arrive in time.", close=True)
BODY_TOO_SLOW = Refusal(408, "REQUEST_TIMEOUT", "The request body arrived too slowly.", close=True)
BODY_TIMEOUT = Refusal(408, "REQUEST_TIMEOUT", "The request body stopped arriving.", close=True)
EXPECTATION_FAILED = Refusal(417, "EXPECTATION_FAILED", "Only Expect: 100-continue is known.", close=True)

# Routes.
NOT_SERVED = Refusal(404, "NOT_FOUND", "This path is not served.")
METHOD_NOT_SERVED = Refusal(404, "NOT_FOUND", "This path is not served with this method.")
WEBSOCKET_ONLY = Refusal(404, "NOT_FOUND", "This path is served as a WebSocket only.")
NO_WEBSOCKET = Refusal(404, "NOT_FOUND", "This path is not served as a WebSocket.")

# Browsers.
ORIGIN_NOT_ALLOWED = Refusal(403, "INSUFFICIENT_PERMISSIONS", "Pages of this origin may not call here.")

# Credentials. One status and code for all, as Deepgram's; the sentence helps an honest holder and nobody else.
NO_CREDENTIAL = Refusal(401, "INVALID_AUTH", "No ingress API key was sent.")
BAD_CREDENTIAL = Refusal(401, "INVALID_AUTH", "Invalid credentials.")
TWO_CREDENTIALS = Refusal(400, "BAD_REQUEST", "More than one credential was sent.")
REPEATED_CREDENTIAL = Refusal(400, "BAD_REQUEST", "The credential was sent in a second place, which goes upstream.")
KEY_DISABLED = Refusal(401, "INVALID_AUTH", "This ingress API key is disabled.")
KEY_REVOKED = Refusal(401, "INVALID_AUTH", "This ingress API key was revoked.")
KEY_EXPIRED = Refusal(401, "INVALID_AUTH", "This ingress API key has expired.")
KEY_NOT_YET_VALID = Refusal(401, "INVALID_AUTH", "This ingress API key is not valid yet.")

# Ended while in flight.
OPERATOR_ENDED = Refusal(403, "INSUFFICIENT_PERMISSIONS", "An operator ended this request.", close=True)
OVERLOADED = Refusal(503, "SERVICE_UNAVAILABLE", "Too many bytes wait for slow peers.", close=True, retry_after=5)

# Policy.
CLASS_NOT_ALLOWED = Refusal(403, "INSUFFICIENT_PERMISSIONS", "This key's plan does not include this kind of request.")
MODEL_NOT_ALLOWED = Refusal(403, "INSUFFICIENT_PERMISSIONS", "This key's plan does not include the requested model.")
CALLBACK_NOT_ALLOWED = Refusal(403, "INSUFFICIENT_PERMISSIONS", "This key may not use callback with that host.")
REPEATED_CALLBACK = Refusal(400, "BAD_REQUEST", "callback was sent more than once.")
PLAN_UNKNOWN = Refusal(403, "INSUFFICIENT_PERMISSIONS", "This key's plan no longer exists.")

# Size and limits.
BODY_TOO_LARGE = Refusal(413, "PAYLOAD_TOO_LARGE", "The body is larger than this key's plan allows.", close=True)

# Ours and the upstream's faults.
LEDGER_UNAVAILABLE = Refusal(
    503, "SERVICE_UNAVAILABLE", "Limits could not be checked. Please try again later.", retry_after=1
)
STOPPING = Refusal(503, "SERVICE_UNAVAILABLE", "The proxy is stopping.", close=True, retry_after=1)
UPSTREAM_UNREACHABLE = Refusal(502, "BAD_GATEWAY", "The speech service could not be reached.", retry_after=1)
UPSTREAM_BROKE = Refusal(502, "BAD_GATEWAY", "The speech service's answer was not valid.")
UPSTREAM_TIMEOUT = Refusal(504, "GATEWAY_TIMEOUT", "The speech service did not answer in time.")
TOO_MANY_CONNECTIONS = Refusal(429, "TOO_MANY_REQUESTS", "Too many connections from this address.", close=True)


_COME_BACK: Final = 1  # seconds until a slot may be free again: nobody knows, and asking costs nothing


def too_many_streams(limit: int, in_use: int, scope: str) -> Refusal:
    """429 that says which limit, how much of it is in use and when to come back (seconds)."""
    return _limited(
        f"Too many requests in flight: {in_use} of {limit} {scope} are in use. Please try again later.",
        limit,
        _COME_BACK,
    )


def too_many_begun(rate: str, burst: int, wait: int) -> Refusal:
    """429 that says which rate was passed, how many may begin at once, and when to come back (seconds)."""
    return _limited(
        f"Too many requests: this key may begin {rate}, at most {burst} at once. Please try again in {wait} s.",
        burst,
        wait,
    )


def _limited(message: str, limit: int, wait: int) -> Refusal:
    """With the fields of draft-ietf-httpapi-ratelimit-headers-03, which is what clients of other gateways read."""
    headers = (
        ("RateLimit-Limit", str(limit)),
        ("RateLimit-Remaining", "0"),
        ("RateLimit-Reset", str(wait)),
    )
    return Refusal(429, "TOO_MANY_REQUESTS", message, retry_after=wait, headers=headers)
