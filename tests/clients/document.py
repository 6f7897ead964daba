"""docs/clients.md: which clients work, how they are set up, and what each error means.

Rules of this file: it renders, and nothing else. The table is what tests saw (matrix.py), the snippets are files that
tests run (snippets/), the errors are dgproxy's own table (dgproxy.wire.refusals) with what clients.md and errors.toml
say of them.
"""

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from dgproxy.wire import refusals
from dgproxy.wire.refusals import Refusal
from tests.clients.matrix import FEATURES, SDKS, Feature, Group, Results, Sdk

HERE: Final = Path(__file__).parent
PATH: Final = HERE.parents[1] / "docs" / "clients.md"
SNIPPETS_IN: Final = HERE / "snippets"
HOST: Final = "speech.example.com"  # what a reader replaces in a snippet: this,
KEY: Final = "dgp_YOUR_KEY"  # and this


class Snippet(NamedTuple):
    """A program to paste: a file of snippets/, and what is said above it."""

    file: str
    title: str
    said: str


_NOT_RUN: Final = "**Not run**: written from the SDK's own source and examples."
_GO_HOST: Final = "of `https://` the SDK makes no good URL for streams, of `wss://` none for requests."
SNIPPETS: Final = (
    Snippet(
        "python-7.py",
        "Python 7",
        "6 (tried by hand: 6.1.1) takes the same without `agent_rest`. So does 5 (5.3.4), where"
        ' `send_control(ListenV1ControlMessage(type="CloseStream"))` stands for `send_close_stream()`.',
    ),
    Snippet("python-7-async.py", "Python 7, async", ""),
    Snippet("python-3-4.py", "Python 3 and 4", "The async clients are `listen.asyncrest` and `listen.asyncwebsocket`."),
    Snippet(
        "javascript-5.mjs",
        "JavaScript 5",
        "The program ends when the stream has; a stream that breaks is begun anew by the SDK itself.",
    ),
    Snippet("javascript-3-4.mjs", "JavaScript 3 and 4", ""),
    Snippet(
        "browser.html",
        "Browser, JavaScript 5",
        "The key is a subprotocol of the stream, and a header of the request. The origin of the page must be in `[cors]"
        " origins`. Run in Chromium.",
    ),
    Snippet("go.go", "Go", f"{_NOT_RUN} `Host` has no scheme: {_GO_HOST}"),
    Snippet("dotnet.cs", ".NET", _NOT_RUN),
    Snippet(
        "rust.rs",
        "Rust",
        f"{_NOT_RUN} The SDK's streams are built to trust public CAs alone: dgproxy needs a certificate of one.",
    ),
    Snippet("java.java", "Java", _NOT_RUN),
    Snippet("curl.sh", "curl", ""),
)

_LANGUAGES: Final = {
    ".cs": "csharp",
    ".go": "go",
    ".html": "html",
    ".java": "java",
    ".js": "js",
    ".mjs": "js",
    ".py": "python",
    ".rs": "rust",
    ".sh": "sh",
}
_GROUPS: Final[tuple[tuple[Group, str], ...]] = (("http", "Requests"), ("stream", "Streams"), ("refused", "Refusals"))
_WORKS, _FAILS, _HAS_NOT = "\N{CHECK MARK}", "\N{BALLOT X}", "\N{EN DASH}"


def render(results: Results) -> str:
    """All of docs/clients.md."""
    text = (HERE / "clients.md").read_text()
    for name, part in (
        ("table", _table(results)),
        ("snippets", _snippets()),
        ("refusals", _refusals()),
        ("closes", _closes()),
    ):
        text = text.replace(f"{{{{{name}}}}}", part)
    return text


def _grid(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(value.replace("|", "\\|") for value in line) + " |" for line in lines)


# --- the table -------------------------------------------------------------------------------------------------------


def _table(results: Results) -> str:
    notes: list[str] = []
    parts = []
    for group, title in _GROUPS:
        features = [feature for feature in FEATURES if feature.group == group]
        head = ["client", "version", *(feature.short for feature in features)]
        body = [[sdk.title, sdk.version, *(_cell(sdk, each, results, notes) for each in features)] for sdk in SDKS]
        parts += [
            f"### {title}",
            _grid([head, *body]),
            "\n".join(f"* **{feature.short}**: {feature.title}" for feature in features),
        ]
    if notes:
        parts += ["### Notes", "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))]
    return "\n\n".join(parts)


def _cell(sdk: Sdk, feature: Feature, results: Results, notes: list[str]) -> str:
    if feature.id in sdk.lacks:
        return _noted(_HAS_NOT, sdk.lacks[feature.id], notes)
    found = results.get((sdk.id, feature.id))
    return "" if found is None else _noted(_WORKS if found.verdict == "green" else _FAILS, found.note, notes)


def _noted(mark: str, note: str, notes: list[str]) -> str:
    """The mark with its note's number; a note that many cells share is written once."""
    if not note:
        return mark
    if note not in notes:
        notes.append(note)
    return f"{mark} <sup>{notes.index(note) + 1}</sup>"


# --- the snippets ----------------------------------------------------------------------------------------------------


def _snippets() -> str:
    parts = []
    for snippet in SNIPPETS:
        path = SNIPPETS_IN / snippet.file
        program = f"```{_LANGUAGES[path.suffix]}\n{path.read_text().strip()}\n```"
        parts += [f"### {snippet.title}", *([snippet.said] if snippet.said else []), program]
    return "\n\n".join(parts)


# --- the errors ------------------------------------------------------------------------------------------------------


def meanings() -> dict[str, Any]:
    """errors.toml: `refusals` by name, `closes`."""
    return tomllib.loads((HERE / "errors.toml").read_text())


def codes() -> Iterator[tuple[str, Refusal]]:
    """Every refusal by its name in dgproxy.wire.refusals; of those that are made on demand, an example."""
    for name, value in vars(refusals).items():
        if isinstance(value, Refusal):
            yield name, value
    yield "too_many_streams", refusals.too_many_streams(50, 50, "streams")
    yield "too_many_begun", refusals.too_many_begun("20/s", 40, 1)


def _refusals() -> str:
    remedies = meanings()["refusals"]
    rows = [
        (str(refusal.status), f"`{refusal.code}`", refusal.message, remedies[name])
        for name, refusal in sorted(codes(), key=lambda entry: entry[1].status)
    ]
    return _grid([("status", "err_code", "err_msg", "what to do"), *rows])


def _closes() -> str:
    rows = [(str(close["code"]), close["from"], close["means"], close["remedy"]) for close in meanings()["closes"]]
    return _grid([("code", "from", "means", "what to do"), *rows])
