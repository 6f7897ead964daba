"""Bodies that are long enough to be poured past the HTTP code: to the byte, and the next request right behind them."""

import hashlib
import random
from typing import Final

import pytest

from dgproxy.net.pour import AN_EVENT
from tests.conftest import second_only
from tests.support.proxy import Proxy
from tests.support.raw import SECOND, answers, connect, post, read_all
from tests.support.upstreams import Upstream

pytestmark = [second_only]

MIB: Final = 1 << 20


@pytest.mark.parametrize(
    "size",
    [2 * AN_EVENT - 1, 2 * AN_EVENT, 2 * AN_EVENT + 1, 5 * MIB + 12345],
    ids=["just not", "just", "just so", "long"],
)
@pytest.mark.parametrize("step", [1000, 100_000, 1 << 30], ids=["in small pieces", "in large ones", "at once"])
def test_a_long_body_arrives_whole_and_the_request_behind_it_is_served(
    proxy: Proxy, upstream: Upstream, size: int, step: int
) -> None:
    body = random.Random(size).randbytes(size)
    head = post(b"Content-Length: %d" % size, b"Content-Type: audio/wav")
    sent = (head + body + SECOND).replace(b"KEY", proxy.key.encode())
    with connect(proxy) as sock:
        for at in range(0, len(sent), step):
            sock.sendall(sent[at : at + step])
        got = list(answers(read_all(sock), ["POST", "GET"]))
    assert [answer.status for answer in got] == [200, 200]
    first, second = upstream.heads()
    assert (first["body_bytes"], first["sha256"]) == (size, hashlib.sha256(body).hexdigest())
    assert (second["target"], second["body_bytes"]) == ("/v1/models?second", 0)


@pytest.mark.parametrize("sent", [0, 100_000, 4 * MIB], ids=["nothing", "some", "most"])
def test_a_long_body_that_is_broken_off_is_never_completed(proxy: Proxy, upstream: Upstream, sent: int) -> None:
    size = 5 * MIB
    with connect(proxy) as sock:
        sock.sendall(post(b"Content-Length: %d" % size).replace(b"KEY", proxy.key.encode()))
        sock.sendall(bytes(sent))
        upstream.wait_for(lambda heads: len(heads) == 1)
    (head,) = upstream.wait_for(lambda heads: bool(heads) and heads[0]["cut"])
    assert not head["complete"]
    assert head["body_bytes"] <= sent
