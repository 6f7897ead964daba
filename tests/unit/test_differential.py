"""How the differential run judges (tests/differential), which itself needs nginx and HAProxy and is run by hand."""

import dataclasses
import socket
import tomllib
from pathlib import Path
from typing import Final

import pytest

from tests.differential import report
from tests.differential.compare import Explained, Result, Verdict, compare
from tests.differential.corpus import RULES, Row, rows
from tests.differential.upstream import Seen, Upstream
from tests.support.raw import SECOND

REPOSITORY: Final = Path(__file__).parents[2]
REFUSED: Final = Result(statuses=(400,), ended=True)
PASSED: Final = Result(statuses=(200,), ended=True, first=("POST /v1/listen length 5",))


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (REFUSED, REFUSED, Verdict.SAME),
        (REFUSED, dataclasses.replace(REFUSED, statuses=()), Verdict.SAME),
        (PASSED, PASSED, Verdict.SAME),
        (PASSED, dataclasses.replace(PASSED, first=("POST /v1/listen chunked 5",)), Verdict.SAME),
        (PASSED, dataclasses.replace(PASSED, first=("POST /v1/listen length 4",)), Verdict.OTHER),
        (REFUSED, PASSED, Verdict.STRICTER),
        (PASSED, REFUSED, Verdict.LAXER),
        (dataclasses.replace(PASSED, second=1), PASSED, Verdict.LAXER),
        (dataclasses.replace(REFUSED, second=1), REFUSED, Verdict.LAXER),
        (PASSED, dataclasses.replace(PASSED, second=1), Verdict.STRICTER),
        (dataclasses.replace(REFUSED, broken=("length",)), PASSED, Verdict.LAXER),
        (dataclasses.replace(REFUSED, broken=("length",)), dataclasses.replace(REFUSED, broken=("x",)), Verdict.LAXER),
        (PASSED, dataclasses.replace(REFUSED, broken=("length",)), Verdict.STRICTER),
        (dataclasses.replace(PASSED, lookalikes=("content_length",)), PASSED, Verdict.LAXER),
        (PASSED, dataclasses.replace(PASSED, trailers=("x",)), Verdict.STRICTER),
        (dataclasses.replace(PASSED, trailers=("x",)), dataclasses.replace(PASSED, trailers=("x",)), Verdict.SAME),
    ],
)
def test_laxer_is_whatever_lets_more_through(ours: Result, theirs: Result, verdict: Verdict) -> None:
    assert compare(ours, theirs) is verdict


def test_every_row_has_a_rule_every_rule_a_row_and_every_explanation_a_row() -> None:
    corpus = list(rows())
    assert len({row.id for row in corpus}) == len(corpus)
    assert {row.rule for row in corpus} == set(RULES)
    assert all(row.sent.endswith(SECOND) for row in corpus)
    entries = tomllib.loads((REPOSITORY / "tests/differential/explained.toml").read_text())["rows"]
    assert set(Explained.read(entries).rows) <= {row.id for row in corpus}


def test_a_row_is_explained_once_and_with_a_reason() -> None:
    for entries in ([{"ids": ["a"], "reason": " "}], [{"ids": ["a", "a"], "reason": "b"}]):
        with pytest.raises(ValueError, match="twice, or without a reason"):
            Explained.read(entries)


def test_the_document_has_its_markers_and_only_what_is_between_them_is_renewed() -> None:
    text = (REPOSITORY / "docs/security.md").read_text()
    corpus = [Row("F1 a", b""), Row("F1 b", b"")]
    results = {"dgproxy": {"F1 a": PASSED, "F1 b": REFUSED}, "nginx": {"F1 a": REFUSED, "F1 b": REFUSED}}
    judged = report.verdicts(corpus, results)
    explained = Explained({"F1 a": "Because."})
    renewed = report.put_into(text, corpus, results, judged, explained, {"dgproxy": "1", "nginx": "2"})
    assert "(F1) | 2 | 9112 6.1 | passes (1), 400 (1) | 400 |\n" in renewed
    assert "- `F1 a`: Because.\n" in renewed
    assert renewed.partition(report.BEGIN)[0] == text.partition(report.BEGIN)[0]
    assert renewed.partition(report.END)[2] == text.partition(report.END)[2]
    with pytest.raises(ValueError, match="each marker once"):
        report.put_into("", corpus, results, judged, explained, {"dgproxy": "1", "nginx": "2"})


HEAD: Final = b"POST / HTTP/1.1\r\nHost: a\r\n"


def reached(sent: bytes) -> list[Seen]:
    """What the strict upstream makes of these bytes."""
    with Upstream() as upstream:
        upstream.secret = "sesame"
        with socket.create_connection(("127.0.0.1", upstream.port), timeout=10) as sock:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
        return upstream.take()


def test_the_strict_upstream_counts_requests_and_bodies() -> None:
    sent = HEAD + b"Content-Length: 2\r\n\r\nab" + HEAD + b"X: sesame\r\nTransfer-Encoding: chunked\r\n\r\n"
    first, second, third = reached(sent + b"3;x\r\nabc\r\n0\r\nX-T: y\r\n\r\n" + HEAD + b"Content-Length: 9\r\n\r\nab")
    assert (first.complete, first.framing, first.body, first.credential) == (True, "length", 2, False)
    assert (second.framing, second.body, second.trailers, second.credential) == ("chunked", 3, ["X-T"], True)
    assert (third.complete, third.malformed) == (False, None)


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Content-Length: +2\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
        HEAD + b"X: a\n\r\n",
        HEAD + b"X: a\x01\r\n\r\n",
        HEAD + b" X: a\r\n\r\n",
        HEAD + b"Host: b\r\n\r\n",
        b"GET /\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
    ],
)
def test_the_strict_upstream_takes_nothing_that_can_be_read_in_two_ways(sent: bytes) -> None:
    (seen,) = reached(sent)
    assert seen.malformed
    assert not seen.complete
