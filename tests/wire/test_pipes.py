"""Pipes between two clients' bytes: none is ever used again with bytes in it, and there are never many."""

import errno
import fcntl
import os
import socket
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dgproxy.net import pipes as module
from dgproxy.net.pipes import Pipe, Pipes
from tests.support.peers import tcp_pair

MOST = 3


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def in_kernel(pipe: Pipe) -> int:
    return int.from_bytes(fcntl.ioctl(pipe._out, termios.FIONREAD, bytes(4)), "little")


@contextmanager
def connection(buffer: int | None = None) -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = tcp_pair(buffer)
    with one, other:
        yield one, other


def filled(pipes: Pipes, data: bytes) -> Pipe:
    """A pipe with these bytes in it."""
    with connection() as (speaker, source):
        speaker.sendall(data)
        pipe = pipes.filled(source.fileno(), len(data))
        assert pipe is not None
        assert len(pipe) == len(data)
        return pipe


# --- any use ----------------------------------------------------------------------------------------------------------


class Uses(RuleBasedStateMachine):
    """Clients whose bytes go through pipes of one pool, a letter each, in any order and to any end."""

    def __init__(self) -> None:
        super().__init__()
        self.pipes = Pipes(most=MOST, span=65536)
        self.before = descriptors()
        self.held: list[tuple[Pipe, int]] = []  # and whose
        self.client = 0

    @rule(size=st.sampled_from([1, 100, 5000, 60_000]), taken=st.sampled_from([0, 1, 70, 60_000]))
    def begin(self, size: int, taken: int) -> None:
        self.client = (self.client + 1) % 250
        with connection() as (speaker, source):
            speaker.sendall(bytes([self.client]) * size)
            pipe = self.pipes.filled(source.fileno(), size)
        if len(self.held) == MOST:
            assert pipe is None
            return
        assert pipe is not None
        assert len(pipe) == in_kernel(pipe) == size
        if taken:  # as a sink that is full has had some of it
            pipe._size -= len(os.read(pipe._out, min(taken, size)))
        self.held.append((pipe, self.client))

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0, MOST))
    def deliver(self, at: int) -> None:
        pipe, whose = self.held.pop(at % len(self.held))
        size = len(pipe)
        with connection() as (sink, listener):
            pipe.pour(sink.fileno())
            assert not pipe
            got = b""
            listener.settimeout(3)
            while len(got) < size:
                got += listener.recv(65536)
        assert got == bytes([whose]) * size
        self.pipes.give_back(pipe)

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0, MOST))
    def abort(self, at: int) -> None:
        self.pipes.give_back(self.held.pop(at % len(self.held))[0])

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0, MOST))
    def take(self, at: int) -> None:
        pipe, whose = self.held.pop(at % len(self.held))
        size = len(pipe)
        assert pipe.take() == bytes([whose]) * size
        self.pipes.give_back(pipe)

    @rule(ends=st.booleans())
    def say_nothing(self, ends: bool) -> None:  # noqa: FBT001
        with connection() as (speaker, source):
            if ends:
                speaker.close()
                assert self.pipes.filled(source.fileno(), 100) is None
            elif len(self.held) < MOST:
                with pytest.raises(BlockingIOError):
                    self.pipes.filled(source.fileno(), 100)

    def teardown(self) -> None:
        for pipe, _ in self.held:
            self.pipes.give_back(pipe)
        self.pipes.close()
        assert self.pipes.open == 0
        assert descriptors() == self.before

    @invariant()
    def none_is_idle_with_bytes_in_it_and_none_is_lost(self) -> None:
        assert self.pipes.open == len(self.held) + self.pipes.idle <= MOST
        assert descriptors() == self.before + 2 * self.pipes.open
        for pipe in self.pipes._idle:
            assert len(pipe) == in_kernel(pipe) == 0


TestUses = Uses.TestCase
TestUses.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# --- what a pipe is ---------------------------------------------------------------------------------------------------


def test_a_pipe_does_not_block_is_not_inherited_and_holds_what_it_should() -> None:
    pipes = Pipes()
    pipe = filled(pipes, b"x")
    for fd in (pipe._in, pipe._out):
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
        assert not os.get_inheritable(fd)
    assert fcntl.fcntl(pipe._in, fcntl.F_GETPIPE_SZ) == module.SPAN
    pipes.give_back(pipe)  # with the byte in it
    assert (pipes.open, pipes.idle) == (0, 0)


def test_a_pipe_that_the_kernel_knows_to_hold_bytes_is_closed_whatever_we_counted() -> None:
    pipes = Pipes()
    pipe = filled(pipes, b"another's secret")
    pipe._size = 0
    pipes.give_back(pipe)
    assert (pipes.open, pipes.idle) == (0, 0)


def test_a_closed_pipe_is_not_closed_again() -> None:
    """Its numbers are somebody else's then."""
    pipe = Pipe(4096)
    pipe.close()
    with connection():
        before = descriptors()
        pipe.close()
        assert descriptors() == before


# --- what the kernel does not give ------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["pipe2", "room"])
def test_without_a_pipe_bytes_are_copied_and_none_is_asked_for_again_at_once(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(*_: object) -> Any:
        asked.append(1)
        raise OSError(errno.EMFILE if missing == "pipe2" else errno.EPERM, "no more")

    before = descriptors()
    with monkeypatch.context() as patch, connection() as (speaker, source):
        patch.setattr(*((os, "pipe2") if missing == "pipe2" else (fcntl, "fcntl")), refuse)
        speaker.sendall(b"all of it")
        pipes = Pipes()
        for _ in range(100):
            assert pipes.filled(source.fileno(), 9) is None
        assert len(asked) == 1
        assert source.recv(100) == b"all of it"
    assert descriptors() == before
    for _ in range(100, module._BARRED + 1):
        assert pipes._take() is None
    later = filled(pipes, b"later")  # by then it may go again
    pipes.give_back(later)
    assert (pipes.open, pipes.idle) == (0, 0)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOMEM])
def test_where_splice_can_not_bytes_are_copied(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object, **__: object) -> int:
        raise OSError(number, "cannot")

    monkeypatch.setattr(os, "splice", cannot)
    pipes = Pipes()
    with connection() as (_, source):
        assert pipes.filled(source.fileno(), 9) is None
    assert pipes.open == pipes.idle == 1
    pipes.close()


def test_without_splice_there_are_no_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ABLE", False)
    pipes = Pipes()
    with connection() as (speaker, source):
        speaker.sendall(b"bytes")
        assert pipes.filled(source.fileno(), 5) is None
    assert pipes.open == 0


def test_a_connection_that_was_reset_is_broken_and_not_ended() -> None:
    """The error is told once: a read after it would take it for an end."""
    pipes = Pipes()
    with connection() as (speaker, source):
        speaker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        speaker.close()
        with pytest.raises(ConnectionResetError):
            pipes.filled(source.fileno(), 5)
    assert pipes.open == pipes.idle == 1
    pipes.close()
