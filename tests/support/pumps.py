"""Which form of the relay's inner loop a test runs with: all that is promised of one is promised of both."""

from collections.abc import Iterator
from typing import Final

import pytest

from dgproxy.net import pump

FORMS: Final[tuple[pump.Form, ...]] = ("pure", "native")

_WHY_NOT: Final = pump.why_not_native()
native_only = pytest.mark.skipif(bool(_WHY_NOT), reason=f"no native pump: {_WHY_NOT}")
form: pump.Form = "pure"  # what rigs are built with


@pytest.fixture(scope="module", autouse=True, params=FORMS)
def both_forms(request: pytest.FixtureRequest) -> Iterator[None]:
    """Imported by a module of tests, has all of it run with either form."""
    global form  # noqa: PLW0603 - modules are run one after another
    if request.param == "native" and _WHY_NOT:
        pytest.skip(f"no native pump: {_WHY_NOT}")
    form = request.param
    yield
    form = "pure"
