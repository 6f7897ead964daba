"""Listening sockets: whose port it is, what connections inherit, and what happens when there is no room for more."""

import asyncio
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from dgproxy.net.listen import Acceptor, open_listeners

REPOSITORY: Final = Path(__file__).parents[2]
PATIENCE: Final = 10.0


def close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize("reuse", [False, True], ids=["as others do", "with SO_REUSEPORT"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_another_serves_is_refused(host: str, *, reuse: bool) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as other:
        if reuse:  # then the kernel alone would let us share it, and take half of its connections
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((host, 0))
        other.listen()
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            open_listeners(host, other.getsockname()[1], 2)


def test_a_port_that_our_own_other_run_serves_is_refused() -> None:
    ours = open_listeners("127.0.0.1", 0, 2)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            open_listeners("127.0.0.1", ours[0].getsockname()[1], 2)
    finally:
        close(ours)


def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EADDRNOTAVAIL)):
        open_listeners("192.0.2.1", 0, 1)  # RFC 5737: nobody's


def test_a_port_that_was_used_a_moment_ago_is_free_again() -> None:
    ours = open_listeners("127.0.0.1", 0, 1)
    address = ours[0].getsockname()
    with socket.create_connection(address) as client:
        ours[0].setblocking(True)  # noqa: FBT003
        served, _ = ours[0].accept()
        served.close()  # the server closes first: its end stays in TIME_WAIT
        assert client.recv(1) == b""
    close(ours)
    close(open_listeners("127.0.0.1", address[1], 1))


def test_both_families_can_listen_on_every_address_of_one_port() -> None:
    six = open_listeners("::", 0, 1)
    try:
        close(open_listeners("0.0.0.0", six[0].getsockname()[1], 1))
    finally:
        close(six)


def test_all_sockets_of_an_address_have_its_port_and_are_not_inherited_by_children() -> None:
    ours = open_listeners("127.0.0.1", 0, 3)
    try:
        assert len({sock.getsockname() for sock in ours}) == 1
        assert len({sock.fileno() for sock in ours}) == 3
        assert not any(os.get_inheritable(sock.fileno()) for sock in ours)
        assert all(sock.getblocking() is False for sock in ours)
    finally:
        close(ours)


def test_accepted_connections_inherit_what_finds_dead_peers() -> None:
    ours = open_listeners("127.0.0.1", 0, 1)
    ours[0].setblocking(True)  # noqa: FBT003
    with socket.create_connection(ours[0].getsockname()):
        served, _ = ours[0].accept()
    with served:
        found = {
            name: served.getsockopt(level, option)
            for name, level, option in (
                ("keepalive", socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                ("idle", socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                ("interval", socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
                ("probes", socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
                ("unacknowledged", socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                ("no delay", socket.IPPROTO_TCP, socket.TCP_NODELAY),
            )
        }
    close(ours)
    assert found == {
        "keepalive": 1,
        "idle": 60,
        "interval": 10,
        "probes": 3,
        "unacknowledged": 30_000,
        "no delay": 1,
    }


def test_paused_it_leaves_connections_waiting_and_resumed_it_takes_them() -> None:
    async def work() -> None:
        (listener,) = open_listeners("127.0.0.1", 0, 1)
        address = listener.getsockname()
        accepted: asyncio.Queue[socket.socket] = asyncio.Queue()
        acceptor = Acceptor(asyncio.get_running_loop(), listener, lambda sock, _: accepted.put_nowait(sock))
        acceptor.resume()
        acceptor.resume()
        with socket.create_connection(address):
            (await accepted.get()).close()
        acceptor.pause()
        acceptor.pause()
        with socket.create_connection(address):
            for _ in range(50):
                await asyncio.sleep(0)
            assert accepted.empty()
            acceptor.resume()
            (await accepted.get()).close()
        acceptor.stop()
        acceptor.resume()
        with pytest.raises(OSError, match=os.strerror(errno.ECONNREFUSED)):
            socket.create_connection(address)

    asyncio.run(asyncio.wait_for(work(), PATIENCE))


def test_a_callback_that_pauses_it_gets_no_more_connections() -> None:
    """How a worker keeps to its limit within one event, for which many may be waiting."""

    async def work() -> None:
        (listener,) = open_listeners("127.0.0.1", 0, 1)
        clients = [socket.create_connection(listener.getsockname()) for _ in range(5)]
        taken: list[socket.socket] = []

        def on_accept(sock: socket.socket, _: Any) -> None:
            taken.append(sock)
            if len(taken) == 2:
                acceptor.pause()

        acceptor = Acceptor(asyncio.get_running_loop(), listener, on_accept)
        acceptor.resume()
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(taken) == 2
        acceptor.resume()
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(taken) == 5
        acceptor.stop()
        close(clients + taken)

    asyncio.run(asyncio.wait_for(work(), PATIENCE))


STARVED: Final = """
import asyncio, os, resource, socket
from dgproxy.net.listen import Acceptor, open_listeners

async def work():
    loop = asyncio.get_running_loop()
    (listener,) = open_listeners("127.0.0.1", 0, 1)
    clients = [socket.create_connection(listener.getsockname()) for _ in range(8)]
    taken, tries = [], 0

    class Counted:
        def fileno(self): return listener.fileno()
        def close(self): listener.close()
        def accept(self):
            nonlocal tries
            tries += 1
            return listener.accept()

    acceptor = Acceptor(loop, Counted(), lambda sock, _: taken.append(sock))
    top = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (top + 3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    acceptor.resume()
    await asyncio.sleep(0.35)
    starved, tried = len(taken), tries
    assert 0 < starved < 8, starved
    assert tried - starved < 12, tried  # it waits between two tries: no spin
    while len(taken) < 8:
        for sock in taken:
            sock.close()  # those that leave make room
        await asyncio.sleep(0.01)
    acceptor.stop()
    for sock in clients:
        sock.close()
    print("recovered")

asyncio.run(asyncio.wait_for(work(), 20))
"""


def test_without_file_descriptors_it_waits_without_spinning_and_recovers() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", STARVED],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "recovered\n"), done.stderr
