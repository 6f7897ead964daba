"""What a process says, line by line as it comes; and the credentials that nothing may ever say."""

import functools
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final

SHORTEST_SECRET: Final = 8  # shorter ones (`proxy`, empty) occur in honest text


class Capture:
    """A process's stdout or stderr: each line goes to a file as it comes and wakes whoever waits for it."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self.path = path
        self._lines: list[str] = []
        self._news = threading.Condition()  # reentrant: what waits may look at the lines
        self._ended = False
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True, name=f"capture {path.name}")
        self._thread.start()

    def _read(self, stream: IO[bytes]) -> None:
        with stream, self.path.open("ab", buffering=0) as file:
            for line in stream:
                file.write(line)
                with self._news:
                    self._lines.append(line.decode("utf-8", "replace").rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def lines(self) -> list[str]:
        """All that was said so far."""
        with self._news:
            return list(self._lines)

    def wait_for(self, wanted: Callable[[str], bool], timeout: float = 10.0) -> str:
        """The first line, of those said and those to come, that is wanted. AssertionError when none comes in time."""
        deadline = time.monotonic() + timeout
        seen = 0
        with self._news:
            while True:
                for line in self._lines[seen:]:
                    if wanted(line):
                        return line
                seen = len(self._lines)
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    why = "the process ended" if self._ended else f"{timeout} s passed"
                    said = "\n".join(self._lines[-40:])
                    raise AssertionError(f"No such line in {self.path.name}: {why}. Last said:\n{said}")
                self._news.wait(left)

    def wait_until(self, seen: Callable[[], bool], timeout: float = 10.0) -> None:
        """Until what was said so far is enough; asked once for all that came together, not for each line."""
        deadline = time.monotonic() + timeout
        with self._news:
            while not seen():
                left = deadline - time.monotonic()
                assert left > 0 and not self._ended, f"not said in {self.path.name}"  # noqa: PT018
                self._news.wait(left)

    def join(self, timeout: float = 5.0) -> bool:
        """Whether every process that held the other end is gone."""
        self._thread.join(timeout)
        return not self._thread.is_alive()


@functools.lru_cache(1 << 17)  # a run's log is looked through by thousands of tests
def _parsed(line: str) -> Mapping[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return MappingProxyType(value) if isinstance(value, dict) else None


def parse(lines: Iterable[str]) -> list[Mapping[str, Any]]:
    """The lines that are JSON objects, parsed; others are left out."""
    return [value for line in lines if (value := _parsed(line)) is not None]


def is_event(name: str, **fields: Any) -> Callable[[str], bool]:
    """Asks a line whether it is the log event of this name, with these fields."""

    def wanted(line: str) -> bool:
        return name in line and any(
            entry.get("event") == name and all(entry.get(k) == v for k, v in fields.items()) for entry in parse([line])
        )

    return wanted


def mentions(**fields: Any) -> Callable[[str], bool]:
    """Asks a line whether it is a log event, of any name, with these fields."""

    def wanted(line: str) -> bool:
        return any(all(entry.get(k) == v for k, v in fields.items()) for entry in parse([line]))

    return wanted


class Secrets:
    """Every credential, right or wrong, that a test sent. None may occur in a log, a store or an upstream's head."""

    def __init__(self) -> None:
        self._known: dict[bytes, str] = {}

    def add(self, credential: str) -> str:
        """Remember a credential (and of a key in our form also its secret part), and return it."""
        for part in (credential, credential.rpartition("_")[2] if credential.startswith("dgp_") else ""):
            if len(part) >= SHORTEST_SECRET:
                self._known.setdefault(part.encode(), f"credential #{len(self._known)} ({part[:6]}...)")
        return credential

    def __len__(self) -> int:
        return len(self._known)

    def found_in(self, text: bytes) -> list[str]:
        """Which of them occur, named so that the report itself does not hold them."""
        return [name for secret, name in self._known.items() if secret in text]


SECRETS: Final = Secrets()
