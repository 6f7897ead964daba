"""A listener without TLS before an upstream without: large bodies and payloads are spliced, and nobody can tell."""

import hashlib
import http.client
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.sync.client import connect

from tests.conftest import second_only
from tests.support.logs import is_event
from tests.support.proxy import Proxy
from tests.support.upstreams import Upstream

pytestmark = [second_only]

SIZE: Final = 30_000_000


@pytest.fixture
def plain(new_proxy: Callable[..., Proxy]) -> Iterator[Proxy]:
    with new_proxy({"server.tls": "false", "server.workers": "1"}) as proxy:
        yield proxy


def pipes(proxy: Proxy) -> int:
    """Pipes of the one worker, both of whose ends it has."""
    (pid,) = proxy.worker_pids()
    links = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    return sum(links.count(link) == 2 for link in set(links) if link.startswith("pipe:"))


def upload(proxy: Proxy, body: bytes) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    try:
        connection.request("POST", "/v1/listen", body, {"Authorization": f"Token {proxy.key}"})
        answer = connection.getresponse()
        return answer.status, json.load(answer)
    finally:
        connection.close()


def test_a_large_upload_arrives_whole_and_is_counted(plain: Proxy, upstream: Upstream) -> None:
    before = pipes(plain)
    body = random.Random(1).randbytes(SIZE)
    for _ in range(3):
        status, _ = upload(plain, body)
        assert status == 200
        head = upstream.only()
        assert (head["body_bytes"], head["sha256"]) == (SIZE, hashlib.sha256(body).hexdigest())
        upstream.clear()
    assert plain.stderr.wait_for(is_event("request.close", bytes_in=SIZE))
    assert pipes(plain) == before + 1  # what the one used, the next one used again
    assert plain.status()["relay"].endswith(", splice")


def test_large_and_small_messages_come_back_whole(plain: Proxy) -> None:
    before = pipes(plain)
    rng = random.Random(2)
    with connect(
        f"ws://127.0.0.1:{plain.port}/v1/listen?standin_echo=1",
        additional_headers={"Authorization": f"Token {plain.key}"},
        compression=None,
        max_size=None,
        proxy=None,
    ) as stream:

        def echo(size: int) -> None:
            message = rng.randbytes(size)
            stream.send(message)
            assert stream.recv() == message

        deadline = time.monotonic() + 20
        while pipes(plain) == before:  # what is bulk is seen by the second
            assert time.monotonic() < deadline
            echo(3_000_000)
        for size in (3200, 3_000_000, 5, 700_000, 0, 3200, 1_000_000):
            echo(size)
    assert pipes(plain) == before + 1


def test_where_clients_have_tls_nothing_is_spliced(new_proxy: Callable[..., Proxy]) -> None:
    with new_proxy() as proxy:
        assert "splice" not in proxy.status()["relay"]
