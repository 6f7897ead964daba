"""The log: structlog's events through one sink that redacts and never blocks.

Rules of this file: a process writes its lines in a thread of their own, through a bounded queue, so that a reader that
stopped reading (a full pipe, a stopped journal) never holds up a byte of a client; lines that do not fit are counted
and the count is logged when there is room again. Every string passes `redaction.redact` on its way.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import structlog

from dgproxy import events
from dgproxy.redaction import redact

QUEUE: Final = 10_000  # lines
_FLUSH: Final = 1.0  # seconds that close() waits for a reader

_FIELDS: Final = {event.name: frozenset(event.fields) for event in events.EVENTS}
_LEVELS: Final = {"debug": events.DEBUG, "info": events.INFO, "warning": events.WARNING, "error": events.ERROR}
_LEVEL_NAMES: Final = {level: name for name, level in _LEVELS.items()}


class Sink:
    """Writes lines to a file descriptor without ever blocking the caller."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._queue: queue.Queue[bytes | None] = queue.Queue(QUEUE)
        self.lost = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def msg(self, line: bytes) -> None:
        """Takes a line, or counts it as lost."""
        try:
            self._queue.put_nowait(line + b"\n")
        except queue.Full:
            self.lost += 1

    @property
    def has_room(self) -> bool:
        """Whether the next line would be taken."""
        return not self._queue.full()

    def close(self) -> None:
        """Writes what is left, for as long as the reader takes it within a second."""
        try:
            self._queue.put(None, timeout=_FLUSH)
        except queue.Full:
            return
        self._thread.join(_FLUSH)

    def _write(self) -> None:
        while (line := self._queue.get()) is not None:
            view = memoryview(line)
            while view:
                try:
                    view = view[os.write(self._fd, view) :]
                except BlockingIOError:
                    time.sleep(0.01)  # somebody else set our stderr non-blocking; this thread may wait
                except OSError:
                    break  # closed: the line has nowhere to go


class Log:
    """Logs events of `dgproxy.events`, each with the fields listed there."""

    def __init__(self, level: str, form: str, fd: int = 2, **context: object) -> None:
        """`context` is in every line (which process it is); `form` is json or console."""
        self._sink = Sink(fd)
        self._level = _LEVELS[level]
        renderer = _Json() if form == "json" else _Console()
        self._logger = structlog.wrap_logger(
            self._sink,
            processors=[_listed, _redacted, renderer],
            wrapper_class=structlog.BoundLoggerBase,
            context_class=dict,
        ).bind(**context)
        self._told = 0

    def __call__(self, event: events.Event, **fields: object) -> None:
        """Logs an event; None fields are left out. A field that the event does not list is dropped."""
        if event.level < self._level:
            return
        self._tell_lost()
        self._emit(event, fields)

    def wants(self, event: events.Event) -> bool:
        """Whether an event would be written at the level set."""
        return event.level >= self._level

    def close(self) -> None:
        """Flushes, for as long as the reader takes lines within a second or two."""
        self._tell_lost()
        self._sink.close()

    def _tell_lost(self) -> None:
        """Tells of lost lines once there is room to: a count that is lost itself would never be told."""
        lost = self._sink.lost
        if lost > self._told and self._sink.has_room:
            self._emit(events.LOG_LOST, {"lines": lost - self._told})
            self._told = lost

    def _emit(self, event: events.Event, fields: Mapping[str, object]) -> None:
        self._logger._proxy_to_logger("msg", event.name, level=_LEVEL_NAMES[event.level], **fields)  # noqa: SLF001


_ALWAYS: Final = frozenset({"event", "level", "process"})


def _listed(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    allowed = _FIELDS[line["event"]]
    return {key: value for key, value in line.items() if value is not None and (key in allowed or key in _ALWAYS)}


def _redacted(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: _clean(value) for key, value in line.items()}


def _clean(value: object) -> object:
    match value:
        case bool() | int() | float():
            return value
        case str():
            return redact(value)
        case bytes():
            return redact(value.decode("latin-1"))
        case Mapping():
            return {redact(str(key)): _clean(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean(item) for item in value]
        case _:
            return redact(str(value))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Json:
    def __init__(self) -> None:
        self._encode: Callable[[object], bytes] = msgspec.json.Encoder().encode

    def __call__(self, _: Any, __: str, line: MutableMapping[str, Any]) -> bytes:
        level, event = line.pop("level"), line.pop("event")
        return self._encode({"time": _now(), "level": level, "event": event, **line})


def _quoted(value: object) -> object:
    """A text that could be taken for more than one field, in quotes."""
    if isinstance(value, str) and any(odd in value for odd in ' "='):
        return '"' + value.replace('"', r"\"") + '"'
    return value


class _Console:
    def __call__(self, _: Any, __: str, line: MutableMapping[str, Any]) -> bytes:
        level, event = line.pop("level"), line.pop("event")
        rest = " ".join(f"{key}={_quoted(value)}" for key, value in line.items())
        return f"{_now()} {level:<7} {event:<18} {rest}".encode()
