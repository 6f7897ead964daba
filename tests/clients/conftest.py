from collections.abc import Generator

import pytest

from tests.clients import matrix

LAST = "test_table.py"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The table is compared after all that fill it."""
    items.sort(key=lambda item: item.path.parent.name == "clients" and item.path.name == LAST)  # stable


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A test with a parameter `cell` that passes has told what it saw of it."""
    outcome = yield
    callspec = getattr(pyfuncitem, "callspec", None)
    if callspec is not None and "cell" in callspec.params:
        cell: matrix.Cell = callspec.params["cell"]
        assert (cell.sdk.id, cell.feature.id) in matrix.results(), f"nothing was seen() of {cell.id}"
    return outcome
