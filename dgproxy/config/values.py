"""Values that are more than a number or a text: addresses, URLs, certificates, quotas."""

import ipaddress
import os
import re
from typing import Final, Literal

import msgspec

from dgproxy.config.findings import PATH_QUOTED
from dgproxy.units import Allowance, quoted

SOCKET_PATH: Final = 107  # bytes of a Unix socket's path: sun_path less its NUL, unix(7)


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
                return authority(self.host, self.port)
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
        return f"{self.scheme}://{authority(self.host, self.port)}"


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
        socket_path(path)
        return Listen("unix", path=path)
    if text.startswith("systemd:"):
        name = text.removeprefix("systemd:")
        if re.fullmatch(r"[A-Za-z0-9_.-]{1,255}", name) is None:
            raise ValueError(f'{quoted(text)} names no socket; write "systemd:" and its FileDescriptorName')
        return Listen("systemd", name=name)
    host, port = host_and_port(text, None)
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
    host, port = host_and_port(authority, 443 if scheme == "https" else 80)
    return Url(scheme, host, port)


def authority(host: str, port: int | None) -> str:
    """Like [::1]:8443."""
    named = f"[{host}]" if ":" in host else host
    return named if port is None else f"{named}:{port}"


def host_and_port(text: str, default: int | None) -> tuple[str, int]:
    """Of host:port, or of a host alone where there is a default port; ValueError says what is allowed."""
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


def socket_path(path: str) -> None:
    """ValueError if no Unix socket can have this path."""
    length = len(os.fsencode(path))
    if length > SOCKET_PATH:
        raise ValueError(
            f"{quoted(path, PATH_QUOTED)} has {length} bytes, and a Unix socket's path at most {SOCKET_PATH}; "
            "choose a shorter one"
        )
