"""R6 to R9: churn, floods, stopped processes, a queue that overflows.

Every row ends with an honest request on a new connection that works, and no slot held.
"""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import usage
from tests.support.impatient import (
    IMPATIENT,
    MIB,
    SOON,
    NewProxy,
    assert_well,
    connections,
    hello,
    impatient_before,
    in_flight,
    models,
    swallow,
    until,
    worker,
)
from tests.support.proxy import Proxy, dgproxy
from tests.support.raw import connect, get, post, read_answer, send, tcp, ws
from tests.support.raw_ws import reset
from tests.support.upstreams import Upstream

# Most rows have upstreams of their own; the stand-in is there to be stopped as a process.
pytestmark = [
    pytest.mark.usefixtures("upstream_process"),
    pytest.mark.parametrize("upstream_process", ["standin"], indirect=True),
]

# --- R6: many requests, many connections -----------------------------------------------------------------------------


def test_r6_thousands_of_requests_on_one_connection_leave_nothing(impatient: Proxy) -> None:
    pid = worker(impatient)
    asked = get() * 10  # pipelined, ten at a time
    with connect(impatient) as client:

        def ten() -> None:
            send(client, impatient, asked)
            heard = b""
            while heard.count(b"\r\n\r\nok") < 10:
                heard += client.recv(65536) or pytest.fail("ended")
            assert heard.count(b"HTTP/1.1 200 ") == 10

        for _ in range(50):
            ten()
        memory, descriptors = usage.memory(pid), usage.descriptors(pid)
        for _ in range(200):
            ten()
        assert usage.descriptors(pid) <= descriptors + 1
        assert usage.memory(pid) - memory < 8 * MIB
    assert_well(impatient)


def test_r6_thousands_of_connections_that_come_and_go_leave_nothing(impatient: Proxy) -> None:
    pid = worker(impatient)
    opening = hello()
    begun = post(b"Content-Length: 5").replace(b"KEY", impatient.key.encode())

    def come_and_go(number: int) -> None:
        match number % 4:
            case 0:
                assert models(impatient) == 200
            case 1:
                tcp(impatient).close()
            case 2:  # in the middle of a handshake
                with tcp(impatient) as client:
                    client.sendall(opening[: 1 + number % len(opening)])
                    reset(client)
            case _:  # in the middle of a head or a body
                with connect(impatient) as client:
                    client.sendall(begun[: 20 + number % 100])
                    if number % 8 < 4:
                        reset(client)

    def churn(count: int) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(come_and_go, range(count)))
        until("all have left", lambda: connections(impatient) == 0, 20)

    churn(400)
    memory, descriptors = usage.memory(pid), usage.descriptors(pid)
    churn(1600)
    assert usage.descriptors(pid) <= descriptors + 4  # upstream connections that are kept
    assert usage.memory(pid) - memory < 8 * MIB
    assert_well(impatient)


# --- R7: one key floods ----------------------------------------------------------------------------------------------


def test_r7_a_key_that_floods_gets_its_slots_and_429s_and_another_key_all_that_it_asks(new_proxy: NewProxy) -> None:
    with impatient_before(new_proxy, swallow) as proxy:
        greedy = proxy.new_key("greedy", streams="2").key
        over = threading.Event()

        def flood(_: int) -> set[int]:
            found = set()
            while not over.is_set():
                found.add(models(proxy, greedy))
            return found

        with ThreadPoolExecutor(8) as pool:
            flooding = [pool.submit(flood, number) for number in range(8)]
            try:
                assert {models(proxy) for _ in range(60)} == {200}
            finally:
                over.set()
            assert set().union(*(one.result(SOON) for one in flooding)) <= {200, 429}


# --- R8: stopped processes -------------------------------------------------------------------------------------------


def test_r8_while_its_upstream_is_stopped_clients_get_a_504_in_time_and_nothing_of_it_is_left(
    new_proxy: NewProxy, upstream: Upstream
) -> None:
    with new_proxy(IMPATIENT) as proxy:
        assert models(proxy) == 200
        pid = worker(proxy)
        at_rest = usage.descriptors(pid)
        asked = {
            "request": get(),
            "upload": post(b"Content-Length: 5") + b"hello",
            "handshake": ws(),
        }
        os.kill(upstream._process.pid, signal.SIGSTOP)
        try:
            for what, said in asked.items():
                began = time.monotonic()
                with connect(proxy) as client:
                    send(client, proxy, said)
                    assert read_answer(client).status == 504, what
                assert time.monotonic() - began < SOON
            until("no slot is held", lambda: in_flight(proxy) == 0)
        finally:
            os.kill(upstream._process.pid, signal.SIGCONT)
        assert_well(proxy)
        until("nothing is left open", lambda: usage.descriptors(pid) <= at_rest + 2)


def test_r8_while_a_worker_is_stopped_the_other_serves_and_what_waited_is_served_after(new_proxy: NewProxy) -> None:
    with new_proxy() as proxy:
        assert models(proxy) == 200
        pids = proxy.worker_pids()
        os.kill(pids[0], signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(12) as pool:
                asked = [pool.submit(models, proxy) for _ in range(12)]
                until("the other has served some", lambda: [one for one in asked if one.done()])
                shown = dgproxy("streams", "list", "--json", "-c", str(proxy.config))
                assert "a worker did not answer in time" in shown.stderr
                assert json.loads(shown.stdout) == []
                assert proxy.status()["ready"]
                time.sleep(3.0)  # the catalogue's: stopped for some seconds
                os.kill(pids[0], signal.SIGCONT)
                assert {one.result(SOON) for one in asked} == {200}
        finally:
            os.kill(pids[0], signal.SIGCONT)
        shown = dgproxy("streams", "list", "--json", "-c", str(proxy.config))
        assert shown.stderr == ""
        assert proxy.worker_pids() == pids
        assert_well(proxy)


# --- R9: the queue of new connections overflows ----------------------------------------------------------------------


def test_r9_a_queue_that_overflows_costs_nobody_more_than_a_retry(new_proxy: NewProxy) -> None:
    queue = min(4096, int(Path("/proc/sys/net/core/somaxconn").read_text()))
    settings = {"timeouts__tls_handshake": '"30s"'}
    with impatient_before(new_proxy, swallow, **settings) as proxy, contextlib.ExitStack() as staying:
        pid = worker(proxy)
        at_rest = usage.descriptors(pid)
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(queue + 200):
                sock = staying.enter_context(socket.socket())
                sock.setblocking(False)  # noqa: FBT003
                with contextlib.suppress(BlockingIOError):
                    sock.connect(("127.0.0.1", proxy.port))
            with ThreadPoolExecutor(1) as pool:
                honest = pool.submit(models, proxy)
                os.kill(pid, signal.SIGCONT)
                assert honest.result(30) == 200
        finally:
            os.kill(pid, signal.SIGCONT)
        staying.close()
        until("all of them are gone", lambda: usage.descriptors(pid) <= at_rest + 2, 30)
        assert worker(proxy) == pid
