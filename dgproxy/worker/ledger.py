"""The worker's end of the ledger: one question a request, all questions of a loop tick in one message.

Rules of this file: no answer within a second is a refusal, and a slot that is granted after that is given back at
once; a slot is given back exactly once, whatever ended the request.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from dgproxy import ipc
from dgproxy.access.keys import KeyId
from dgproxy.access.limits import Slot
from dgproxy.wire.deepgram import Class
from dgproxy.wire.refusals import LEDGER_UNAVAILABLE, Refusal

PATIENCE: Final = 1.0  # seconds, spec part 2


class Ledger:
    """Asks the supervisor for slots and gives them back."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[ipc.Message], None]) -> None:
        self._loop = loop
        self._send = send
        self._last = 0
        self._waiting: dict[Slot, asyncio.Future[Refusal | None]] = {}
        self._questions: list[ipc.Question | ipc.Arrival] = []
        self._returns: list[Slot] = []
        self._scheduled = False
        self._deadlines: deque[tuple[float, Slot]] = deque()  # of all questions of the last PATIENCE seconds
        self._sweeping = False
        self.held: set[Slot] = set()

    async def admit(self, key_id: KeyId, cls: Class) -> Slot | Refusal:
        """A slot for one request of this key, or why there is none."""
        return await self._ask(ipc.Question(self._next(), key_id, cls))

    async def admit_connection(self, source: str) -> Slot | Refusal:
        """A slot for one connection of this source, or why there is none."""
        return await self._ask(ipc.Arrival(self._next(), source))

    def _next(self) -> Slot:
        self._last += 1
        return Slot(self._last)

    async def _ask(self, question: ipc.Question | ipc.Arrival) -> Slot | Refusal:
        slot = question.slot
        answer: asyncio.Future[Refusal | None] = self._loop.create_future()
        self._waiting[slot] = answer
        self._questions.append(question)
        self._schedule()
        self._deadlines.append((self._loop.time() + PATIENCE, slot))
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(PATIENCE, self._sweep)
        try:
            refusal = await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.result() is None:  # granted in this very tick
                self._returns.append(slot)
                self._schedule()
            raise
        finally:
            self._waiting.pop(slot, None)
        if refusal is not None:
            return refusal
        self.held.add(slot)
        return slot

    def give_back(self, slot: Slot) -> None:
        """Frees a slot; a second time does nothing."""
        if slot in self.held:
            self.held.remove(slot)
            self._returns.append(slot)
            self._schedule()

    def settle(self, verdicts: ipc.Verdicts) -> None:
        """The supervisor's answers."""
        for slot, refusal in verdicts.verdicts:
            answer = self._waiting.pop(slot, None)
            if answer is not None and not answer.done():
                answer.set_result(refusal)
            elif refusal is None:  # nobody waits for it any more
                self._returns.append(slot)
                self._schedule()

    def _sweep(self) -> None:
        """Gives up what was not answered in time; one timer for all, since all have the same patience."""
        now = self._loop.time()
        while self._deadlines and self._deadlines[0][0] <= now:
            answer = self._waiting.pop(self._deadlines.popleft()[1], None)
            if answer is not None and not answer.done():
                answer.set_result(LEDGER_UNAVAILABLE)
        self._sweeping = bool(self._deadlines)
        if self._sweeping:
            self._loop.call_later(self._deadlines[0][0] - now, self._sweep)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self._returns:  # first, so that a slot that is free counts as free for the questions behind it
            self._send(ipc.GiveBack(tuple(self._returns)))
            self._returns.clear()
        if self._questions:
            self._send(ipc.Questions(tuple(self._questions)))
            self._questions.clear()
