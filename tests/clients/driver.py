"""A client program in an environment of its own, told what to do a line at a time.

The protocol, on the program's stdin and stdout: one JSON object a line each way. We write {"do": feature id, "base":
"https://host:port", "key": ..., ...}; the program answers {"ok": true, "saw": {...}} or {"ok": false, "error": class,
"status": number or null, "code": err_code or close code or null, "message": text}. Whatever else a program or its SDK
prints goes to stderr. An SDK's exception is an answer ("ok": false), not a crash. The program ends at the end of stdin.

Further arguments of ours: "wav" and "pcm", paths of audio; "async": true for an SDK's async client. A program that is
asked for "revoked-stream" says {"event": "open"} once its stream is open, and answers when the stream has ended.
{"do": "version"} is answered with the SDK's version in "saw".
"""

import json
import os
import selectors
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

ANSWER_WITHIN: Final = 60.0  # seconds


class Driver:
    """One client program, started once for many features."""

    def __init__(self, command: Sequence[str], directory: Path, environment: Mapping[str, str], log: Path) -> None:
        """`environment` is put over this process's own; what the program says on stderr goes to `log`."""
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self._left = b""

    def do(self, feature: str, **arguments: Any) -> dict[str, Any]:
        """Has the program do one thing; what it saw."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": feature, **arguments}).encode() + b"\n")
        self._process.stdin.flush()
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """The program's next line."""
        heard: dict[str, Any] = json.loads(self._line())
        return heard

    def tell(self, **message: Any) -> None:
        """A further line to a program that is in the middle of something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + ANSWER_WITHIN
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._left:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise AssertionError(f"no answer within {ANSWER_WITHIN:.0f} s; it said:\n{self._said()}")
                data = os.read(self._process.stdout.fileno(), 65536)
                if not data:
                    raise AssertionError(f"the client program ended; it said:\n{self._said()}")
                self._left += data
        line, _, self._left = self._left.partition(b"\n")
        return line

    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-4000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
