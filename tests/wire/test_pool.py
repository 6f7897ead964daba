"""Kept upstream connections: one that can't carry another request whole is not kept."""

import asyncio
import contextlib

import uvloop

from dgproxy.config import Upstream as Settings
from dgproxy.net.endpoint import Endpoint
from dgproxy.upstream.pool import Lease, Pool
from tests.support.peers import tcp_pair


def test_a_connection_whose_last_write_was_broken_off_serves_nobody_else() -> None:
    """An engine that answers in full before it took the end of a chunked body leaves one: its parsers say "done"."""

    async def work() -> None:
        loop = asyncio.get_running_loop()
        near, far = tcp_pair()
        endpoint = Endpoint(loop, near, "container")
        with contextlib.suppress(BlockingIOError):
            while near.send(bytes(65536)):
                pass
        with contextlib.suppress(BlockingIOError):
            while near.send(b"x"):
                pass
        writing = asyncio.ensure_future(endpoint.write(b"0\r\n\r\n", 60))
        await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait((writing,))
        pool = Pool(loop, Settings())
        (target,) = pool._targets
        pool.give_back(Lease(target, endpoint, reused=False), reusable=True)
        assert pool._take(target) is None
        assert endpoint.closed
        far.close()

    uvloop.run(work())
