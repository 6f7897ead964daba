"""The bench's load against a proxy that is up, as a tester would run it against one elsewhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import second_only
from tests.support.proxy import Proxy
from tests.support.upstreams import REPOSITORY, Upstream

pytestmark = [second_only]


def bench(proxy: Proxy, key: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bench", "streams", "--via", proxy.base_url, "--ca", str(proxy.ca), *arguments],
        env={**os.environ, "DGPROXY_BENCH_KEY": key},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_transcript_lag_is_told_with_and_without_the_proxy(proxy: Proxy, upstream: Upstream, tmp_path: Path) -> None:
    written = tmp_path / "via.json"
    rest = ["--direct", upstream.url, "--streams", "3", "--seconds", "2", "--rounds", "1", "--json", str(written)]
    done = bench(proxy, proxy.key, *rest)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "added" in done.stdout
    document = json.loads(written.read_text())
    through, direct = document["runs"]
    for row in through, direct:
        assert row["figures"]["transcripts"] >= 3
        assert 0 < row["figures"]["p50"] <= row["figures"]["max"]
    assert [head["method"] for head in upstream.heads()] == ["GET"] * 6
    assert proxy.key not in done.stdout + done.stderr + written.read_text()


@pytest.mark.parametrize("wrong", ["", "dgp_0000000000_00000000000000000000000000000000000000"])
def test_a_key_that_is_refused_is_a_fault_and_no_figure(proxy: Proxy, wrong: str) -> None:
    done = bench(proxy, wrong, "--streams", "2", "--seconds", "1", "--rounds", "1")
    assert done.returncode == 1
    assert "2 of 2 streams were not opened" in done.stdout
    assert "Traceback" not in done.stderr
