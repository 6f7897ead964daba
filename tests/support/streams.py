"""WebSockets over plain sockets and TLS, frame by frame: what a client of no library can do, and what it then sees."""

import base64
import os
import socket
import ssl
import struct
from dataclasses import dataclass
from typing import Final

from tests.support.proxy import Proxy

PATIENCE: Final = 20.0
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MASK: Final = b"\x37\xfa\x21\x3d"


@dataclass(frozen=True)
class Frame:
    """A frame from a server."""

    fin: bool
    opcode: int
    payload: bytes

    @property
    def close(self) -> tuple[int, str]:
        """The code and reason of a Close."""
        assert self.opcode == CLOSE
        return int.from_bytes(self.payload[:2], "big"), self.payload[2:].decode()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A client's frame."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = b"\xfe" + struct.pack("!H", size)
    else:
        length = b"\xff" + struct.pack("!Q", size)
    masked = bytes(byte ^ MASK[at % 4] for at, byte in enumerate(payload))
    return bytes([(0x80 if fin else 0) | opcode]) + length + MASK + masked


class RawStream:
    """An open WebSocket. `end` says how it ended, once it was read to its end: "eof", or "cut" without close_notify."""

    def __init__(self, proxy: Proxy, key: str, target: str = "/v1/listen", receive_buffer: int | None = None) -> None:
        self.sock: socket.socket = socket.socket()
        self.sock.settimeout(PATIENCE)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.connect(("127.0.0.1", proxy.port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = self.sock.getsockname()[1]
        self.sock = proxy.client_tls().wrap_socket(self.sock, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
        nonce = base64.b64encode(os.urandom(16)).decode()
        self.sock.sendall(
            f"GET {target} HTTP/1.1\r\nHost: dg\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {nonce}\r\nAuthorization: Token {key}\r\n\r\n".encode()
        )
        self._data = b""
        self.end = ""
        while b"\r\n\r\n" not in self._data:
            self._data += self.sock.recv(65536)
        self.head, _, self._data = self._data.partition(b"\r\n\r\n")
        assert self.head.startswith(b"HTTP/1.1 101 "), self.head

    def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self.sock.sendall(data)

    def frame(self) -> Frame | None:
        """The next frame; None at the end of the stream, however it comes."""
        while (size := _frame_size(self._data)) is None or len(self._data) < size:
            if not self._more():
                return None
        head = 2 if self._data[1] < 126 else 4 if self._data[1] == 126 else 10
        one, self._data = self._data[:size], self._data[size:]
        return Frame(bool(one[0] & 0x80), one[0] & 0x0F, one[head:])

    def close_frame(self) -> Frame | None:
        """The Close that ends what is sent, whatever comes before it; None if there is none."""
        found = None
        while (one := self.frame()) is not None:
            if one.opcode == CLOSE:
                found = one
        return found

    @property
    def left(self) -> bytes:
        """What came after the last whole frame."""
        return self._data

    def _more(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except (ConnectionError, ssl.SSLEOFError):  # Python's ssl calls a reset one or the other
            self.end = "cut"
            return False
        except ssl.SSLError as error:
            self.end = f"tls: {error.reason}"
            return False
        if not data:
            self.end = "eof"
        self._data += data
        return bool(data)

    def close(self) -> None:
        """Ends it without a word."""
        self.sock.close()


def _frame_size(data: bytes) -> int | None:
    if len(data) < 2:
        return None
    assert not data[1] & 0x80, "a server's frame has no mask"
    if data[1] < 126:
        return 2 + data[1]
    head, form = (4, "!H") if data[1] == 126 else (10, "!Q")
    if len(data) < head:
        return None
    size: int = struct.unpack_from(form, data, 2)[0]
    return head + size
