"""`dgproxy keys`: through the running proxy if there is one, else on the store itself, as the store's owner."""

import contextlib
import os
import pwd
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import rich_click as click
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dgproxy.access.keys import Pepper
from dgproxy.admin import control
from dgproxy.admin.control import ControlError, ControlTimeout, NotRunning
from dgproxy.cli.common import config_option, emit, fail, json_option
from dgproxy.config import Config, ConfigError, find_config, load, read_pepper
from dgproxy.store import StateBusy, StoreError, check_directory, lock, service
from dgproxy.store.imports import Imports, export_keys
from dgproxy.store.keys import FILE_NAME, TURNS, KeyStore, Turn
from dgproxy.store.service import Rejected

T = TypeVar("T")

_ANSWER: Final = 30.0  # seconds for the proxy to carry out a command
_PATIENCE: Final = 5.0  # seconds in which a proxy that starts or stops either answers or lets go of its state
_TRY: Final = 0.2  # seconds to wait for the lock before the socket is tried again


def _create(store: KeyStore, config: Config, args: Mapping[str, Any]) -> dict[str, Any]:
    answer, _ = service.create_key(
        store, config, args, uid=os.getuid(), now=time.time(), random_bytes=os.urandom
    )  # no worker is there to hear of it
    return answer


def _turn(turn: Turn, store: KeyStore, _: Config, args: Mapping[str, Any]) -> dict[str, Any]:
    answer, _delta = service.turn_key(store, turn, args, uid=os.getuid(), now=time.time())
    return answer


Asked = Callable[[str, Mapping[str, Any]], Any]
_ON_THE_STORE: Final[Mapping[str, Callable[[KeyStore, Config, Mapping[str, Any]], dict[str, Any]]]] = {
    "keys.create": _create,
    "keys.list": lambda store, _, args: service.list_keys(store, args, now=time.time()),
    "keys.show": lambda store, _, args: service.show_key(store, args, now=time.time()),
    **{f"keys.{turn}": partial(_turn, turn) for turn in TURNS},
}


def ask(config: Config, command: str, args: Mapping[str, Any]) -> Any:
    """Has the command carried out, once, by the running proxy or on the store itself; its answer.

    Raises:
        ControlError, ControlTimeout, Rejected, StateBusy, StoreError, ConfigError: it was not, or no one can tell.
    """
    return ask_on(config, lambda asked: asked(command, args))


def ask_on(config: Config, work: Callable[[Asked], T], within: float = _ANSWER) -> T:
    """Likewise work of several commands, all of them by one of the two. `within`: seconds for an answer to each.

    The work is begun anew only while its first command has reached nobody.
    """
    state = Path(config.state.directory)
    give_up = time.monotonic() + _PATIENCE
    while True:
        with contextlib.suppress(NotRunning):
            return work(_Socket(Path(config.admin.socket), within))
        check_directory(state)
        owner = _owner(state)
        pepper = Pepper(read_pepper(config))  # as who we are: a credential may be root's alone
        try:
            with _acting_as(owner), lock(state, _TRY), KeyStore.open(state / FILE_NAME, pepper) as store:
                return work(_commands(store, config, pepper))
        except StateBusy:
            if time.monotonic() >= give_up:
                raise


class _Socket:
    """The running proxy, asked more than once: one that has answered can't be taken for one that is not there."""

    def __init__(self, path: Path, within: float) -> None:
        self._path = path
        self._within = within
        self._answered = False

    def __call__(self, command: str, args: Mapping[str, Any]) -> Any:
        try:
            answer = control.call(self._path, command, args, self._within)
        except NotRunning:
            if not self._answered:
                raise
            raise ControlError(
                "closed", "the proxy went away before all was done; see what was, and try again"
            ) from None
        self._answered = True
        return answer


