"""A clock that stands still until it is told."""


class Clock:
    """Of a loop, that which a ledger needs."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        """Seconds."""
        return self.now

    def is_closed(self) -> bool:
        """Never."""
        return False
