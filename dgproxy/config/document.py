"""From a file's bytes to a TOML document, or to what is wrong with it and on which line."""

import re
import tomllib
from typing import Any, Final

from dgproxy.config import lines

_NO_STATEMENT: Final = "a line is a [section], key = value, or a # comment"
_TYPOGRAPHIC: Final = tuple("\u201c\u201d\u201e\u2018\u2019\u201a\u00ab\u00bb")  # what word processors make of " and '
_HINTS: Final = {  # how tomllib's message begins: what to do
    "Invalid value": 'text needs quotes, like level = "info"',
    "Expected newline": 'text needs quotes, like level = "info"',
    "Cannot mutate": "a table in braces is whole; put all its keys inside",
    "Duplicate inline": "a key may stand only once",
    "Expected '='": _NO_STATEMENT,
    "Invalid statement": _NO_STATEMENT,
    "Invalid initial character": "a key is made of letters, digits, _ and -",
    "Expected ']'": "a section is written [name]",
    "Illegal character '\\n'": "the quote that ends the text is missing",
    "Illegal character": "a control character does not belong here; remove it",
    "Unterminated string": "the quote that ends the text is missing",
    "Unclosed array": "the ] or a comma of a list is missing, or the quotes around a text in it",
    "Unclosed inline table": "the } or the comma of a table is missing",
    "Unescaped": "between \"...\" a backslash is written twice, between '...' once",
}


class NoToml(Exception):  # noqa: N818 - what it is, with its line
    """The file is no TOML: why, and on which line."""

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


def parse(data: bytes) -> tuple[dict[str, Any], str]:
    """The TOML document and its text, or NoToml."""
    if data.startswith(b"\xef\xbb\xbf"):
        raise NoToml("begins with a byte order mark; save it as UTF-8 without one", 1)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise NoToml("is UTF-16, not UTF-8; save it as UTF-8", 1)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise NoToml(f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8", line) from None
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        raise _no_toml(text, str(error)) from None
    except RecursionError:
        raise NoToml("is nested too deeply; no setting is deeper than three tables", None) from None
    except ValueError as error:  # a number of thousands of digits
        raise NoToml(f"holds a value that is no TOML: {error}", None) from None


def _overwritten(text: str, line: int) -> str:
    """What is said of a key that stands on this line, and before it already."""
    before = text.split("\n")
    name = re.match(r"\s*([A-Za-z0-9_-]+)\s*=", before[line - 1])
    if name is None:
        return "a key or section stands here a second time; it may stand only once"
    own = re.compile(rf"\s*{re.escape(name[1])}\s*=")
    known = lines.of_keys("\n".join(before[: line - 1]))
    # The last one before: a table is not opened twice, so the table that ends above this line has it.
    first = max((each for each in known.values() if own.match(before[each - 1])), default=None)
    where = f", first on line {first}" if first else ""
    return f"{name[1]} stands here a second time{where}; a key or section may stand only once"


def _no_toml(text: str, told: str) -> NoToml:
    """What tomllib says ("Invalid value (at line 2, column 7)"), in our words where they help more."""
    problem, _, place = told.rpartition(" (at ")
    where = re.fullmatch(r"line ([0-9]+), (column [0-9]+)\)", place)
    if where is None:  # "at end of document"
        line = lines.of_unfinished(text)
        return NoToml("is unfinished where the file ends: a value, a quote or a bracket is missing", line)
    line, column = int(where[1]), int(where[2].removeprefix("column "))
    source = text.replace("\r\n", "\n").split("\n")[line - 1]
    if "\r" in source:
        return NoToml("has lines that end with CR alone, as on an old Mac; save it with LF", line)
    if source[column - 1 : column] in _TYPOGRAPHIC:
        return NoToml(f'{where[2]}: {source[column - 1]} is a typographic quote; write "', line)
    if re.match(r"(?i:true|false|yes|no|on|off)\b", source[column - 1 :]):
        return NoToml(f"{where[2]}: write true or false, in small letters", line)
    if problem.startswith("Cannot overwrite"):
        return NoToml(_overwritten(text, line), line)
    twice = re.fullmatch(r"Cannot declare \((.+?),?\) twice", problem)
    if twice:
        name = ".".join(re.findall(r"'([^']*)'", twice[1]))
        first = lines.of_keys("\n".join(text.split("\n")[: line - 1])).get(name)
        before = f" first on line {first};" if first else ""
        return NoToml(f"[{name}] stands here a second time,{before} put its keys together", line)
    hint = next((f"; {hint}" for start, hint in _HINTS.items() if problem.startswith(start)), "")
    return NoToml(f"{where[2]}: {problem}{hint}", line)
