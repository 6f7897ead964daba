"""Which form of the relay's inner loop a test runs with: all that is promised of one is promised of all.

Each form copies all bytes, or has those of a payload spliced where both sockets are plain. A loop of the native form
polls natively too, as a worker's does.
"""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Final

import pytest

from dgproxy.net import poll, pump
from dgproxy.net.pipes import Pipes

FORMS: Final[tuple[pump.Form, ...]] = ("pure", "native")

_WHY_NOT: Final = pump.why_not_native()
native_only = pytest.mark.skipif(bool(_WHY_NOT), reason=f"no native pump: {_WHY_NOT}")
form: pump.Form = "pure"  # what rigs are built with
spliced = False  # likewise


def new_event_loop(of: pump.Form | None = None) -> asyncio.AbstractEventLoop:
    """The loop that a worker has with this form, or with that which rigs are built with."""
    return poll.new_event_loop(native=(of or form) == "native")


def pipes() -> Pipes | None:
    """Of a rig: whatever is left of a payload is spliced, however little it is."""
    return Pipes(least=1, bulk=0) if spliced else None


@pytest.fixture(
    scope="module",
    autouse=True,
    params=itertools.product(FORMS, (False, True)),
    ids=["pure", "pure-spliced", "native", "native-spliced"],
)
def all_forms(request: pytest.FixtureRequest) -> Iterator[None]:
    """Imported by a module of tests, has all of it run with each form."""
    yield from of_form(*request.param)


def of_form(wanted: pump.Form, splices: bool = False) -> Iterator[None]:  # noqa: FBT001, FBT002 - a test's parameter
    """For a fixture: rigs are built with this form."""
    global form, spliced
    if wanted == "native" and _WHY_NOT:
        pytest.skip(f"no native pump: {_WHY_NOT}")
    form, spliced = wanted, splices
    yield
    form, spliced = "pure", False
