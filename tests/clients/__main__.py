"""docs/clients.md and seen.json anew, from what every client's tests see.

`python -m tests.clients -k python` runs a part; the other cells stay as they were committed.
"""

import sys
from pathlib import Path

import pytest

from tests.clients import document, matrix

HERE = Path(__file__).parent


def main(arguments: list[str]) -> int:
    """Runs the tests in this process, then writes what they saw."""
    code = pytest.main([str(HERE), f"--ignore={HERE / 'test_table.py'}", "-q", *arguments])
    if code != pytest.ExitCode.OK:
        return int(code)
    results = matrix.merged(matrix.committed(), matrix.results())
    matrix.COMMITTED.write_text(matrix.written(results))
    document.PATH.write_text(document.render(results))
    return 0


sys.exit(main(sys.argv[1:]))
