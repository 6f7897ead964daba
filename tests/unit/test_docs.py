"""What docs/ says of the code is what the code says."""

import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

from dgproxy.config import SETTINGS, Setting, examine_bytes
from dgproxy.config.kinds import Here
from tests import docs

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "bench" / "README.md"]


def test_configure_md_is_what_the_schema_gives() -> None:
    text = docs.CONFIGURE.read_text()
    assert text == docs.configure(text), "the schema has changed: make docs"
    for setting in SETTINGS:
        assert f"\n{setting.name} = {setting.kind.write(setting.default)}\n" in text
        assert f"\n- `{setting.name}`" in text


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: each.key)
def test_an_example_is_a_value_that_differs_from_the_default(setting: Setting) -> None:
    here = Here("f", "/srv", "", [])
    assert here.read(setting.kind, tomllib.loads(f"value = {setting.example}")["value"]) != setting.default


@pytest.mark.parametrize("block", re.findall(r"```toml\n(.*?)```", docs.CONFIGURE.read_text(), re.DOTALL))
def test_what_configure_md_shows_is_valid(block: str) -> None:
    document = tomllib.loads(block)
    default = "" if "default" in document.get("plans", {}) else "\n[plans.default]\n"
    config, findings = examine_bytes((block + default).encode(), Path("/srv/dgproxy.toml"))
    assert config is not None, findings
    assert document.get("plans", {}).keys() <= config.plans.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_the_documents_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
