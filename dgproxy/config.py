"""The configuration: its whole schema, read strictly, with every problem told at once.

Rules of this file:

- A setting is stated once, as a field of its section's Struct: its plain type, its default, and in its Meta the kind
  (how it is read from TOML and written back), a one-line description, and whether this release enforces it. What
  reads, checks and documents settings, and what `init` writes, goes through that table (SETTINGS); nothing names a
  setting a second time except where it is combined with another (_combinations).
- A Config holds plain values (seconds, bytes, small Structs), so that it crosses to the workers as msgpack.
- Nothing that a file may hold raises anything but ConfigError. A message says what was found, what is allowed and what
  to do; it never shows a secret, nor a URL's user and password.
"""

import contextlib
import difflib
import ipaddress
import json
import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_type_hints

import msgspec

from dgproxy import units
from dgproxy.units import Allowance, Counted, MinimumRate, Rate, quoted

CLASSES: Final = ("batch", "stream", "flux", "speak", "read", "agent", "models")  # spec 5; wire.deepgram has the routes
FILE_SIZE: Final = 1 << 20  # bytes; a configuration, a chain, a key are some kilobytes
SOCKET_PATH: Final = 107  # bytes of a Unix socket's path: sun_path less its NUL, unix(7)
PATH_QUOTED: Final = 4096  # characters of a path in a message: it is of no use unless whole; PATH_MAX
PEPPER_SIZE: Final = 32  # bytes
DEFAULT_PATHS: Final = ("dgproxy.toml", "/etc/dgproxy/dgproxy.toml")