def _commands(store: KeyStore, config: Config, pepper: Pepper) -> Asked:
    imports = Imports(time.monotonic)

    def commit(args: Mapping[str, Any]) -> dict[str, Any]:
        answer, _ = imports.commit(
            store, config, args, uid=os.getuid(), now=time.time(), random_bytes=os.urandom
        )  # no worker is there to hear of it
        return answer

    own: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
        "keys.import.begin": partial(imports.begin, pepper),
        "keys.import.part": partial(imports.part, pepper),
        "keys.import.commit": commit,
        "keys.import.rows": imports.rows,
        "keys.export": partial(export_keys, store),
        **{command: partial(act, store, config) for command, act in _ON_THE_STORE.items()},
    }
    return lambda command, args: own[command](args)


def _owner(state: Path) -> os.stat_result:
    """Whose the state is; StoreError if we can't act as its owner."""
    status = state.stat()
    if os.geteuid() not in {0, status.st_uid}:
        try:
            name = pwd.getpwuid(status.st_uid).pw_name
        except KeyError:
            name = f"uid {status.st_uid}"
        raise StoreError(state, f"belongs to {name}, and no proxy is running", f"run this as root or as {name}")
    return status


@contextlib.contextmanager
def _acting_as(owner: os.stat_result) -> Iterator[None]:
    """With the rights of the state's owner, so that what root makes is not root's and shuts the daemon out."""
    if os.geteuid() == owner.st_uid:
        yield
        return
    group = os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


# --- commands ---------------------------------------------------------------------------------------------------


def _all(config: Config) -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = ask(config, "keys.list", {"after": after})
        keys += page["keys"]
        after = page["next"]
    return keys


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Whatever stands in a command's way, as its last word."""
    try:
        yield
    except (ConfigError, ControlError, ControlTimeout, Rejected, StateBusy, StoreError, OSError) as error:
        fail(str(error))


_OVERRIDES: Final = {  # a plan's field, as an option: what it does for this key alone
    "streams": "In flight at once, like 50.",
    "streams-by-class": "Of them by class, like flux=10,agent=5.",
    "rate": "Requests and streams begun, like 10/s.",
    "burst": "Of them at once, like 20.",
    "quota-audio": "Audio in each window, like 100h/month.",
    "quota-requests": "Requests in each window, like 100000/day.",
    "quota-bytes": "Bytes both ways in each window, like 500GiB/month.",
    "quota-characters": "Characters in each window, like 2000000/week.",
    "classes": "Kinds of work, like batch,stream.",
    "models": "Models, like nova-3,aura-2; * for every one.",
    "allow-callback": "Hosts that a callback may name, like hooks.example.com.",
    "allow-url": "Hosts that audio may be fetched from, likewise.",
    "max-body": "Largest body, like 2GiB.",
    "stream-max-life": "Longest stream, like 2h; 0s for no limit.",
}


def _override_options(command: Callable[..., None]) -> Callable[..., None]:
    for name, help_text in reversed(_OVERRIDES.items()):
        command = click.option(f"--{name}", metavar="VALUE", help=help_text)(command)
    return command


@click.group()
def keys() -> None:
    """Make, list, show, disable and revoke ingress keys."""


@keys.command()
@click.option("--name", required=True, help="Whose it is; unique among keys that are not revoked.")
@click.option("--plan", default="default", show_default=True, help="A plan of the configuration.")
@click.option("--expires", metavar="DURATION", help="From now, like 90d; never if left out.")
@_override_options
@config_option
@json_option
def create(config: str | None, *, as_json: bool, name: str, plan: str, expires: str | None, **own: str | None) -> None:
    """Make a key and print it, this once."""
    overrides = {option.replace("_", "-"): value for option, value in own.items() if value is not None}
    args = {"name": name, "plan": plan, "expires": expires, "overrides": overrides}
    with told():
        made = ask(load(find_config(config)), "keys.create", args)
    try:
        emit(made, _new_key(made), as_json=as_json)
    except (OSError, SystemExit) as error:  # rich ends a command whose reader has gone
        why = error.strerror if isinstance(error, OSError) else "its reader has gone"
        fail(f"key {made['id']} was made, but could not be printed ({why}); nobody has it: revoke it, and make another")


