"""A new key is shown once. If that fails, its owner must know that it is there, and that nobody has it."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.proxy import DGPROXY, dgproxy


def full(argv: list[str]) -> "subprocess.CompletedProcess[str]":
    with Path("/dev/full").open("wb") as nowhere:
        return subprocess.run(argv, stdout=nowhere, stderr=subprocess.PIPE, text=True, timeout=30, check=False)


def reader_has_gone(argv: list[str]) -> "subprocess.CompletedProcess[str]":
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        return subprocess.run(argv, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=30, check=False)


@pytest.mark.parametrize("as_json", [["--json"], []], ids=["json", "people"])
@pytest.mark.parametrize("run", [full, reader_has_gone])
def test_a_key_that_could_not_be_printed_is_named(
    tmp_path: Path, run: Callable[[list[str]], "subprocess.CompletedProcess[str]"], as_json: list[str]
) -> None:
    dgproxy("init", str(tmp_path / "dg"))
    config = ["-c", str(tmp_path / "dg" / "dgproxy.toml")]
    done = run([*DGPROXY, "keys", "create", "--name", "lost", *config, *as_json])
    (key,) = json.loads(dgproxy("keys", "list", "--json", *config).stdout)
    assert done.returncode == 1
    assert done.stderr.startswith(f"dgproxy: key {key['id']} was made, but could not be printed (")
    assert done.stderr.endswith("revoke it, and make another\n")
    assert len(done.stderr.splitlines()) == 1
