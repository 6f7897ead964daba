"""What is being measured, and how long it will still take, for whoever waits."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LONG: Final = 3600.0  # seconds: runs are slow steps, and all of them tell how fast it goes


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """What to call before each of so many runs. On a terminal a bar with the time that is left, else a line each."""
    console = Console(stderr=True)
    if not console.is_terminal:
        began = time.monotonic()
        done = 0

        def line(text: str) -> None:
            nonlocal done
            left = "" if not done else f"  {(time.monotonic() - began) / done * (total - done):.0f} s left"
            print(f"{text}{left}", file=sys.stderr, flush=True)
            done += 1

        yield line
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, speed_estimate_period=_LONG) as bar:
        task = bar.add_task("", total=total)
        begun = False

        def step(text: str) -> None:
            nonlocal begun
            bar.update(task, advance=1 if begun else 0, description=text)
            begun = True

        yield step
