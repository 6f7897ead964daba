"""Ends a connection whose client may still be sending, so that our last answer reaches it.

An immediate close makes the kernel reset the connection when more bytes arrive, and the reset overtakes the answer:
clients that are uploading then see an error instead of their 401 (deepgram.md 6: 4 of 4 with httpx; with the half-close
and discard below, 12 of 12 got the answer). Bounds as nginx has them (lingering_time 30 s, lingering_timeout 5 s).
"""

import contextlib
from typing import Final

from dgproxy.net.endpoint import Endpoint
from dgproxy.net.tls import WOULD_BLOCK

SECONDS: Final = 30.0
IDLE: Final = 5.0
MOST: Final = 256 * 1024 * 1024  # bytes


async def linger(endpoint: Endpoint, *, orderly: bool = True, seconds: float = SECONDS) -> None:
    """Half-closes, discards what still comes within bounds (`seconds` in all), then closes.

    Not `orderly`: without close_notify, so that the peer sees that what it got is not the whole.
    """
    with contextlib.suppress(*WOULD_BLOCK):  # then it must do without; its last bytes are on their way
        if orderly:
            endpoint.half_close()
        else:
            endpoint.shut()
    try:
        await endpoint.discard(seconds, IDLE, MOST)
    finally:
        endpoint.close()
