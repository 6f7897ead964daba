"""On which line of the file each key stands, so that a finding names it.

tomllib tells no lines of what it has read, so each statement is read once more, alone: a line that is a whole statement
by itself is one, and one that is not goes on with the next. What cannot be told for certain is left out.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from dgproxy.units import quoted

_LONGEST: Final = 100  # lines of a statement; each more is read again with all before it
_MOST: Final = 10_000  # lines in all: a configuration has some hundred, and reading must not take seconds


def joined(table: str, name: str) -> str:
    """The dotted key of a name in a table, as findings have it."""
    name = name if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) else quoted(name)
    return f"{table}.{name}" if table else name


def of_keys(text: str) -> Mapping[str, int]:
    """The line of each dotted key, such as "server.listen" or "tls.extra[0].certificate", in a TOML document."""
    lines: dict[str, int] = {}
    arrays: dict[str, int] = {}  # of tables, [[...]]: how many have begun
    table = ""
    for number, statement, document in _statements(text):
        if statement.lstrip().startswith("["):
            table = ""
            for key, value in _header(document):
                table = joined(table, key)
                if isinstance(value, list):
                    arrays[table] = arrays.get(table, 0) + 1
                    lines.setdefault(table, number)
                if table in arrays:
                    table = f"{table}[{arrays[table] - 1}]"
                lines.setdefault(table, number)
        else:
            for key in _within(table, document):
                lines.setdefault(key, number)
    return lines


def of_unfinished(text: str) -> int | None:
    """Where the statement begins that is unfinished where the text ends."""
    after = 1
    for number, statement, _ in _statements(text):
        after = number + statement.count("\n") + 1
    rest = text.count("\n") + 2 - after
    return after if rest < _LONGEST and after <= _MOST else None


def _statements(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Each statement: its first line, its text, and the document that it would be alone (empty for a comment)."""
    pending: list[str] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n")[:_MOST], 1):
        pending.append(line)
        statement = "\n".join(pending)
        try:
            document = tomllib.loads(statement)
        except (ValueError, RecursionError):
            if len(pending) == _LONGEST:
                return
            continue
        yield number - len(pending) + 1, statement, document
        pending = []


def _header(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The parts of [a.b] or [[a.b]], each with what it holds: {"a": {"b": {}}} or {"a": {"b": [{}]}}."""
    inner: Any = document
    while isinstance(inner, dict) and inner:
        ((key, inner),) = inner.items()
        yield key, inner


def _within(place: str, value: Any) -> Iterator[str]:
    """All keys in a value, itself left out."""
    inner: Iterable[tuple[str, Any]]
    match value:
        case dict():
            inner = ((joined(place, name), each) for name, each in value.items())
        case list():
            inner = ((f"{place}[{index}]", each) for index, each in enumerate(value))
        case _:
            return
    for key, each in inner:
        yield key
        yield from _within(key, each)
