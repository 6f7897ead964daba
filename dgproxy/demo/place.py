"""Where the demo lives: a directory of its own, which it knows by its README.txt, and two addresses.

Rules of this file: a directory that the demo did not make is not touched; of two demos in one directory the second is
told; what an earlier demo left (CA, keys, settings that its user changed) stays, but for the addresses.
"""

import contextlib
import datetime as dt
import errno
import fcntl
import ipaddress
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from cryptography import x509

from dgproxy import bootstrap
from dgproxy.config import Listen

WORKERS: Final = 2  # enough to show that they share the work, and quick to start on any machine
ADMIN: Final = ("127.0.0.1", 9464)  # admin.listen's default; another port where this one is taken

_TCP_LISTEN: Final = "0A"  # include/net/tcp_states.h
_MARKER: Final = "README.txt"
_MADE_BY: Final = "Made by `dgproxy demo`."
_README: Final = f"""\
{_MADE_BY} Stop the demo, then delete this directory whenever you like.

dgproxy.toml   the proxy's configuration: every setting, with a comment each
certs/         a local CA (ca.pem is what clients must trust) and the proxy's certificate
state/         the keys, as digests; the control socket while the proxy runs
listen.wav     the audio that was sent
live.py        streams it with the official Python SDK; listen.mjs posts it with the JavaScript one
proxy.log      what the proxy said in the last demo, a JSON object a line
standin.log    what the stand-in Deepgram said

The next `dgproxy demo` here uses the same CA and settings, and makes a new key.
"""


class DemoError(Exception):
    """What went wrong and what to do, in a line or a few."""


@dataclass(frozen=True, slots=True)
class Place:
    """A demo's directory, ready to serve from."""

    directory: Path
    fresh: bool  # made now, not found

    @property
    def config(self) -> Path:
        """The proxy's configuration."""
        return self.directory / "dgproxy.toml"

    @property
    def ca(self) -> Path:
        """What clients must trust."""
        return self.directory / "certs" / "ca.pem"

    @property
    def audio(self) -> Path:
        """The bundled WAV's copy."""
        return self.directory / "listen.wav"

    @property
    def live(self) -> Path:
        """The program that streams."""
        return self.directory / "live.py"

    @property
    def script(self) -> Path:
        """The JavaScript program that posts."""
        return self.directory / "listen.mjs"

    def log(self, name: str) -> Path:
        """Where a child's words go."""
        return self.directory / f"{name}.log"


# --- addresses --------------------------------------------------------------------------------------------------


def host_to_dial(listen: Listen) -> str:
    """The host, as URLs write it, by which a client on this machine reaches an address."""
    try:
        address = ipaddress.ip_address(listen.host)
    except ValueError:
        return listen.host
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")  # noqa: PLR2004 - IPv4
    return f"[{address}]" if address.version == 6 else str(address)  # noqa: PLR2004 - IPv6


