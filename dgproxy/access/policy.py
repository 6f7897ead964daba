"""What a key's plan lets a request do, judged on its head alone.

Rules of this file: what can't be judged is refused; a query is read more widely than any upstream reads it (`&` and `;`
part parameters, names count in any case), so that nothing hides from us that the container would see. Source: spec
parts 4-5, deepgram.md 10, bad-inputs.md P1, P2, P4.
"""

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Final
from urllib.parse import unquote_plus, urlsplit

from dgproxy.config import Plan
from dgproxy.wire.deepgram import Class
from dgproxy.wire.head import Head
from dgproxy.wire.refusals import (
    BODY_TOO_LARGE,
    CALLBACK_NOT_ALLOWED,
    CLASS_NOT_ALLOWED,
    MODEL_NOT_ALLOWED,
    REPEATED_CALLBACK,
    Refusal,
)

# No literal address ends in a label of letters.
_HOST_NAME = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}")
_MODELLESS: Final = frozenset({Class.READ, Class.MODELS})


def judge(plan: Plan, cls: Class, head: Head) -> Refusal | None:
    """Why this plan does not allow the request, None if it does: class, callback, model, then the size announced."""
    if cls not in plan.classes:
        return CLASS_NOT_ALLOWED
    if head.query:
        refusal = _callback(plan, head.query)
        if refusal is not None:
            return refusal
    if "*" not in plan.models and cls not in _MODELLESS and not _models(plan, head.query):
        return MODEL_NOT_ALLOWED
    if head.content_length is not None and head.content_length > plan.max_body:
        return BODY_TOO_LARGE
    return None


def parameters(query: bytes) -> Iterator[tuple[str, str]]:
    """Name (lower case) and value of each parameter, decoded as widely as any server would."""
    for part in re.split(r"[&;]", query.decode("latin-1")):
        name, _, value = part.partition("=")
        yield unquote_plus(name).strip().lower(), unquote_plus(value)


def _callback(plan: Plan, query: bytes) -> Refusal | None:
    """The container would call this address from inside the private network (deepgram.md 10)."""
    if b"%" not in query and b"callback" not in query.lower():
        return None
    values = [value for name, value in parameters(query) if name == "callback"]
    if len(values) > 1:
        return REPEATED_CALLBACK
    if values and not _is_allowed(values[0], plan.allow_callback):
        return CALLBACK_NOT_ALLOWED
    return None


def _is_allowed(url: str, hosts: tuple[str, ...]) -> bool:
    """Whether a URL is plain https (or wss) to a listed host: no user, no port, no literal address, no odd byte."""
    if not hosts or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return False
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    host = parts.netloc
    return (
        parts.scheme in ("https", "wss")
        and port is None
        and _HOST_NAME.fullmatch(host) is not None
        and host in {allowed.lower() for allowed in hosts}
    )


def _models(plan: Plan, query: bytes) -> bool:
    """Whether every model asked for is one of the plan's; asking for none leaves the choice to the container."""
    asked = [value for name, value in parameters(query) if name == "model"]
    return bool(asked) and all(any(fnmatchcase(value, pattern) for pattern in plan.models) for value in asked)
