"""The ledger's rules: who holds which slot, exact over all workers.

Rules of this file: a slot is held from admission until it is given back or its owner is gone; giving back what is not
held changes nothing, so a late or doubled message can't free another's slot. Invariant: for each key and class,
in_use() equals the number of slots held.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import NewType

from dgproxy.access.keys import KeyId
from dgproxy.config import Plan
from dgproxy.wire.deepgram import Class
from dgproxy.wire.refusals import Refusal, too_many_streams

Owner = NewType("Owner", int)  # a worker's life, never used twice
Slot = NewType("Slot", int)  # the owner's own number for a request in flight


@dataclass(slots=True)
class Ledger:
    """Slots in flight, per key and per class of a key."""

    _held: dict[Owner, dict[Slot, tuple[KeyId, Class]]] = field(default_factory=dict)
    _by_key: Counter[KeyId] = field(default_factory=Counter)
    _by_class: Counter[tuple[KeyId, Class]] = field(default_factory=Counter)

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
        held[slot] = (key_id, cls)
        self._by_key[key_id] += 1
        self._by_class[key_id, cls] += 1
        return None

    def give_back(self, owner: Owner, slot: Slot) -> bool:
        """Frees a slot; False if it was not held."""
        holder = self._held.get(owner, {}).pop(slot, None)
        if holder is None:
            return False
        self._free(*holder)
        return True

    def forget(self, owner: Owner) -> int:
        """Frees all that a dead worker held; how many that were."""
        held = self._held.pop(owner, {})
        for key_id, cls in held.values():
            self._free(key_id, cls)
        return len(held)

    def in_use(self, key_id: KeyId, cls: Class | None = None) -> int:
        """Slots of a key (and class) now held."""
        return self._by_key[key_id] if cls is None else self._by_class[key_id, cls]

    def holders(self) -> frozenset[KeyId]:
        """The keys that hold a slot now."""
        return frozenset(self._by_key)

    def _free(self, key_id: KeyId, cls: Class) -> None:
        self._by_key[key_id] -= 1
        if not self._by_key[key_id]:
            del self._by_key[key_id]  # a key that was used once must not cost memory for ever
        self._by_class[key_id, cls] -= 1
        if not self._by_class[key_id, cls]:
            del self._by_class[key_id, cls]
