"""How many bytes this worker may hold for peers that do not take them (`[limits] buffered`).

Rules of this file: every room that keeps bytes between two events takes them here and gives them back; bytes on their
way through one event are not counted, nor are the kernel's buffers. Going over is told once, and again only after it
was mended, to whoever can end something.
"""

from collections.abc import Callable


class Budget:
    """Bytes held now, and what happens when they are too many."""

    __slots__ = ("_limit", "_on_over", "_told", "used")

    def __init__(self, limit: int, on_over: Callable[[], None]) -> None:
        """`on_over` must not give anything back before it returns: it is called by whoever takes."""
        self._limit = limit
        self._on_over = on_over
        self._told = False
        self.used = 0

    def take(self, size: int) -> None:
        """So many bytes more are held."""
        self.used += size
        if self.used > self._limit and not self._told:
            self._told = True
            self._on_over()

    def give_back(self, size: int) -> None:
        """So many bytes less."""
        self.used -= size
        if self.used <= self._limit:
            self._told = False

    @property
    def bearable(self) -> int:
        """Bytes down to which it should come, once it was over."""
        return self._limit * 9 // 10

    @property
    def excess(self) -> int:
        """Bytes that are too many."""
        return max(0, self.used - self._limit)


def unbounded() -> Budget:
    """For whoever holds little."""
    return Budget(1 << 62, lambda: None)
