"""An fd in the loop: who is told of what, in both forms, which are to be one."""

import asyncio
import gc
import os
import socket
import struct
import traceback
import weakref
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

import pytest
from hypothesis import given, settings, strategies as st

from dgproxy.net import poll
from tests.support import usage
from tests.support.peers import tcp_pair

_WHY_NOT: Final = poll.why_not_native()
NATIVE: Final = [
    pytest.param(False, id="loop"),
    pytest.param(
        True, id="native", marks=pytest.mark.skipif(bool(_WHY_NOT), reason=f"no native pump, nor its polls: {_WHY_NOT}")
    ),
]
each_form = pytest.mark.parametrize("native", NATIVE)
PATIENCE: Final = 5.0
Work = Callable[[], Coroutine[Any, Any, None]]


def run(work: Work, *, native: bool) -> None:
    with asyncio.Runner(loop_factory=lambda: poll.new_event_loop(native=native)) as runner:
        assert isinstance(runner.get_loop(), poll.Loop) is native
        runner.run(asyncio.wait_for(work(), PATIENCE))


def made(sock: socket.socket) -> poll.Poll:
    return poll.make(asyncio.get_running_loop(), sock.fileno())


async def turns(count: int = 5) -> None:
    """Turns of the loop, in each of which it asks the kernel."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = tcp_pair(8192)
    yield near, far
    near.close()
    far.close()


@each_form
def test_each_is_told_of_its_own(pair: tuple[socket.socket, socket.socket], *, native: bool) -> None:
    near, far = pair

    async def work() -> None:
        told: list[str] = []
        ours = made(near)
        ours.read(lambda: told.append(near.recv(100).decode()))
        await turns()
        assert told == []
        far.send(b"one")
        await turns()
        assert told == ["one"]

        def on_room() -> None:
            told.append("room")
            ours.write(None)

        ours.write(on_room)
        await turns()
        assert told == ["one", "room"]
        far.send(b"two")
        await turns()
        assert told == ["one", "room", "two"]
        ours.read(None)
        far.send(b"three")
        await turns()
        assert len(told) == 3
        ours.read(lambda: told.append(near.recv(2).decode()))  # as often as there is something left
        await turns()
        assert told[3:] == ["th", "re", "e"]
        ours.close()

    run(work, native=native)


@each_form
def test_the_last_who_asked_is_told_and_nobody_else(pair: tuple[socket.socket, socket.socket], *, native: bool) -> None:
    near, far = pair

    async def work() -> None:
        told: list[int] = []
        ours = made(near)

        def first() -> None:
            told.append(1)
            ours.read(lambda: told.append(int(near.recv(1))))

        ours.read(lambda: told.append(0))
        ours.read(first)
        far.send(b"2")
        await turns()
        assert told == [1, 2]
        ours.close()

    run(work, native=native)


@each_form
def test_a_reader_that_closes_leaves_the_writer_untold_and_the_number_to_the_next(
    pair: tuple[socket.socket, socket.socket], *, native: bool
) -> None:
    near, far = pair

    async def work() -> None:
        told: list[str] = []
        ours = made(near)

        def end() -> None:
            told.append("read")
            ours.close()

        far.send(b"x")
        await turns()  # so that both are due at once
        ours.read(end)
        ours.write(lambda: told.append("room"))
        await turns()
        assert "read" in told
        assert told[-1] == "read"  # a loop may tell of the room first, but none afterwards
        told.clear()
        with pytest.raises(ValueError, match="closed"):
            ours.read(end)
        with pytest.raises(ValueError, match="closed"):
            ours.write(end)
        ours.read(None)
        ours.write(None)
        ours.close()
        again = made(near)
        again.read(lambda: told.append(near.recv(1).decode()))
        await turns()
        ours.close()
        far.send(b"y")
        await turns()
        assert told == ["x", "y"]
        again.close()

    run(work, native=native)


@each_form
def test_one_of_two_that_are_due_at_once_may_close_the_other(*, native: bool) -> None:
    async def work() -> None:
        pairs = [tcp_pair() for _ in range(20)]
        polls = [made(near) for near, _ in pairs]
        told: list[int] = []

        def end_all(number: int) -> None:
            told.append(number)
            for each in polls:
                each.close()

        for number, each in enumerate(polls):
            each.read(lambda number=number: end_all(number))  # type: ignore[misc]
        for _, far in pairs:
            far.send(b"x")
        await turns()
        assert len(told) == 1
        for near, far in pairs:
            near.close()
            far.close()

    run(work, native=native)


@each_form
def test_what_a_callback_raises_goes_to_the_loops_handler(
    pair: tuple[socket.socket, socket.socket], *, native: bool
) -> None:
    near, far = pair

    async def work() -> None:
        raised: list[BaseException] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context["exception"]))
        ours = made(near)

        def fail() -> None:
            near.recv(10)
            raise RuntimeError("as said")

        ours.read(fail)
        far.send(b"x")
        await turns()
        far.send(b"x")
        await turns()
        assert [str(error) for error in raised] == ["as said", "as said"]
        assert "fail" in [line.name for line in traceback.extract_tb(raised[0].__traceback__)]
        ours.close()

    run(work, native=native)


@each_form
def test_a_reset_is_told_to_both_and_again_to_whoever_asks_again(
    pair: tuple[socket.socket, socket.socket], *, native: bool
) -> None:
    near, far = pair

    async def work() -> None:
        told: list[str] = []
        ours = made(near)
        ours.read(lambda: told.append("read"))
        while near.send(bytes(65536)) == 65536:
            pass
        ours.write(lambda: told.append("write"))
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        while not told:
            await turns(1)
        await turns()
        assert set(told) == {"read", "write"}
        told.clear()
        ours.write(None)
        ours.read(lambda: told.append("again"))
        await turns()
        assert "again" in told
        ours.close()

    run(work, native=native)


@each_form
def test_what_waits_is_kept_by_the_loop_alone_and_let_go_of_afterwards(
    pair: tuple[socket.socket, socket.socket], *, native: bool
) -> None:
    near, far = pair

    class Owner:
        def __init__(self) -> None:
            self.poll = made(near)
            self.told = 0

        def on_readable(self) -> None:
            self.told += 1
            near.recv(10)

    async def work() -> None:
        owner = Owner()
        owner.poll.read(owner.on_readable)
        seen = weakref.ref(owner)
        del owner
        gc.collect()
        far.send(b"x")
        await turns()
        alive = seen()
        assert alive is not None
        assert alive.told == 1
        alive.poll.close()
        del alive
        await turns()
        gc.collect()
        assert seen() is None

    run(work, native=native)


@each_form
def test_a_loop_that_is_closed_leaves_nothing(pair: tuple[socket.socket, socket.socket], *, native: bool) -> None:
    near, _ = pair
    left: list[poll.Poll] = []

    async def work() -> None:
        left.append(made(near))
        left[0].read(lambda: None)

    before = usage.descriptors(os.getpid())
    run(work, native=native)
    assert usage.descriptors(os.getpid()) == before
    if native:
        with pytest.raises(ValueError, match="closed"):
            left[0].read(lambda: None)
        left[0].close()


@each_form
def test_what_is_no_fd_for_a_loop_is_refused(*, native: bool) -> None:
    async def work() -> None:
        ours = poll.make(asyncio.get_running_loop(), 9999)
        with pytest.raises(OSError, match="Bad file descriptor"):
            ours.read(lambda: None)
        ours.close()

    run(work, native=native)


@pytest.mark.skipif(bool(_WHY_NOT), reason=f"no native pump, nor its polls: {_WHY_NOT}")
@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.sampled_from(["read", "no read", "write", "no write", "send", "take", "fill", "make room", "turn"]),
        max_size=40,
    )
)
def test_both_forms_tell_the_same(steps: list[str]) -> None:
    """Whatever is asked and happens in whatever order."""
    seen: list[list[Any]] = []
    for native in (False, True):
        near, far = tcp_pair(8192)
        told: list[Any] = []

        async def work(near: socket.socket = near, far: socket.socket = far, told: list[Any] = told) -> None:
            ours = made(near)
            due = {"read": False, "write": False}

            def reads() -> None:
                due["read"] = True

            def writes() -> None:
                due["write"] = True

            for step in steps:
                match step:
                    case "read":
                        ours.read(reads)
                    case "no read":
                        ours.read(None)
                    case "write":
                        ours.write(writes)
                    case "no write":
                        ours.write(None)
                    case "send":
                        far.send(b"x")
                    case "take":
                        _take(near)
                    case "fill":
                        _fill(near)
                    case "make room":
                        while _take(far):
                            await turns(1)
                await turns(3)
                due.update(read=False, write=False)
                await turns(3)
                told.append((step, *due.values()))
            ours.close()

        run(work, native=native)
        near.close()
        far.close()
        seen.append(told)
    assert seen[0] == seen[1]


def _take(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1 << 20))
    except BlockingIOError:
        return False


def _fill(sock: socket.socket) -> None:
    try:
        while True:
            sock.send(bytes(65536))
    except BlockingIOError:
        pass
