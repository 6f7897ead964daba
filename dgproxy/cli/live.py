"""`status`: what the running proxy says of itself."""

from pathlib import Path
from typing import Any, Final

import rich_click as click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dgproxy.admin import control
from dgproxy.cli.common import config_option, emit, fail, json_option
from dgproxy.config import ConfigError, find_config, load

_WITHIN: Final = 10.0  # seconds


@click.command()
@config_option
@json_option
def status(config: str | None, *, as_json: bool) -> None:
    """Show the running proxy: workers, streams, what each key used since the start."""
    try:
        loaded = load(find_config(config))
        found = control.call(Path(loaded.admin.socket), "status", {}, _WITHIN)
    except ConfigError as error:
        fail(str(error))
    except control.NotRunning:
        fail("no proxy is running with this configuration; start it with `dgproxy run`")
    except (control.ControlError, control.ControlTimeout) as error:
        fail(str(error))
    emit(found, _for_people(found), as_json=as_json)


def _for_people(found: dict[str, Any]) -> Group:
    state = "stopping" if found["stopping"] else "ready" if found["ready"] else "starting"
    head = Text(
        f"dgproxy {found['version']}  {state}  up {found['up_s']:.0f} s  {found['keys']} keys  "
        f"on {', '.join(found['listen'])}  to {', '.join(found['upstreams'])}"
    )
    workers = Table("worker", "pid", "connections", "streams", "requests served")
    for worker in found["workers"]:
        workers.add_row(*(str(worker[name]) for name in ("index", "pid", "connections", "streams", "requests")))
    used = Table("key", "in flight", "requests", "streams", "bytes in", "bytes out")
    for key_id, key in found["usage"].items():
        numbers = (str(key[name]) for name in ("in_flight", "requests", "streams", "bytes_in", "bytes_out"))
        used.add_row(key_id, *numbers)
    return Group(head, workers, used) if found["usage"] else Group(head, workers)
