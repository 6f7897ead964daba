"""Kinds of values: how each is read from TOML, what is said where it can't be, and how it is written back.

Rules of this file: a reader takes whatever TOML can hold and gives a plain value, or raises ValueError with what was
found, what is allowed and what to do.
"""

import difflib
import ipaddress
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from dgproxy import units
from dgproxy.config.findings import Finding
from dgproxy.config.lines import joined
from dgproxy.config.values import Certificate, Quota, authority, host_and_port, parse_listen, parse_url
from dgproxy.redaction import redact
from dgproxy.units import Allowance, Counted, quoted

CLASSES: Final = ("batch", "stream", "flux", "speak", "read", "agent", "models")  # spec 5; wire.deepgram has the routes


class Told(Exception):  # noqa: N818 - not an error of ours: the findings hold it already
    """The value is unusable, and the findings say why."""


@dataclass(frozen=True, slots=True)
class Here:
    """A place in the file, where findings are put and relative paths begin."""

    file: str
    directory: str
    key: str
    findings: list[Finding]
    elsewhere: Callable[[str], Sequence[str]] = lambda _: ()  # the keys of all settings of a name

    def at(self, name: str) -> "Here":
        """The place of a key in this table."""
        return replace(self, key=joined(self.key, name))

    def item(self, index: int) -> "Here":
        """The place of an item of this list."""
        return replace(self, key=f"{self.key}[{index}]")

    def error(self, message: str) -> None:
        """What makes the configuration unusable."""
        self.findings.append(Finding("error", self.file, self.key, message))

    def warning(self, message: str) -> None:
        """What is worth knowing."""
        self.findings.append(Finding("warning", self.file, self.key, message))

    def read(self, kind: "Kind", found: Any) -> Any:
        """The plain value of what stands here; Told if there is none."""
        try:
            return kind.read(found, self)
        except ValueError as error:
            self.error(str(error))
            raise Told from None


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: its name in the docs, its reader (ValueError or Told if it is none) and its TOML text."""

    name: str
    read: Callable[[Any, Here], Any]
    write: Callable[[Any], str]
    relative: bool = False  # a default is resolved like a value of the file


def string(text: object) -> str:
    """Text as TOML."""
    return json.dumps(str(text), ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML 1.0, basic strings


def worded(found: Any) -> str:
    """What was found where something else belongs."""
    match found:
        case bool():
            return f"{str(found).lower()}, which is true or false,"
        case str():
            return f"the text {quoted(redact(found))}"  # such as an URL with a password, where none belongs
        case int() | float():
            return f"the number {found}" if -1e15 < found < 1e15 else "a huge number"  # noqa: PLR2004 - a line's width
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return "a date or time"


def _text(found: Any, example: str) -> str:
    if not isinstance(found, str):
        raise ValueError(f"found {worded(found)} where text belongs; write it in quotes, like {example}")  # noqa: TRY004
    return found


def _parsed(name: str, parse: Callable[[str], Any], write: Callable[[Any], str], example: str) -> Kind:
    """A kind whose text has a grammar of its own."""
    return Kind(name, lambda found, _: parse(_text(found, string(example))), lambda value: string(write(value)))


def at_least(kind: Kind, least: float, text: str) -> Kind:
    """The same, but not below."""

    def read(found: Any, here: Here) -> Any:
        value = kind.read(found, here)
        if value < least:
            raise ValueError(f"{quoted(found)} is too little; the least is {text}")
        return value

    return replace(kind, name=f"{kind.name}, at least {text}", read=read)


def integer(least: int, most: int) -> Kind:
    """A whole number."""

    def read(found: Any, _: Here) -> int:
        if isinstance(found, bool) or not isinstance(found, int):
            raise ValueError(f"found {worded(found)} where a whole number from {least} to {most} belongs")  # noqa: TRY004
        if not least <= found <= most:
            raise ValueError(f"found {worded(found)}; it must be from {least} to {most}")
        return found

    return Kind(f"number from {least} to {most:,}", read, str)


def or_auto(number: Kind) -> Kind:
    """A number, or "auto" (None)."""

    def read(found: Any, here: Here) -> int | None:
        if found == "auto":
            return None
        if isinstance(found, str):
            raise ValueError(f'{quoted(found)} is no number; write "auto", or a number without quotes')  # noqa: TRY004
        value: int = number.read(found, here)
        return value

    return Kind(f'"auto" or {number.name}', read, lambda value: '"auto"' if value is None else str(value))


def choice(*allowed: str) -> Kind:
    """One of some words."""
    listed = ", ".join(map(string, allowed))

    def read(found: Any, _: Here) -> str:
        if found in allowed:
            return str(found)
        near = difflib.get_close_matches(found.lower(), allowed, 1) if isinstance(found, str) else ()
        raise ValueError(
            f"found {worded(found)}; write one of {listed}" + "".join(f'; did you mean "{n}"?' for n in near)
        )

    return Kind(f"one of {listed}", read, string)


def _boolean(found: Any, _: Here) -> bool:
    if not isinstance(found, bool):
        raise ValueError(f"found {worded(found)}; write true or false, without quotes")  # noqa: TRY004
    return found


def path(*, required: bool, schemes: tuple[str, ...] = ()) -> Kind:
    """A path, made absolute by the file's directory; or a secret's other source, kept as it is."""

    def read(found: Any, here: Here) -> str:
        text = _text(found, '"state/file"')
        source, _, name = text.partition(":")
        if source in {"env", "credential"} and not text.startswith("/"):
            if source not in schemes:
                allowed = "".join(f' or "{scheme}:NAME"' for scheme in schemes)
                raise ValueError(f"{quoted(text)} is no source of this; write a path{allowed}")
            if (
                re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*" if source == "env" else r"(?!\.\.?$)[A-Za-z0-9_.-]+", name)
                is None
            ):
                raise ValueError(f'{quoted(text)} has no valid name; write it like "{source}:DGPROXY_PEPPER"')
            return text
        if "\0" in text:
            raise ValueError(f"{quoted(text)} holds a NUL, which no path may")
        if re.match(r"~|\$[A-Za-z_{]", text):
            raise ValueError(f"{quoted(text)} begins with what only a shell expands; write the whole path")
        if not text:
            if required:
                raise ValueError("is empty; write a path")
            return ""
        return os.path.normpath(os.path.join(here.directory, text))  # noqa: PTH118 - as text: it is kept as text

    name = "path" + "".join(f', or "{scheme}:NAME"' for scheme in schemes)
    return Kind(name if required else f'{name}; "" for none', read, string, relative=True)


def listed(item: Kind, *, empty: bool, plural: str) -> Kind:
    """A list of one kind, without repetitions."""

    def read(found: Any, here: Here) -> tuple[Any, ...]:
        if not isinstance(found, list):
            inner = quoted(found) if isinstance(found, str) and redact(found) == found else "..."
            raise ValueError(f"found {worded(found)} where a list of {plural} belongs; write it in brackets: [{inner}]")  # noqa: TRY004
        if not found and not empty:
            raise ValueError(f"is empty; write at least one of its {plural}")
        values: dict[Any, None] = {}  # in order, and each once
        told = False
        for index, each in enumerate(found):
            place = here.item(index)
            try:
                value = place.read(item, each)
            except Told:
                told = True
                continue
            if value in values:
                place.error(f"{worded(each)} stands here a second time; remove it")
                told = True
            values[value] = None
        if told:
            raise Told
        return tuple(values)

    return Kind(f"list of {plural}", read, lambda value: f"[{', '.join(map(item.write, value))}]")


def by_class(item: Kind, example: str) -> Kind:
    """A table with a value for some classes."""

    def read(found: Any, here: Here) -> dict[str, Any]:
        if not isinstance(found, dict):
            raise ValueError(f"found {worded(found)} where a table by class belongs; write it like {example}")  # noqa: TRY004
        values: dict[str, Any] = {}
        told = False
        for name, each in found.items():
            place = here.at(name)
            try:
                values[place.read(CLASS, name)] = place.read(item, each)
            except Told:
                told = True
        if told:
            raise Told
        return values

    def write(value: dict[str, Any]) -> str:
        return _inline({name: item.write(each) for name, each in value.items()})

    return Kind(f"table by class: {item.name}", read, write)


def _inline(pairs: Mapping[str, str]) -> str:
    return f"{{ {', '.join(f'{name} = {text}' for name, text in pairs.items())} }}" if pairs else "{}"


def _read_network(found: Any, _: Here) -> str:
    text = _text(found, '"10.0.0.0/8"')
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        try:
            near = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f'{quoted(text)} is no network; write one like "10.0.0.0/8" or "fd00::/8"') from None
        raise ValueError(f'{quoted(text)} has bits set beyond its prefix; write "{near}"') from None


def _read_model(found: Any, _: Here) -> str:
    text = _text(found, '"nova-3"')
    if re.fullmatch(r"[A-Za-z0-9._:*-]{1,128}", text) is None:
        raise ValueError(f'{quoted(text)} is no model; write a name like "nova-3", or "*" for every model')
    return text


def _read_allowed_host(found: Any, _: Here) -> str:
    """A DNS name, matched whole: an address, a port or a pattern would never match (access.policy)."""
    text = _text(found, '"hooks.example.com"')
    name = re.fullmatch(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}", text.lower())
    if name is None or len(text) > 253:  # noqa: PLR2004 - RFC 1035 2.3.4
        raise ValueError(f'{quoted(text)} is no host name; write one alone, like "hooks.example.com"')
    return text.lower()


def _read_origin(found: Any, _: Here) -> str:
    """As browsers write it (RFC 6454 6.2): in lower case, without a port that its scheme implies.

    A page of a packaged app has a scheme of its own, like capacitor://localhost.
    """
    text = _text(found, '"https://app.example.com"')
    example = 'write it like "https://app.example.com", or "*"'
    if text == "*":
        return text
    if "@" in text:  # not quoted: what stands before it may be a password
        raise ValueError(f"holds a user or password, which no origin does; {example}")
    if text == "null":
        raise ValueError('"null" is what every sandboxed frame and local file calls itself; "*" allows all pages')
    if not text.isascii():
        raise ValueError(f"{quoted(text)} is not what browsers send; write the name in Punycode (xn--...), as they do")
    match = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([^/?#%]+)([/?#].*)?", text.lower())
    if match is None:
        raise ValueError(f"{quoted(text)} is no origin; {example}")
    scheme, named, rest = match.groups()
    if scheme in {"ws", "wss"}:
        page = f"{scheme.replace('ws', 'http')}://{named}"
        raise ValueError(f"{quoted(text)} is no page's; a WebSocket has the origin of its page, like {quoted(page)}")
    if rest:
        raise ValueError(f'{quoted(text)} goes on after its host, which no origin does; write "{scheme}://{named}"')
    implied = {"https": 443, "http": 80}.get(scheme, 0)
    host, port = host_and_port(named, implied)
    return f"{scheme}://{authority(host, None if port == implied else port)}"


def _read_certificate(found: Any, here: Here) -> Certificate:
    example = 'write { certificate = "a.pem", private_key = "a-key.pem" }'
    if not isinstance(found, dict) or set(found) != {"certificate", "private_key"}:
        raise ValueError(f"found {worded(found)} where a certificate and its key belong; {example}")
    return Certificate(
        here.at("certificate").read(path(required=True), found["certificate"]),
        here.at("private_key").read(path(required=True, schemes=("credential",)), found["private_key"]),
    )


def _write_certificate(value: Certificate) -> str:
    return _inline({"certificate": string(value.certificate), "private_key": string(value.private_key)})


def unknown(name: str, section: str, siblings: Sequence[str], elsewhere: Sequence[str], what: str = "key") -> str:
    """What to say of a key that does not exist: the nearest one that does, or those of its name in other places."""
    near = difflib.get_close_matches(name[:64].lower(), siblings, 1)
    if near:
        return f"unknown {what}; did you mean {joined(section, near[0])}?"
    if elsewhere:
        return f"unknown {what} here; did you mean {' or '.join(elsewhere)}?"
    return f"unknown {what}; known here are {', '.join(siblings)}"


def read_quota(found: Any, here: Here) -> Quota:
    """A table of allowances, each optional."""
    if not isinstance(found, dict):
        raise ValueError(f'found {worded(found)} where a table belongs; write it like {{ audio = "100h/month" }}')  # noqa: TRY004
    values: dict[str, Allowance] = {}
    told = False
    for name, each in found.items():
        place = here.at(name)
        if name in ALLOWANCES:
            try:
                values[name] = place.read(ALLOWANCES[name], each)
            except Told:
                told = True
        else:
            place.error(unknown(name, here.key, tuple(ALLOWANCES), here.elsewhere(name)))
            told = True
    if told:
        raise Told
    return Quota(**values)


def write_quota(quota: Quota) -> str:
    """The same as TOML."""
    held = {name: getattr(quota, name) for name in ALLOWANCES}
    return _inline({name: ALLOWANCES[name].write(value) for name, value in held.items() if value is not None})


def _allowance(counted: Counted, example: str) -> Kind:
    return _parsed(
        "quota",
        lambda text: units.parse_allowance(text, counted),
        lambda value: units.format_allowance(value, counted),
        example,
    )


ALLOWANCES: Final = {
    "audio": _allowance("audio", "100h/month"),
    "requests": _allowance("requests", "100000/day"),
    "bytes": _allowance("bytes", "500GiB/month"),
    "characters": _allowance("characters", "2000000/week"),
}
CLASS: Final = choice(*CLASSES)
LISTEN: Final = _parsed("address", parse_listen, str, "127.0.0.1:8443")
URLS: Final = listed(_parsed("URL", parse_url, str, "http://127.0.0.1:8080"), empty=False, plural="URLs")
DURATION: Final = _parsed("duration", units.parse_duration, units.format_duration, "10s")
TIMEOUT: Final = at_least(DURATION, 0.001, "1ms")
NEVER: Final = _parsed('duration, or "never"', units.parse_duration_or_never, units.format_duration_or_never, "30m")
SIZE: Final = _parsed("size", units.parse_size, units.format_size, "32KiB")
RATE: Final = _parsed("rate", units.parse_rate, units.format_rate, "20/s")
HOSTS: Final = listed(Kind("host", _read_allowed_host, string), empty=True, plural="hosts")
BOOLEAN: Final = Kind("true or false", _boolean, lambda value: "true" if value else "false")
STREAMS: Final = integer(1, 1_000_000)
MINIMUM_RATE: Final = _parsed("minimum rate", units.parse_minimum_rate, units.format_minimum_rate, "4KiB/s over 30s")
LISTENERS: Final = listed(LISTEN, empty=False, plural="addresses")
NETWORKS: Final = listed(Kind("network", _read_network, string), empty=True, plural="networks")
MODELS: Final = listed(Kind("model", _read_model, string), empty=False, plural="models")
ORIGINS: Final = listed(Kind("origin", _read_origin, string), empty=True, plural="origins")
CERTIFICATES: Final = listed(
    Kind("certificate", _read_certificate, _write_certificate), empty=True, plural="certificates"
)
LEVELS: Final = choice("debug", "info", "warning", "error")
