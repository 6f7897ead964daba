"""Identifiers that nobody can guess: a request's own, and those of W3C Trace Context.

Rules of this file: the kernel's random bytes, fetched a page at a time, since a call for each would be a twentieth of
what a small request costs; none is used twice, and a process that forks must not have used any.
"""

import os
from typing import Final

_PAGE: Final = 4096  # bytes; a multiple of what one call takes would waste none, but what is wasted costs nothing
_VARIANT: Final = "89ab"  # RFC 9562 4.1


class Random:
    """Random bytes, as hex digits."""

    __slots__ = ("_at", "_digits")

    def __init__(self) -> None:
        self._digits = ""
        self._at = 0

    def digits(self, count: int) -> str:
        """So many hex digits, 1 to 8192, never given before."""
        if self._at + count > len(self._digits):
            self._digits = os.urandom(_PAGE).hex()
            self._at = 0
        start = self._at
        self._at = start + count
        return self._digits[start : self._at]

    def uuid(self) -> str:
        """A UUID of version 4 (RFC 9562 5.4), as text."""
        text = self.digits(32)
        variant = _VARIANT[int(text[16], 16) & 3]
        return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"
