"""`dgproxy demo`."""

import errno
import importlib.metadata
import importlib.util
import signal
from pathlib import Path
from typing import Final

import rich_click as click

from dgproxy.cli.common import fail, need_files
from dgproxy.config import Listen, parse_listen
from dgproxy.demo.place import DemoError
from dgproxy.demo.story import INTERRUPTED, Options, play

_SDK: Final = "deepgram-sdk"
_SDK_MAJOR: Final = "7"
_FILES: Final = 128  # its own, and those of the processes that it starts
_NOT_WRITABLE: Final = {errno.EACCES, errno.EPERM, errno.EROFS}


@click.command()
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default="demo",
    show_default=True,
    help="Where to keep all that is made; one of an earlier demo is used again.",
)
@click.option("--listen", metavar="HOST:PORT", default="127.0.0.1:8443", show_default=True, help="The proxy's address.")
@click.option(
    "--upstream-listen",
    metavar="HOST:PORT",
    default="127.0.0.1:8080",
    show_default=True,
    help="The stand-in's address.",
)
@click.option("--once", is_flag=True, help="End after the run; exit 0 only if all of it went well.")
def demo(*, directory: Path, listen: str, upstream_listen: str, once: bool) -> None:
    """See all of it on this machine, with nothing to configure.

    Makes a local CA and a certificate, runs a stand-in Deepgram, the proxy before it and a key; sends audio with the
    official SDK, over HTTPS and as a stream; then stays, with lines to paste, until Ctrl-C.
    """
    options = Options(directory, _address("--listen", listen), _address("--upstream-listen", upstream_listen), once)
    _need_sdk()
    need_files(_FILES)
    try:
        code = play(options)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except DemoError as error:
        fail(str(error))
    except OSError as error:
        remedy = "; choose another place with --dir DIR" if error.errno in _NOT_WRITABLE else ""
        fail(f"{error.filename or directory}: {error.strerror or error}{remedy}")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done: a second Ctrl-C has nothing left to stop
    raise SystemExit(code)


def _address(option: str, text: str) -> Listen:
    try:
        found = parse_listen(text)
    except ValueError as error:
        raise click.UsageError(f"{option}: {error}") from None
    if found.kind != "tcp":
        raise click.UsageError(f"{option}: the demo listens on HOST:PORT alone")
    return found


def _need_sdk() -> None:
    remedy = "pip install 'dgproxy[demo]'"
    if importlib.util.find_spec("deepgram") is None:
        fail(f"the demo is a client of the proxy and needs the official SDK, which is not installed: {remedy}")
    try:
        version = importlib.metadata.version(_SDK)
    except importlib.metadata.PackageNotFoundError:
        return  # put there in another way; it may do
    if version.partition(".")[0] != _SDK_MAJOR:
        fail(f"the demo needs {_SDK} {_SDK_MAJOR}, and {version} is installed: {remedy}")
