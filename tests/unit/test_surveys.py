"""A question to all workers: everybody's answer, or as many as came in time."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, cast

from dgproxy import ipc
from dgproxy.access.limits import Owner
from dgproxy.supervisor import surveys
from dgproxy.supervisor.processes import Life
from dgproxy.supervisor.surveys import Surveys


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time a test may put forward."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


@dataclass
class Worker:
    """A life, as far as a survey knows it; it is its own channel."""

    owner: Owner
    asked: list[ipc.Message] = field(default_factory=list)

    @property
    def channel(self) -> "Worker":
        return self

    def send(self, message: ipc.Message) -> None:
        self.asked.append(message)

    @property
    def number(self) -> int:
        """Of the last question."""
        (*_, last) = self.asked
        assert isinstance(last, ipc.Ask)
        return last.number


def workers(count: int = 2) -> list[Worker]:
    return [Worker(Owner(number + 1)) for number in range(count)]


async def asking(open_: Surveys, asked: list[Worker]) -> "asyncio.Task[tuple[list[Any], bool]]":
    """A survey that has sent its question."""
    task = asyncio.ensure_future(open_.ask(cast("list[Life]", asked), lambda number: ipc.Ask(number, None)))
    await ticks()
    return task


async def ticks() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def time_is_up() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Clock)
    loop.ahead += surveys.WITHIN * 1.1
    await ticks()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(work())


def test_everybodys_answer_is_the_whole() -> None:
    async def work() -> None:
        open_, (one, other) = Surveys(), workers()
        survey = await asking(open_, [one, other])
        assert one.number == other.number
        open_.answered(other.owner, other.number, "b")
        await ticks()
        assert not survey.done()
        open_.answered(one.owner, one.number, "a")
        assert await survey == (["b", "a"], True)
        assert open_._open == {}

    run(work)


def test_one_that_hangs_leaves_the_others_answers_and_says_so() -> None:
    async def work() -> None:
        open_, (one, other) = Surveys(), workers()
        survey = await asking(open_, [one, other])
        open_.answered(one.owner, one.number, "a")
        await time_is_up()
        assert await survey == (["a"], False)
        assert open_._open == {}

    run(work)


def test_one_that_dies_is_not_waited_for() -> None:
    async def work() -> None:
        open_, (one, other) = Surveys(), workers()
        survey = await asking(open_, [one, other])
        open_.forget(one.owner)
        await ticks()
        assert not survey.done()
        open_.answered(other.owner, other.number, "b")
        assert await survey == (["b"], True)
        survey = await asking(open_, [one])
        open_.forget(one.owner)
        assert await survey == ([], True)

    run(work)


def test_a_late_answer_goes_nowhere_not_even_to_the_next_question() -> None:
    async def work() -> None:
        open_, (one,) = Surveys(), workers(1)
        survey = await asking(open_, [one])
        first = one.number
        await time_is_up()
        assert await survey == ([], False)
        survey = await asking(open_, [one])
        assert one.number != first
        open_.answered(one.owner, first, "late")
        await ticks()
        assert not survey.done()
        open_.answered(one.owner, one.number, "in time")
        assert await survey == (["in time"], True)
        open_.answered(one.owner, one.number, "twice")

    run(work)


def test_an_answer_counts_once_and_only_from_those_who_were_asked() -> None:
    async def work() -> None:
        open_, (one, other, stranger) = Surveys(), workers(3)
        survey = await asking(open_, [one, other])
        for _ in range(2):
            open_.answered(one.owner, one.number, "a")
        open_.answered(stranger.owner, one.number, "z")
        await ticks()
        assert not survey.done()
        open_.answered(other.owner, one.number, "b")
        assert await survey == (["a", "b"], True)

    run(work)


def test_two_questions_at_once_have_each_their_own_answers() -> None:
    async def work() -> None:
        open_, (one,) = Surveys(), workers(1)
        first = await asking(open_, [one])
        second = await asking(open_, [one])
        numbers = [message.number for message in one.asked if isinstance(message, ipc.Ask)]
        for number, answer in reversed(list(zip(numbers, ("a", "b"), strict=True))):
            open_.answered(one.owner, number, answer)
        assert await first == (["a"], True)
        assert await second == (["b"], True)

    run(work)


def test_without_workers_there_is_nothing_to_wait_for() -> None:
    async def work() -> None:
        assert await Surveys().ask([], lambda number: ipc.Ask(number, None)) == ([], True)

    run(work)
