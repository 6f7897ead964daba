"""The control socket: how a command reaches the running proxy. Both ends of the protocol, and no business.

Rules of this file:

- One line of JSON each way: {"v":1,"command":"keys.create","args":{...}}, then {"ok":true,"result":...} or
  {"ok":false,"code":"...","error":"..."}; more requests may follow on the same connection.
- The socket is its owner's alone (mode 0600) from the moment it exists, and the peer is who the kernel says it is.
- Lines, clients and silences are bounded; whatever a client does harms nobody but itself. A command that has begun is
  finished even if its client has gone.
- A live server's socket is never taken from it; a dead one's is replaced. Only what we bound is removed.
"""

import asyncio
import os
import socket
import stat
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

VERSION: Final = 1
MAX_LINE: Final = 1024 * 1024  # bytes
MAX_CLIENTS: Final = 64
READ_TIMEOUT: Final = 10.0  # seconds for a request to begin and end, and for a client to take its answer
MAX_PATH: Final = 107  # bytes; sun_path less its NUL, unix(7)

_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid; unix(7)
_CONNECT_RETRY: Final = 0.02  # seconds, while the server's queue is full


class ControlError(Exception):
    """A command that was refused or failed: a code for programs and a sentence for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class NotRunning(Exception):  # noqa: N818 - what is, not whose fault
    """No proxy answers on the control socket."""


class ControlTimeout(Exception):  # noqa: N818
    """No answer in time; the command may have been carried out or not."""


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    v: int
    command: str
    args: dict[str, Any] = {}


class _Response(msgspec.Struct, omit_defaults=True):
    ok: bool
    result: Any = None
    code: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """A command as its handler gets it. The uid and pid are the kernel's word on who connected."""

    args: dict[str, Any]
    uid: int
    pid: int


Handler = Callable[[Call], Awaitable[object]]


# --- server -----------------------------------------------------------------------------------------------------


class ControlServer:
    """Answers commands on a Unix socket.

    A handler returns what JSON can say, or raises ControlError for the client to see; any other exception goes to
    `failed(command, exception)`, and the client learns only that there was one.
    """

    def __init__(self, handlers: Mapping[str, Handler], failed: Callable[[str, Exception], None]) -> None:
        self._handlers = handlers
        self._failed = failed
        self._clients: dict[asyncio.Task[None], _Client] = {}
        self._server: asyncio.Server | None = None
        self._path = Path()
        self._inode: tuple[int, int] | None = None

    async def start(self, path: Path) -> None:
        """Listens at this path.

        Raises:
            OSError: the path is too long, taken by a live server or by something that is no socket, or unusable.
        """
        listener = _bind(path)
        self._path, self._inode = path, _inode(path)
        self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=MAX_LINE)

    async def close(self) -> None:
        """Accepts no more, lets commands that have begun end and answer, and removes the socket if it is still ours."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        if _inode(self._path) == self._inode:
            self._path.unlink()
        for task, client in self._clients.items():
            client.stop(task)
        await asyncio.gather(*self._clients, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Client(reader, writer, self._handlers, self._failed)
        task = asyncio.ensure_future(client.serve(admit=len(self._clients) < MAX_CLIENTS))
        self._clients[task] = client
        task.add_done_callback(self._clients.pop)


class _Client:
    """One connection. Owner of its writer, which `serve` closes whatever happens."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handlers: Mapping[str, Handler],
        failed: Callable[[str, Exception], None],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._handlers = handlers
        self._failed = failed
        self._idle = False
        self._stopping = False

    def stop(self, task: asyncio.Task[None]) -> None:
        """No further request is read; one that was read is still answered."""
        self._stopping = True
        if self._idle:
            task.cancel()

    async def serve(self, *, admit: bool) -> None:
        """Answers until the client goes, says or takes nothing for too long, or breaks the protocol."""
        try:
            if not admit:
                await self._answer(_refusal("busy", f"{MAX_CLIENTS} clients are connected; try again"))
                return
            pid, uid, _ = _CREDENTIALS.unpack(self._peer())
            while not self._stopping and await self._exchange(uid, pid):
                pass
        except TimeoutError:
            self._writer.transport.abort()
        except (OSError, asyncio.IncompleteReadError):
            pass  # it has gone
        finally:
            self._writer.close()

    def _peer(self) -> bytes:
        held: socket.socket = self._writer.get_extra_info("socket")
        return held.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)

    async def _exchange(self, uid: int, pid: int) -> bool:
        """One request and its answer; False when there is to be no other."""
        self._idle = True
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                line = await self._reader.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            await self._answer(_refusal("too_long", f"a request has at most {MAX_LINE} bytes"))
            return False
        finally:
            self._idle = False
        try:
            request = msgspec.json.decode(line, type=_Request)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            await self._answer(_refusal("bad_request", "not a request of this protocol"))
            return False
        await self._answer(await self._carry_out(request, uid, pid))
        return True

    async def _carry_out(self, request: _Request, uid: int, pid: int) -> bytes:
        if request.v != VERSION:
            return _refusal("version", f"this proxy speaks version {VERSION}; use the dgproxy that it was started with")
        handler = self._handlers.get(request.command)
        if handler is None:
            return _refusal("unknown_command", "this proxy does not know the command")
        try:
            answer = _line(_Response(ok=True, result=await handler(Call(request.args, uid, pid))))
        except ControlError as error:
            return _refusal(error.code, str(error))
        except Exception as error:  # noqa: BLE001 - the server outlives its handlers
            self._failed(request.command, error)
            return _refusal("internal", "the command failed inside the proxy; its log says why")
        return answer if len(answer) <= MAX_LINE else _refusal("too_long", "the answer is too long for the socket")

    async def _answer(self, line: bytes) -> None:
        self._writer.write(line)
        async with asyncio.timeout(READ_TIMEOUT):
            await self._writer.drain()


