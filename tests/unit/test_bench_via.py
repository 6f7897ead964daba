"""What may be measured elsewhere, and what a transcript's lag counts from."""

import argparse
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from bench import lag, via
from bench.via import BadUrl, Where


def where(url: str, **options: Any) -> Where:
    return Where.of(url, **{"ca": None, "insecure": False, **options})


@pytest.mark.parametrize(
    ("url", "authority", "port", "tls", "prefix"),
    [
        ("https://127.0.0.1", "127.0.0.1", 443, True, ""),
        ("wss://localhost:8443/", "localhost:8443", 8443, True, ""),
        ("http://127.0.0.1:80/deepgram/", "127.0.0.1", 80, False, "/deepgram"),
        ("ws://[::1]:9", "[::1]:9", 9, False, ""),
    ],
)
def test_a_url_is_taken_apart(url: str, authority: str, port: int, prefix: str, *, tls: bool) -> None:
    found = where(url)
    assert (found.authority, found.port, found.tls, found.prefix) == (authority, port, tls, prefix)
    assert found.verify is tls
    assert found.websocket("/v1/listen") == f"{'wss' if tls else 'ws'}://{authority}{prefix}/v1/listen"
    assert (found.context() is not None) is tls


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8080",
        "ftp://127.0.0.1",
        "https://",
        "https://u:p@127.0.0.1",
        "https://127.0.0.1/?key=x",
        "http://h:99999",
    ],
)
def test_a_url_that_says_too_much_or_too_little_is_refused(url: str) -> None:
    with pytest.raises(BadUrl):
        where(url)


def test_certificates_are_believed_only_where_asked_for() -> None:
    context = where("https://127.0.0.1", insecure=True).context()
    assert context is not None
    assert not context.check_hostname
    context = where("https://127.0.0.1").context()
    assert context is not None
    assert context.check_hostname


def test_a_key_in_a_file_or_the_environment_is_none_of_the_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = argparse.ArgumentParser()
    via.options(parser)
    monkeypatch.setenv(via.VARIABLE, "from the environment")
    assert via.key_of(parser.parse_args([])) == "from the environment"
    file = tmp_path / "key"
    file.write_text("from a file\n")
    assert via.key_of(parser.parse_args(["--key-file", str(file), "--key", "argument"])) == "from a file"


@given(st.integers(1, 10_000))
def test_so_many_chunks_of_audio_are_covered_by_the_last_of_them(chunks: int) -> None:
    assert lag.covering(chunks * lag.CHUNK) == chunks - 1
    assert lag.covering((chunks - 0.5) * lag.CHUNK) == chunks - 1
    assert lag.covering(chunks * lag.CHUNK + 0.001) == chunks