def refuse_taken(wanted: Mapping[str, Listen], retry: Callable[[str], str]) -> None:
    """DemoError unless each address (by the option that names it) can be listened on.

    `retry` makes the line to type with an option.
    """
    with contextlib.ExitStack() as probes:
        for option, listen in wanted.items():
            try:
                probes.enter_context(_bound(listen.host, listen.port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    why = f"cannot listen on {listen}: {error.strerror}"
                    raise DemoError(f"{why}; choose another with {option} HOST:PORT") from None
                free = Listen("tcp", listen.host, _free_port(listen.host, listen.port))
                raise DemoError(
                    f"cannot listen on {listen}: port {listen.port} is taken{_by_whom(listen.port)}; "
                    f"choose another with {option} HOST:PORT, like: {retry(f'{option} {free}')}"
                ) from None


def _bound(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    probe = socket.socket(family, socket.SOCK_STREAM)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
    except OSError:
        probe.close()
        raise
    return probe


def _free_port(host: str, taken: int) -> int:
    for port in range(taken + 1, min(taken + 100, 65_536)):
        with contextlib.suppress(OSError), _bound(host, port):
            return port
    with _bound(host, 0) as probe:
        return int(probe.getsockname()[1])


def _by_whom(port: int) -> str:
    """Who listens on a port, as " by NAME (pid N)"; "" where /proc does not tell us."""
    listening = {f"socket:[{inode}]" for inode in _listening(port)}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended, or is another user's
            if any(str(fd.readlink()) in listening for fd in (process / "fd").iterdir()):
                return f" by {(process / 'comm').read_text().strip()} (pid {process.name})"
    return ""


def _listening(port: int) -> set[str]:
    """The inodes of the sockets that listen on a port."""
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                # sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode: proc(5)
                _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
                if state == _TCP_LISTEN and int(local.rpartition(":")[2], 16) == port:
                    found.add(inode)
    return found


def _admin_address() -> str:
    host, port = ADMIN
    try:
        _bound(host, port).close()
    except OSError:
        with _bound(host, 0) as probe:
            port = probe.getsockname()[1]
    return f"{host}:{port}"


# --- the directory ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """With the directory made or found, and no other demo in it."""
    marker = directory / _MARKER
    if os.path.lexists(directory) and not directory.is_dir():
        raise DemoError(f"{directory} is no directory; choose another with --dir DIR")
    if directory.is_dir() and any(directory.iterdir()) and not _is_ours(marker):
        raise DemoError(
            f"{directory} is not empty and was not made by `dgproxy demo`; nothing in it was touched. "
            "Choose another with --dir DIR"
        )
    directory.mkdir(parents=True, exist_ok=True)
    with marker.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"another demo runs in {directory}; stop it, or choose another with --dir DIR") from None
        if not file.tell():
            file.write(_README)
            file.flush()
        yield


def _is_ours(marker: Path) -> bool:
    try:
        text = marker.read_text(errors="replace")
    except OSError:
        return False
    return not text or text.startswith(_MADE_BY)


def prepare(directory: Path, listen: Listen, upstream: str) -> Place:
    """Configuration, CA and certificate, state and audio, made or taken from the demo before."""
    place = Place(directory, fresh=not os.path.lexists(directory / "dgproxy.toml"))
    addresses = {
        "server.listen": json.dumps([str(listen)]),
        "upstream.urls": json.dumps([upstream]),
        "admin.listen": json.dumps(_admin_address()),
    }
    if place.fresh:
        try:
            bootstrap.create(directory, str(listen), upstream)
        except bootstrap.BootstrapError as error:
            raise DemoError(f"{error}\nRemove {directory}, or choose another with --dir DIR") from None
        addresses["server.workers"] = str(WORKERS)
    else:
        _check_certificate(place, listen)
    _set(place.config, addresses)
    for path, package in ((place.audio, "dgproxy.data"), (place.live, "dgproxy.demo"), (place.script, "dgproxy.demo")):
        path.write_bytes(resources.files(package).joinpath(path.name).read_bytes())
    return place


def _check_certificate(place: Place, listen: Listen) -> None:
    host = host_to_dial(listen).strip("[]")
    path = place.directory / "certs" / "server.pem"
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise DemoError(f"{path}: {error}; remove {place.directory}, and the demo makes it anew") from None
    now, first, last = dt.datetime.now(dt.UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= now <= last:
        raise DemoError(
            f"{path} is valid from {first:%Y-%m-%d} to {last:%Y-%m-%d}, and the clock says {now:%Y-%m-%d}; "
            f"set it right, or remove {place.directory}, and the demo makes it anew"
        )
    known = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    if host not in known:
        raise DemoError(
            f"{path} was made for {', '.join(known)}, not for {host}; choose another directory with --dir DIR"
        )


def _set(config: Path, entries: Mapping[str, str]) -> None:
    """Sets one-line entries of a configuration (`{"server.workers": "2"}`, as TOML), and leaves all else as it is."""
    lines = config.read_text().splitlines()
    missing = dict(entries)
    section = ""
    for number, line in enumerate(lines):
        if header := re.fullmatch(r"\s*\[([\w.-]+)\]\s*(#.*)?", line):
            section = header[1]
        elif entry := re.fullmatch(r"\s*(\w+)\s*=\s*(?:[^#\"]|\"[^\"]*\")*(#.*)?", line):
            value = missing.pop(f"{section}.{entry[1]}", None)
            if value is not None:
                lines[number] = f"{f'{entry[1]} = {value}':<40}  {entry[2] or ''}".rstrip()
    if missing:
        raise DemoError(
            f"{config} has no line for {', '.join(missing)}; put it back, or remove {config.parent} to begin anew"
        )
    aside = config.with_suffix(".new")
    aside.write_text("\n".join(lines) + "\n")
    aside.replace(config)
