"""A configuration as text: what `init` writes."""

from dgproxy.config.schema import SECTIONS
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
