"""`dgproxy keys import` and `keys export`: many keys in from a file, all of them out into one.

Rules of this file: a key's text goes from the file to the store and nowhere else: what is said names places, never
what stands there. The file is parsed here, as who runs the command and may read it; what its entries come to is judged
where the keys are kept.
"""

import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import rich_click as click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dgproxy.access import keyfiles
from dgproxy.access.keyfiles import Entry, Finding, Format, KeyFile, Level
from dgproxy.cli.common import config_option, emit, fail, json_option
from dgproxy.cli.keys import Asked, ask_on, short, told
from dgproxy.config import Config, find_config, load
from dgproxy.store.imports import Outcome

_PART: Final = 64 * 1024  # bytes of JSON of one part: the proxy's loop handles it in well under a millisecond
_WITHIN: Final = 600.0  # seconds for the store to take all of it
_SHOWN: Final = 1000  # rows of the table for people
_SAID: Final = 50  # findings of each kind for people
_TRIES: Final = 5  # to see all pages of one generation
_OTHERS: Final = stat.S_IRGRP | stat.S_IROTH


def _shown(path: str) -> str:
    """A file's name as text, whatever its bytes are."""
    return path.encode(errors="replace").decode()


# --- import -----------------------------------------------------------------------------------------------------


@click.command("import")
@click.argument("file")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--skip-bad", is_flag=True, help="Take what is good; else one bad entry leaves all as it was.")
@click.option(
    "--format", "form", type=click.Choice([form.value for form in Format]), help="If it can't be told from the file."
)
@click.option("--plan", help="Plan of the keys for which the file names none.")
@click.option("--plan-map", multiple=True, metavar="ID=PLAN", help="A usage plan of API Gateway is this plan here.")
@config_option
@json_option
def import_(
    config: str | None,
    *,
    as_json: bool,
    file: str,
    dry_run: bool,
    skip_bad: bool,
    form: str | None,
    plan: str | None,
    plan_map: tuple[str, ...],
) -> None:
    """Take over keys that another system made: FILE is CSV, API Gateway's too, an nginx map, or `keys export`'s.

    A dash for FILE is stdin. A key that is known already is brought to what the file says of it; a revoked one stays
    revoked.
    """
    plans = {}
    for pair in plan_map:
        usage_plan, equals, name = pair.partition("=")
        if not (usage_plan and equals and name):
            raise click.BadParameter("is written ID=PLAN", param_hint="--plan-map")
        plans[usage_plan] = name
    with told():
        loaded = load(find_config(config))
        data, exposed = _read(file)
        found = keyfiles.read(data, Format(form) if form else None)
        del data
        found = keyfiles.with_plans(found, plans, plan, tuple(loaded.plans))
        done = None
        if not found.fatal():
            done = ask_on(loaded, lambda asked: _import(asked, found, dry_run=dry_run, skip_bad=skip_bad), _WITHIN)
    _say(_shown(file), found, done, dry_run=dry_run, skip_bad=skip_bad, as_json=as_json, exposed=exposed)


@dataclass(frozen=True, slots=True)
class _Done:
    """What an import came to."""

    applied: bool
    everywhere: bool
    generation: int
    counts: Mapping[str, int]
    rows: list[dict[str, Any]]


def _read(file: str) -> tuple[bytes, bool]:
    """The file's bytes, one more than may be at most, and whether others can read it."""
    if file == "-":
        return sys.stdin.buffer.read(keyfiles.MAX_FILE + 1), False
    with Path(file).open("rb") as source:
        status = os.fstat(source.fileno())
        exposed = stat.S_ISREG(status.st_mode) and bool(status.st_mode & _OTHERS)
        return source.read(keyfiles.MAX_FILE + 1), exposed


def _import(asked: Asked, file: KeyFile, *, dry_run: bool, skip_bad: bool) -> _Done:
    number = asked("keys.import.begin", {"pepper_id": file.pepper_id})["import"]
    for part in _parts(file.entries):
        asked("keys.import.part", {"import": number, "entries": part})
    bad = sum(finding.level is Level.BAD for finding in file.findings)
    only_look = dry_run or bool(bad and not skip_bad)  # what is bad further on is to be seen too
    settled = asked("keys.import.commit", {"import": number, "dry_run": only_look, "skip_bad": skip_bad})
    rows: list[dict[str, Any]] = []
    for page in range(settled["pages"]):
        rows += msgspec.json.decode(asked("keys.import.rows", {"import": number, "page": page})["rows"])
    asked("keys.import.rows", {"import": number, "page": settled["pages"]})
    if not settled["applied"] and file.format is not Format.EXPORT:
        for row in rows:
            if row["outcome"] == Outcome.CREATED:
                del row["id"]  # drawn anew when it is made
    counts = {**settled["counts"], Outcome.BAD: settled["counts"][Outcome.BAD] + bad}
    return _Done(settled["applied"], settled.get("everywhere", True), settled["generation"], counts, rows)


