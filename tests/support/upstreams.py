"""The two stand-in containers, each in a process of its own, and what reached them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypedDict
from urllib.parse import urlsplit

import httpx

from tests.support import processes
from tests.support.logs import SECRETS, Capture
from tests.support.proxy import DGPROXY

NAMES: Final = ("standin", "second")
HEALTH_PATHS: Final = ("/v1/status", "/v1/status/engine")
REPOSITORY: Final = Path(__file__).parents[2]


class _Head(TypedDict):
    method: str
    target: str
    headers: list[tuple[str, str]]
    body_bytes: int
    sha256: str


class Head(_Head, total=False):
    """A request as it reached an upstream. What is not in `_Head` is recorded by the second upstream alone."""

    complete: bool
    cut: bool
    messages: list[tuple[str, int]]
    texts: list[str]
    pings: list[str]
    pongs: list[str]
    close_code: int | None
    close_reason: str | None


def values(head: Head, name: str) -> list[str]:
    """Every value of a header, in order."""
    return [value for key, value in head["headers"] if key.lower() == name.lower()]


class Upstream:
    """A stand-in container: where it is, and every request that reached it (the proxy's own health polls left out)."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.port = processes.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.host = urlsplit(self.url).netloc
        self._recorder, command = {
            "standin": ("/standin/heads", [*DGPROXY, "standin", "--listen", self.host]),
            "second": ("/recorder/heads", [sys.executable, "-m", "tests.support.second_upstream", str(self.port)]),
        }[name]
        self._leaks: set[str] = set()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env=os.environ,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._capture = Capture(self._process.stdout, directory / f"{name}.output")
        try:
            processes.wait_accepting(self.port)
        except OSError:
            self._process.kill()
            self._process.wait(5)
            raise AssertionError(f"upstream {name} does not accept:\n" + "\n".join(self._capture.lines())) from None
        self._client = httpx.Client(base_url=self.url, trust_env=False)

    def heads(self) -> list[Head]:
        """What reached it since `clear`, but health polls: those on a status path that no client is behind."""
        answer = self._client.get(self._recorder).raise_for_status().json()
        recorded: list[dict[str, Any]] = answer["heads"] if isinstance(answer, dict) else answer
        self._leaks |= set(SECRETS.found_in(repr(recorded).encode()))
        heads: list[Head] = [{**entry, "headers": [(k, v) for k, v in entry["headers"]]} for entry in recorded]  # type: ignore[typeddict-item]
        return [
            head
            for head in heads
            if head["target"].partition("?")[0] not in HEALTH_PATHS or values(head, "X-Forwarded-For")
        ]

    def only(self) -> Head:
        """The one request that reached it."""
        heads = self.heads()
        assert len(heads) == 1, f"{len(heads)} requests reached the upstream: {[head['target'] for head in heads]}"
        return heads[0]

    def wait_for(self, wanted: Callable[[Sequence[Head]], bool], timeout: float = 10.0) -> list[Head]:
        """Wait until what was recorded is as wanted, for what is recorded after the client got its answer."""
        deadline = time.monotonic() + timeout
        while True:
            heads = self.heads()
            if wanted(heads):
                return heads
            assert time.monotonic() < deadline, f"not recorded in {timeout} s; recorded: {heads}"
            time.sleep(0.02)

    def clear(self) -> None:
        """Forget what reached it (after a look for credentials in it)."""
        self.heads()
        self._client.delete(self._recorder).raise_for_status()

    def leaks(self) -> list[str]:
        """Credentials that reached it, in any head of its life."""
        return [f"{name} reached upstream {self.name}" for name in sorted(self._leaks)]

    def stop(self) -> None:
        """Look for leaks a last time, then end it."""
        self.heads()
        self._client.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
            raise AssertionError(f"upstream {self.name} ignored SIGTERM") from None
        self._capture.join()
        said = "\n".join(line for line in self._capture.lines() if re.search("Traceback", line))
        assert code in {0, -signal.SIGTERM}, f"upstream {self.name}: exit {code}\n{said}"
        assert not said, f"upstream {self.name} had an error of its own: {said}"
