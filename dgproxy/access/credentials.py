"""The one credential of a request, wherever Deepgram's SDKs put it.

Rules of this file: two different credentials, or a credential header sent twice, are refused, since proxies that pick
one of two disagree with each other; a credential is never taken from the query; no repr shows one. Source:
deepgram.md 2-3.
"""

import re
from dataclasses import dataclass, field
from typing import Final

from dgproxy.wire.fields import Headers
from dgproxy.wire.forwarding import CREDENTIALS
from dgproxy.wire.head import Head
from dgproxy.wire.refusals import BAD_CREDENTIAL, BAD_HANDSHAKE, NO_CREDENTIAL, TWO_CREDENTIALS, Refusal

SCHEMES: Final = frozenset({"token", "bearer"})
MAX_OFFERS: Final = 16  # subprotocols; JS 5 offers four
_AUTHORIZATION = re.compile(rb"(token|bearer) ([!#$%&'*+.^_`|~0-9A-Za-z-]+)", re.IGNORECASE)
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2: all that a subprotocol can carry
_NEVER_UPSTREAM = CREDENTIALS | {b"sec-websocket-protocol"}
_LICENCE_KEY_LENGTH: Final = 40  # hex digits; Deepgram's own keys (bad-inputs C11)
_PAIRED = frozenset({"x-deepgram-session-id"})  # JS 5 sends this name and then its value among the subprotocols


@dataclass(frozen=True, slots=True)
class Credential:
    """A key (or token) as sent, and the subprotocol that the 101 has to select because of it."""

    value: bytes = field(repr=False)
    form: str  # authorization | x-api-key | subprotocol; for the log
    subprotocol: str | None = None  # the offer to select: `token` or `bearer` in the client's spelling


def find(headers: Headers, *, websocket: bool) -> Credential | Refusal:
    """The credential of a request, or why it has none that can be used (400 or 401)."""
    authorization = [value for name, value in headers if name == b"authorization"]
    api_key = [value for name, value in headers if name == b"x-api-key"]
    protocols = [value for name, value in headers if name == b"sec-websocket-protocol"] if websocket else []
    if len(authorization) > 1 or len(api_key) > 1 or len(protocols) > 1:
        return TWO_CREDENTIALS
    found: list[Credential] = []
    if authorization:
        match = _AUTHORIZATION.fullmatch(authorization[0])
        if match is None:
            return BAD_CREDENTIAL if authorization[0] else NO_CREDENTIAL
        found.append(Credential(match[2], "authorization"))
    if api_key:
        if _TOKEN.fullmatch(api_key[0]) is None:
            return BAD_CREDENTIAL if api_key[0] else NO_CREDENTIAL
        found.append(Credential(api_key[0], "x-api-key"))
    if protocols:
        offered = _subprotocol(protocols[0])
        if isinstance(offered, Refusal):
            return offered
        if offered is not None:
            found.append(offered)
    if not found:
        return NO_CREDENTIAL
    if any(other.value != found[0].value for other in found):
        return TWO_CREDENTIALS
    return found[-1]  # the subprotocol's, if there is one: it must be answered


def elsewhere(head: Head, credential: Credential) -> bool:
    """Whether a good credential also stands where it would reach the upstream: in the target or in another header."""
    value = credential.value
    return value in head.target or any(value in text for name, text in head.headers if name not in _NEVER_UPSTREAM)


def hint(value: bytes) -> str | None:
    """What a wrong credential looks like, for the operator; never any of it."""
    if len(value) == _LICENCE_KEY_LENGTH and all(byte in b"0123456789abcdef" for byte in value):
        return "looks like a key of Deepgram's own; clients need an ingress key (dgp_...)"
    if value.startswith(b"eyJ"):
        return "looks like a JWT; tokens are not issued by this release"
    if value == b"proxy":
        return "the JavaScript SDK's proxy mode sends the literal key 'proxy'"
    return None


def _subprotocol(value: bytes) -> Credential | Refusal | None:
    """The pair `token, K` or `bearer, K` in a list of offers (deepgram.md 3); None if neither word is offered."""
    offers = [item.strip(" \t") for item in value.decode("latin-1").split(",")]
    if len(offers) > MAX_OFFERS or len(set(offers)) < len(offers):  # RFC 6455 4.1: all of them unique
        return BAD_HANDSHAKE
    items = iter(offers)
    found: Credential | None = None
    for item in items:
        if item.lower() in _PAIRED:
            next(items, None)
        elif item.lower() in SCHEMES:
            key = next(items, "").encode("latin-1")
            if _TOKEN.fullmatch(key) is None:
                return BAD_CREDENTIAL
            if found is not None:
                return TWO_CREDENTIALS
            found = Credential(key, "subprotocol", item)
    return found
