"""What a harness is, and how they are found."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tests.fuzz

KEPT: Final = Path(__file__).parents[1] / "data" / "fuzz"  # <harness>/<any name>: inputs that once failed


@dataclass(frozen=True)
class Harness:
    """A property that must hold for every input.

    `check` takes any bytes and raises for a fault (AssertionError where the property does not hold; whatever the code
    under test should not have raised). `seeds` are inputs from which mutation begins, `words` what it may put in.
    """

    check: Callable[[bytes], None]
    seeds: Sequence[bytes]
    words: Sequence[bytes] = ()
    longest: int = 4096  # bytes


def names() -> list[str]:
    """Every harness, by its module's name."""
    found = [module.name for module in pkgutil.iter_modules(tests.fuzz.__path__)]
    return sorted(name for name in found if name not in _NONE)


_NONE: Final = frozenset({"__main__", "harness", "test_seeds"})


def load(name: str) -> Harness:
    """A module's HARNESS."""
    harness = importlib.import_module(f"tests.fuzz.{name}").HARNESS
    if not isinstance(harness, Harness):
        raise TypeError(f"tests/fuzz/{name}.py: HARNESS is no Harness")
    return harness


def inputs(name: str) -> Iterator[tuple[str, bytes]]:
    """A harness's seeds and kept inputs, with a name for each."""
    for number, seed in enumerate(load(name).seeds):
        yield f"seed {number}", seed
    directory = KEPT / name
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        yield path.name, path.read_bytes()