@keys.command("list")
@config_option
@json_option
def list_(config: str | None, *, as_json: bool) -> None:
    """List all keys, in the order of making."""
    with told():
        found = _all(load(find_config(config)))
    emit(found, _many(found), as_json=as_json)


@keys.command()
@click.argument("id")
@config_option
@json_option
def show(config: str | None, *, as_json: bool, id: str) -> None:  # noqa: A002 - what people call it
    """Show one key."""
    with told():
        found = ask(load(find_config(config)), "keys.show", {"id": id})
    emit(found, _one(found), as_json=as_json)


def _turn_command(turn: Turn, help_text: str, said: str) -> None:
    """A command that changes a key's state. `said` is what people then read of the key."""

    @keys.command(turn, help=help_text)
    @click.argument("id")
    @config_option
    @json_option
    def _(config: str | None, *, as_json: bool, id: str) -> None:  # noqa: A002 - as `show` has it
        with told():
            now = ask(load(find_config(config)), f"keys.{turn}", {"id": id})
        emit(now, _turned(now, said), as_json=as_json)
        if now.get("everywhere") is False:
            click.echo(
                "dgproxy: a worker has not confirmed the change; `status` and the log show which hangs", err=True
            )


_turn_command(
    "disable",
    "Turn a key off, until it is enabled again, and end what it has in flight.",
    "disabled: requests with it are refused",
)
_turn_command("enable", "Turn a disabled key on again.", "enabled")
_turn_command(
    "revoke",
    "Turn a key off for ever and end what it has in flight.",
    "revoked: requests with it are refused, for ever",
)


# --- for people -------------------------------------------------------------------------------------------------
#
# What a user gave is put in as Text, never as rich's markup.


def short(overrides: Mapping[str, Any]) -> str:
    """Overrides in a line: "streams=5 quota.audio=100h/month models=a,b"."""
    words = []
    for name, value in overrides.items():
        match value:
            case dict():
                words += [f"{name}.{part}={amount}" for part, amount in value.items()]
            case list():
                words.append(f"{name}={','.join(value)}")
            case _:
                words.append(f"{name}={value}")
    return " ".join(words)


def _facts(key: Mapping[str, Any], *fields: str) -> Table:
    grid = Table.grid(padding=(0, 2))
    for field in fields:
        value = key[field]
        match field:
            case "overrides":
                text = short(value) or "none: all as its plan has it"
            case "expires":
                text = value or "never"
            case "state":
                text = _state(key)
            case _:
                text = str(value)
        grid.add_row(Text(field, "bold"), Text(text, overflow="fold"))
    return grid


def _new_key(made: Mapping[str, Any]) -> Panel:
    facts = _facts(made, "key", "id", "name", "plan", "expires", "overrides")
    return Panel(facts, title="New key", subtitle="It is shown only this once: keep it now.", expand=False)


def _one(key: Mapping[str, Any]) -> Table:
    return _facts(key, "id", "name", "plan", "state", "created", "expires", "overrides")


_STATE_STYLES: Final = {"active": "green", "disabled": "yellow", "revoked": "red", "expired": "yellow"}


def _state(key: Mapping[str, Any]) -> str:
    """Why the key is refused, in the order in which the door asks; "active" if it is not."""
    return "expired" if key["state"] == "active" and key["expired"] else str(key["state"])


def _turned(key: Mapping[str, Any], said: str) -> str:
    words = f"The key {key['id']} ({key['name']}) is {'now' if key['changed'] else 'already'} {said}"
    return f"{words}, but it expired at {key['expires']}" if _state(key) == "expired" else words


def _many(keys: list[dict[str, Any]]) -> Table:
    table = Table("id", "name", "plan", "state", "created", "expires", "overrides")
    for key in keys:
        table.add_row(
            key["id"],
            Text(key["name"]),
            Text(key["plan"]),
            Text(_state(key), _STATE_STYLES[_state(key)]),
            key["created"],
            key["expires"] or "never",
            Text(short(key["overrides"])),
        )
    return table
