"""The command line. Commands parse, ask and print; they decide nothing."""

import sys
from typing import Final, NoReturn

import rich_click as click

import dgproxy
from dgproxy.cli import boundary
from dgproxy.cli.boundary import Guarded
from dgproxy.cli.check import check
from dgproxy.cli.demo import demo
from dgproxy.cli.keys import keys
from dgproxy.cli.live import status, streams
from dgproxy.cli.run import run, standin
from dgproxy.cli.setup import init
from dgproxy.cli.transfer import export, import_
from dgproxy.net import pump
from dgproxy.net.tls import OPENSSL

_GROUPS: Final[dict[str, list[click.Command]]] = {
    "Start": [init, check, run],
    "Keys": [keys],
    "Watch": [status, streams],
    "Try": [demo, standin],
}


for _transfer in (import_, export):
    keys.add_command(_transfer)


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:  # noqa: FBT001 - as click calls it
    if asked:
        relay = "pure" if pump.why_not_native() else "native, pure"
        click.echo(f"dgproxy {dgproxy.__version__} (Python {sys.version.split()[0]}, {OPENSSL}, relay: {relay})")
        context.exit()


@click.group(cls=Guarded, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show it and exit.")
def main() -> None:
    """The front door of a self-hosted Deepgram: TLS, API keys and limits before a container that has none."""


for _title, _commands in _GROUPS.items():
    main.add_panel(click.RichCommandPanel(_title, commands=[str(_command.name) for _command in _commands]))
    for _command in _commands:
        main.add_command(_command)


def start() -> NoReturn:
    """The whole program."""
    boundary.start(main)
