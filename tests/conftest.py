"""Fixtures of every test: both upstreams, a proxy before each, audio; and two rules that hold for the whole run.

The rules: no test is skipped unless tests/allowed_skips.txt says so; no credential that a test used occurs in what a
proxy printed or stored, nor in what reached an upstream.
"""

import io
import math
import signal
import struct
import wave
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support.logs import SECRETS
from tests.support.proxy import Proxy
from tests.support.upstreams import NAMES, Upstream

ALLOWED_SKIPS: Final = Path(__file__).with_name("allowed_skips.txt")
SKIPS: Final = pytest.StashKey[list[tuple[str, str]]]()
RATE: Final = 16_000
SECONDS: Final = 3


# --- no silent skips -------------------------------------------------------------------------------------------------


def _allowed() -> list[tuple[str, str]]:
    lines = [line.strip() for line in ALLOWED_SKIPS.read_text().splitlines()]
    entries = [line.split("|", 1) for line in lines if line and not line.startswith("#")]
    return [(entry[0].strip(), entry[-1].strip()) for entry in entries]


def _unallowed(skips: list[tuple[str, str]]) -> list[tuple[str, str]]:
    allowed = _allowed()
    return [
        (node, reason)
        for node, reason in skips
        if not any(node.startswith(start) and part in reason for start, part in allowed)
    ]


class _SkipWatch:
    """Remembers every skip, of tests and of whole modules, with its reason."""

    def __init__(self, skips: list[tuple[str, str]]) -> None:
        self._skips = skips

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        told = report.longrepr
        self._skips.append((report.nodeid, told[2] if isinstance(told, tuple) else str(told)))


def _end_in_order(*_: object) -> None:
    raise KeyboardInterrupt  # fixtures then stop what they started, as on Ctrl-C


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGTERM, _end_in_order)
    skips: list[tuple[str, str]] = []
    config.stash[SKIPS] = skips
    config.pluginmanager.register(_SkipWatch(skips), "skip-watch")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == pytest.ExitCode.OK and _unallowed(session.config.stash[SKIPS]):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    skips = config.stash[SKIPS]
    if not skips:
        return
    unallowed = _unallowed(skips)
    terminalreporter.section("skipped tests")
    for node, reason in skips:
        verdict = "NOT ALLOWED" if (node, reason) in unallowed else "allowed"
        terminalreporter.line(f"{verdict}: {node} | {reason}", red=verdict == "NOT ALLOWED")


# --- no leaks --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def leaks() -> Iterator[list[str]]:
    """Where proxies and upstreams report a credential found in what they hold, when they end; it must stay empty."""
    found: list[str] = []
    yield found
    assert not found, f"of {len(SECRETS)} credentials used: " + "; ".join(sorted(set(found)))


# --- upstreams and proxies -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", params=NAMES)
def upstream_process(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, leaks: list[str]
) -> Iterator[Upstream]:
    """A stand-in container for the session. Tests ask for `upstream`."""
    upstream = Upstream(request.param, tmp_path_factory.mktemp(f"upstream-{request.param}"))
    try:
        yield upstream
    finally:
        try:
            upstream.stop()
        finally:
            leaks += upstream.leaks()


@pytest.fixture
def upstream(upstream_process: Upstream) -> Upstream:
    """A stand-in container that has seen no request of this test yet; every test runs with both of them."""
    upstream_process.clear()
    return upstream_process


second_only = pytest.mark.parametrize("upstream_process", ["second"], indirect=True)


@pytest.fixture(scope="session")
def proxy(upstream_process: Upstream, tmp_path_factory: pytest.TempPathFactory, leaks: list[str]) -> Iterator[Proxy]:
    """A running proxy with two workers before the upstream, shared by the session's tests."""
    proxy = Proxy(tmp_path_factory.mktemp(f"proxy-{upstream_process.name}"), upstream_process.url)
    try:
        with proxy:
            yield proxy
    finally:
        leaks += proxy.leaks()


@pytest.fixture
def new_proxy(
    upstream_process: Upstream, tmp_path_factory: pytest.TempPathFactory, leaks: list[str]
) -> Iterator[Callable[..., Proxy]]:
    """Makes proxies (not yet started) for tests that kill, stop or configure one of their own."""
    made: list[Proxy] = []

    def new(settings: Mapping[str, str] | None = None) -> Proxy:
        made.append(Proxy(tmp_path_factory.mktemp("own-proxy"), upstream_process.url, settings))
        return made[-1]

    yield new
    for proxy in made:
        proxy.kill()  # what a failed test left running
        leaks += proxy.leaks()


# --- audio -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pcm() -> bytes:
    """Three seconds of a 440 Hz tone: linear16, 16 kHz, mono."""
    samples = (int(12_000 * math.sin(2 * math.pi * 440 * n / RATE)) for n in range(RATE * SECONDS))
    return b"".join(struct.pack("<h", sample) for sample in samples)


@pytest.fixture(scope="session")
def wav(pcm: bytes) -> bytes:
    """The same as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(pcm)
    return file.getvalue()