def _parts(entries: list[Entry]) -> Iterator[str]:
    """Entries as JSON lists of bounded size."""
    lines: list[bytes] = []
    size = 0
    for entry in entries:
        line = msgspec.json.encode(entry)
        if lines and size + len(line) > _PART:
            yield (b"[" + b",".join(lines) + b"]").decode()
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    if lines:
        yield (b"[" + b",".join(lines) + b"]").decode()


def _say(
    path: str, file: KeyFile, done: _Done | None, *, dry_run: bool, skip_bad: bool, as_json: bool, exposed: bool
) -> None:
    rows = [] if done is None else done.rows
    findings = sorted([*file.findings, *_findings(rows)], key=lambda finding: finding.place)
    if as_json:
        emit(_document(path, file, done, findings, dry_run=dry_run))
    elif done is not None:
        emit(None, _for_people(file, done, dry_run=dry_run), as_json=False)
    if not as_json:
        for level in (Level.NOTE, Level.BAD, Level.FATAL):
            _tell(path, file, [finding for finding in findings if finding.level is level])
    bad = sum(finding.level is not Level.NOTE for finding in findings)
    if done is None:
        fail(f"{path}: nothing was imported")
    if done.counts[Outcome.BAD] and not skip_bad:
        remedy = "correct them, or take the others with --skip-bad"
        fail(f"{path}: nothing was imported, as {bad} of its entries can't be; {remedy}")
    if not done.everywhere:
        click.echo("dgproxy: a worker has not confirmed the change; `status` and the log show which hangs", err=True)
    if file.format is Format.EXPORT or path == "-":
        return
    if exposed:
        click.echo(f"dgproxy: {path} holds keys and others can read it; chmod 600", err=True)
    if not dry_run:
        click.echo(f"dgproxy: {path} still holds the keys; delete it when it is not needed any more", err=True)


def _findings(rows: list[dict[str, Any]]) -> Iterator[Finding]:
    for row in rows:
        match row["outcome"]:
            case Outcome.BAD:
                yield Finding(row["place"], row["note"])
            case Outcome.REVOKED:
                yield Finding(row["place"], f"the key {row['id']} {row['note']}", Level.NOTE)


def _tell(path: str, file: KeyFile, findings: list[Finding]) -> None:
    for finding in findings[:_SAID]:
        click.echo(f"{path}{_place(file, finding.place)}: {finding.message}", err=True)
    if len(findings) > _SAID:
        click.echo(f"{path}: and {len(findings) - _SAID} more of this kind; --json has them all", err=True)


def _place(file: KeyFile, place: int) -> str:
    if not place:
        return ""
    return f":{place}" if file.unit == "line" else f": {file.unit} {place}"


def _document(
    path: str, file: KeyFile, done: _Done | None, findings: list[Finding], *, dry_run: bool
) -> dict[str, Any]:
    listed = [row for row in ([] if done is None else done.rows) if row["outcome"] != Outcome.BAD]
    return {
        "file": path,
        "format": file.format,
        "dry_run": dry_run,
        "applied": done is not None and done.applied,
        "generation": None if done is None else done.generation,
        "counts": dict.fromkeys(Outcome, 0) if done is None else done.counts,
        "entries": [
            {file.unit: row["place"]} | {name: value for name, value in row.items() if name != "place"}
            for row in listed
        ],
        "findings": [
            {file.unit: finding.place or None, "level": finding.level, "message": finding.message}
            for finding in findings
        ],
    }


_WHAT: Final = {  # an outcome -> what is said of it before, and after
    Outcome.CREATED: ("would be created", "created"),
    Outcome.CHANGED: ("would change", "changed"),
    Outcome.UNCHANGED: ("unchanged", "unchanged"),
    Outcome.REVOKED: ("stay revoked", "stay revoked"),
    Outcome.BAD: ("bad", "bad"),
}


