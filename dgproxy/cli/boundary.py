"""Where a command ends: whatever happened, a user gets a line for it, and no traceback.

Rules of this file: what is foreseen is told where it happens (cli.common.fail) and only passes through here. All else
is told as what it is: the system's refusal, or a fault of dgproxy's own, whose traceback $DGPROXY_TRACEBACK shows.
"""

import contextlib
import errno
import io
import os
import resource
import sys
import traceback
from collections.abc import Iterator
from typing import Any, Final, NoReturn, TextIO

import rich_click as click

from dgproxy.cli.common import FILES, fail, need_files
from dgproxy.redaction import redact

INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
_OF_WRITING: Final = (errno.ENOSPC, errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EIO)
_TRACEBACK: Final = "DGPROXY_TRACEBACK"


class Guarded(click.RichGroup):
    """A group of commands, any of which a Ctrl-C ends without a word."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            need_files(FILES)
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None


def start(command: click.Command) -> NoReturn:
    """Runs a command as the whole of this process."""
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal's alphabet lacks, as in a key's name, is spelt out
            stream.reconfigure(errors="backslashreplace")
    code: Any = 1
    try:
        with _told():
            try:
                command.main()
            except SystemExit as end:
                code = end.code
            sys.stdout.flush()
    finally:
        _hush(sys.stdout)  # the interpreter flushes it once more, and would say so if it can't
    sys.exit(code)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # whoever read the answer has seen enough
        raise SystemExit(1) from None
    except (OSError, MemoryError) as error:
        _show_if_asked()
        fail(_refused(error))
    except Exception as error:  # noqa: BLE001 - the last place at which it can be told
        _show_if_asked()
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        fail(f"this is a fault of dgproxy, please report it: {_line(what)} (with {_TRACEBACK}=1 it says where)")


def _open_standard_streams() -> None:
    """No file that is opened later may get the number of a standard stream that was closed.

    What replaces it takes no bytes, so that an answer that goes nowhere is told, such as a new key.
    """
    for number, name in (0, "stdin"), (1, "stdout"), (2, "stderr"):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_RDWR)  # the lowest free number, which is this one
            if getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def _hush(stream: TextIO) -> None:
    """What is still in its buffer goes nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _refused(error: OSError | MemoryError) -> str:
    """What the system would not do."""
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    named = f"{_line(os.fsdecode(error.filename))}: " if isinstance(error.filename, str | bytes) else ""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return f"{named}too many open files: the limit is {soft}; raise it with `ulimit -n`, or LimitNOFILE= of a unit"
    if error.errno == errno.ENOENT and not named:
        return "the current directory does not exist any more; go to one that does"
    return f"{named or 'cannot write: ' * (error.errno in _OF_WRITING)}{error.strerror or error}"


def _line(text: str) -> str:
    """One line, without what may be a secret."""
    return redact(" ".join(text.split()))


def _show_if_asked() -> None:
    if os.environ.get(_TRACEBACK):
        traceback.print_exc()
