"""The log's reader may stop reading: nobody waits for it, and what it missed is counted."""

import fcntl
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from dgproxy import events, logs
from dgproxy.logs import Log

pytestmark = pytest.mark.timeout(20)  # a caller that is blocked would wait for ever

QUEUE = 50
PIPE = 4096


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that holds about 30 lines, before which 50 may wait."""
    monkeypatch.setattr(logs, "QUEUE", QUEUE)
    out, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, PIPE)
    yield out, into
    for fd in (out, into):
        try:
            os.close(fd)
        except OSError:
            continue  # the test closed it


class Reader(threading.Thread):
    """Reads to the end, from when it is started."""

    def __init__(self, fd: int) -> None:
        super().__init__(daemon=True)
        self.fd = fd
        self.said = b""

    def run(self) -> None:
        while piece := os.read(self.fd, 65536):
            self.said += piece


def fill(log: Log, lines: int) -> None:
    for number in range(lines):
        log(events.WORKER_READY, pid=number)


def parsed(said: bytes) -> list[dict[str, object]]:
    """Every line a whole JSON object."""
    assert said.endswith(b"\n")
    return [json.loads(line) for line in said.splitlines()]


def test_a_full_pipe_blocks_nobody_and_every_lost_line_is_told_of_later(pipe: tuple[int, int]) -> None:
    out, into = pipe
    log = Log("info", "json", into, process="worker 0")
    fill(log, 1000)  # nobody reads: this returns all the same
    lost = log._sink.lost
    assert 1000 - QUEUE - PIPE // 50 < lost < 1000
    reader = Reader(out)
    reader.start()
    while log._sink._queue.qsize() > QUEUE // 2:  # until the reader has made room
        threading.Event().wait(0.001)
    fill(log, 3)
    log.close()
    os.close(into)
    reader.join()
    lines = parsed(reader.said)
    seen = Counter(str(line["event"]) for line in lines)
    assert seen["worker.ready"] == 1003 - lost
    told = [line for line in lines if line["event"] == "log.lost"]
    assert sum(int(str(line["lines"])) for line in told) == lost
    assert {line["level"] for line in told} == {"warning"}
    assert [line["pid"] for line in lines[-3:]] == [0, 1, 2]


def test_lines_that_are_lost_again_and_again_are_all_counted(pipe: tuple[int, int]) -> None:
    out, into = pipe
    log = Log("info", "json", into, process="worker 0")
    said, sent = b"", 0
    for _ in range(20):
        fill(log, 200)
        sent += 200
        said += os.read(out, 1500)  # a reader that is much too slow
    reader = Reader(out)
    reader.start()
    while log._sink._queue.qsize():
        threading.Event().wait(0.001)
    log.close()  # tells of those that were not told yet
    os.close(into)
    reader.join()
    lines = parsed(said + reader.said)
    missed = sum(int(str(line["lines"])) for line in lines if line["event"] == "log.lost")
    assert missed > 0
    assert missed + sum(line["event"] == "worker.ready" for line in lines) == sent


def test_a_pipe_that_somebody_set_non_blocking_loses_nothing(pipe: tuple[int, int]) -> None:
    out, into = pipe
    os.set_blocking(into, False)
    log = Log("info", "json", into, process="worker 0")
    lines_said = QUEUE - 1  # one place is left for the long line, even if the writer took none yet
    fill(log, lines_said)
    reader = Reader(out)
    reader.start()
    log(events.PROXY_FAILED, error="x" * 20_000)  # longer than the pipe: goes out in pieces
    log.close()
    os.close(into)
    reader.join()
    lines = parsed(reader.said)
    assert [line["event"] for line in lines] == ["worker.ready"] * lines_said + ["proxy.failed"]
    assert lines[-1]["error"] == "x" * 20_000
    assert log._sink.lost == 0


def test_closing_does_not_wait_for_a_reader_that_stopped(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_FLUSH", 0.05)
    out, into = pipe
    log = Log("info", "json", into, process="worker 0")
    fill(log, 1000)
    log.close()
    assert log._sink._thread.is_alive()
    reader = Reader(out)  # so that it does not write into what gets the number of its fd next
    reader.start()
    log._sink._queue.put(None)
    log._sink._thread.join()
    os.close(into)
    reader.join()


def test_a_reader_that_is_gone_is_no_error(pipe: tuple[int, int]) -> None:
    out, into = pipe
    log = Log("info", "json", into, process="worker 0")
    os.close(out)
    fill(log, 20)
    log.close()
    assert not log._sink._thread.is_alive()
    assert log._sink.lost == 0
