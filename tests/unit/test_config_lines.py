"""The line that a finding names is the one where its key stands."""

import tomllib
from pathlib import Path
from typing import Any

from hypothesis import given, strategies as st

from dgproxy.config import examine_bytes
from dgproxy.config.lines import joined, of_keys

DOCUMENT = """\
# a comment, and an empty line

top = 1
[server]
listen = [
  "a",  # one
  "b",
]
text = '''
workers = 5
[tls]
'''
workers = 2
[plans.default]
quota = { audio = "1h/day", "a b" = 2 }
quotas.of.all = 1
[plans.default.more]
x = 1
[[tls.extra]]
certificate = "a"
[[tls.extra]]
certificate = "b"
[tls.extra.inner]
y = [[1], [{ z = 2 }]]
"""

LINES = {
    "top": 3,
    "server": 4,
    "server.listen": 5,
    "server.listen[0]": 5,
    "server.listen[1]": 5,
    "server.text": 9,
    "server.workers": 13,
    "plans": 14,
    "plans.default": 14,
    "plans.default.quota": 15,
    "plans.default.quota.audio": 15,
    'plans.default.quota."a b"': 15,
    "plans.default.quotas": 16,
    "plans.default.quotas.of": 16,
    "plans.default.quotas.of.all": 16,
    "plans.default.more": 17,
    "plans.default.more.x": 18,
    "tls": 19,
    "tls.extra": 19,
    "tls.extra[0]": 19,
    "tls.extra[0].certificate": 20,
    "tls.extra[1]": 21,
    "tls.extra[1].certificate": 22,
    "tls.extra[1].inner": 23,
    "tls.extra[1].inner.y": 24,
    "tls.extra[1].inner.y[0]": 24,
    "tls.extra[1].inner.y[0][0]": 24,
    "tls.extra[1].inner.y[1]": 24,
    "tls.extra[1].inner.y[1][0]": 24,
    "tls.extra[1].inner.y[1][0].z": 24,
}


def test_each_key_has_the_line_where_its_statement_begins() -> None:
    assert of_keys(DOCUMENT) == LINES
    assert of_keys(DOCUMENT.replace("\n", "\r\n")) == LINES


def keys_of(place: str, value: Any) -> set[str]:
    match value:
        case dict():
            inner = {joined(place, name): each for name, each in value.items()}
        case list():
            inner = {f"{place}[{index}]": each for index, each in enumerate(value)}
        case _:
            return set()
    return set(inner).union(*(keys_of(key, each) for key, each in inner.items()))


NAMES = st.sampled_from(["a", "b", "c", '"d e"', "'f'"])
VALUES = st.sampled_from(
    [
        "1",
        '"x"',
        "[1,\n2]",
        "[\n# a = 1\n]",
        "{ a = 1 }",
        "[{ b = 2 }]",
        '"""\na = 1\n[b]\n"""',
        "'''x\n[[a]]'''",
        "1979-05-27",
    ]
)
STATEMENTS = st.one_of(
    st.builds("{} = {}".format, st.lists(NAMES, min_size=1, max_size=3).map(".".join), VALUES),
    st.builds("[{}]".format, st.lists(NAMES, min_size=1, max_size=3).map(".".join)),
    st.builds("[[{}]]".format, st.lists(NAMES, min_size=1, max_size=3).map(" . ".join)),
    st.sampled_from(["", "# a = 1", "   "]),
)


@given(st.lists(STATEMENTS, max_size=12))
def test_a_key_first_stands_where_the_text_up_to_its_line_first_has_it(statements: list[str]) -> None:
    """The judge is tomllib itself: before that statement the document lacks the key, with it the key is there."""
    kept: list[str] = []
    expected: dict[str, int] = {}
    for statement in statements:
        begins = "\n".join(kept).count("\n") + 2 if kept else 1
        try:
            document = tomllib.loads("\n".join([*kept, statement]))
        except tomllib.TOMLDecodeError:
            continue  # such as a key for the second time
        kept.append(statement)
        for key in keys_of("", document):
            expected.setdefault(key, begins)
    assert of_keys("\n".join(kept)) == expected


def test_what_cannot_be_told_for_certain_is_left_out() -> None:
    long = "x = 1\ny = [\n" + "1,\n" * 200 + "]\nz = 1\n"
    assert of_keys(long) == {"x": 1}
    assert of_keys("\n" * 20_000 + "x = 1") == {}


def test_a_finding_names_the_line_of_its_key_and_none_where_there_is_no_key() -> None:
    text = b'[server]\n\nworkers = 0\n[tls]\ncertificate = ""\n[cors]\norigins = ["*"]\n'
    _, findings = examine_bytes(text, Path("/srv/dgproxy.toml"))
    places = {finding.key: finding.line for finding in findings}
    assert places["server.workers"] == 3
    assert places["tls.certificate"] == 5
    assert places["plans.default"] is None
    assert str(findings[0]).startswith("/srv/dgproxy.toml:3: server.workers: found the number 0")
