"""TLS on the real file descriptor: contexts, and a connection that the loop's readers and writers can drive.

Rules of this file: with `libssl`, the only place that imports ssl. Connections are non-blocking `ssl.SSLSocket`s, since
asyncio's TLS transports put two memory buffers between OpenSSL and the socket (performance.md: 1.5 times the cost).
"""

import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Final, Protocol, cast

from dgproxy.net import libssl

WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
WantRead: Final = ssl.SSLWantReadError
WantWrite: Final = ssl.SSLWantWriteError
Ended: Final = ssl.SSLZeroReturnError  # the peer's close_notify, where ours went before it (else a read gives nothing)
TlsError: Final = ssl.SSLError

Context = ssl.SSLContext
OPENSSL: Final = ssl.OPENSSL_VERSION

_MINIMUM: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# TLS 1.2 with forward secrecy and AEAD only; TLS 1.3's suites are not named here and stay as OpenSSL has them.
_LOOPBACK: Final = 5.0  # seconds
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"


class Connection(Protocol):
    """What of `_ssl._SSLSocket` the data plane uses; it saves a Python frame a call over `ssl.SSLSocket`."""

    def do_handshake(self) -> None:
        """As `ssl.SSLSocket.do_handshake`."""

    def read(self, size: int, buffer: Any = ...) -> Any:
        """At most `size` bytes, or with a buffer their number; 0 or b"" after close_notify."""

    def write(self, data: Any) -> int:
        """How many bytes were taken, a record's worth at most."""

    def pending(self) -> int:
        """Decrypted bytes that no poll of the fd will tell of."""

    def shutdown(self) -> Any:
        """close_notify, then the peer's."""


def server_context(certificate: str, private_key: str, minimum: str, ticket_keys: bytes | None = None) -> Context:
    """The context of a listener. With `ticket_keys`, sessions resume on every context that has the same.

    Raises:
        OSError, ssl.SSLError: the pair can't be read, or does not match.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _MINIMUM[minimum]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])  # deepgram.md 1: no SDK asks for h2, curl would take it
    context.load_cert_chain(certificate, private_key)
    extra = libssl.probe()
    if ticket_keys is not None and extra is not None:
        extra.set_ticket_keys(context, ticket_keys)
    return context


def client_context() -> Context:
    """The context for an https upstream: system CAs (or SSL_CERT_FILE), names checked."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def wrap(sock: socket.socket, context: Context, *, server_side: bool, name: str | None = None) -> ssl.SSLSocket:
    """The socket under TLS, its handshake not begun; `sock` is detached and must not be used any more.

    A stream that ends without close_notify is an error (`ssl.SSLEOFError`), so that a truncation shows.
    """
    return context.wrap_socket(
        sock,
        server_side=server_side,
        server_hostname=name,
        do_handshake_on_connect=False,
        suppress_ragged_eofs=False,
    )


def connection(sock: ssl.SSLSocket) -> Connection:
    """The TLS connection of a wrapped socket."""
    return cast("Connection", cast("Any", sock)._sslobj)  # noqa: SLF001 - see Connection


def close_notify(tls: Connection) -> bool:
    """Tells the peer that nothing more comes from us. Whether its bytes can still be read.

    Raises:
        ssl.SSLWantWriteError: the socket is full; nothing was told yet.
    """
    extra = libssl.probe()
    if extra is not None:
        if not extra.send_close_notify(tls):
            raise WantWrite
        return True
    try:
        tls.shutdown()
    except WantWrite:
        raise
    except OSError:  # the peer's close_notify is not there yet, or data is in its place
        return False
    return False


def hold_ticket(tls: Connection) -> bool:
    """Before a server's handshake: has its session ticket wait for `send_ticket`. Whether it will.

    OpenSSL would send tickets right behind the handshake. A client that reads in one thread and writes in another, as
    `websockets.sync` does and with it Deepgram's Python SDKs, is in SSL_read and SSL_write at once when they come, and
    hangs now and then: Python's ssl locks neither. Behind the request, nobody writes any more.
    """
    extra = libssl.probe()
    return extra is not None and extra.hold_ticket(tls)


def send_ticket(tls: Connection) -> None:
    """Sends the session ticket that was held, before whatever is written next."""
    extra = libssl.probe()
    assert extra is not None  # noqa: S101 - hold_ticket said so
    extra.send_ticket(tls)


@contextlib.contextmanager
def loopback() -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """Both ends of a TLS connection within this process, the server's non-blocking; for self-tests.

    Without a certificate, hence TLS 1.2 (RFC 8446 has no anonymous suites).

    Raises:
        OSError: this OpenSSL has no such suite, or a socket could not be had.
    """
    server, client = socket.socketpair()
    with server, client:
        ends = []
        for end, side in (server, ssl.PROTOCOL_TLS_SERVER), (client, ssl.PROTOCOL_TLS_CLIENT):
            end.settimeout(_LOOPBACK)
            context = ssl.SSLContext(side)
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
            ends.append(wrap(end, context, server_side=side is ssl.PROTOCOL_TLS_SERVER))
        with ends[0], ends[1]:
            for end in ends:
                end.settimeout(0)
            left = list(ends)
            while left:  # each turn's bytes are there at once
                for end in ends:
                    with contextlib.suppress(WantRead):
                        end.do_handshake()
                        left = [other for other in left if other is not end]
            ends[1].settimeout(_LOOPBACK)
            yield ends[0], ends[1]


def spoke_plain_http(error: BaseException) -> bool:
    """Whether a handshake failed because the client sent HTTP without TLS."""
    return isinstance(error, ssl.SSLError) and error.reason == "HTTP_REQUEST"