def _for_people(file: KeyFile, done: _Done, *, dry_run: bool) -> Group:
    table = Table(file.unit, "name", "what", "id")
    listed = [row for row in done.rows if row["outcome"] in {Outcome.CREATED, Outcome.CHANGED}]
    tense = int(done.applied)
    for row in listed[:_SHOWN]:
        what = _WHAT[row["outcome"]][tense] + "".join(_change(*change) for change in row.get("changes", {}).items())
        note = f" ({row['note']})" if row.get("note") else ""
        table.add_row(str(row["place"]), Text(row["name"]), Text(what + note), row.get("id") or "new")
    words = [f"{done.counts[outcome]} {_WHAT[outcome][tense]}" for outcome in Outcome if done.counts[outcome]]
    summary = ", ".join(words) or "no keys"
    if dry_run:
        summary += "; this was a dry run, and nothing is changed"
    parts: list[Table | Text] = [table] if listed else []
    if len(listed) > _SHOWN:
        parts.append(Text(f"and {len(listed) - _SHOWN} more; --json has them all"))
    return Group(*parts, Text(summary))


def _change(name: str, change: list[Any]) -> str:
    before, after = (short(value) if isinstance(value, dict) else value for value in change)
    return f"\n{name}: {before or 'none'} -> {after or 'none'}"


# --- export -----------------------------------------------------------------------------------------------------


@click.command("export")
@click.argument("file")
@click.option("--dry-run", is_flag=True, help="Say what would be written and how it differs from what is there.")
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
@config_option
@json_option
def export(config: str | None, *, as_json: bool, file: str, dry_run: bool, force: bool) -> None:
    """Write all keys into FILE as CSV, for an auditor or for `keys import` on another machine. Digests, never keys.

    A dash for FILE is stdout. Digests are of use only with this store's pepper.
    """
    with told():
        loaded = load(find_config(config))
        if file == "-" and not dry_run:
            if as_json:
                raise click.UsageError("--json would write into the export; name a file, or leave it out")
            text, _ = _export(loaded)
            click.echo(text, nl=False)
            return
        path = Path(file)
        there = None if file == "-" else _there(path)
        if there is not None and not force and not dry_run:
            fail(f"{file}: is there already; --force replaces it")
        text, facts = _export(loaded)
        if not dry_run:
            _replace(path, text, force=force)
    document = {"file": _shown(file), "dry_run": dry_run, **facts}
    if dry_run:
        document |= _difference(there, text)
    emit(document, _exported(document), as_json=as_json)


def _export(config: Config) -> tuple[str, dict[str, Any]]:
    def pages(asked: Asked) -> tuple[str, dict[str, Any]]:
        got: list[dict[str, Any]] = []
        for _ in range(_TRIES):
            got = [asked("keys.export", {"after": 0})]
            while got[-1]["next"] is not None:
                got.append(asked("keys.export", {"after": got[-1]["next"]}))
            if len({page["generation"] for page in got}) == 1:
                break
        else:
            fail("the keys changed again and again while they were read; try again")
        text = keyfiles.export_head() + "".join(page["lines"] for page in got)
        return text, {"keys": sum(page["keys"] for page in got), "generation": got[0]["generation"]}

    return ask_on(config, pages)


def _there(path: Path) -> str | None:
    try:
        with path.open(newline="") as found:
            return found.read(keyfiles.MAX_FILE)
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return ""


def _replace(path: Path, text: str, *, force: bool) -> None:
    """The file whole or not at all, mode 0600 from its first moment; one that came meanwhile is left."""
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
    try:
        with os.fdopen(fd, "w", newline="", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        if force:
            Path(name).replace(path)
        else:
            os.link(name, path)  # fails rather than replaces
    finally:
        Path(name).unlink(missing_ok=True)


def _difference(there: str | None, text: str) -> dict[str, Any]:
    """How the export that is there differs, by keys' ids."""
    if there is None:
        return {"exists": False}
    old, new = _by_id(there), _by_id(text)
    return {
        "exists": True,
        "added": sorted(new.keys() - old.keys()),
        "changed": sorted(key for key in new.keys() & old.keys() if new[key] != old[key]),
        "gone": sorted(old.keys() - new.keys()),
    }


def _by_id(text: str) -> dict[str, Entry]:
    entries = keyfiles.read(text.encode(), Format.EXPORT).entries
    return {entry.moved.id: msgspec.structs.replace(entry, place=0) for entry in entries if entry.moved is not None}


def _exported(document: Mapping[str, Any]) -> Text:
    where = "stdout" if document["file"] == "-" else document["file"]
    words = f"{document['keys']} keys {'would go' if document['dry_run'] else 'went'} into {where}"
    if document.get("exists"):
        parts = [f"{len(document[how])} {how}" for how in ("added", "changed", "gone") if document[how]]
        words += f", which is there already: {', '.join(parts) or 'the same keys'}; --force replaces it"
    return Text(words)
