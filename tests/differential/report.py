"""The comparison as text: a table for people, and the generated parts of docs/security.md."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from tests.differential.compare import Explained, Result, Verdict, compare
from tests.differential.corpus import RULES, Row

Results = Mapping[str, Mapping[str, Result]]  # by server, then by row
Verdicts = Mapping[str, Mapping[str, Verdict]]  # by row, then by the server compared with

# Names of headers and trailers are for the table by row; here their kind is enough.
_TOO: Final = re.compile(r"passes with `(?:(trailer) )?.*")
_ID: Final = 60  # characters of a row's id in a line; the JSON has it whole
BEGIN: Final = "<!-- measured: begin (python -m tests.differential --write-docs) -->"
END: Final = "<!-- measured: end -->"


def verdicts(corpus: Sequence[Row], results: Results) -> dict[str, dict[str, Verdict]]:
    """What dgproxy is beside each other server, row by row."""
    others = [name for name in results if name != "dgproxy"]
    return {
        row.id: {name: compare(results["dgproxy"][row.id], results[name][row.id]) for name in others} for row in corpus
    }


def table(
    corpus: Sequence[Row], results: Results, judged: Verdicts, explained: Explained, versions: Mapping[str, str]
) -> str:
    """A line for each row."""
    lines = [("row", *(f"{name} {versions[name]}" for name in results), "dgproxy is")]
    for row in corpus:
        beside = ", ".join(
            f"{verdict} than {name}" if verdict in (Verdict.LAXER, Verdict.STRICTER) else f"{verdict} ({name})"
            for name, verdict in judged[row.id].items()
            if verdict is not Verdict.SAME
        )
        if row.id in explained.rows:
            beside += " [explained]"
        lines.append((row.id[:_ID], *(results[name][row.id].told() for name in results), beside or "same"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )


def totals(judged: Verdicts) -> str:
    """How many rows of each verdict, by server."""
    others = next(iter(judged.values())) if judged else {}
    return "".join(
        f"against {name}: "
        + ", ".join(
            f"{count} {verdict}" for verdict, count in Counter(by[name] for by in judged.values()).most_common()
        )
        + f" (of {len(judged)} rows)\n"
        for name in others
    )


def put_into(
    text: str,
    corpus: Sequence[Row],
    results: Results,
    judged: Verdicts,
    explained: Explained,
    versions: Mapping[str, str],
) -> str:
    """docs/security.md with what stands between its markers renewed.

    Raises:
        ValueError: the markers are not there once each.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError("the document needs each marker once")
    return f"{before}{BEGIN}\n\n{_generated(corpus, results, judged, explained, versions)}\n{END}{after}"


def _generated(
    corpus: Sequence[Row], results: Results, judged: Verdicts, explained: Explained, versions: Mapping[str, str]
) -> str:
    lines = [
        "| rule | requests | RFC | " + " | ".join(f"{name} {versions[name]}" for name in results) + " |",
        "|---|---|---|" + "---|" * len(results),
    ]
    for key, rule in RULES.items():
        of_rule = [row for row in corpus if row.rule == key]
        if of_rule:
            cells = [_cell([results[name][row.id] for row in of_rule]) for name in results]
            lines.append(f"| {rule.text} ({key}) | {len(of_rule)} | {rule.source} | " + " | ".join(cells) + " |")
    lines += ["", "Totals: " + totals(judged).strip().replace("\n", "; ") + ".", ""]
    lines += ["Where dgproxy lets through what one of the others refuses, or in another form:", ""]
    by_reason: dict[str, list[str]] = {}
    for row, by in judged.items():
        if {Verdict.LAXER, Verdict.OTHER} & set(by.values()):
            by_reason.setdefault(explained.rows.get(row, "**Not explained.**"), []).append(row)
    lines += [f"- {_ids(ids)}: {reason}" for reason, ids in by_reason.items()] or ["- nowhere"]
    return "\n".join(lines) + "\n"


def _ids(ids: Sequence[str]) -> str:
    return ", ".join(f"`{one}`" for one in ids)


def _cell(results: Sequence[Result]) -> str:
    """`400`, or `400 (5), passes (2)` where rows of the same rule fare differently."""
    count = Counter(_TOO.sub(lambda with_it: f"passes with {with_it[1] or 'it'}", one.told()) for one in results)
    if len(count) == 1:
        return next(iter(count)).replace("|", "\\|")
    return ", ".join(f"{told} ({many})" for told, many in count.most_common()).replace("|", "\\|")
