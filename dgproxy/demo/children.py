"""The two processes that serve, and commands that are run to their end; all are dgproxy's own command line.

Rules of this file: a child that serves dies with the demo, whatever kills it; a child is in a session of its own, so
that a Ctrl-C is the demo's, which ends its children in order; its words go to a file of its own, never through us, so
that a stopped demo (Ctrl-Z) holds nothing up.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from dgproxy.demo.place import DemoError

DGPROXY: Final = (sys.executable, "-m", "dgproxy")
READY_WITHIN: Final = 60.0  # seconds for a child to say that it serves
COMMAND_WITHIN: Final = 30.0
STOP_WITHIN: Final = 10.0  # seconds between asking a child to stop and killing it
_LOOK: Final = 0.02  # seconds between two looks into a file that grows

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_libc: Final = ctypes.CDLL(None)


class Child:
    """A process that serves: started when entered, ended when left."""

    def __init__(self, name: str, arguments: tuple[str, ...], directory: Path, log: Path) -> None:
        """`name` is what people call it. It runs in `directory`, and what it says goes to `log`."""
        self.name = name
        self.ended = asyncio.Event()
        self._arguments = arguments
        self._directory = directory
        self._log = log
        self._process: subprocess.Popen[bytes]
        self._pidfd = -1

    def __enter__(self) -> Self:
        demo = os.getpid()

        def die_with_the_demo() -> None:
            # SIGINT, on which both stop at once; SIGTERM would let the proxy drain for as long as drain.stop says
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
            if os.getppid() != demo:  # it died before that
                os._exit(1)

        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [*DGPROXY, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                start_new_session=True,
                preexec_fn=die_with_the_demo,  # noqa: PLW1509 - no thread was started yet
            )
        self._pidfd = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Asks it to stop, waits, kills as the last resort. Without an await: no signal comes between."""
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._process.poll()
        self.ended.set()

    async def says(self, wanted: Callable[[str], Any]) -> Any:
        """Waits for a line of which `wanted` makes something, and returns that. DemoError if none comes."""
        deadline = time.monotonic() + READY_WITHIN
        while True:
            over = self.ended.is_set()  # before the look: what it said last is not missed
            for line in self._lines():
                if (found := wanted(line)) is not None:
                    return found
            if over:
                raise self.obituary()
            if time.monotonic() >= deadline:
                raise DemoError(f"{self.name} was not ready within {READY_WITHIN:.0f} s; {self._log} says more")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), _LOOK)

    def obituary(self) -> DemoError:
        """What to say of it once it ended: how, and its last words."""
        code = self._process.returncode
        how = f"exit {code}" if code is None or code >= 0 else signal.Signals(-code).name
        said = [line for line in self._lines() if line.strip()]
        words = [line for line in said if line.startswith("dgproxy: ")] or said
        last = f": {words[-1].removeprefix('dgproxy: ')}" if words and not words[-1].startswith("{") else ""
        return DemoError(f"{self.name} ended ({how}){last}\n{self._log} has all that it said")

    def _lines(self) -> list[str]:
        text = self._log.read_text(errors="replace")
        return text[: text.rfind("\n") + 1].splitlines()


def standin_url(line: str) -> str | None:
    """The stand-in's line that says where it serves."""
    return line.rpartition(" ")[2] if line.startswith("stand-in Deepgram on ") else None


def proxy_ready(line: str) -> dict[str, Any] | None:
    """The proxy's log line that says that every worker accepts."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and entry.get("event") == "proxy.ready" else None


async def answer_of(directory: Path, *arguments: str) -> Any:
    """Runs a command with --json to its end; its answer. DemoError with what it said if it fails."""
    process = await asyncio.create_subprocess_exec(
        *DGPROXY,
        *arguments,
        "--json",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=directory,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(COMMAND_WITHIN):
            out, err = await process.communicate()
    except TimeoutError:
        raise DemoError(f"`dgproxy {' '.join(arguments)}` did not end within {COMMAND_WITHIN:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        said = err.decode(errors="replace").strip().removeprefix("dgproxy: ")
        raise DemoError(f"`dgproxy {' '.join(arguments)}` failed: {said}")
    return json.loads(out)
