"""Deepgram's surface: which request belongs to which class. Default deny: what no row names reaches no upstream.

Rules of this file: a path is matched exactly as bytes (no decoding, no dot segments, no `//`, no trailing slash), so
that no two parsers can disagree on what was meant. Source of the rows: spec part 5, deepgram.md 4.
"""

import enum
import re
from dataclasses import dataclass
from typing import Final

from dgproxy.wire.refusals import METHOD_NOT_SERVED, NO_WEBSOCKET, NOT_SERVED, WEBSOCKET_ONLY, Refusal


class Class(enum.StrEnum):
    """What kind of work a request asks for; plans and limits speak of these."""

    BATCH = "batch"
    STREAM = "stream"
    FLUX = "flux"
    SPEAK = "speak"
    READ = "read"
    AGENT = "agent"
    MODELS = "models"


@dataclass(frozen=True, slots=True)
class Route:
    """One row: on this path, these methods (over HTTP) or a WebSocket belong to this class."""

    path: str
    cls: Class
    methods: frozenset[bytes]
    websocket: bool


def _row(path: str, cls: Class, *methods: bytes, websocket: bool = False) -> Route:
    return Route(path, cls, frozenset(methods), websocket)


ROUTES: Final = (
    _row("/v1/listen", Class.BATCH, b"POST"),
    _row("/v1/listen", Class.STREAM, websocket=True),
    _row("/v1/listen/stream", Class.STREAM, websocket=True),
    _row("/v2/listen", Class.FLUX, websocket=True),
    _row("/v1/speak", Class.SPEAK, b"POST", websocket=True),
    _row("/v2/speak", Class.SPEAK, b"POST", websocket=True),
    _row("/v1/read", Class.READ, b"POST"),
    _row("/v1/agent/converse", Class.AGENT, websocket=True),
    _row("/v1/agent/settings/think/models", Class.AGENT, b"GET", b"HEAD"),
    _row("/v1/models", Class.MODELS, b"GET", b"HEAD"),
    _row("/v1/models/{id}", Class.MODELS, b"GET", b"HEAD"),
)

_MODEL_PATH = re.compile(rb"/v1/models/[A-Za-z0-9_-]{1,128}")  # an id is a UUID; no dot, no percent, no second slash
_EXACT: Final[dict[bytes, tuple[Route, ...]]] = {
    path.encode(): tuple(route for route in ROUTES if route.path == path) for path in {r.path for r in ROUTES}
}
_MODEL_ROUTES: Final = _EXACT.pop(b"/v1/models/{id}")


def methods(path: bytes) -> frozenset[bytes] | Refusal:
    """The methods that a path is served with over HTTP, or the 404 that it gets."""
    rows = _rows(path)
    if rows is None:
        return NOT_SERVED
    return frozenset().union(*(row.methods for row in rows)) or WEBSOCKET_ONLY


def route(method: bytes, path: bytes, *, websocket: bool) -> Class | Refusal:
    """The class of a request, or the 404 it gets. `path` is the raw path, without its query."""
    rows = _rows(path)
    if rows is None:
        return NOT_SERVED
    if websocket:
        for row in rows:
            if row.websocket:
                return row.cls
        return NO_WEBSOCKET
    for row in rows:
        if method in row.methods:
            return row.cls
    return METHOD_NOT_SERVED if any(row.methods for row in rows) else WEBSOCKET_ONLY


def _rows(path: bytes) -> tuple[Route, ...] | None:
    rows = _EXACT.get(path)
    if rows is None and _MODEL_PATH.fullmatch(path) is not None:
        return _MODEL_ROUTES
    return rows
