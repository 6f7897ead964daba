"""What is said of a configuration, and how its files are read: never an exception but ConfigError or ValueError."""

import os
import stat
from pathlib import Path
from typing import Final, Literal

import msgspec

from dgproxy import units

FILE_SIZE: Final = 1 << 20  # bytes; a configuration, a chain, a key are some kilobytes
PATH_QUOTED: Final = 4096  # characters of a path in a message: it is of no use unless whole; PATH_MAX

Severity = Literal["error", "warning"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong (error) or worth knowing (warning): in which file, at which key, and what to do."""

    severity: Severity
    file: str
    key: str  # dotted, "" for the file as a whole
    message: str
    line: int | None = None  # where the key stands, or the fault of the file's syntax; None: it stands nowhere

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.key, self.message) if part)

    @property
    def place(self) -> str:
        """FILE:LINE, or FILE where no line is known."""
        return f"{self.file}:{self.line}" if self.line else self.file


class ConfigError(Exception):
    """The configuration cannot be used; `findings` says all that is wrong, a line each."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("\n".join(str(finding) for finding in findings if finding.severity == "error"))
        self.findings = findings


def printable(path: Path | str) -> str:
    """A path as text that can be written out, whatever its bytes are."""
    return str(path).encode(errors="replace").decode()


def read_file(path: str, limit: int, *, missing: str = "no such file") -> tuple[bytes, int]:
    """A regular file's bytes, at most `limit`, and its mode; ValueError says why there are none. Never waits."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)

    try:
        with open(path, "rb", opener=opener) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("is no regular file; name a file")
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise ValueError(missing) from None
    except IsADirectoryError:
        raise ValueError("is a directory; name a file") from None
    except PermissionError:
        raise ValueError(f"may not be read by user {os.geteuid()}; give it to the user that dgproxy runs as") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise ValueError(f"is larger than {units.format_size(limit)}; is it the right file?")
    return data, stat.S_IMODE(status.st_mode)
