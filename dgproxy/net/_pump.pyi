from typing import Any, final

from dgproxy.net.pump import Handler
from dgproxy.wire.frames import Tracker

def bind(read: int, write: int, get_error: int, has_pending: int, set_read_ahead: int, clear_error: int, /) -> None: ...

@final
class Pump:
    count: int
    def __init__(
        self,
        source: tuple[int, int, Any],
        sink: tuple[int, int, Any],
        buffer: bytearray,
        tracker: Tracker,
        masked: bool,
        handler: Handler,
    ) -> None: ...
    def run(self) -> bool: ...
    def pending(self) -> bool: ...
    def stop(self) -> None: ...
