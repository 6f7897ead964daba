"""The log: structlog's events through one sink that redacts and never blocks.

Rules of this file: a process writes its lines in a thread of their own, through a bounded queue, so that a reader that
stopped reading (a full pipe, a stopped journal) never holds up a byte of a client; lines that do not fit are counted
and the count is logged when there is room again. Every string passes `redaction.redact` on its way.
"""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import structlog

from dgproxy import events
from dgproxy.redaction import redact

QUEUE: Final = 10_000  # lines
_GATHER: Final = 0.005  # seconds for which lines are put together: a wake-up each would cost more than the line
_WHOLE: Final = 4096  # bytes: PIPE_BUF, pipe(7)
_KNOWN: Final = 4096  # texts that are remembered as harmless,
_KNOWN_LENGTH: Final = 256  # none of them longer than so many characters
_FLUSH: Final = 1.0  # seconds that close() waits for a reader

_FIELDS: Final = {event.name: frozenset(event.fields) for event in events.EVENTS}
_LEVELS: Final = {"debug": events.DEBUG, "info": events.INFO, "warning": events.WARNING, "error": events.ERROR}
_LEVEL_NAMES: Final = {level: name for name, level in _LEVELS.items()}


class Sink:
    """Writes lines to a file descriptor without ever blocking the caller."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.lost = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def msg(self, line: bytes) -> None:
        """Takes a line, or counts it as lost."""
        if self.has_room:
            self._queue.put(line + b"\n")
        else:
            self.lost += 1

    @property
    def has_room(self) -> bool:
        """Whether the next line would be taken."""
        return self._queue.qsize() < QUEUE

    def close(self) -> None:
        """Writes what is left, for as long as the reader takes it within a second."""
        self._queue.put(None)
        self._thread.join(_FLUSH)

    def _write(self) -> None:
        more = True
        while more:
            lines = [self._queue.get()]
            time.sleep(_GATHER)
            with contextlib.suppress(queue.Empty):
                while True:
                    lines.append(self._queue.get_nowait())
            more = None not in lines
            for part in _parts(line for line in lines if line is not None):
                self._put(part)

    def _put(self, part: bytes) -> None:
        view = memoryview(part)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                time.sleep(0.01)  # somebody else set our stderr non-blocking; this thread may wait
            except OSError:
                break  # closed: the line has nowhere to go


def _parts(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines, put together to as much as a pipe takes whole (other processes write to it too)."""
    part = b""
    for line in lines:
        if part and len(part) + len(line) > _WHOLE:
            yield part
            part = b""
        part += line
    yield part


class Log:
    """Logs events of `dgproxy.events`, each with the fields listed there."""

    def __init__(self, level: str, form: str, fd: int = 2, **context: object) -> None:
        """`context` is in every line (which process it is); `form` is json or console."""
        self._sink = Sink(fd)
        self._level = _LEVELS[level]
        renderer = _Json() if form == "json" else _Console()
        self._logger = structlog.wrap_logger(
            self._sink,
            processors=[_shown, renderer],
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
_SHOWN: Final = {name: fields | _ALWAYS for name, fields in _FIELDS.items()}
_AS_THEY_ARE: Final = frozenset({bool, int, float})


class _Harmless:
    """Texts in which nothing was redacted: most of a line's come again and again, and one look-up tells."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def shown(self, text: str) -> str:
        """The text, redacted."""
        if text in self._known:
            return text
        redacted = redact(text)
        if redacted == text and len(text) <= _KNOWN_LENGTH:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known.add(text)
        return redacted


_HARMLESS: Final = _Harmless()


def _shown(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The fields that the event lists, redacted."""
    allowed = _SHOWN[line["event"]]
    shown = {}
    for key, value in line.items():
        if value is None or key not in allowed:
            continue
        shown[key] = value if type(value) in _AS_THEY_ARE else _clean(value)
    return shown


def _clean(value: object) -> object:
    match value:
        case bool() | int() | float():
            return value
        case str():
            return _HARMLESS.shown(value)
        case bytes():
            return _HARMLESS.shown(value.decode("latin-1"))
        case Mapping():
            return {redact(str(key)): _clean(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean(item) for item in value]
        case _:
            return redact(str(value))


class _Clock:
    """The time as RFC 3339 has it, in milliseconds; all but the last three digits are the same for a second."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def now(self) -> str:
        """Now, in UTC."""
        second, millis = divmod(time.time_ns() // 1_000_000, 1000)
        if second != self._second:
            self._second = second
            self._text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
        return f"{self._text}{millis:03}Z"


class _Json:
    def __init__(self) -> None:
        self._encode: Callable[[object], bytes] = msgspec.json.Encoder().encode
        self._now = _Clock().now

    def __call__(self, _: Any, __: str, line: MutableMapping[str, Any]) -> bytes:
        level, event = line.pop("level"), line.pop("event")
        return self._encode({"time": self._now(), "level": level, "event": event, **line})


def _quoted(value: object) -> object:
    """A text that could be taken for more than one field, in quotes."""
    if isinstance(value, str) and any(odd in value for odd in ' "='):
        return '"' + value.replace('"', r"\"") + '"'
    return value


class _Console:
    def __init__(self) -> None:
        self._now = _Clock().now

    def __call__(self, _: Any, __: str, line: MutableMapping[str, Any]) -> bytes:
        level, event = line.pop("level"), line.pop("event")
        rest = " ".join(f"{key}={_quoted(value)}" for key, value in line.items())
        return f"{self._now()} {level:<7} {event:<18} {rest}".encode()
