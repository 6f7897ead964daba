"""Runs after all other tests of this directory (conftest.py): what they saw is what docs/clients.md says."""

import inspect
import re
from pathlib import Path

import msgspec
import pytest

from dgproxy.config import Config
from dgproxy.wire import refusals
from dgproxy.worker import stream
from tests.clients import document, matrix

HERE = Path(__file__).parent


def test_the_table_says_what_this_run_saw() -> None:
    found = matrix.results()
    told = matrix.committed()
    differing = {key: (told.get(key), seen) for key, seen in found.items() if told.get(key) != seen}
    assert not differing, f"committed, and seen now: {differing}; `make clients` writes it anew"


def test_every_cell_of_the_table_is_seen_by_a_whole_run(
    pytestconfig: pytest.Config, request: pytest.FixtureRequest
) -> None:
    every = {(cell.sdk.id, cell.feature.id) for cell in matrix.cells(matrix.SDKS)}
    assert set(matrix.committed()) == every
    if _whole(pytestconfig, request.session):
        assert set(matrix.results()) == every


def _whole(config: pytest.Config, session: pytest.Session) -> bool:
    """Whether all tests of this directory run."""
    ran = {item.path for item in session.items}
    option = config.option
    chosen = (
        option.keyword
        or option.markexpr
        or getattr(option, "lf", False)
        or any("::" in argument for argument in config.args)
    )
    return not chosen and ran >= set(HERE.glob("test_*.py"))


def test_the_document_is_made_from_the_table() -> None:
    assert document.PATH.read_text() == document.render(matrix.committed()), "`make clients` writes it anew"


def test_every_refusal_has_its_row_and_every_row_its_refusal() -> None:
    assert set(document.meanings()["refusals"]) == {name for name, _ in document.codes()}
    makers = {name for name, value in vars(refusals).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert makers == {"too_many_streams", "too_many_begun"}, "one made on demand needs its example in codes()"


def test_every_close_code_of_ours_has_its_row() -> None:
    codes = {value for value in vars(stream).values() if isinstance(value, int) and 1000 <= value <= 1015}
    told = {close["code"] for close in document.meanings()["closes"] if close["from"] == "dgproxy"}
    assert codes - {1005} == told  # 1005 is never sent


def test_every_snippet_is_in_the_document() -> None:
    told = [snippet.file for snippet in document.SNIPPETS]
    assert sorted(told) == sorted(path.name for path in document.SNIPPETS_IN.iterdir())
    for name in told:
        program = (document.SNIPPETS_IN / name).read_text()
        assert document.KEY in program
        assert document.HOST in program


def test_every_setting_that_a_remedy_names_exists() -> None:
    told = document.meanings()
    text = " ".join(
        [*told["refusals"].values(), *(part for close in told["closes"] for part in map(str, close.values()))]
    )
    fields = {field.name: field.type for field in msgspec.structs.fields(Config)}
    named = [(section, key) for section, key in re.findall(r"`(\w+)\.(\w+)`", text) if section in fields]
    assert len(named) > 5
    for section, key in named:
        assert key in {field.name for field in msgspec.structs.fields(fields[section])}, f"{section}.{key}"
