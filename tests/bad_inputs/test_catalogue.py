"""The catalogue is complete: each id has its rows, or says why it has none yet and what keeps the risk away."""

import importlib
from pathlib import Path

import pytest

from tests.bad_inputs.catalogue import CATALOGUE, COMPLETE, ELSEWHERE, NOT_YET, SCALED, ids_of
from tests.support.proxy import dgproxy, edit

HERE = Path(__file__).parent
ROWS = {
    path.stem: set(ids_of(importlib.import_module(f"tests.bad_inputs.{path.stem}")))
    for path in sorted(HERE.glob("test_*.py"))
    if path.stem != Path(__file__).stem
}
COVERED = set().union(*ROWS.values())


@pytest.mark.parametrize("wanted", [name for name in CATALOGUE if name[0] in COMPLETE])
def test_every_id_has_its_rows(wanted: str) -> None:
    if wanted in NOT_YET:
        assert wanted not in COVERED, "it has rows now: take it out of NOT_YET"
    elif wanted in ELSEWHERE:
        assert wanted in set(ids_of(importlib.import_module(ELSEWHERE[wanted])))
    else:
        assert wanted in COVERED


def test_no_row_has_an_id_that_is_not_in_the_catalogue() -> None:
    assert sorted(COVERED - set(CATALOGUE)) == []
    assert not (set(NOT_YET) | set(ELSEWHERE) | set(SCALED)) - set(CATALOGUE)


def test_the_catalogue_counts_as_its_source_does() -> None:
    ends = {"F": 32, "H": 15, "W": 17, "R": 9, "U": 9, "C": 11}
    counted = [f"{group}{number}" for group, last in ends.items() for number in range(1, last + 1)]
    assert [wanted for wanted in CATALOGUE if wanted[0] != "T"] == counted


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        pytest.param("server.trusted_proxies", '["10.0.0.0/8"]', id="until H10"),
        pytest.param("server.proxy_protocol", "true", id="until H11"),
    ],
)
def test_what_would_be_unsafe_to_ignore_cannot_be_switched_on(tmp_path: Path, setting: str, value: str) -> None:
    dgproxy("init", str(tmp_path / "dg"), "--listen", "127.0.0.1:1", "--upstream", "http://127.0.0.1:2")
    edit(tmp_path / "dg" / "dgproxy.toml", {setting: value})
    refused = dgproxy("run", "-c", str(tmp_path / "dg" / "dgproxy.toml"), check=False)
    assert refused.returncode == 1
    assert setting in refused.stderr


def test_until_c7_the_operator_is_told_that_nobody_is_throttled(tmp_path: Path) -> None:
    dgproxy("init", str(tmp_path / "dg"), "--listen", "127.0.0.1:1", "--upstream", "http://127.0.0.1:2")
    edit(tmp_path / "dg" / "dgproxy.toml", {"auth.failures_per_address": '"5/m"'})
    told = dgproxy("check", "-c", str(tmp_path / "dg" / "dgproxy.toml"), check=False)
    assert "auth.failures_per_address" in told.stdout + told.stderr
