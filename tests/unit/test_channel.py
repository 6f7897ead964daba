"""Messages and file descriptors between two processes: none lost, none mixed up, and an end that is told once."""

import asyncio
import os
import resource
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from dgproxy import ipc
from dgproxy.access.limits import Slot
from dgproxy.net.channel import Channel

PATIENCE = 10.0


class End:
    """One end, with all that it heard."""

    def __init__(self, sock: socket.socket, on_message: Callable[[ipc.Up], None] | None = None) -> None:
        self.heard: list[ipc.Up] = []
        self.ended = 0
        self.sock = sock
        self._also = on_message
        self.channel: Channel[ipc.Up] = Channel(
            asyncio.get_running_loop(), sock, ipc.Unpacker(ipc.UP), self._on_message, self._on_eof
        )

    def _on_message(self, message: ipc.Up) -> None:
        self.heard.append(message)
        if self._also is not None:
            self._also(message)

    def _on_eof(self) -> None:
        self.ended += 1


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    for factory in (uvloop.new_event_loop, asyncio.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(work(), PATIENCE))


async def until(wanted: Callable[[], bool]) -> None:
    while not wanted():
        await ticks(1)


async def ticks(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def open_fds() -> set[int]:
    return {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}


def big(number: int, size: int = 300_000) -> ipc.GiveBack:
    """A message of more than `size` bytes, not like any other."""
    return ipc.GiveBack(tuple(Slot((number << 40) + n) for n in range(size // 9)))


def test_messages_pass_both_ways_in_order() -> None:
    async def work() -> None:
        one, other = (End(sock) for sock in socket.socketpair())
        for number in range(200):
            one.channel.send(ipc.Applied(number))
            other.channel.send(ipc.Ready(1, number))
        await until(lambda: len(one.heard) == len(other.heard) == 200)
        assert other.heard == [ipc.Applied(number) for number in range(200)]
        assert one.heard == [ipc.Ready(1, number) for number in range(200)]
        one.channel.close()
        await until(lambda: other.ended == 1)
        assert one.ended == 0
        other.channel.close()

    run(work)


def test_file_descriptors_arrive_with_the_message_that_names_them() -> None:
    async def work() -> None:
        names: list[str] = []

        def take(message: ipc.Up) -> None:
            if isinstance(message, ipc.Ready):
                for _ in range(message.pid):
                    with os.fdopen(end.channel.take_fd(), "rb") as file:
                        assert not os.get_inheritable(file.fileno())
                        names.append(os.pread(file.fileno(), 10, 0).decode())

        one, two = socket.socketpair()
        here, end = End(one), End(two, take)
        files = [os.memfd_create(str(number)) for number in range(6)]
        for number, fd in enumerate(files):
            os.pwrite(fd, str(number).encode(), 0)
        here.channel.send(ipc.Applied(0))
        here.channel.send(ipc.Ready(1, 2), (files[0], files[1]))
        here.channel.send(big(1))
        here.channel.send(ipc.Ready(1, 1), (files[2],))
        here.channel.send(ipc.Ready(1, 3), (files[3], files[4], files[5]))
        for fd in files:
            os.close(fd)  # they were ours, and are no more: what was sent is its own
        await until(lambda: len(end.heard) == 5)
        assert names == list("012345")
        with pytest.raises(ipc.BadMessage):
            end.channel.take_fd()
        here.channel.close()
        end.channel.close()

    run(work)


def test_a_message_that_names_a_file_which_did_not_come_ends_the_channel() -> None:
    async def work() -> None:
        one, two = socket.socketpair()
        here, end = End(one), End(two, lambda _: os.close(end.channel.take_fd()))
        here.channel.send(ipc.Ready(1, 1))
        await until(lambda: end.ended == 1)
        await until(lambda: here.ended == 1)
        here.channel.close()

    run(work)


def test_no_file_descriptor_is_leaked_whatever_ends_it() -> None:
    async def work() -> None:
        await ticks()
        before = open_fds()
        file = os.memfd_create("file")
        one, two = socket.socketpair()
        here, end = End(one), End(two)
        for _ in range(3):
            here.channel.send(ipc.Ready(1, 1), (file, file))
        await until(lambda: len(end.heard) == 3)  # and nobody takes the files
        here.channel.close()
        end.channel.close()

        one, two = socket.socketpair()
        here = End(one)
        here.channel.send(big(0, 2_000_000))  # the peer reads nothing: what follows stays in the queue
        here.channel.send(ipc.Ready(1, 1), (file, file))
        here.channel.close()
        two.close()

        one, two = socket.socketpair()
        here = End(one)
        two.close()
        for _ in range(3):
            here.channel.send(ipc.Ready(1, 1), (file, file))
        await until(lambda: here.ended == 1)

        os.close(file)
        assert open_fds() == before

    run(work)


def test_big_messages_pass_under_backpressure_and_the_sender_never_waits() -> None:
    async def work() -> None:
        one, two = socket.socketpair()
        for sock in (one, two):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        here, end = End(one), End(two)
        sent = [big(number, 50_000 * number) for number in range(1, 12)]
        for message in sent:
            here.channel.send(message)
            here.channel.send(ipc.Applied(1))
            end.channel.send(message)
        assert here.channel._queued > 1_000_000
        await until(lambda: len(end.heard) == 2 * len(sent) and len(here.heard) == len(sent))
        assert [message for message in end.heard if isinstance(message, ipc.GiveBack)] == sent
        assert here.heard == sent
        assert here.channel._queued == 0
        here.channel.close()
        end.channel.close()

    run(work)


def test_a_peer_that_takes_nothing_any_more_is_given_up() -> None:
    async def work() -> None:
        one, two = socket.socketpair()
        here = End(one)
        message = big(1, 8_000_000)
        for _ in range(10):
            here.channel.send(message)
        assert here.ended == 1
        here.channel.send(message)  # to nobody
        await ticks()
        assert here.ended == 1
        two.close()

    run(work)


@pytest.mark.parametrize("last", [b"", b"\x09\0\0\0half"], ids=["between messages", "within one"])
def test_an_end_of_the_peer_is_told_once_after_all_that_it_had_said(last: bytes) -> None:
    async def work() -> None:
        one, two = socket.socketpair()
        end = End(two)
        for number in range(100):
            one.send(ipc.encode(ipc.Applied(number)))
        one.send(last)
        one.close()
        await until(lambda: end.ended == 1)
        assert end.heard == [ipc.Applied(number) for number in range(100)]
        end.channel.close()
        end.channel.close()
        await ticks()
        assert end.ended == 1

    run(work)


def test_what_a_dead_peer_had_said_is_heard_even_if_we_were_sending_to_it() -> None:
    """Its slots and records: spec part 2, what it had reported is kept."""

    async def work() -> None:
        one, two = socket.socketpair()
        end = End(two)
        one.send(b"".join(ipc.encode(big(number, 4_000 if number % 2 else 10)) for number in range(40)))
        one.close()
        end.channel.send(ipc.Applied(1))  # a broken pipe, before its last words were read
        await until(lambda: end.ended == 1)
        assert len(end.heard) == 40

    run(work)


def test_drain_takes_in_all_at_once() -> None:
    async def work() -> None:
        one, two = socket.socketpair()
        end = End(two)
        one.send(b"".join(ipc.encode(ipc.Applied(number)) for number in range(300)))
        end.channel.drain()  # before the loop has turned
        assert len(end.heard) == 300
        assert end.ended == 0
        one.close()
        end.channel.drain()
        assert end.ended == 1
        end.channel.drain()
        assert end.ended == 1

    run(work)


def test_garbage_ends_the_channel_after_the_messages_before_it() -> None:
    async def work() -> None:
        one, two = socket.socketpair()
        end = End(two)
        one.send(ipc.encode(ipc.Applied(1)))
        await until(lambda: len(end.heard) == 1)
        one.send(b"\xff" * 100)
        await until(lambda: end.ended == 1)
        assert one.recv(1) == b""
        one.close()

    run(work)


def test_a_channel_that_is_closed_by_what_it_hears_hears_no_more() -> None:
    async def work() -> None:
        one, two = socket.socketpair()
        end = End(two, lambda _: end.channel.close())
        one.send(ipc.encode(ipc.Applied(1)) + ipc.encode(ipc.Applied(2)))
        await until(lambda: bool(end.heard))
        await ticks()
        assert end.heard == [ipc.Applied(1)]
        assert end.ended == 0
        one.close()

    run(work)


def test_there_is_room_for_the_file_descriptors_of_many_listeners() -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 200

    async def work() -> None:
        one, two = socket.socketpair()
        here, end = End(one), End(two)
        file = os.memfd_create("file")
        here.channel.send(ipc.Ready(1, 1), (file,) * 60)
        await until(lambda: len(end.heard) == 1)
        for _ in range(60):
            os.close(end.channel.take_fd())
        os.close(file)
        here.channel.close()
        end.channel.close()

    run(work)
