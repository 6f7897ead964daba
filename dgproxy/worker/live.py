"""Everything of this worker that was admitted and is in flight, by key: so that a key's end is everybody's end.

Rules of this file: whoever holds an admitted request is in here from the check of its key until it is over, so that no
change of a key can pass between the check and the request; a change is judged by the same rule as a new request.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from dgproxy.access.keys import Delta, KeyId, Record, standing
from dgproxy.wire.refusals import KEY_REVOKED, OPERATOR_ENDED, Refusal
from dgproxy.worker.meter import Meter

AHEAD: Final = 1.5  # seconds before a key's expiry at which a timer is set; more than one tick


class Holder(Protocol):
    """Who holds an admitted request."""

    @property
    def meter(self) -> Meter:
        """What it used so far."""

    def cut(self, refusal: Refusal) -> None:
        """Ends it, for this reason, at once and without waiting for anybody."""


@dataclass(slots=True)
class _Party:
    """All that one key has in flight."""

    key: Record
    holders: set[Holder] = field(default_factory=set)
    timer: asyncio.TimerHandle | None = None


class Live:
    """The registry. `clock` gives Unix seconds, as keys' times are."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._parties: dict[KeyId, _Party] = {}

    def add(self, key: Record, holder: Holder) -> None:
        """It is in flight from now on."""
        party = self._parties.get(key.id)
        if party is None:
            party = self._parties[key.id] = _Party(key)
            self._watch_expiry(party)
        party.holders.add(holder)

    def remove(self, key: Record, holder: Holder) -> None:
        """It is over; a second time does nothing."""
        party = self._parties.get(key.id)
        if party is not None:
            party.holders.discard(holder)
            if not party.holders:
                del self._parties[key.id]
                if party.timer is not None:
                    party.timer.cancel()

    def apply(self, delta: Delta) -> None:
        """Cuts what a change of the keys leaves without the right to go on."""
        for key_id in delta.gone:
            self._cut(key_id, KEY_REVOKED)
        for record in delta.records:
            party = self._parties.get(record.id)
            if party is not None:
                party.key = record
                self._judge(party)

    def renew(self, find: Callable[[KeyId], Record | None]) -> None:
        """Likewise, with a whole new table."""
        for key_id, party in list(self._parties.items()):
            record = find(key_id)
            if record is None:
                self._cut(key_id, KEY_REVOKED)
            else:
                party.key = record
                self._judge(party)

    def tick(self) -> None:
        """Called each second or so: a clock that was set must not let a key live on."""
        for party in list(self._parties.values()):
            if party.key.expires is not None:
                self._judge(party)

    def kill(self, request_id: str) -> int:
        """Ends the requests of this id, at an operator's wish; how many that were."""
        found = [holder for holder in self if holder.meter.request_id == request_id]
        for holder in found:
            holder.cut(OPERATOR_ENDED)
        return len(found)

    def __iter__(self) -> Iterator[Holder]:
        for party in list(self._parties.values()):
            yield from list(party.holders)

    def rows(self, key_id: KeyId | None) -> list[dict[str, Any]]:
        """What is in flight, of one key or of all, for people to see."""
        return [holder.meter.row() for holder in self if key_id in (None, holder.meter.key_id)]

    def _watch_expiry(self, party: _Party) -> None:
        if party.timer is not None:
            party.timer.cancel()
            party.timer = None
        if party.key.expires is not None and (left := party.key.expires - self._clock()) <= AHEAD:
            party.timer = self._loop.call_later(max(left, 0.001), self._judge, party)

    def _judge(self, party: _Party) -> None:
        """Cuts what may not go on, or says when to look again: a timer may be early, and an expiry moves."""
        refusal = standing(party.key, self._clock())
        if refusal is not None:
            self._cut(party.key.id, refusal)
        else:
            self._watch_expiry(party)

    def _cut(self, key_id: KeyId, refusal: Refusal) -> None:
        party = self._parties.get(key_id)
        faults: list[Exception] = []
        for holder in () if party is None else list(party.holders):
            try:
                holder.cut(refusal)
            except Exception as fault:  # noqa: BLE001 - a fault with one must not let the others go on
                faults.append(fault)
        if faults:
            raise faults[0]