Severity = Literal["error", "warning"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong (error) or worth knowing (warning): in which file, at which key, and what to do."""

    severity: Severity
    file: str
    key: str  # dotted, "" for the file as a whole
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.message}" if self.key else f"{self.file}: {self.message}"


class ConfigError(Exception):
    """The configuration cannot be used; `findings` says all that is wrong, a line each."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("\n".join(str(finding) for finding in findings if finding.severity == "error"))
        self.findings = findings


# --- values -----------------------------------------------------------------------------------------------------


class Listen(msgspec.Struct, frozen=True):
    """Where to listen: a TCP address, a Unix socket, or a socket that systemd passes by name."""

    kind: Literal["tcp", "unix", "systemd"]
    host: str = ""  # tcp: an address without brackets, or a name
    port: int = 0
    path: str = ""  # unix: absolute
    name: str = ""  # systemd: FileDescriptorName=

    def __str__(self) -> str:
        match self.kind:
            case "tcp":
                return _authority(self.host, self.port)
            case "unix":
                return f"unix:{self.path}"
            case "systemd":
                return f"systemd:{self.name}"


class Url(msgspec.Struct, frozen=True):
    """An upstream: scheme, host and port alone."""

    scheme: Literal["http", "https"]
    host: str  # an address without brackets, or a name
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{_authority(self.host, self.port)}"


class Certificate(msgspec.Struct, frozen=True):
    """A further certificate chain, chosen by SNI, and its key."""

    certificate: str
    private_key: str


class Quota(msgspec.Struct, frozen=True):
    """What may be used in each window; None: no quota of it."""

    audio: Allowance | None = None  # seconds
    requests: Allowance | None = None
    bytes: Allowance | None = None  # both ways
    characters: Allowance | None = None


def parse_listen(text: str) -> Listen:
    """The Listen of "host:port", "[::]:port", "unix:/path" or "systemd:NAME"; ValueError says what is allowed."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f'{quoted(text)} names no absolute path; write "unix:/run/dgproxy/front.sock"')
        _socket_path(path)
        return Listen("unix", path=path)
    if text.startswith("systemd:"):
        name = text.removeprefix("systemd:")
        if re.fullmatch(r"[A-Za-z0-9_.-]{1,255}", name) is None:
            raise ValueError(f'{quoted(text)} names no socket; write "systemd:" and its FileDescriptorName')
        return Listen("systemd", name=name)
    host, port = _host_and_port(text, None)
    return Listen("tcp", host, port)


def parse_url(text: str) -> Url:
    """The Url of "http://host:port" or "https://host"; ValueError says what is allowed."""
    example = 'write "http://host:port" or "https://host:port"'
    if "@" in text:  # not quoted: what stands before it may be a password
        raise ValueError(f"holds a user or password, which would reach logs; {example} alone")
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(.*)", text, re.DOTALL)
    if match is None:
        raise ValueError(f"{quoted(text)} is no URL; {example}")
    named, authority, rest = match[1].lower(), match[2], match[3]
    scheme: Literal["http", "https"]
    match named:
        case "http" | "https":
            scheme = named
        case "ws" | "wss":
            raise ValueError(f"{quoted(text)}: WebSockets are opened on the HTTP address; {example}")
        case _:
            raise ValueError(f"{quoted(text)} has the scheme {quoted(named)}; {example}")
    if rest not in {"", "/"}:
        raise ValueError(f"{quoted(text)} has a path, query or fragment, but paths pass unchanged; {example} alone")
    host, port = _host_and_port(authority, 443 if scheme == "https" else 80)
    return Url(scheme, host, port)


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host_and_port(text: str, default: int | None) -> tuple[str, int]:
    example = 'write "127.0.0.1:8443", "[::1]:8443" or "name:8443"'
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", text, re.DOTALL)
    if bracketed is not None:
        host, port = bracketed[1], bracketed[2]
        if ":" not in host:
            raise ValueError(f"{quoted(text)} has brackets around what is no IPv6 address; {example}")
    else:
        host, separator, port = text.rpartition(":")
        if not separator:
            host, port = text, None
        if ":" in host or "[" in host or "]" in host:
            raise ValueError(f"{quoted(text)} is no address; {example} (IPv6 in brackets)")
    if not host:
        raise ValueError(f"{quoted(text)} names no host; {example}, or 0.0.0.0 for every IPv4 address")
    if port is None:
        if default is None:
            raise ValueError(f"{quoted(text)} names no port; {example}")
        return _host(host), default
    if re.fullmatch(r"[1-9][0-9]{0,4}", port) is None or int(port) > 65535:  # noqa: PLR2004 - 16 bits, RFC 9293 3.1
        raise ValueError(f"{quoted(text)} has no valid port; a port is 1 to 65535")
    return _host(host), int(port)


def _host(text: str) -> str:
    """An address or DNS name in its one usual spelling."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        labels = text.lower().split(".")
        named = all(re.fullmatch(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", label) for label in labels)
        if not named or labels[-1].isdigit() or len(text) > 253:  # noqa: PLR2004 - RFC 1035 2.3.4
            raise ValueError(f"{quoted(text)} is neither an IP address nor a host name") from None
        return text.lower()


def _socket_path(path: str) -> None:
    length = len(os.fsencode(path))
    if length > SOCKET_PATH:
        raise ValueError(
            f"{quoted(path, PATH_QUOTED)} has {length} bytes, and a Unix socket's path at most {SOCKET_PATH}; "
            "choose a shorter one"
        )


# --- kinds: how a value is read from TOML, and written -----------------------------------------------------------


class _Told(Exception):  # noqa: N818 - not an error of ours: the findings hold it already
    """The value is unusable, and the findings say why."""


@dataclass(frozen=True, slots=True)
class _Here:
    """A place in the file, where findings are put and relative paths begin."""

    file: str
    directory: str
    key: str
    findings: list[Finding]

    def at(self, name: str) -> "_Here":
        """The place of a key in this table."""
        name = name if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) else quoted(name)
        return replace(self, key=f"{self.key}.{name}" if self.key else name)

    def item(self, index: int) -> "_Here":
        """The place of an item of this list."""
        return replace(self, key=f"{self.key}[{index}]")

    def error(self, message: str) -> None:
        self.findings.append(Finding("error", self.file, self.key, message))

    def warning(self, message: str) -> None:
        self.findings.append(Finding("warning", self.file, self.key, message))

    def read(self, kind: "Kind", found: Any) -> Any:
        """The plain value of what stands here; _Told if there is none."""
        try:
            return kind.read(found, self)
        except ValueError as error:
            self.error(str(error))
            raise _Told from None


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: its name in the docs, its reader (ValueError or _Told if it is none) and its TOML text."""

    name: str
    read: Callable[[Any, _Here], Any]
    write: Callable[[Any], str]
    relative: bool = False  # a default is resolved like a value of the file


def _string(text: object) -> str:
    return json.dumps(str(text), ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML 1.0, basic strings


def _found(found: Any) -> str:
    """What was found where something else belongs."""
    match found:
        case bool():
            return f"{str(found).lower()}, which is true or false,"
        case str():
            return f"the text {quoted(found)}"
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
        raise ValueError(f"found {_found(found)} where text belongs; write it in quotes, like {example}")  # noqa: TRY004
    return found


def _parsed(name: str, parse: Callable[[str], Any], write: Callable[[Any], str], example: str) -> Kind:
    """A kind whose text has a grammar of its own."""
    return Kind(name, lambda found, _: parse(_text(found, _string(example))), lambda value: _string(write(value)))


def _at_least(kind: Kind, least: float, text: str) -> Kind:
    """The same, but not below."""

    def read(found: Any, here: _Here) -> Any:
        value = kind.read(found, here)
        if value < least:
            raise ValueError(f"{quoted(found)} is too little; the least is {text}")
        return value

    return replace(kind, name=f"{kind.name}, at least {text}", read=read)


def _integer(least: int, most: int) -> Kind:
    def read(found: Any, _: _Here) -> int:
        if isinstance(found, bool) or not isinstance(found, int):
            raise ValueError(f"found {_found(found)} where a whole number from {least} to {most} belongs")  # noqa: TRY004
        if not least <= found <= most:
            raise ValueError(f"found {_found(found)}; it must be from {least} to {most}")
        return found

    return Kind(f"number from {least} to {most}", read, str)


def _or_auto(number: Kind) -> Kind:
    """A number, or "auto" (None)."""

    def read(found: Any, here: _Here) -> int | None:
        if found == "auto":
            return None
        if isinstance(found, str):
            raise ValueError(f'{quoted(found)} is no number; write "auto", or a number without quotes')  # noqa: TRY004
        value: int = number.read(found, here)
        return value

    return Kind(f'"auto" or {number.name}', read, lambda value: '"auto"' if value is None else str(value))


def _choice(*allowed: str) -> Kind:
    listed = ", ".join(map(_string, allowed))

    def read(found: Any, _: _Here) -> str:
        if found in allowed:
            return str(found)
        near = difflib.get_close_matches(found.lower(), allowed, 1) if isinstance(found, str) else ()
        raise ValueError(
            f"found {_found(found)}; write one of {listed}" + "".join(f'; did you mean "{n}"?' for n in near)
        )

    return Kind(f"one of {listed}", read, _string)


def _boolean(found: Any, _: _Here) -> bool:
    if not isinstance(found, bool):
        raise ValueError(f"found {_found(found)}; write true or false, without quotes")  # noqa: TRY004
    return found


def _path(*, required: bool, schemes: tuple[str, ...] = ()) -> Kind:
    """A path, made absolute by the file's directory; or a secret's other source, kept as it is."""

    def read(found: Any, here: _Here) -> str:
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
        if not text:
            if required:
                raise ValueError("is empty; write a path")
            return ""
        return os.path.normpath(os.path.join(here.directory, text))  # noqa: PTH118 - as text: it is kept as text

    name = "path" + "".join(f', or "{scheme}:NAME"' for scheme in schemes)
    return Kind(name if required else f'{name}; "" for none', read, _string, relative=True)


def _listed(item: Kind, *, empty: bool, plural: str) -> Kind:
    """A list of one kind, without repetitions."""

    def read(found: Any, here: _Here) -> tuple[Any, ...]:
        if not isinstance(found, list):
            raise ValueError(f"found {_found(found)} where a list of {plural} belongs; write it in brackets: [...]")  # noqa: TRY004
        if not found and not empty:
            raise ValueError(f"is empty; write at least one of its {plural}")
        values: dict[Any, None] = {}  # in order, and each once
        told = False
        for index, each in enumerate(found):
            place = here.item(index)
            try:
                value = place.read(item, each)
            except _Told:
                told = True
                continue
            if value in values:
                place.error(f"{_found(each)} stands here a second time; remove it")
                told = True
            values[value] = None
        if told:
            raise _Told
        return tuple(values)

    return Kind(f"list of {plural}", read, lambda value: f"[{', '.join(map(item.write, value))}]")


def _by_class(item: Kind, example: str) -> Kind:
    """A table with a value for some classes."""

    def read(found: Any, here: _Here) -> dict[str, Any]:
        if not isinstance(found, dict):
            raise ValueError(f"found {_found(found)} where a table by class belongs; write it like {example}")  # noqa: TRY004
        values: dict[str, Any] = {}
        told = False
        for name, each in found.items():
            place = here.at(name)
            try:
                values[place.read(_CLASS, name)] = place.read(item, each)
            except _Told:
                told = True
        if told:
            raise _Told
        return values

    def write(value: dict[str, Any]) -> str:
        return _inline({name: item.write(each) for name, each in value.items()})

    return Kind(f"table by class: {item.name}", read, write)


def _inline(pairs: Mapping[str, str]) -> str:
    return f"{{ {', '.join(f'{name} = {text}' for name, text in pairs.items())} }}" if pairs else "{}"


def _read_network(found: Any, _: _Here) -> str:
    text = _text(found, '"10.0.0.0/8"')
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        try:
            near = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f'{quoted(text)} is no network; write one like "10.0.0.0/8" or "fd00::/8"') from None
        raise ValueError(f'{quoted(text)} has bits set beyond its prefix; write "{near}"') from None


def _read_model(found: Any, _: _Here) -> str:
    text = _text(found, '"nova-3"')
    if re.fullmatch(r"[A-Za-z0-9._:*-]{1,128}", text) is None:
        raise ValueError(f'{quoted(text)} is no model; write a name like "nova-3", or "*" for every model')
    return text


def _read_allowed_host(found: Any, _: _Here) -> str:
    """A DNS name, matched whole: an address, a port or a pattern would never match (access.policy)."""
    text = _text(found, '"hooks.example.com"')
    name = re.fullmatch(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}", text.lower())
    if name is None or len(text) > 253:  # noqa: PLR2004 - RFC 1035 2.3.4
        raise ValueError(f'{quoted(text)} is no host name; write one alone, like "hooks.example.com"')
    return text.lower()


def _read_origin(found: Any, _: _Here) -> str:
    text = _text(found, '"https://app.example.com"')
    match = re.fullmatch(r"(https?)://(.+)", text)
    if text == "*":
        return text
    if match is None:
        raise ValueError(f'{quoted(text)} is no origin; write it like "https://app.example.com", or "*"')
    _host_and_port(match[2], 443)
    return text.lower()


def _read_certificate(found: Any, here: _Here) -> Certificate:
    example = 'write { certificate = "a.pem", private_key = "a-key.pem" }'
    if not isinstance(found, dict) or set(found) != {"certificate", "private_key"}:
        raise ValueError(f"found {_found(found)} where a certificate and its key belong; {example}")
    return Certificate(
        here.at("certificate").read(_path(required=True), found["certificate"]),
        here.at("private_key").read(_path(required=True, schemes=("credential",)), found["private_key"]),
    )


def _write_certificate(value: Certificate) -> str:
    return _inline({"certificate": _string(value.certificate), "private_key": _string(value.private_key)})


def _read_quota(found: Any, here: _Here) -> Quota:
    if not isinstance(found, dict):
        raise ValueError(f'found {_found(found)} where a table belongs; write it like {{ audio = "100h/month" }}')  # noqa: TRY004
    values: dict[str, Allowance] = {}
    told = False
    for name, each in found.items():
        place = here.at(name)
        if name in _ALLOWANCES:
            try:
                values[name] = place.read(_ALLOWANCES[name], each)
            except _Told:
                told = True
        else:
            place.error(_unknown(name, here.key, tuple(_ALLOWANCES)))
            told = True
    if told:
        raise _Told
    return Quota(**values)


def _write_quota(quota: Quota) -> str:
    held = {name: getattr(quota, name) for name in _ALLOWANCES}
    return _inline({name: _ALLOWANCES[name].write(value) for name, value in held.items() if value is not None})


def _allowance(counted: Counted, example: str) -> Kind:
    return _parsed(
        "quota",
        lambda text: units.parse_allowance(text, counted),
        lambda value: units.format_allowance(value, counted),
        example,
    )


_ALLOWANCES: Final = {
    "audio": _allowance("audio", "100h/month"),
    "requests": _allowance("requests", "100000/day"),
    "bytes": _allowance("bytes", "500GiB/month"),
    "characters": _allowance("characters", "2000000/week"),
}
_CLASS: Final = _choice(*CLASSES)
_LISTEN: Final = _parsed("address", parse_listen, str, "127.0.0.1:8443")
_URLS: Final = _listed(_parsed("URL", parse_url, str, "http://127.0.0.1:8080"), empty=False, plural="URLs")
_DURATION: Final = _parsed("duration", units.parse_duration, units.format_duration, "10s")
_TIMEOUT: Final = _at_least(_DURATION, 0.001, "1ms")
_NEVER: Final = _parsed('duration, or "never"', units.parse_duration_or_never, units.format_duration_or_never, "30m")
_SIZE: Final = _parsed("size", units.parse_size, units.format_size, "32KiB")
_RATE: Final = _parsed("rate", units.parse_rate, units.format_rate, "20/s")
_HOSTS: Final = _listed(Kind("host", _read_allowed_host, _string), empty=True, plural="hosts")
_BOOLEAN: Final = Kind("true or false", _boolean, lambda value: "true" if value else "false")
_STREAMS: Final = _integer(1, 1_000_000)
_MINIMUM_RATE: Final = _parsed("minimum rate", units.parse_minimum_rate, units.format_minimum_rate, "4KiB/s over 30s")
_LISTENERS: Final = _listed(_LISTEN, empty=False, plural="addresses")
_NETWORKS: Final = _listed(Kind("network", _read_network, _string), empty=True, plural="networks")
_MODELS: Final = _listed(Kind("model", _read_model, _string), empty=False, plural="models")
_ORIGINS: Final = _listed(Kind("origin", _read_origin, _string), empty=True, plural="origins")
_CERTIFICATES: Final = _listed(
    Kind("certificate", _read_certificate, _write_certificate), empty=True, plural="certificates"
)
_LEVELS: Final = _choice("debug", "info", "warning", "error")


# --- the schema -------------------------------------------------------------------------------------------------


def _now(kind: Kind, description: str) -> msgspec.Meta:
    """The facts of a setting that this release enforces."""
    return msgspec.Meta(description=description, extra={"kind": kind, "enforced": True, "unsafe": False})


def _later(kind: Kind, description: str, *, unsafe: bool = False) -> msgspec.Meta:
    """The facts of one that is not enforced yet. `unsafe`: to ignore it where it is set would be a hole."""
    return msgspec.Meta(description=description, extra={"kind": kind, "enforced": False, "unsafe": unsafe})


class Server(msgspec.Struct, frozen=True):
    """The front door."""

    listen: Annotated[
        tuple[Listen, ...],
        _now(_LISTENERS, "host:port, [::]:port, unix:/path, systemd:NAME"),
    ] = (Listen("tcp", "0.0.0.0", 8443),)
    workers: Annotated[int | None, _now(_or_auto(_integer(1, 512)), '"auto": one per CPU; or a number')] = None
    tls: Annotated[bool, _now(_BOOLEAN, "false: a plain listener, for use behind another terminator")] = True
    trusted_proxies: Annotated[
        tuple[str, ...],
        _later(_NETWORKS, "networks whose X-Forwarded-For and PROXY protocol are believed", unsafe=True),
    ] = ()
    proxy_protocol: Annotated[
        bool, _later(_BOOLEAN, "true: trusted proxies send a PROXY protocol header, v1 or v2", unsafe=True)
    ] = False


class Tls(msgspec.Struct, frozen=True):
    """What the front door shows. Paths are absolute once loaded."""

    certificate: Annotated[str, _now(_path(required=False), "chain, leaf first")] = "certs/server.pem"
    private_key: Annotated[
        str, _now(_path(required=False, schemes=("credential",)), 'mode 0600; or "credential:NAME" of systemd')
    ] = "certs/server-key.pem"
    min_version: Annotated[Literal["1.2", "1.3"], _now(_choice("1.2", "1.3"), "the oldest TLS that is spoken")] = "1.2"
    client_ca: Annotated[
        str, _later(_path(required=False), "set: clients must present a certificate of this CA", unsafe=True)
    ] = ""
    ktls: Annotated[
        Literal["off", "auto", "require"],
        _later(_choice("off", "auto", "require"), "encryption in the kernel: off, auto or require"),
    ] = "off"
    extra: Annotated[
        tuple[Certificate, ...], _later(_CERTIFICATES, "further {certificate, private_key}, chosen by SNI")
    ] = ()


class Upstream(msgspec.Struct, frozen=True):
    """The Deepgram containers. Times in seconds."""

    urls: Annotated[tuple[Url, ...], _now(_URLS, "Deepgram containers; https:// allowed")] = (
        Url("http", "127.0.0.1", 8080),
    )
    pools: Annotated[
        dict[str, tuple[Url, ...]],
        _later(_by_class(_URLS, '{ batch = ["http://127.0.0.1:8080"] }'), "a class's own urls, in place of these"),
    ] = msgspec.field(default_factory=dict)
    connect_timeout: Annotated[float, _now(_TIMEOUT, "until a connection stands")] = 5.0
    response_timeout: Annotated[
        float, _now(_TIMEOUT, "until a response begins; longer than Deepgram's own 10 to 20 minutes of processing")
    ] = 1500.0
    health_interval: Annotated[float, _later(_TIMEOUT, "between two polls of an upstream's status")] = 5.0


class Keys(msgspec.Struct, frozen=True):
    """What keys are stored with."""

    pepper_file: Annotated[
        str,
        _now(
            _path(required=True, schemes=("env", "credential")),
            '32 random bytes, mode 0600; or "env:NAME" (64 hex digits), "credential:NAME"; lost pepper = lost keys',
        ),
    ] = "state/pepper"


class Auth(msgspec.Struct, frozen=True):
    """Failed attempts."""

    failures_per_address: Annotated[
        Rate, _later(_RATE, "only 401s count; a valid key is never refused for its address")
    ] = Rate(60.0, 60.0)


class Limits(msgspec.Struct, frozen=True):
    """Bounds of the whole process group."""

    connections: Annotated[int, _now(_integer(1, 10_000_000), "open client connections, over all workers")] = 20_000
    connections_per_address: Annotated[int, _now(_integer(0, 10_000_000), "of them for one address; 0: no limit")] = 0
    buffered: Annotated[
        int, _now(_at_least(_SIZE, 1 << 20, '"1MiB"'), "bytes on their way through dgproxy, over all workers")
    ] = 256 << 20


class State(msgspec.Struct, frozen=True):
    """What outlives a restart."""

    directory: Annotated[str, _now(_path(required=True), "keys.db and usage.db; mode 0700")] = "state"


class Admin(msgspec.Struct, frozen=True):
    """The operator's side."""

    listen: Annotated[Listen, _later(_LISTEN, "/metrics, /healthz and /readyz; loopback unless told otherwise")] = (
        Listen("tcp", "127.0.0.1", 9464)
    )
    socket: Annotated[str, _now(_path(required=True), "control, mode 0600")] = "state/admin.sock"


class Timeouts(msgspec.Struct, frozen=True):
    """Bounds on progress, never a total on a body or a stream. In seconds."""

    tls_handshake: Annotated[float, _now(_TIMEOUT, "from accept to the end of the handshake")] = 10.0
    request_head: Annotated[float, _now(_TIMEOUT, "from a head's first byte to its last")] = 10.0
    upgrade: Annotated[float, _now(_TIMEOUT, "until an upstream answers a WebSocket handshake")] = 10.0
    idle_keepalive: Annotated[float, _now(_TIMEOUT, "between two requests of a connection")] = 75.0
    stream_idle: Annotated[float, _now(_TIMEOUT, "without a byte either way on a WebSocket")] = 60.0
    minimum_upload_rate: Annotated[
        MinimumRate, _now(_MINIMUM_RATE, 'a body that comes slower is given up; "0/s over 30s": no minimum')
    ] = MinimumRate(4096, 30.0)


class Drain(msgspec.Struct, frozen=True):
    """How long streams may go on. In seconds; None: as long as they like."""

    stop: Annotated[float, _now(_DURATION, "after SIGTERM")] = 1800.0
    reload: Annotated[float | None, _later(_NEVER, 'after a reload; "never": streams survive it')] = None


class Plan(msgspec.Struct, frozen=True):
    """What a key may do. Every key has a plan, and may override any field (Overrides)."""

    rate: Annotated[Rate, _later(_RATE, "requests and streams begun, over all workers")] = Rate(20.0, 1.0)
    burst: Annotated[int, _later(_integer(1, 1_000_000), "of them at once")] = 40
    streams: Annotated[
        int, _now(_STREAMS, "in flight at once over all workers: open WebSockets and HTTP requests alike")
    ] = 50
    streams_by_class: Annotated[
        dict[str, int], _now(_by_class(_STREAMS, "{ flux = 10 }"), "of them by class: { flux = 10 }")
    ] = msgspec.field(default_factory=dict)
    quota: Annotated[
        Quota, _later(Kind("table", _read_quota, _write_quota), "audio, requests, bytes, characters; each optional")
    ] = Quota(audio=Allowance(360_000.0, "month"), requests=Allowance(100_000.0, "day"))
    classes: Annotated[
        tuple[str, ...], _now(_listed(_CLASS, empty=False, plural="classes"), "of " + ", ".join(CLASSES))
    ] = ("batch", "stream", "flux", "speak", "read", "models")
    models: Annotated[
        tuple[str, ...],
        _now(_MODELS, 'models that may be asked for; "*": every model'),
    ] = ("*",)
    allow_callback: Annotated[tuple[str, ...], _now(_HOSTS, "hosts that a callback may name; empty: refused")] = ()
    allow_url: Annotated[tuple[str, ...], _later(_HOSTS, "hosts that audio may be fetched from; empty: refused")] = ()
    max_body: Annotated[int, _now(_at_least(_SIZE, 1, '"1B"'), "the largest body of a request")] = 2 << 30
    stream_max_life: Annotated[float, _later(_DURATION, "the longest that a stream may last; 0s: no limit")] = 0.0


class Cors(msgspec.Struct, frozen=True):
    """Browsers."""

    origins: Annotated[
        tuple[str, ...],
        _later(_ORIGINS, "origins whose pages may call: https://app.example.com"),
    ] = ()


class Log(msgspec.Struct, frozen=True):
    """Log lines, on stderr."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _now(_LEVELS, "debug, info, warning or error"),
    ] = "info"
    format: Annotated[Literal["json", "console"], _now(_choice("json", "console"), "json or console")] = "json"


class Config(msgspec.Struct, frozen=True):
    """A whole configuration. `path` is its file, absolute, as are all paths in it once loaded."""

    path: str = ""
    server: Server = Server()
    tls: Tls = Tls()
    upstream: Upstream = Upstream()
    keys: Keys = Keys()
    auth: Auth = Auth()
    limits: Limits = Limits()
    state: State = State()
    admin: Admin = Admin()
    timeouts: Timeouts = Timeouts()
    drain: Drain = Drain()
    plans: dict[str, Plan] = msgspec.field(default_factory=lambda: {"default": Plan()})
    cors: Cors = Cors()
    log: Log = Log()


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of the table of settings, for whoever reads, checks, writes or documents them."""

    section: str  # "server"; "plans.*" for what stands in each plan
    name: str
    kind: Kind
    default: Any
    description: str  # one line
    enforced: bool
    unsafe: bool

    @property
    def key(self) -> str:
        """Its dotted name."""
        return f"{self.section}.{self.name}"


def _settings(section: str, default: msgspec.Struct) -> tuple[Setting, ...]:
    hints = get_type_hints(type(default), include_extras=True)
    rows = []
    for name in default.__struct_fields__:
        (meta,) = hints[name].__metadata__
        rows.append(Setting(section, name, default=getattr(default, name), description=meta.description, **meta.extra))
    return tuple(rows)


_DEFAULTS: Final = Config()
_PLAN: Final = _settings("plans.*", Plan())
_SECTIONS: Final[dict[str, tuple[Setting, ...]]] = {
    name: _PLAN if name == "plans" else _settings(name, getattr(_DEFAULTS, name))
    for name in Config.__struct_fields__
    if name != "path"
}
SETTINGS: Final[tuple[Setting, ...]] = tuple(setting for section in _SECTIONS.values() for setting in section)


# --- reading ----------------------------------------------------------------------------------------------------


def find_config(option: str | None) -> Path:
    """The file to use: the option, $DGPROXY_CONFIG, or the first of DEFAULT_PATHS; ConfigError if there is none."""
    if option is not None:
        return Path(option)
    if named := os.environ.get("DGPROXY_CONFIG"):
        return Path(named)
    for path in DEFAULT_PATHS:
        if os.path.exists(path):  # noqa: PTH110 - Path's raises where a directory may not be searched
            return Path(path)
    tried = ", ".join(("$DGPROXY_CONFIG (not set)", *DEFAULT_PATHS))
    raise ConfigError(
        [Finding("error", DEFAULT_PATHS[0], "", f"no configuration found; tried {tried}; name one with -c FILE")]
    )


def load(path: Path) -> Config:
    """The configuration in this file, or ConfigError with everything that is wrong with it."""
    config, findings = examine(path)
    if config is None:
        raise ConfigError(findings)
    return config


def examine(path: Path) -> tuple[Config | None, list[Finding]]:
    """The configuration, unless a finding is an error; and all findings: errors, then what is not enforced yet."""
    try:
        data, _ = read_file(str(path), FILE_SIZE, missing="no such file; `dgproxy init DIR` makes one")
    except ValueError as error:
        return None, [Finding("error", _printable(path), "", str(error))]
    return examine_bytes(data, path)


def examine_bytes(data: bytes, path: Path) -> tuple[Config | None, list[Finding]]:
    """The same for what is, or shall be, in this file."""
    absolute = os.path.normpath(path.absolute())
    here = _Here(file=_printable(path), directory=os.path.dirname(absolute), key="", findings=[])  # noqa: PTH120
    try:
        if _printable(absolute) != absolute:
            raise ValueError("this path is not UTF-8; move the file to one that is")  # noqa: TRY301
        document = _parse(data)
    except ValueError as error:
        here.error(str(error))
        return None, here.findings
    config = msgspec.structs.replace(_read_document(document, here), path=absolute)
    _combinations(config, here)
    _not_enforced(config, here)
    failed = any(finding.severity == "error" for finding in here.findings)
    return None if failed else config, here.findings


def _printable(path: Path | str) -> str:
    return str(path).encode(errors="replace").decode()


def read_file(path: str, limit: int, *, missing: str = "no such file") -> tuple[bytes, int]:
    """A regular file's bytes, at most `limit`, and its mode; ValueError says why there are none. Never waits."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)

    try:
        with open(path, "rb", opener=opener) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("is no regular file; name a file")
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise ValueError(missing) from None
    except IsADirectoryError:
        raise ValueError("is a directory; name a file") from None
    except PermissionError:
        raise ValueError(f"may not be read by user {os.geteuid()}; give it to the user that dgproxy runs as") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise ValueError(f"is larger than {units.format_size(limit)}; is it the right file?")
    return data, stat.S_IMODE(status.st_mode)


_HINTS: Final = {
    "Invalid value": 'text needs quotes, like level = "info"',
    "Expected newline": 'text needs quotes, like level = "info"',
    "Cannot overwrite": "a key or section may stand only once",
    "Cannot declare": "a section may stand only once; put its keys together",
    "Cannot mutate": "a table in braces is whole; put all its keys inside",
    "Expected '='": "a line is a [section], key = value, or a # comment",
    "Invalid statement": "a line is a [section], key = value, or a # comment",
}


def _parse(data: bytes) -> dict[str, Any]:
    """The TOML document; ValueError says where it is none."""
    if data.startswith(b"\xef\xbb\xbf"):
        raise ValueError("line 1: begins with a byte order mark; save it as UTF-8 without one")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problem, _, place = str(error).rpartition(" (at ")
        where = place.removesuffix(")") if place.startswith("line ") else f"line {text.rstrip().count(chr(10)) + 1}"
        hint = next((f"; {hint}" for start, hint in _HINTS.items() if problem.startswith(start)), "")
        raise ValueError(f"{where}: {problem}{hint}") from None
    except RecursionError:
        raise ValueError("is nested too deeply; no setting is deeper than three tables") from None
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"holds a value that is no TOML: {error}") from None


def _read_document(document: dict[str, Any], here: _Here) -> Config:
    for name in document:
        if name not in _SECTIONS:
            here.at(name).error(_unknown(name, "", tuple(_SECTIONS)))
    sections: dict[str, Any] = {
        name: _read_section(getattr(_DEFAULTS, name), settings, document.get(name, {}), here.at(name))
        for name, settings in _SECTIONS.items()
        if name != "plans"
    }
    return msgspec.structs.replace(
        _DEFAULTS, plans=_read_plans(document.get("plans", {}), here.at("plans")), **sections
    )


_Section = TypeVar("_Section", bound=msgspec.Struct)


def _read_section(default: _Section, settings: tuple[Setting, ...], table: Any, here: _Here) -> _Section:
    """The section; what cannot be read stands at its default, and is told."""
    if not isinstance(table, dict):
        here.error(f"found {_found(table)} where a section belongs; write [{here.key}], and its keys below")
        return default
    names = tuple(setting.name for setting in settings)
    for name in table:
        if name not in names:
            here.at(name).error(_unknown(name, here.key, names))
    values: dict[str, Any] = {}
    for setting in settings:
        if setting.name in table or setting.kind.relative:
            with contextlib.suppress(_Told):
                place = here.at(setting.name)
                values[setting.name] = place.read(setting.kind, table.get(setting.name, setting.default))
    return msgspec.structs.replace(default, **values)


def _read_plans(table: Any, here: _Here) -> dict[str, Plan]:
    plans: dict[str, Plan] = {}
    if not isinstance(table, dict):
        here.error(f"found {_found(table)} where plans belong; write [plans.default], and its keys below")
        return plans
    names = {setting.name for setting in _PLAN}
    for name, plan in table.items():
        place = here.at(name)
        if name in names and not isinstance(plan, dict):
            place.error(f"is a setting of a plan, and stands outside of one; put it below [{here.key}.default]")
        elif re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) is None:
            place.error("is no name of a plan; use at most 64 letters, digits, _ and -")
        else:
            plans[name] = _read_section(Plan(), _PLAN, plan, place)
    if "default" not in table:
        here.at("default").error("is missing; every key has a plan, so add a section [plans.default] (it may be empty)")
    return plans


def _unknown(name: str, section: str, siblings: tuple[str, ...]) -> str:
    """What to say of a key that does not exist: the nearest one that does."""
    near = difflib.get_close_matches(name[:64], siblings, 1)
    if near:
        return f"unknown key; did you mean {section}.{near[0]}?" if section else f"unknown key; did you mean {near[0]}?"
    elsewhere = [setting.key.replace("*", "default") for setting in SETTINGS if setting.name == name]
    if elsewhere:
        return f"unknown key here; did you mean {' or '.join(elsewhere)}?"
    return f"unknown key; known here are {', '.join(siblings)}"


def _combinations(config: Config, here: _Here) -> None:
    """What no setting alone can tell, and what this release cannot serve."""
    _listeners(config, here)
    _certificates(config, here)
    for name, plan in config.plans.items():
        by_class = here.at("plans").at(name).at("streams_by_class")
        for cls, streams in plan.streams_by_class.items():
            if cls not in plan.classes:
                by_class.at(cls).warning(f"has no effect: {cls} is not among this plan's classes")
            elif streams > plan.streams:
                by_class.at(cls).warning(f"has no effect: {streams} are more than this plan's streams, {plan.streams}")


def _listeners(config: Config, here: _Here) -> None:
    admin = here.at("admin")
    later = 'is not supported yet by this release; write a TCP address, like "127.0.0.1:8443"'
    for index, listen in enumerate(config.server.listen):
        if listen.kind != "tcp":
            here.at("server").at("listen").item(index).error(f"{quoted(str(listen))} {later}")
    if config.admin.listen.kind != "tcp":
        admin.at("listen").error(f"{quoted(str(config.admin.listen))} {later}")
    elif config.admin.listen in config.server.listen:
        admin.at("listen").error(f"{quoted(str(config.admin.listen))} is in server.listen too; choose another port")
    try:
        _socket_path(config.admin.socket)
    except ValueError as error:
        admin.at("socket").error(str(error))


def _certificates(config: Config, here: _Here) -> None:
    tls = here.at("tls")
    if config.tls.private_key and not config.tls.certificate:
        tls.at("certificate").error("is empty, but tls.private_key is set; name the certificate that belongs to it")
    elif config.tls.certificate and not config.tls.private_key:
        tls.at("private_key").error("is empty, but tls.certificate is set; name the key that belongs to it")
    elif config.server.tls and not config.tls.certificate:
        tls.at("certificate").error("is empty, but server.tls is true; name a certificate and its key")
    if config.tls.client_ca and not config.server.tls:
        tls.at("client_ca").error("is set, but with server.tls = false no client shows a certificate; drop one of both")
    if config.tls.ktls == "require":
        tls.at("ktls").error('"require" is not supported yet by this release; write "off"')


def _not_enforced(config: Config, here: _Here) -> None:
    """Tell each setting that is set and does nothing yet, and in one line those whose defaults do nothing yet."""
    idle: dict[str, list[str]] = {}
    for setting in SETTINGS:
        if setting.enforced:
            continue
        changed = False
        for section, held in _holders(config, setting.section):
            if getattr(held, setting.name) == setting.default:
                continue
            changed = True
            place = replace(here, key=f"{section}.{setting.name}")
            if setting.unsafe:
                place.error("is not supported yet by this release, and to ignore it would be unsafe; remove it")
            else:
                place.warning("parsed, but not enforced yet by this release")
        if not changed:
            idle.setdefault(setting.section, []).append(setting.name)
    listed = "; ".join(f"{section}.{', '.join(names)}" for section, names in idle.items())
    if listed and not any(finding.severity == "error" for finding in here.findings):
        here.warning(f"not enforced yet by this release, and at their defaults: {listed}")


def _holders(config: Config, section: str) -> list[tuple[str, msgspec.Struct]]:
    """The sections that hold a row's setting: one, or each plan."""
    if section == "plans.*":
        return [(f"plans.{name}", plan) for name, plan in config.plans.items()]
    return [(section, getattr(config, section))]


# --- writing ----------------------------------------------------------------------------------------------------


def render_default(listen: str, upstream: str) -> str:
    """A whole configuration as TOML: every setting at its default but these two, a line and a comment each."""
    given = {"server.listen": (parse_listen(listen),), "upstream.urls": (parse_url(upstream),)}
    lines = ["# dgproxy's configuration. `dgproxy check` says what is wrong with it, and what is not enforced yet."]
    for section, settings in _SECTIONS.items():
        lines += ["", "[plans.default]" if section == "plans" else f"[{section}]"]
        for setting in settings:
            line = f"{setting.name} = {setting.kind.write(given.get(setting.key, setting.default))}"
            lines.append(f"{line:<40}  # {setting.description}")
    return "\n".join(lines) + "\n"


# --- secrets ----------------------------------------------------------------------------------------------------


def read_pepper(config: Config) -> bytes:
    """The 32 bytes of keys.pepper_file, or ConfigError.

    A path or "credential:NAME" ($CREDENTIALS_DIRECTORY/NAME) holds the raw bytes; "env:NAME" names a variable of 64 hex
    digits, such as `openssl rand -hex 32` prints. A file's mode must be closed to group and others; systemd's
    credentials are exempt, as systemd guards their directory.
    """
    source, _, name = config.keys.pepper_file.partition(":")
    try:
        if source == "env":
            return _pepper_of_environment(name)
        pepper = _secret(config.keys.pepper_file, missing=f"no such file; {_LOST_PEPPER}")
        if len(pepper) != PEPPER_SIZE:
            raise ValueError(f"holds {len(pepper)} bytes, and a pepper has {PEPPER_SIZE}; {_LOST_PEPPER}")  # noqa: TRY301
    except ValueError as error:
        raise _unusable(config, "keys.pepper_file", config.keys.pepper_file, error) from None
    return pepper


_LOST_PEPPER: Final = "restore the one that the keys were made with: without it they are lost"


def _pepper_of_environment(name: str) -> bytes:
    text = os.environ.get(name)
    if not text:
        raise ValueError("is not set in the environment; set it to 64 hex digits")
    if re.fullmatch(r"[0-9A-Fa-f]{64}", text) is None:
        raise ValueError(
            f"does not hold the 64 hex digits of a pepper's {PEPPER_SIZE} bytes, but {len(text)} characters"
        )
    return bytes.fromhex(text)


def read_private_key(config: Config) -> bytes:
    """The PEM text of tls.private_key, or ConfigError; modes as for read_pepper."""
    try:
        return _secret(config.tls.private_key)
    except ValueError as error:
        raise _unusable(config, "tls.private_key", config.tls.private_key, error) from None


def private_key_path(config: Config) -> str:
    """The file that tls.private_key means, for OpenSSL to open; ConfigError if systemd gave no such credential."""
    try:
        return _secret_path(config.tls.private_key)
    except ValueError as error:
        raise _unusable(config, "tls.private_key", config.tls.private_key, error) from None


def _unusable(config: Config, key: str, source: str, error: ValueError) -> ConfigError:
    return ConfigError([Finding("error", config.path, key, f"{quoted(source, PATH_QUOTED)} {error}")])


def _secret_path(setting: str) -> str:
    if not setting.startswith("credential:"):
        return setting
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise ValueError("needs $CREDENTIALS_DIRECTORY, which systemd sets for a unit with LoadCredential=")
    return f"{directory}/{setting.removeprefix('credential:')}"


def _secret(setting: str, *, missing: str = "no such file") -> bytes:
    data, mode = read_file(_secret_path(setting), FILE_SIZE, missing=missing)
    if mode & 0o077 and not setting.startswith("credential:"):
        raise ValueError(f"has mode {mode:04o}, so that others than its owner can use it; chmod 600")
    return data


# --- what a key may override -------------------------------------------------------------------------------------


class Overrides(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a key has of its own in place of its plan's fields; None: the plan's."""

    rate: Rate | None = None
    burst: int | None = None
    streams: int | None = None
    streams_by_class: dict[str, int] | None = None
    quota: Quota | None = None  # entry by entry: what is None here is the plan's
    classes: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    allow_callback: tuple[str, ...] | None = None
    allow_url: tuple[str, ...] | None = None
    max_body: int | None = None
    stream_max_life: float | None = None


def effective(plan: Plan, overrides: Overrides) -> Plan:
    """What a key may do: its plan's fields, but for those that it overrides."""
    changes = {name: value for name, value in msgspec.structs.asdict(overrides).items() if value is not None}
    if overrides.quota is not None:
        own = {name: value for name, value in msgspec.structs.asdict(overrides.quota).items() if value is not None}
        changes["quota"] = msgspec.structs.replace(plan.quota, **own)
    return msgspec.structs.replace(plan, **changes)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _pairs(text: str) -> dict[str, int]:
    pairs = {}
    for word in _words(text):
        name, separator, count = word.partition("=")
        if not separator:
            raise ValueError(f'{quoted(word)} is no pair; write them like "flux=10,stream=40"')
        pairs[name] = units.parse_count(count)
    return pairs


_AS_TOML: Final[Mapping[str, Callable[[str], Any]]] = {  # what a field's text on the command line is in TOML
    "rate": str,
    "burst": units.parse_count,
    "streams": units.parse_count,
    "streams_by_class": _pairs,
    "classes": _words,
    "models": _words,
    "allow_callback": _words,
    "allow_url": _words,
    "max_body": str,
    "stream_max_life": str,
}


def parse_overrides(options: Mapping[str, str | None]) -> Overrides:
    """The Overrides of command line options: {"streams": "50", "quota-audio": "100h/month", "classes": "batch,stream"}.

    Names are a plan's fields, with - or _, and quota-audio, quota-requests, quota-bytes, quota-characters; lists are
    separated by commas, streams-by-class is "flux=10,stream=40"; None: not given. ValueError tells all that is wrong.
    """
    here = _Here(file="", directory="", key="", findings=[])
    kinds = {setting.name: setting.kind for setting in _PLAN}
    known = (*_AS_TOML, *(f"quota_{counted}" for counted in _ALLOWANCES))
    values: dict[str, Any] = {}
    quota: dict[str, Any] = {}
    for option, text in options.items():
        name = option.replace("-", "_")
        place = here.at(option)
        if text is None:
            continue
        with contextlib.suppress(_Told):
            if name not in known:
                place.error(_unknown(name, "", known))
            elif name in kinds:
                values[name] = place.read(replace(kinds[name], read=_after(_AS_TOML[name], kinds[name])), text)
            else:
                counted = name.removeprefix("quota_")
                quota[counted] = place.read(_ALLOWANCES[counted], text)
    if here.findings:
        raise ValueError("; ".join(f"{finding.key}: {finding.message}" for finding in here.findings))
    return Overrides(quota=Quota(**quota) if quota else None, **values)


def _after(convert: Callable[[str], Any], kind: Kind) -> Callable[[Any, _Here], Any]:
    return lambda text, here: kind.read(convert(text), here)
