"""The ledger's rules: who holds which slot and begins how often, exact over all workers; and how fast a body must come.

A slot is a request's in flight (of a key and a class), or a connection's (of an address).

Rules of this file: a slot is held from admission until it is given back or its owner is gone; giving back what is not
held changes nothing, so a late or doubled message can't free another's slot. What is refused counts for nothing.
Invariant: for each key and class, in_use() equals the number of slots held.
"""

import ipaddress
import math
from collections import Counter
from typing import NewType, TypeVar

from dgproxy.access.keys import KeyId
from dgproxy.access.rates import Buckets, Clock
from dgproxy.config import Plan
from dgproxy.units import MinimumRate, format_rate
from dgproxy.wire.deepgram import Class
from dgproxy.wire.refusals import TOO_MANY_CONNECTIONS, Refusal, too_many_begun, too_many_streams

T = TypeVar("T")

Owner = NewType("Owner", int)  # a worker's life, never used twice
Slot = NewType("Slot", int)  # the owner's own number for a request in flight


class Ledger:
    """Slots in flight, per key and per class of a key; and what each key has begun lately."""

    __slots__ = ("_begun", "_by_class", "_by_key", "_by_source", "_held")

    def __init__(self, clock: Clock) -> None:
        self._held: dict[Owner, dict[Slot, tuple[KeyId, Class] | str]] = {}
        self._by_key: Counter[KeyId] = Counter()
        self._by_class: Counter[tuple[KeyId, Class]] = Counter()
        self._by_source: Counter[str] = Counter()
        self._begun = Buckets(clock)

    def admit(self, owner: Owner, slot: Slot, key_id: KeyId, cls: Class, plan: Plan) -> Refusal | None:
        """Takes a slot, or says which limit is full. A slot number that its owner holds already is a fault of ours.

        Raises:
            ValueError: the owner holds this slot.
        """
        held = self._held.setdefault(owner, {})
        if slot in held:
            raise ValueError("slot is held")
        in_use = self._by_key[key_id]
        if in_use >= plan.streams:
            return too_many_streams(plan.streams, in_use, "of this key's streams")
        limit = plan.streams_by_class.get(cls)
        if limit is not None and self._by_class[key_id, cls] >= limit:
            return too_many_streams(limit, self._by_class[key_id, cls], f"of this key's {cls} streams")
        bucket = self._begun.of(key_id, plan.rate, plan.burst)
        if not bucket.take():
            return too_many_begun(format_rate(plan.rate), plan.burst, max(1, math.ceil(bucket.wait)))
        held[slot] = (key_id, cls)
        self._by_key[key_id] += 1
        self._by_class[key_id, cls] += 1
        return None

    def admit_connection(self, owner: Owner, slot: Slot, source: str, most: int) -> Refusal | None:
        """Takes a slot for a connection from a source (see `source`), of which `most` may be open.

        Raises:
            ValueError: the owner holds this slot.
        """
        held = self._held.setdefault(owner, {})
        if slot in held:
            raise ValueError("slot is held")
        if self._by_source[source] >= most:
            return TOO_MANY_CONNECTIONS
        held[slot] = source
        self._by_source[source] += 1
        return None

    def give_back(self, owner: Owner, slot: Slot) -> bool:
        """Frees a slot; False if it was not held."""
        holder = self._held.get(owner, {}).pop(slot, None)
        if holder is None:
            return False
        self._free(holder)
        return True

    def forget(self, owner: Owner) -> int:
        """Frees all that a dead worker held; how many that were."""
        held = self._held.pop(owner, {})
        for holder in held.values():
            self._free(holder)
        return len(held)

    def in_use(self, key_id: KeyId, cls: Class | None = None) -> int:
        """Slots of a key (and class) now held."""
        return self._by_key[key_id] if cls is None else self._by_class[key_id, cls]

    def holders(self) -> frozenset[KeyId]:
        """The keys that hold a slot now."""
        return frozenset(self._by_key)

    def _free(self, holder: tuple[KeyId, Class] | str) -> None:
        if isinstance(holder, str):
            _take_off(self._by_source, holder)
        else:
            _take_off(self._by_key, holder[0])
            _take_off(self._by_class, holder)


def _take_off(counter: Counter[T], what: T) -> None:
    counter[what] -= 1
    if not counter[what]:
        del counter[what]  # what was used once must not cost memory for ever


def source(address: str) -> str:
    """What counts as one client: an IPv4 address, or an IPv6 network of 64 bits, since a client has all of one."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if parsed.version == 4:  # noqa: PLR2004
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


class Pace:
    """Whether a body comes as fast as it must: bytes against the seconds that its sender was waited for.

    Time in which nobody waited, as while the upstream takes no more, does not count. Judged in windows of `over`
    seconds, one after the other.
    """

    __slots__ = ("_bytes", "_least", "_over", "_waited")

    def __init__(self, rate: MinimumRate) -> None:
        self._least = rate.bytes * rate.over
        self._over = rate.over
        self._waited = 0.0
        self._bytes = 0

    @property
    def left(self) -> float:
        """Seconds of waiting until the next judgement; without a minimum there is none."""
        return self._over - self._waited if self._least else math.inf

    def note(self, waited: float, size: int) -> bool:
        """So many bytes came after so many seconds; False if they were too few."""
        self._waited += waited
        self._bytes += size
        if not self._least or self._waited < self._over:
            return True
        enough = self._bytes >= self._least
        self._waited = 0.0
        self._bytes = 0
        return enough
