"""What the demo prints: on a terminal in colour and with a bar that moves, else as plain text without escapes."""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from dgproxy.demo.paste import Paste

PIPE_WIDTH: Final = 160  # columns where no terminal says how many there are
_LABEL: Final = 8  # columns


class Show:
    """The demo's voice."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # a check mark is not worth a crash
        self._console = Console(
            width=None if terminal else PIPE_WIDTH,
            force_terminal=terminal,
            color_system="auto" if terminal else None,
            highlight=False,
            markup=False,
            emoji=False,
        )

    def done(self, what: str, detail: str = "") -> None:
        """A step that was taken."""
        self._print(Text.assemble(("  ✓ ", "bold green"), what, (f"  {detail}" if detail else "", "dim")))

    def row(self, label: str, *parts: str | tuple[str, str]) -> None:
        """A line of the run: a label, and text, each part plain or with a style."""
        self._print(Text.assemble((f"  {label:<{_LABEL}}", "bold"), *parts))

    def gap(self) -> None:
        """An empty line."""
        self._print(Text())

    @contextlib.contextmanager
    def bar(self, total: int) -> Iterator[Callable[[int], None]]:
        """A bar under what is printed meanwhile; gone at the end, and never there where nothing can move."""
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            yield lambda _: None
            return
        with Progress(
            TextColumn(" " * (_LABEL + 2)),
            BarColumn(bar_width=40),
            TextColumn("{task.completed} of {task.total} chunks", style="dim"),
            console=self._console,
            transient=True,
            auto_refresh=False,  # no thread, and nothing drawn while a result is awaited
        ) as progress:
            task = progress.add_task("", total=total)

            def move(completed: int) -> None:
                progress.update(task, completed=completed)
                progress.refresh()

            yield move

    def pastes(self, title: str, pastes: Sequence[Paste]) -> None:
        """Lines to paste, under a title for all of them."""
        self._print(Text(f"  {title}", "bold"))
        for paste in pastes:
            self.gap()
            self.paste(paste)
        self.gap()

    def paste(self, paste: Paste) -> None:
        """Lines to paste, each at the left edge and unbroken, under what they do."""
        self._print(Text(f"  {paste.title}", "dim"))
        for line in paste.lines:
            self._print(Text(line))

    def last(self, text: str) -> None:
        """A closing remark."""
        self._print(Text(f"  {text}", "dim"))

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)  # a line of text stays one, to be copied or searched
        self._console.file.flush()  # a step shows when it is taken, through a pipe too


# --- figures for people -----------------------------------------------------------------------------------------


def milliseconds(seconds: float) -> str:
    """Like 41 ms, 1.9 ms."""
    value = seconds * 1000
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"  # noqa: PLR2004 - two digits say enough


def size(count: int) -> str:
    """Like 403 kB."""
    return f"{count / 1000:.0f} kB" if count >= 1000 else f"{count} B"  # noqa: PLR2004


def counted(count: int, noun: str) -> str:
    """Like 1 request, 2 requests."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so much of all are not above (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def quoted(words: Any) -> tuple[str, str]:
    """A transcript, as a part of a row."""
    return f'"{words}"', "cyan"