def _line(response: _Response) -> bytes:
    return msgspec.json.encode(response) + b"\n"


def _refusal(code: str, error: str) -> bytes:
    return _line(_Response(ok=False, code=code, error=error))


def _check_path(path: Path) -> str:
    if len(os.fsencode(path)) > MAX_PATH:
        raise OSError(f"{path}: a Unix socket's path has at most {MAX_PATH} bytes; set [admin] socket to a shorter one")
    return str(path)


def _bind(path: Path) -> socket.socket:
    name = _check_path(path)
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    umask = os.umask(0o177)  # so that nobody else can connect, not even in the moment before a chmod
    try:
        listener.bind(name)
    except OSError as error:
        listener.close()
        raise OSError(f"{path}: cannot listen here ({error.strerror})") from error
    finally:
        os.umask(umask)
    return listener


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _clear(path: Path) -> None:
    """Makes way for a new socket, if what is there is a dead server's."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(f"{path}: is there and is no socket; remove it, or set [admin] socket to another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError:
            pass  # such as a full queue: somebody listens
    raise OSError(f"{path}: another process listens here; is a dgproxy running?")


# --- client -----------------------------------------------------------------------------------------------------


def call(path: Path, command: str, args: Mapping[str, Any], timeout: float) -> Any:
    """Asks the running proxy, and gives its result. Synchronous; `timeout` in seconds is for all of it.

    Raises:
        NotRunning: nobody listens, so certainly nothing was done.
        ControlError: it was refused or failed; or (code "closed") the proxy went away before it answered.
        ControlTimeout: no answer in time.
    """
    name = _check_path(path)
    deadline = time.monotonic() + timeout
    try:
        request = msgspec.json.encode(_Request(VERSION, command, dict(args))) + b"\n"
    except UnicodeEncodeError:
        raise ControlError("bad_request", "an argument is not valid Unicode text") from None
    if len(request) > MAX_LINE:
        raise ControlError("too_long", f"a request has at most {MAX_LINE} bytes")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        try:
            _connect(peer, name, deadline)
            _time_left(peer, deadline)
            peer.sendall(request)
            answer = _read_line(peer, deadline)
        except TimeoutError:
            raise ControlTimeout(f"{path}: no answer within {timeout:g} seconds") from None
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
    if not answer.endswith(b"\n"):
        raise ControlError("closed", "the proxy went away before it answered; look whether the command was carried out")
    try:
        response = msgspec.json.decode(answer, type=_Response)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ControlError("bad_answer", f"{path}: what listens there is no dgproxy") from None
    if not response.ok:
        raise ControlError(response.code, response.error)
    return response.result


def _connect(peer: socket.socket, name: str, deadline: float) -> None:
    while True:
        _time_left(peer, deadline)
        try:
            peer.connect(name)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            raise NotRunning(f"{name}: no proxy answers") from None
        except PermissionError:
            raise ControlError("forbidden", f"{name}: only its owner and root may use it") from None
        except BlockingIOError:  # its queue is full, connect(2)
            time.sleep(_CONNECT_RETRY)
        except OSError as error:
            raise ControlError("unreachable", f"{name}: {error.strerror or error}") from None
        else:
            return


def _read_line(peer: socket.socket, deadline: float) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n") and len(received) <= MAX_LINE:
        _time_left(peer, deadline)
        data = peer.recv(65536)
        if not data:
            break
        received += data
    return bytes(received)


def _time_left(peer: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    peer.settimeout(left)
