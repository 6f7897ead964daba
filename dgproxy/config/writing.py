"""The settings as text: the file that `init` writes, and the reference in docs/configure.md."""

from dgproxy.config.schema import DEFAULTS, SECTIONS, Plan, Setting
from dgproxy.config.values import parse_listen, parse_url


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
    """Every setting as Markdown: a heading and a table for each section, in the order that `init` writes them in."""
    parts = []
    for section, settings in SECTIONS.items():
        name = "plans.NAME" if section == "plans" else section
        parts += [f"### [{name}]", "", _about(section), ""]
        parts += ["| key | default | value | what it does |", "|---|---|---|---|"]
        parts += [_row(setting) for setting in settings]
        parts.append("")
    return "\n".join(parts)


def _about(section: str) -> str:
    described = Plan if section == "plans" else type(getattr(DEFAULTS, section))
    return (described.__doc__ or "").partition(".")[0] + "."


def _row(setting: Setting) -> str:
    does = setting.description
    if not setting.enforced:
        does += ". **Refused where it is set**: not built yet" if setting.unsafe else ". *Not enforced yet*"
    cells = (f"`{setting.name}`", f"`{setting.kind.write(setting.default)}`", setting.kind.name, does)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
