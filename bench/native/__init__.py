"""The load generator and the upstream, in C: compiled when they are first needed, and driven over pipes."""

import contextlib
import hashlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

from bench.machine import pin
from tests.support.processes import free_port, wait_accepting

HERE: Final = Path(__file__).parent
NEEDED: Final = {"load": ("-lssl", "-lcrypto"), "upstream": ("-lcrypto",)}


class Missing(Exception):  # noqa: N818 - what is
    """What the bench needs and this machine has not; says how to get it."""


def compiled(name: str) -> Path:
    """The program, built from its source; kept between runs by the source's digest.

    Raises:
        Missing: there is no compiler, or no OpenSSL to compile against.
    """
    source = HERE / f"{name}.c"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    program = Path(tempfile.gettempdir()) / f"dgproxy-bench-{os.getuid()}" / f"{name}-{digest}"
    if program.exists():
        return program
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Missing("no C compiler: apt install gcc libc6-dev libssl-dev")
    program.parent.mkdir(mode=0o700, exist_ok=True)
    fresh = program.with_suffix(".new")
    command = [compiler, "-O2", "-o", str(fresh), str(source), *NEEDED[name]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"{source.name} does not compile: apt install libc6-dev libssl-dev\n{done.stderr[-500:]}")
    fresh.rename(program)
    return program


@contextlib.contextmanager
def upstream(core: int) -> Iterator[tuple[int, int]]:
    """Runs the upstream on a core; its port and process id."""
    port = free_port()
    process = subprocess.Popen([str(compiled("upstream")), str(port)], stdin=subprocess.DEVNULL)
    try:
        pin(process.pid, core)
        wait_accepting(port)
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


class Load:
    """One run of the generator: its connections stand when it is entered, `run` has it do its work."""

    def __init__(self, mode: str, core: int | None, key: str = "", **options: Any) -> None:
        """`core` to keep it on, if any; `key` is not shown in its arguments; `options` are those of load.c."""
        self._key = key
        words = [f"{name}={int(value) if isinstance(value, bool) else value}" for name, value in options.items()]
        self._command = [str(compiled("load")), mode, *words]
        self._core = core
        self.opened = 0
        self.why = ""  # the first that did not open, if any

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "DGPROXY_BENCH_KEY": self._key},
        )
        if self._core is not None:
            pin(self._process.pid, self._core)
        try:
            _, opened, self.why = self._line(90).rstrip("\n").split(" ", 2)
        except BaseException:
            self.__exit__()
            raise
        self.opened = int(opened)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        """The generator's."""
        return self._process.pid

    def run(self, within: float) -> dict[str, Any]:
        """Has it go; its figures."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: `_line` says so
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        figures: dict[str, Any] = json.loads(self._line(within))
        return figures

    def _line(self, within: float) -> str:
        assert self._process.stdout is not None
        deadline = time.monotonic() + within
        if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            self._process.kill()
            raise RuntimeError(f"the load generator said nothing for {within:.0f} s: {' '.join(self._command[1:3])}")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the load generator ended (exit {self._process.wait()}): {' '.join(self._command[1:3])}"
            )
        return line


def faults(figures: Mapping[str, Any]) -> list[str]:
    """What went wrong by the generator's figures, the first reason behind it."""
    found = [f"{figures[fault]} {fault}" for fault in ("unequal", "lost", "refused") if figures.get(fault)]
    if found and figures.get("why"):
        found[-1] += f": {figures['why']}"
    return found


if __name__ == "__main__":
    print(*(compiled(name) for name in NEEDED), sep="\n", file=sys.stderr)
