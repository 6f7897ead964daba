"""How often a key may begin something: `rate` and `burst` of its plan, as aiolimiter's leaky bucket counts them.

Rules of this file: a bucket is asked and never waited for, so that it costs a decision and no task; one that has run
empty is as good as a new one, and is forgotten.
"""

from collections import OrderedDict
from typing import Final, Protocol

from aiolimiter import AsyncLimiter

from dgproxy.access.keys import KeyId
from dgproxy.units import Rate

_LOOKS: Final = 2  # at old buckets for each that is asked: more than are made, so that their number follows the use


class Clock(Protocol):
    """What a loop is to a bucket, which waits for nothing."""

    def time(self) -> float:
        """Seconds that only grow."""

    def is_closed(self) -> bool:
        """Never, while it is asked."""


class Bucket(AsyncLimiter):
    """Up to `burst` at once; it leaks so many as `rate` says, each of which then makes room for another."""

    __slots__ = ()

    def __init__(self, clock: Clock, rate: Rate, burst: int) -> None:
        super().__init__(burst, burst / rate.per_second)
        self._event_loop = clock  # type: ignore[assignment]
        self._rate_per_sec = rate.per_second  # as `adjust` compares it, and not rounded twice

    def adjust(self, rate: Rate, burst: int) -> None:
        """From now on another rate and burst; what is in the bucket stays, be it more than now fits."""
        if (burst, rate.per_second) != (self.max_rate, self._rate_per_sec):
            self._leak()
            self.max_rate = burst
            self.time_period = burst / rate.per_second
            self._rate_per_sec = rate.per_second

    def take(self) -> bool:
        """Puts one more into the bucket; False if it does not fit."""
        if not self.has_capacity():
            return False
        try:
            self.acquire().send(None)  # which does not wait, as there is room
        except StopIteration:
            return True
        return False

    @property
    def wait(self) -> float:
        """Seconds until one more fits."""
        self._leak()
        return max(0.0, (self._level + 1 - self.max_rate) / self._rate_per_sec)

    @property
    def empty(self) -> bool:
        """Whether it is like a new one."""
        self._leak()
        return not self._level


class Buckets:
    """The bucket of each key that has begun something lately."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: OrderedDict[KeyId, Bucket] = OrderedDict()  # first, who was longest not looked at

    def __len__(self) -> int:
        return len(self._buckets)

    def of(self, key_id: KeyId, rate: Rate, burst: int) -> Bucket:
        """This key's bucket, of this rate and burst from now on."""
        self._forget()
        bucket = self._buckets.get(key_id)
        if bucket is None:
            bucket = self._buckets[key_id] = Bucket(self._clock, rate, burst)
        else:
            bucket.adjust(rate, burst)
            self._buckets.move_to_end(key_id)
        return bucket

    def _forget(self) -> None:
        for _ in range(min(_LOOKS, len(self._buckets))):
            key_id, bucket = next(iter(self._buckets.items()))
            if bucket.empty:
                del self._buckets[key_id]
            else:
                self._buckets.move_to_end(key_id)
