"""`status` and `streams`: what the running proxy says of itself and of what is in flight."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import rich_click as click
from rich.console import Group
from rich.table import Column, Table
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
    found = _ask(config, "status", {})
    with _understood():
        emit(found, "" if as_json else _for_people(found), as_json=as_json)


@click.group()
def streams() -> None:
    """Show and end what is in flight: WebSockets and HTTP requests."""


@streams.command("list")
@click.option("--key", metavar="ID", help="Only this key's, named as for `keys show`.")
@config_option
@json_option
def list_(config: str | None, *, as_json: bool, key: str | None) -> None:
    """List what is in flight, the oldest first."""
    found = _ask(config, "streams.list", {"key": key})
    with _understood():
        rows = found["streams"]
        if len(rows) < found["total"]:
            click.echo(f"the {len(rows)} oldest of {found['total']}; --key narrows it down", err=True)
        if not found["complete"]:
            click.echo("a worker did not answer in time; what it holds is not shown", err=True)
        emit(rows, "" if as_json else _streams_for_people(rows), as_json=as_json)


@streams.command()
@click.argument("stream")
@config_option
@json_option
def kill(config: str | None, *, as_json: bool, stream: str) -> None:
    """End one stream or request, by its id as `streams list` and the log have it (`request_id`)."""
    found = _ask(config, "streams.kill", {"stream": stream})
    with _understood():
        emit(found, Text(f"ended {found['id']}"), as_json=as_json)


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """Reads the proxy's answer, which may lack what only a newer release says: a proxy outlives an upgrade."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        fail(
            f"the running proxy's answer is not understood ({type(error).__name__}: {error}): "
            "it may be of another release; restart it with this one"
        )


def _ask(config: str | None, command: str, args: dict[str, Any]) -> Any:
    """The running proxy's answer; the command ends with a line where there is none."""
    try:
        loaded = load(find_config(config))
        return control.call(Path(loaded.admin.socket), command, args, _WITHIN)
    except ConfigError as error:
        fail(str(error))
    except control.NotRunning:
        fail("no proxy is running with this configuration; start it with `dgproxy run`")
    except (control.ControlError, control.ControlTimeout) as error:
        fail(str(error))


def _streams_for_people(rows: list[dict[str, Any]]) -> Table:
    whole = Column("id", no_wrap=True)  # to be copied into `streams kill`
    table = Table(whole, "key", "class", "kind", "age", "bytes in", "bytes out", "peer", "upstream", "worker")
    for row in rows:
        kind = "stream" if row["websocket"] else "request"
        table.add_row(
            row["id"],
            row["key_id"],
            row["class"],
            kind if row["status"] else f"{kind}, waiting",
            f"{row['age_s']:.0f} s",
            str(row["bytes_in"]),
            str(row["bytes_out"]),
            row["peer"],
            row["upstream"] or "",
            str(row["worker"]),
        )
    return table


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
