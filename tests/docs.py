"""`python -m tests.docs` (make docs): the parts of docs/ that are made from the code, written anew.

docs/clients.md is made by `python -m tests.clients`, docs/security.md's measurements by `python -m tests.differential`.
"""

from pathlib import Path
from typing import Final

from dgproxy.config import render_reference

CONFIGURE: Final = Path(__file__).parents[1] / "docs" / "configure.md"
_BEGIN: Final = "<!-- settings: begin (make docs) -->\n"
_END: Final = "<!-- settings: end -->\n"


def configure(text: str) -> str:
    """docs/configure.md with the reference that the schema gives, in place of what stands there."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{CONFIGURE.name} has no place for the settings: {_BEGIN.strip()} ... {_END.strip()}")
    return f"{before}{begin}\n{render_reference()}{end}{after}"


if __name__ == "__main__":
    CONFIGURE.write_text(configure(CONFIGURE.read_text()))
