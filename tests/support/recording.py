"""Records `make demo` from a fresh clone, until Ctrl-C: docs/demo.cast as asciinema has it, docs/demo.txt to be read.

`make recording` runs it. The clone is of what is committed. Nothing of this machine stays in it: all paths that a demo
prints are relative, and of the key its id alone is kept.
"""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
CAST: Final = ROOT / "docs" / "demo.cast"
TEXT: Final = ROOT / "docs" / "demo.txt"
COLUMNS: Final = 100
LINES: Final = 40
WITHIN: Final = 300.0
LAST: Final = b"Ctrl-C stops everything"
PROMPT: Final = "$ make demo\r\n"
SECRET: Final = re.compile(r"(dgp_\w{10}_)\w{20,}")
TOGETHER: Final = 0.02  # seconds: what comes within them is one event, so that no key is cut in two

Event = tuple[float, str]


def record(clone: Path) -> list[Event]:
    """What a terminal gets, and when."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(clone)
        keep = {name: value for name, value in os.environ.items() if not re.search("(?i)proxy|MAKE|MFLAGS", name)}
        os.execvpe("make", ["make", "demo"], {**keep, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"})  # noqa: S606
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    began = time.monotonic()
    said: list[tuple[float, bytes]] = []
    interrupted = False
    while time.monotonic() < began + WITHIN:
        ready, _, _ = select.select([terminal], [], [], 1.0)
        now = time.monotonic() - began
        if not ready:
            if not interrupted and any(LAST in some for _, some in said):
                os.write(terminal, b"\x03")
                interrupted = True
            continue
        try:
            some = os.read(terminal, 65536)
        except OSError:  # every process that had it is gone
            break
        if said and now - said[-1][0] < TOGETHER:
            said[-1] = (said[-1][0], said[-1][1] + some)
        else:
            said.append((now, some))
    else:
        os.kill(pid, signal.SIGTERM)
        raise TimeoutError(f"no end within {WITHIN} s")
    os.waitpid(pid, 0)
    return [(at, SECRET.sub(r"\1…", some.decode())) for at, some in said]


def read(events: list[Event]) -> str:
    """What is left to read on an endless terminal: for what rich and we send to one."""
    lines, row, column = [""], 0, 0
    for escape, char in re.findall(r"\x1b\[([\d;?]*[A-Za-z])|(.|\n|\r)", "".join(text for _, text in events)):
        if char == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif char == "\r":
            column = 0
        elif char:
            lines[row] = lines[row][:column].ljust(column) + char + lines[row][column + 1 :]
            column += 1
        elif escape == "2K":
            lines[row] = ""
        elif escape.endswith("A"):
            row -= int(escape[:-1])
    return "".join(f"{line.rstrip()}\n" for line in lines).rstrip("\n") + "\n"


def main() -> None:
    """Records, and writes both."""
    with tempfile.TemporaryDirectory() as directory:
        clone = Path(directory, "dgproxy")
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        events = [(0.0, PROMPT), *record(clone)]
    header = {"version": 2, "width": COLUMNS, "height": LINES, "title": "make demo", "env": {"TERM": "xterm-256color"}}
    rows = [json.dumps(header), *(json.dumps([round(at, 3), "o", text], ensure_ascii=False) for at, text in events)]
    text = read(events)
    found = [word for word in (directory, str(ROOT), os.uname().nodename) if word in text or word in "\n".join(rows)]
    if found:
        sys.exit(f"not written: it names {', '.join(found)}")
    CAST.write_text("\n".join(rows) + "\n")
    TEXT.write_text(text)


if __name__ == "__main__":
    main()
