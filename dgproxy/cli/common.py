"""What every command has: where its configuration is, whether to answer in JSON, and how to answer and to fail."""

import resource
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec
import rich_click as click
from rich.console import Console, RenderableType
from rich.text import Text

FILES: Final = 16  # descriptors that any command may need at once: its streams, a database's four, a socket, a module's
PIPE_WIDTH: Final = 160  # columns where no terminal says how many there are

config_option = click.option(
    "-c",
    "--config",
    metavar="FILE",
    help="The configuration; without it $DGPROXY_CONFIG, ./dgproxy.toml or /etc/dgproxy/dgproxy.toml.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document.")


def emit(document: Any, people: RenderableType = "", *, as_json: bool = True) -> None:
    """A command's answer on stdout: one JSON document, or what is made for people of the same."""
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2))
        return
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    console.print(
        people, soft_wrap=isinstance(people, str | Text)
    )  # a line of text stays one, to be copied or searched


def fail(message: str, exit_code: int = 1) -> NoReturn:
    """Ends the command with its last word on stderr."""
    click.echo(f"dgproxy: {message.encode(errors='replace').decode()}", err=True)
    raise SystemExit(exit_code)


def own_name() -> str:
    """This program, as a line to paste begins: by name where the shell finds this one, else as it was called."""
    called = sys.argv[0]
    if called.endswith("__main__.py"):
        return f"{shlex.quote(sys.executable)} -m dgproxy"
    found = shutil.which(Path(called).name)
    return Path(called).name if found and Path(found).absolute() == Path(called).absolute() else shlex.quote(called)


def need_files(least: int) -> None:
    """Sees to it that this process may have so many files open; ends the command where it may not.

    Libraries that are refused a descriptor half-way report anything from a broken disk to nothing at all (libuv ends
    the process), so that nothing is begun with too few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < least and hard != resource.RLIM_INFINITY:
        fail(f"the limit of open files is {hard}, and {least} is the least; raise LimitNOFILE= or ulimit -n")
    if soft < least and soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, hard))
