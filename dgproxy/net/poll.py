"""Has the loop tell when an fd can be read or written: by libuv itself (_poll.c), or by the loop's readers and writers.

uvloop makes an object for each fd and each callback, and runs each event in a context of its own: 3 % of what a message
of an open stream costs, and of what a short connection does.

Rules of this file:
- Both forms are equal: the same tests run on both. The compiled one is used where it is built and proven, in loops made
  by `new_event_loop`.
- An endpoint's fd is polled by its own Poll alone: libuv allows an fd but one.
"""

import asyncio
import contextlib
import ctypes
import functools
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

import uvloop
import uvloop.loop as uv

_poll: Any = None
with contextlib.suppress(ImportError):  # it is built where there is a C compiler
    from dgproxy.net import _poll

Callback = Callable[[], object]
_CALLS: Final = ("uv_handle_size", "uv_poll_init", "uv_poll_start", "uv_poll_stop", "uv_close")  # in _poll.bind's order


class Poll(Protocol):
    """What the loop does about one fd, until it is closed."""

    def read(self, callback: Callback | None) -> None:
        """Has this called, and nothing else, whenever there is something to read; None: nothing.

        Of an error the kernel may tell once; another call of this has it tell again.

        Raises:
            ValueError: it is closed, and there is a callback.
        """

    def write(self, callback: Callback | None) -> None:
        """The same, whenever there is room to write."""

    def close(self) -> None:
        """Before the fd is closed, whose number will be another's; may be called twice."""


class LoopPoll:
    """By the readers and writers of any loop."""

    __slots__ = ("_closed", "_fd", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self._loop = loop
        self._fd = fd
        self._closed = False

    def read(self, callback: Callback | None) -> None:
        """See Poll. Of a reset uvloop keeps a dead handle, and refuses others until it is taken off."""
        if self._is_open_for(callback):
            self._loop.remove_reader(self._fd)
            if callback is not None:
                self._loop.add_reader(self._fd, callback)

    def write(self, callback: Callback | None) -> None:
        """See Poll."""
        if self._is_open_for(callback):
            self._loop.remove_writer(self._fd)
            if callback is not None:
                self._loop.add_writer(self._fd, callback)

    def close(self) -> None:
        """See Poll."""
        self.read(None)
        self.write(None)
        self._closed = True

    def _is_open_for(self, callback: Callback | None) -> bool:
        if self._closed and callback is not None:
            raise ValueError("it is closed")
        return not self._closed


class Loop(uvloop.Loop):
    """uvloop that has fds polled by libuv itself."""

    def poll(self, fd: int) -> Poll:
        """Of one fd."""
        made: Poll = _poll.Poll(self, _uv_loop(self), fd)
        return made

    def close(self) -> None:
        """Closes the loop, and before it whatever is polled still: uvloop knows nothing of that."""
        if not self.is_closed():
            _poll.close_all(self)
        super().close()


def make(loop: asyncio.AbstractEventLoop, fd: int) -> Poll:
    """The poll of one fd, in the form that the loop is for."""
    native: Callable[[int], Poll] | None = getattr(loop, "poll", None)
    return LoopPoll(loop, fd) if native is None else native(fd)


def new_event_loop(*, native: bool) -> asyncio.AbstractEventLoop:
    """A uvloop; `native`: with the compiled polls, if they can be had."""
    return Loop() if native and not why_not_native() else uvloop.new_event_loop()


@functools.cache
def why_not_native() -> str:
    """Why the compiled form can't be used in this process; "" if it can. Proven by having it tell of a byte, once."""
    if _poll is None:
        return "it was not built, for want of a C compiler and Python's headers"
    try:
        library = ctypes.CDLL(uv.__file__)
        addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in _CALLS]
    except (OSError, AttributeError):
        return "this uvloop does not show its libuv"
    _poll.bind(*addresses)
    try:
        with asyncio.Runner(loop_factory=Loop) as runner:
            return "" if runner.run(_tells()) else "it failed its self-test"
    except OSError as error:
        return f"its self-test could not be run: {error}"


def _uv_loop(loop: uvloop.Loop) -> object:
    """A capsule of the `uv_loop_t *`."""
    pointer: object = uv.libuv_get_loop_t_ptr(loop)  # type: ignore[attr-defined]
    return pointer


async def _tells() -> bool:
    """Whether a byte that is sent is told of, and room to send it."""
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    with near, far:
        told = asyncio.Event()
        reading, writing = make(loop, near.fileno()), make(loop, far.fileno())

        def on_writable() -> None:
            writing.write(None)
            far.send(b"1")

        try:
            writing.write(on_writable)
            reading.read(told.set)
            async with asyncio.timeout(1):
                await told.wait()
            return near.recv(1) == b"1"
        except TimeoutError:
            return False
        finally:
            reading.close()
            writing.close()
