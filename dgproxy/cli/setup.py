"""`dgproxy init`: what comes before the first run."""

from pathlib import Path

import rich_click as click
from rich.text import Text

from dgproxy import bootstrap
from dgproxy.cli.common import emit, fail, json_option, own_name


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--listen", metavar="H:P", default="0.0.0.0:8443", show_default=True, help="Where clients connect.")
@click.option(
    "--upstream", metavar="URL", default="http://127.0.0.1:8080", show_default=True, help="The Deepgram container."
)
@json_option
def init(*, directory: Path, listen: str, upstream: str, as_json: bool) -> None:
    """Make DIR with a configuration, a local CA and certificate, and a state directory.

    Nothing is written over: DIR may exist, but may hold no dgproxy.toml, certs or state.
    """
    try:
        made = bootstrap.create(directory, listen, upstream)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except bootstrap.BootstrapError as error:
        fail(str(error))
    emit({name: str(getattr(made, name)) for name in made.__slots__}, _next_steps(made), as_json=as_json)


def _next_steps(made: bootstrap.Paths) -> Text:
    dgproxy = own_name()
    return Text(
        f"Made {made.directory}/ with dgproxy.toml, certs/ (a local CA: give ca.pem to clients) and state/.\n"
        f"Keep a copy of {made.pepper}: without it every key is lost.\n"
        "\n"
        "Next:\n"
        f"  {dgproxy} keys create --name first -c {made.config}\n"
        f"  {dgproxy} run -c {made.config}"
    )
