"""What the rows of all groups share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.support.impatient import IMPATIENT, serving, swallow
from tests.support.proxy import Proxy
from tests.support.scripted import Actor, upstream


@dataclass(frozen=True)
class Stage:
    """A proxy before an upstream that says whatever a row has it say."""

    actor: Actor
    proxy: Proxy
    beside: Callable[[str], Proxy]  # another, not yet started, before the upstream of this URL


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory, leaks: list[str]) -> Iterator[Stage]:
    actor = Actor()
    made: list[Proxy] = []

    def new(url: str) -> Proxy:
        made.append(Proxy(tmp_path_factory.mktemp("stage"), url, {"server.workers": "1"}))
        return made[-1]

    with upstream(actor.serve) as url, new(url) as proxy:
        yield Stage(actor, proxy, new)
    for proxy in made:
        proxy.kill()  # what a failed test left running
        leaks += proxy.leaks()


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, leaks: list[str]) -> Iterator[Proxy]:
    """One impatient proxy for the rows that leave it as it was."""
    with upstream(serving(swallow)) as url:
        proxy = Proxy(tmp_path_factory.mktemp("impatient"), url, IMPATIENT)
        try:
            with proxy:
                yield proxy
        finally:
            leaks += proxy.leaks()
