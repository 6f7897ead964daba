"""The settings as text: the file that `init` writes, and the reference in docs/configure.md."""

import textwrap
from collections.abc import Iterator

from dgproxy.config.kinds import CLASSES
from dgproxy.config.schema import DEFAULTS, SECTIONS, Plan, Setting
from dgproxy.config.values import parse_listen, parse_url
from dgproxy.wire.deepgram import ROUTES


def render_default(listen: str, upstream: str) -> str:
    """A whole configuration as TOML: every setting at its default but these two, a line and a comment each."""
    given = {"server.listen": (parse_listen(listen),), "upstream.urls": (parse_url(upstream),)}
    lines = ["# dgproxy's configuration. `dgproxy check` says what is wrong with it, and what is not enforced yet."]
    for section, settings in SECTIONS.items():
        lines += ["", "[plans.default]" if section == "plans" else f"[{section}]"]
        for setting in settings:
            line = f"{setting.name} = {setting.kind.write(given.get(setting.key, setting.default))}"
            lines.append(f"{line:<40}  # {setting.description}")
    return "\n".join(lines) + "\n"


def render_reference() -> str:
    """Every setting as Markdown: of each section the defaults, then a list, in the order that `init` writes them in."""
    return "\n".join(line for section, settings in SECTIONS.items() for line in _section(section, settings))


def _section(section: str, settings: tuple[Setting, ...]) -> Iterator[str]:
    plan = section == "plans"
    about = (Plan if plan else type(getattr(DEFAULTS, section))).__doc__ or ""
    yield f"### [{'plans.NAME' if plan else section}]"
    yield ""
    yield about.partition(".")[0] + "."
    yield ""
    yield "```toml"
    yield "[plans.default]" if plan else f"[{section}]"
    for setting in settings:
        yield f"{setting.name} = {setting.kind.write(setting.default)}"
    yield "```"
    yield ""
    for setting in settings:
        yield from _item(setting)
    yield ""
    if plan:
        yield from _classes()


def _item(setting: Setting) -> Iterator[str]:
    mark = "" if setting.enforced else " **(refused: not built yet)**" if setting.unsafe else " **(not enforced yet)**"
    text = f"- `{setting.name}`{mark}: {setting.description}. {setting.more}".strip()
    yield textwrap.fill(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    kind = setting.kind.name
    yield f"  *{kind[0].upper()}{kind[1:]}.* Example: `{setting.name} = {setting.example}`"


def _classes() -> Iterator[str]:
    yield "Where a plan speaks of a class, it means these requests:"
    yield ""
    yield "| class | requests |"
    yield "|---|---|"
    for cls in CLASSES:
        requests = [
            f"{way} `{route.path}`"
            for route in ROUTES
            if route.cls == cls
            for way in (*(method.decode() for method in sorted(route.methods)), *["WebSocket"] * route.websocket)
        ]
        yield f"| `{cls}` | {', '.join(requests)} |"
    yield ""
