"""Keys in nginx's `map` blocks: `map $http_x_api_key $client { default ""; "KEY" "name"; }`.

Only what says a key in so many words is taken; all else that could be one is reported with its line, never guessed. No
message repeats a source value, as it may be a key.

Sources: nginx.org/en/docs/http/ngx_http_map_module.html; ngx_conf_file.c (ngx_conf_read_token) for words, quotes and
escapes; ngx_http_map_module.c (ngx_http_map) for what an entry means.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

MAP: Final = re.compile(r"(?:^|[\s;{}])map[ \t\r\n]+[^;{}]{1,1000}\{")

_TOKEN: Final = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      | (?P<comment>\#[^\n]*)
      | (?P<mark>[;{}])
      | (?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')(?=[ \t\r\n;{)]|$)
      | (?P<bare>(?:\\.|\$\{|[^ \t\r\n;{\\"'])(?:\\.|\$\{|[^ \t\r\n;{\\])*)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\([\"'\\trn])")
_ESCAPED: Final = {"t": "\t", "r": "\r", "n": "\n"}
_LUA: Final = re.compile(r"\w+_by_lua_block")
_BRACE: Final = re.compile("[{}]")
_SCHEME: Final = re.compile(r"(token|bearer)( +)(.*)", re.IGNORECASE | re.DOTALL)
_OFFER: Final = re.compile(r"(token|bearer)[ \t]*,[ \t]*(.*)", re.IGNORECASE | re.DOTALL)
_BASIC: Final = re.compile(r"(basic|digest|negotiate) ", re.IGNORECASE)
_METACHARACTER: Final = frozenset(".^$*+?()[]{}|")
_FALSE: Final = frozenset({"", "0"})  # of nginx's `if`
_SAYS_NOTHING: Final = frozenset({"1", "true", "yes", "on", "ok", "allow", "allowed", "valid", *_FALSE})


class Broken(Exception):  # noqa: N818 - an answer, not a fault
    """This is no nginx configuration from here on."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(slots=True)
class Found:
    """What the maps of a file hold: (line, key, name or None), and (line, message, whether a key was left out)."""

    maps: int = 0
    keys: list[tuple[int, str, str | None]] = field(default_factory=list)
    findings: list[tuple[int, str, bool]] = field(default_factory=list)


@dataclass(slots=True)
class _Directive:
    line: int
    words: list[str]
    end: str  # what ended it: ; { }
    comment: str = ""  # behind it, on its last line


def read(text: str) -> Found:
    """The keys of every map whose source is a header that carries keys.

    Raises:
        Broken: it can't be read as nginx reads it.
    """
    found = Found()
    depth = 0
    inside: _Map | None = None
    for directive in _directives(text):
        if inside is not None:
            if directive.end == "{":
                raise Broken(directive.line, "a block within a map")
            if directive.words:
                inside.entries.append(directive)
            if directive.end == "}":
                inside.judge(found)
                inside = None
            continue
        if directive.end == "{":
            depth += 1
            if directive.words[:1] == ["map"]:
                inside = _Map(directive)
                depth -= 1
        elif directive.end == "}":
            depth -= 1
            if depth < 0:
                raise Broken(directive.line, "a } without its {")
        elif directive.words[:1] == ["include"]:
            found.findings.append((directive.line, "include is not followed; import that file too", False))
    if inside is not None or depth:
        raise Broken(text.count("\n") + 1, "ends within a block")
    return found


def _directives(text: str) -> Iterator[_Directive]:
    words: list[str] = []
    begun = 0
    last: _Directive | None = None
    at, line = 0, 1
    ended = 1  # the line on which `last` ended
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Broken(line, "a quote is not closed, or something follows it at once")
        kind, word = str(match.lastgroup), match[0]
        at = match.end()
        if kind in {"quoted", "bare"}:
            if not words:
                begun = line
            words.append(_unescaped(word[1:-1] if kind == "quoted" else word))
        elif kind == "comment" and last is not None and line == ended and not words:
            last.comment = word.lstrip("#").strip()
        elif kind == "mark":
            if last is not None:
                yield last
            last, ended = _Directive(begun if words else line, words, word), line
            if word == "}" and words:
                raise Broken(line, "a } where a ; is missing")
            if word == "{" and words and _LUA.fullmatch(words[0]):
                at, line = _past_lua(text, at, line)
                last = None
            words = []
        line += word.count("\n")
    if last is not None:
        yield last
    if words:
        raise Broken(begun, "ends within a directive")


