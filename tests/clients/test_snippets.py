"""The programs of docs/clients.md, as they are pasted from it: only host and key are replaced."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.clients import document
from tests.clients.test_javascript import MODULES, NO_WEBSOCKET, NODE, PROGRAMS
from tests.clients.test_python import interpreter
from tests.conftest import second_only
from tests.support.clients import assert_chunked_kept, assert_forwarded, assert_length_kept
from tests.support.proxy import Proxy
from tests.support.upstreams import Head, Upstream

pytestmark = second_only

PYTHONS: Final = [("python-7.py", "7"), ("python-7-async.py", "7"), ("python-3-4.py", "4"), ("python-3-4.py", "3")]
JAVASCRIPTS: Final = [
    ("javascript-5.mjs", "deepgram-5", []),
    ("javascript-3-4.mjs", "deepgram-4", []),  # as on Node 22 and later
    ("javascript-3-4.mjs", "deepgram-4", [NO_WEBSOCKET]),
    ("javascript-3-4.mjs", "deepgram-3", [NO_WEBSOCKET]),
]


def paste(file: str, proxy: Proxy, wav: bytes, directory: Path) -> str:
    """The program of that file, out of the document, with its audio beside it."""
    (title,) = [snippet.title for snippet in document.SNIPPETS if snippet.file == file]
    # test_table.py sees that the committed one is the same
    found = re.search(rf"^### {re.escape(title)}$.*?^```\w+\n(.*?)^```$", document.render({}), re.MULTILINE | re.DOTALL)
    assert found, f"{title} is not in the document"
    (directory / "audio.wav").write_bytes(wav)
    (directory / "ca.pem").write_bytes(proxy.ca.read_bytes())
    return found[1].replace(document.HOST, f"127.0.0.1:{proxy.port}").replace(document.KEY, proxy.key)


def run(command: list[str], proxy: Proxy, directory: Path) -> list[str]:
    """The lines that it prints."""
    environment = {**os.environ, "SSL_CERT_FILE": str(proxy.ca), "NODE_EXTRA_CA_CERTS": str(proxy.ca)}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def both(upstream: Upstream, wav: bytes) -> list[Head]:
    """The two requests of a program: both are whole, and hold all of the audio."""
    heads = upstream.wait_for(lambda heads: len(heads) == 2 and all(head["complete"] for head in heads))
    for head in heads:
        assert head["target"] == "/v1/listen?model=nova-3"
        assert head["body_bytes"] == len(wav)
        assert_forwarded(head, upstream, websocket=head["method"] == "GET")
    return heads


@pytest.mark.parametrize(("file", "major"), PYTHONS)
def test_a_python_program_runs_as_pasted(
    proxy: Proxy, upstream: Upstream, wav: bytes, tmp_path: Path, file: str, major: str
) -> None:
    program = paste(file, proxy, wav, tmp_path)
    said = run([str(interpreter(major)), "-c", program], proxy, tmp_path)
    assert said[0] == f"second upstream heard {len(wav)} bytes"  # posted
    assert said[-1] == f"heard {len(wav)} bytes"  # streamed
    posted, streamed = both(upstream, wav)
    assert_length_kept(posted, len(wav))
    assert (posted["method"], streamed["method"], streamed["close_code"]) == ("POST", "GET", 1000)


@pytest.mark.parametrize(("file", "alias", "options"), JAVASCRIPTS)
def test_a_javascript_program_runs_as_pasted(
    proxy: Proxy, upstream: Upstream, wav: bytes, tmp_path: Path, file: str, alias: str, options: list[str]
) -> None:
    program = tmp_path / file
    program.write_text(paste(file, proxy, wav, tmp_path))
    installed = tmp_path / "node_modules" / "@deepgram" / "sdk"
    installed.parent.mkdir(parents=True)
    installed.symlink_to(MODULES / alias)
    said = run([str(NODE), *options, str(program)], proxy, tmp_path)
    assert said[0] == f"second upstream heard {len(wav)} bytes"  # posted
    assert said[-1] == f"heard {len(wav)} bytes"  # streamed
    posted, streamed = both(upstream, wav)
    if alias == "deepgram-5":
        assert_length_kept(posted, len(wav))
    else:
        assert_chunked_kept(posted)
    assert (posted["method"], streamed["method"], streamed["close_code"]) == ("POST", "GET", 1000)


def test_the_pages_script_runs_as_pasted(proxy: Proxy, upstream: Upstream, wav: bytes, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(paste("browser.html", proxy, wav, tmp_path))
    shutil.copy(PROGRAMS / "page.cjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(MODULES)
    said = run([str(NODE), str(tmp_path / "page.cjs"), str(page), "audio.wav"], proxy, tmp_path)
    assert said[0] == f"second upstream heard {len(wav)} bytes"  # posted
    assert said[-1] == f"heard {len(wav)} bytes"  # streamed
    posted, streamed = both(upstream, wav)
    assert_length_kept(posted, len(wav))
    assert (posted["method"], streamed["method"], streamed["close_code"]) == ("POST", "GET", 1000)


def test_the_curl_lines_run_as_pasted(proxy: Proxy, upstream: Upstream, wav: bytes, tmp_path: Path) -> None:
    said = run(["sh", "-ec", paste("curl.sh", proxy, wav, tmp_path)], proxy, tmp_path)
    assert "".join(said).count(f"second upstream heard {len(wav)} bytes") == 2
    known, chunked = both(upstream, wav)
    assert_length_kept(known, len(wav))
    assert_chunked_kept(chunked)
