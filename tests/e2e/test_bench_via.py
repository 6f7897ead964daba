"""The bench's load against a proxy that is up, as a tester would run it against one elsewhere."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import second_only
from tests.support.processes import free_port
from tests.support.proxy import Proxy, dgproxy
from tests.support.upstreams import REPOSITORY, Upstream

pytestmark = [second_only]
compiled = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def bench(proxy: Proxy, key: str, *arguments: str, scenario: str = "streams") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bench", scenario, "--via", proxy.base_url, "--ca", str(proxy.ca), *arguments],
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
    assert document["facts"]["date"]
    assert document["command"].startswith("python -m bench streams --via https://")
    assert [head["method"] for head in upstream.heads()] == ["GET"] * 6
    assert proxy.key not in done.stdout + done.stderr + written.read_text()


@pytest.mark.parametrize("wrong", ["", "dgp_0000000000_00000000000000000000000000000000000000"])
def test_a_key_that_is_refused_is_a_fault_and_no_figure(proxy: Proxy, wrong: str) -> None:
    done = bench(proxy, wrong, "--streams", "2", "--seconds", "1", "--rounds", "1")
    assert done.returncode == 1
    assert "2 of 2 streams were not opened" in done.stdout
    assert "Traceback" not in done.stderr


@compiled
@pytest.mark.parametrize("scenario", ["requests", "handshake", "download", "idle"])
def test_the_same_load_goes_both_ways(proxy: Proxy, upstream: Upstream, scenario: str) -> None:
    rest = ["--direct", upstream.url, "--streams", "2", "--seconds", "0.5", "--rounds", "1"]
    done = bench(proxy, "", "--key", proxy.key, *rest, scenario=scenario)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"(?m)^ +added +[+-][0-9]", done.stdout)
    assert not any(proxy.key in value for head in upstream.heads() for _, value in head["headers"])


@compiled
@pytest.mark.parametrize("scenario", [pytest.param("requests", marks=compiled), "streams"])
def test_a_certificate_that_nobody_vouches_for_is_told(proxy: Proxy, scenario: str, tmp_path: Path) -> None:
    dgproxy("init", str(tmp_path / "other"))
    rest = ["--streams", "2", "--seconds", "0.5", "--rounds", "1", "--ca", str(tmp_path / "other/certs/ca.pem")]
    done = bench(proxy, proxy.key, *rest, scenario=scenario)
    assert done.returncode == 1
    assert "certificate" in done.stdout.lower()
    assert bench(proxy, proxy.key, *rest, "--insecure", scenario=scenario).returncode == 0


def test_nothing_to_reach_is_told_in_a_line(proxy: Proxy) -> None:
    done = bench(proxy, proxy.key, "--via", f"http://127.0.0.1:{free_port()}/dg")
    assert done.returncode == 1
    assert done.stderr.startswith("bench: nothing to reach at 127.0.0.1:")
    assert "Traceback" not in done.stderr


def test_what_was_measured_before_ctrl_c_is_told(proxy: Proxy, tmp_path: Path) -> None:
    written = tmp_path / "via.json"
    rest = ["--streams", "1", "--seconds", "1", "--rounds", "100", "--json", str(written)]
    with subprocess.Popen(
        [sys.executable, "-m", "bench", "streams", "--via", proxy.base_url, "--ca", str(proxy.ca), *rest],
        env={**os.environ, "DGPROXY_BENCH_KEY": proxy.key},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("round 2/100"):
                running.send_signal(signal.SIGINT)
                break
        out, err = running.communicate(timeout=20)
    assert running.returncode == 130, out + err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert "streams: live streams" in out
    document = json.loads(written.read_text())
    assert document["interrupted"] is True
    assert [row["round"] for row in document["runs"]] == [1]
