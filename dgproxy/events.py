"""Every log event: its name, level and fields. The sink drops a field that is not listed here.

Events of requests and streams are the access log; `request_id` is the one in our refusals and, unless the client sent
its own, in X-Request-Id upstream.
"""

import logging
from dataclasses import dataclass
from typing import Final

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of log line."""

    name: str
    level: int
    fields: tuple[str, ...]


PROXY_START = Event("proxy.start", INFO, ("version", "config", "workers", "openssl", "pump"))
PROXY_READY = Event("proxy.ready", INFO, ("listen", "tls", "workers", "keys", "upstreams", "start_s"))
PROXY_NOTICE = Event("proxy.notice", WARNING, ("notice",))
PROXY_STOPPING = Event("proxy.stopping", INFO, ("signal", "within_s", "streams", "requests"))
PROXY_STOPPED = Event("proxy.stopped", INFO, ("up_s",))
PROXY_FAILED = Event("proxy.failed", ERROR, ("error",))

WORKER_READY = Event("worker.ready", INFO, ("pid", "start_s"))
WORKER_DIED = Event("worker.died", ERROR, ("pid", "exit", "slots_freed", "restart_in_s"))
WORKER_NOT_STARTED = Event("worker.not_started", ERROR, ("index", "error", "restart_in_s"))
WORKER_ORPHANED = Event("worker.orphaned", ERROR, ("within_s", "streams"))
WORKER_SHED = Event("worker.shed", WARNING, ("excess", "ended"))
WORKER_FAULT = Event("worker.fault", ERROR, ("request_id", "phase", "error", "trace"))

KEYS_CHANGED = Event("keys.changed", INFO, ("generation", "key_id", "change", "by_uid"))
KEYS_IMPORTED = Event("keys.imported", INFO, ("generation", "created", "changed", "unchanged", "left_out", "by_uid"))
KEYS_EXPORTED = Event("keys.exported", INFO, ("generation", "by_uid"))

_REQUEST = ("request_id", "peer", "key_id", "class", "method", "path", "client_request_id", "user_agent")
_SPENT = ("status", "bytes_in", "bytes_out", "wall_s", "upstream", "dg_request_id", "end")
REQUEST_OPEN = Event("request.open", DEBUG, _REQUEST)
REQUEST_PREFLIGHT = Event("request.preflight", DEBUG, _REQUEST)
REQUEST_CLOSE = Event("request.close", INFO, (*_REQUEST, *_SPENT))
REQUEST_REFUSED = Event(
    "request.refused", WARNING, (*_REQUEST, "status", "code", "reason", "phase", "form", "hint", "upstream", "detail")
)
STREAM_OPEN = Event("stream.open", INFO, (*_REQUEST, "upstream", "dg_request_id", "subprotocol"))
_CODES = ("code_sent", "code_from_client", "code_from_upstream", "fault")
STREAM_CLOSE = Event("stream.close", INFO, (*_REQUEST, *_SPENT, *_CODES))
STREAM_KILLED = Event("stream.killed", WARNING, ("request_id", "by_uid"))
CONNECTION_REFUSED = Event("connection.refused", DEBUG, ("peer", "reason"))
CONNECTION_FAILED = Event("connection.failed", DEBUG, ("peer", "phase", "cause", "detail"))

LOG_LOST = Event("log.lost", WARNING, ("lines",))

EVENTS: Final = tuple(value for value in tuple(globals().values()) if isinstance(value, Event))
