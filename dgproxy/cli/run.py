"""`run` and `standin`: the commands that stay."""

from typing import Final

import rich_click as click

from dgproxy.cli.common import config_option, fail, need_files
from dgproxy.config import ConfigError, find_config, load, parse_listen
from dgproxy.standin.server import run as run_standin
from dgproxy.store import StateBusy, StoreError
from dgproxy.supervisor.main import CannotStart, run as run_proxy

_STANDIN_LISTEN: Final = "127.0.0.1:8080"  # the port of Deepgram's container
_STANDIN_FILES: Final = 32


@click.command()
@config_option
def run(config: str | None) -> None:
    """Serve, in the foreground.

    SIGTERM drains (bounded by drain.stop), a second one stops; SIGINT stops at once.
    """
    try:
        run_proxy(load(find_config(config)))
    except (ConfigError, CannotStart, StateBusy, StoreError) as error:
        fail(str(error))


@click.command()
@click.option("--listen", default=_STANDIN_LISTEN, show_default=True, metavar="HOST:PORT", help="Where to listen.")
def standin(listen: str) -> None:
    """Serve as a Deepgram container would, for trying things out; it transcribes nothing and invents no words."""
    try:
        where = parse_listen(listen)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if where.kind != "tcp":
        raise click.UsageError("the stand-in listens on HOST:PORT alone")
    need_files(_STANDIN_FILES)
    try:
        run_standin(where.host, where.port)
    except OSError as error:
        fail(f"cannot listen on {listen}: {error.strerror or error}")
