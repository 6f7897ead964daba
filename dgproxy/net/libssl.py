"""The calls of OpenSSL that Python's ssl lacks, on the library that Python itself has loaded.

Rules of this file: a pointer is taken only out of objects whose layout is known (CPython's own, of the versions listed)
and was proven in this process by `probe`; where it can't be proven there is no Libssl, and callers do without.

CPython keeps the `SSL_CTX *` of an SSLContext right behind the object's head, and the `SSL *` of its `_ssl._SSLSocket`
one pointer further (Modules/_ssl.c, PySSLContext and PySSLSocket).
"""

import ctypes
import functools
import ssl
import sys
from typing import Any, Final

_TESTED: Final = frozenset({(3, 11), (3, 12), (3, 13)})
_POINTER: Final = ctypes.sizeof(ctypes.c_void_p)
_HEAD: Final = object.__basicsize__
_SET_TICKET_KEYS: Final = 59  # SSL_CTRL_SET_TLSEXT_TICKET_KEYS, openssl/ssl.h
_WANT_WRITE: Final = 3  # SSL_ERROR_WANT_WRITE
TICKET_KEYS_LENGTH: Final = 80  # OpenSSL 3: 16 name, 32 HMAC, 32 AES


class Libssl:
    """OpenSSL beyond Python's ssl; made by `probe` alone."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._ctx_ctrl = library.SSL_CTX_ctrl
        self._ctx_ctrl.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p)
        self._ctx_ctrl.restype = ctypes.c_long
        self._ctx_options = library.SSL_CTX_get_options
        self._ctx_options.argtypes = (ctypes.c_void_p,)
        self._ctx_options.restype = ctypes.c_uint64
        self._ssl_ctx = library.SSL_get_SSL_CTX
        self._ssl_ctx.argtypes = (ctypes.c_void_p,)
        self._ssl_ctx.restype = ctypes.c_void_p
        self._shutdown = library.SSL_shutdown
        self._shutdown.argtypes = (ctypes.c_void_p,)
        self._shutdown.restype = ctypes.c_int
        self._get_error = library.SSL_get_error
        self._get_error.argtypes = (ctypes.c_void_p, ctypes.c_int)
        self._get_error.restype = ctypes.c_int
        self._clear_error = library.ERR_clear_error
        self._clear_error.argtypes = ()
        self._clear_error.restype = None
        self._set_num_tickets = library.SSL_set_num_tickets
        self._set_num_tickets.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self._set_num_tickets.restype = ctypes.c_int
        self._new_ticket = getattr(library, "SSL_new_session_ticket", None)  # OpenSSL 3
        if self._new_ticket is not None:
            self._new_ticket.argtypes = (ctypes.c_void_p,)
            self._new_ticket.restype = ctypes.c_int
        self._pump_calls = tuple(
            ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
            for name in (
                "SSL_read",
                "SSL_write",
                "SSL_get_error",
                "SSL_has_pending",
                "SSL_set_read_ahead",
                "ERR_clear_error",
            )
        )

    def addresses(self) -> tuple[int, ...]:
        """Where the functions are that `_pump.bind` takes, in its order."""
        return self._pump_calls

    def set_ticket_keys(self, context: ssl.SSLContext, keys: bytes) -> bool:
        """Gives a server context the keys of its session tickets; contexts with the same keys resume each other's."""
        if len(keys) != TICKET_KEYS_LENGTH:
            raise ValueError(f"ticket keys are {TICKET_KEYS_LENGTH} bytes")
        return bool(self._ctx_ctrl(_context_pointer(context), _SET_TICKET_KEYS, len(keys), keys))

    def send_close_notify(self, sslobj: Any) -> bool:
        """Ends our side of a TLS connection and leaves the other side readable; False if the socket is full: try again.

        `_SSLSocket.shutdown` would go on to read, and fails for good where the peer still sends.
        """
        pointer = _connection_pointer(sslobj)
        self._clear_error()
        result = self._shutdown(pointer)
        full = result < 0 and self._get_error(pointer, result) == _WANT_WRITE
        self._clear_error()
        return not full

    def hold_ticket(self, sslobj: Any) -> bool:
        """Before a handshake: no session ticket is sent by itself. Whether `send_ticket` can make up for it."""
        if self._new_ticket is None:
            return False
        return bool(self._set_num_tickets(_connection_pointer(sslobj), 0))

    def send_ticket(self, sslobj: Any) -> None:
        """Puts a session ticket before the next bytes that are written; under TLS 1.2 it has gone already."""
        assert self._new_ticket is not None  # noqa: S101 - hold_ticket said so
        self._new_ticket(_connection_pointer(sslobj))

    def proves(self) -> bool:
        """Whether the layouts are as assumed: what OpenSSL says through our pointers is what Python says."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        pointer = _context_pointer(context)
        if self._ctx_options(pointer) != context.options:
            return False
        context.options ^= ssl.OP_NO_TICKET
        if self._ctx_options(pointer) != context.options:
            return False
        connection: Any = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
        return bool(self._ssl_ctx(_connection_pointer(connection._sslobj)) == pointer)  # noqa: SLF001


def _context_pointer(context: ssl.SSLContext) -> int | None:
    return ctypes.c_void_p.from_address(id(context) + _HEAD).value


def pointer(sslobj: Any) -> int:
    """The `SSL *` of a TLS connection, which lives as long as that object does; only for whoever has a Libssl."""
    return _connection_pointer(sslobj) or 0


def _connection_pointer(sslobj: Any) -> int | None:
    return ctypes.c_void_p.from_address(id(sslobj) + _HEAD + _POINTER).value


@functools.cache
def probe() -> Libssl | None:
    """OpenSSL's extra calls, or None where this Python is not one whose layouts are known and proven."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] not in _TESTED or 2 * _POINTER != _HEAD:
        return None
    try:
        import _ssl  # noqa: PLC0415 - private to CPython, and only there

        library = Libssl(ctypes.CDLL(getattr(_ssl, "__file__", None)))
    except (ImportError, OSError, AttributeError):
        return None
    return library if library.proves() else None
