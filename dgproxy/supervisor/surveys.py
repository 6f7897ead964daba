"""Questions to all workers at once: what each of them answers, as far as it does in time."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from dgproxy import ipc
from dgproxy.access.limits import Owner
from dgproxy.supervisor.processes import Life

WITHIN: Final = 1.0  # seconds; a worker that hangs must not hang an operator


@dataclass(slots=True)
class _Survey:
    missing: set[Owner]
    answers: list[Any] = field(default_factory=list)
    complete: asyncio.Event = field(default_factory=asyncio.Event)


class Surveys:
    """The questions that are open."""

    def __init__(self) -> None:
        self._last = 0
        self._open: dict[int, _Survey] = {}

    async def ask(self, lives: Iterable[Life], question: Callable[[int], ipc.Message]) -> tuple[list[Any], bool]:
        """The answers of these workers, and whether all gave one; `question(number)` makes the message."""
        self._last += 1
        number = self._last
        asked = list(lives)
        survey = self._open[number] = _Survey({life.owner for life in asked})
        try:
            for life in asked:
                life.channel.send(question(number))
            if asked:
                async with asyncio.timeout(WITHIN):
                    await survey.complete.wait()
        except TimeoutError:
            return survey.answers, False
        finally:
            del self._open[number]
        return survey.answers, True

    def answered(self, owner: Owner, number: int, answer: Any) -> None:
        """A worker's answer; one that comes late goes nowhere."""
        survey = self._open.get(number)
        if survey is not None and owner in survey.missing:
            survey.answers.append(answer)
            self._less(survey, owner)

    def forget(self, owner: Owner) -> None:
        """A dead worker answers nothing."""
        for survey in self._open.values():
            self._less(survey, owner)

    def _less(self, survey: _Survey, owner: Owner) -> None:
        survey.missing.discard(owner)
        if not survey.missing:
            survey.complete.set()