def _past_lua(text: str, at: int, line: int) -> tuple[int, int]:
    """Behind a block of another language, in which quotes mean something else; its braces must be in pairs."""
    depth = 1
    for brace in _BRACE.finditer(text, at):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return brace.end(), line + text.count("\n", at, brace.end())
    raise Broken(line, "a block of Lua that does not end")


def _unescaped(word: str) -> str:
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), word)


class _Map:
    """One map block."""

    def __init__(self, directive: _Directive) -> None:
        self._line = directive.line
        self._source = directive.words[1] if len(directive.words) > 1 else ""
        self.entries: list[_Directive] = []

    def judge(self, found: Found) -> None:
        """Puts its keys and what is to be said of it into `found`."""
        reader = _READERS.get(self._source.lower())
        if reader is None:
            if re.match(r"\$http_", self._source, re.IGNORECASE):
                what = "a map of another header is left out; keys come in Authorization, X-Api-Key or a subprotocol"
                found.findings.append((self._line, what, False))
            return
        found.maps += 1
        default = next(
            (entry.words[1] for entry in self.entries if entry.words[0] == "default" and entry.words[1:]), ""
        )
        for entry in self.entries:
            match entry.words:
                case ["hostnames" | "volatile"] | ["default", _]:
                    pass
                case ["include", _]:
                    what = "include is not followed; put its lines in place of it, or import a file with both"
                    found.findings.append((entry.line, what, True))
                case [source, value]:
                    self._entry(found, entry, source, value, default, reader)
                case _:
                    found.findings.append((entry.line, "an entry of a map has a value and a result", True))

    def _entry(self, found: Found, entry: _Directive, source: str, value: str, default: str, reader: "_Reader") -> None:
        if source.startswith("~"):
            literal = _literal(source[1:].removeprefix("*"))
            if literal is None:
                what = "a regular expression that may match more than one text is left out"
                found.findings.append((entry.line, what, True))
                return
        else:
            literal = source.removeprefix("\\")
        if not literal:
            return  # no credential at all
        if value == default or {value, default} <= _FALSE:
            found.findings.append((entry.line, "left out: it gets what an unknown key gets", False))
            return
        key = reader(literal)
        if key is None:
            what = "Basic and other schemes are left out: keys come with Token or Bearer"
            if _BASIC.match(literal) is None:
                what = "left out: not the form in which this header carries a key"
            found.findings.append((entry.line, what, True))
            return
        found.keys.append((entry.line, key, _name(entry, value)))


def _name(entry: _Directive, value: str) -> str | None:
    """The result if it says something, or else the comment behind the entry."""
    if value.lower() not in _SAYS_NOTHING and "$" not in value:
        return value
    return entry.comment or None


def _literal(pattern: str) -> str | None:
    """The one text that a regular expression matches as a whole, or None if that is not plain."""
    if not (pattern.startswith("^") and pattern.endswith("$")):
        return None
    letters: list[str] = []
    escaped = False
    for letter in pattern[1:-1]:
        if escaped:
            if letter.isalnum():  # a class, a reference, an anchor
                return None
            letters.append(letter)
            escaped = False
        elif letter == "\\":
            escaped = True
        elif letter in _METACHARACTER:
            return None
        else:
            letters.append(letter)
    return None if escaped else "".join(letters)


class _Reader:
    """How a header's value holds a key."""

    def __init__(self, shape: re.Pattern[str], group: int) -> None:
        self._shape = shape
        self._group = group

    def __call__(self, value: str) -> str | None:
        match = self._shape.fullmatch(value)
        return None if match is None else match[self._group]


_READERS: Final = {
    "$http_x_api_key": _Reader(re.compile(".*", re.DOTALL), 0),
    "$http_authorization": _Reader(_SCHEME, 3),
    "$http_sec_websocket_protocol": _Reader(_OFFER, 2),
}
