"""What may be measured elsewhere, and what a transcript's lag counts from."""

import argparse
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from bench import __main__ as command, lag, via
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


def test_the_first_address_that_accepts_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        name = where(f"http://localhost:{port}")
        real = socket.getaddrinfo

        def resolve(host: str, *rest: Any, **more: Any) -> list[Any]:
            names = ("::1", "127.0.0.1") if host == "localhost" else (host,)
            return [one for name in names for one in real(name, *rest, **more)]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        assert name.reached().address == "127.0.0.1"
        assert name.reached().authority == f"localhost:{port}"
    with pytest.raises(BadUrl, match=rf"^nothing to reach at localhost:{port}: 127\.0\.0\.1: Connection refused$"):
        name.reached()


def test_the_key_is_not_kept_with_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--via", "https://h", "--key", "dgp_secret", "--key=dgp_secret"])
    assert command._command("dgp_secret") == "python -m bench --via https://h --key ... --key=..."


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"Results"',
        b"\xff",
        b'{"type":"Metadata","duration":1.0,"start":0.0}',
        b'{"type":"Results","duration":1.0}',
        b'{"type":"Results","duration":0.0,"start":0.0}',
        b'{"type":"Results","duration":[1],"start":0.0}',
        b'{"type":"UtteranceEnd","channel":[0,1],"last_word_end":1.0}',
    ],
)
def test_what_is_no_transcript_has_no_lag(message: bytes) -> None:
    assert lag.covered(message) is None


def test_a_transcript_reaches_to_the_end_of_its_window() -> None:
    assert lag.covered(b'{"type":"Results","start":1.5,"duration":0.25,"is_final":true}') == 1.75


LATENCY = [[0, 1000.0], [0.5, 2000.0], [0.99, 3000.0], [1, 4000.0]]


@pytest.mark.parametrize(
    ("scenario", "more", "wanted"),
    [
        ("requests", {}, {"p50": 2.0, "p90": 3.0, "p99": 3.0, "p99.9": 4.0, "max": 4.0, "a second": 5.0}),
        ("upload", {}, {"max": 4.0, "MB/s": 1.5}),
        ("idle", {"opening_us": LATENCY}, {"p50": 2.0, "max": 4.0, "opened": 7.0}),
        ("download", {"first_us": [[0, 10.0], [1, 500.0]]}, {"first p50": 0.5, "first p99": 0.5, "MB/s": 1.5}),
        ("requests", {"latency_us": [], "done": 0}, {"a second": 0.0}),
    ],
)
def test_what_is_told_is_in_ms_and_of_what_was_done(
    scenario: str, more: dict[str, Any], wanted: dict[str, float]
) -> None:
    found = {"latency_us": LATENCY, "bytes": 3_000_000, "seconds": 2.0, "done": 10, "opened": 7, **more}
    told = via.figures_of(scenario, found)
    assert {name: told[name] for name in wanted} == wanted
    if not found["latency_us"]:
        assert told == wanted


@pytest.mark.parametrize("scenario", [*via.SCENARIOS, *via.ON_REQUEST])
def test_no_scenario_asks_more_of_a_container_than_it_should_bear(scenario: str) -> None:
    args = argparse.Namespace(seconds=60.0, streams=3, bytes=1000, text=10)
    mode, load = via.load_of(scenario, args)
    assert mode in {"requests", "handshake", "upload", "streams", "saturate", "idle"}
    assert load.get("n", 1) <= 32
    assert ("standin_" in load["target"]) is (scenario in ("echo", "saturate"))
    assert scenario != "idle" or load["seconds"] < 10  # a container ends a stream without audio then
