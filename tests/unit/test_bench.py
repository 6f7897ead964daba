"""The bench's own arithmetic: ratios within a round, goals that are never met by accident, what became worse."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from bench import compare, pictures, report
from bench.goals import GOALS, NATIVE, Goal, Verdict
from bench.runs import BASE, DIRECT, Runs, Spread

LATENCY = [[0, 10.0], [0.5, 20.0], [0.9, 30.0], [0.99, 40.0], [0.999, 50.0], [0.9999, 60.0], [1, 70.0]]


def row(number: int, server: str, scenario: str = "streams", *, valid: bool = True, **figures: float) -> dict[str, Any]:
    return {
        "round": number,
        "scenario": scenario,
        "server": server,
        "figures": figures,
        "generator": 0.3 if valid else 0.95,
        "valid": valid,
        "faults": [],
        "load": {"latency_us": LATENCY},
        "configuration": f"conf of <{server}>",
    }


def document(*rows: dict[str, Any]) -> dict[str, Any]:
    figure = {"unit": "us", "less_is_better": True, "digits": 1, "compared": True}
    figures = [{"name": name, **figure} for name in ("cpu", "p99")]
    return {
        "facts": {"date": "2026-01-01", "cpu": "<fast>"},
        "command": "python -m bench",
        "scenarios": [{"name": "streams", "title": "WSS & more", "study": False, "figures": figures}],
        "runs": list(rows),
    }


def test_a_ratio_is_of_one_round_and_the_median_of_ratios() -> None:
    runs = Runs([row(1, BASE, cpu=10.0), row(1, NATIVE, cpu=9.0), row(2, BASE, cpu=100.0), row(2, NATIVE, cpu=110.0)])
    assert runs.ratio("streams", NATIVE, "cpu") == Spread(1.0, 0.9, 1.1, 2)
    assert runs.spread("streams", NATIVE, "cpu") == Spread(59.5, 9.0, 110.0, 2)


def test_a_server_without_nginx_in_its_round_is_not_shown() -> None:
    runs = Runs([row(1, NATIVE, cpu=9.0), row(2, BASE, cpu=10.0), row(2, "haproxy", cpu=10.0)])
    assert runs.servers("streams") == [BASE, "haproxy"]
    assert runs.ratio("streams", NATIVE, "cpu") is None


def test_what_is_added_is_taken_off_the_way_without_a_proxy() -> None:
    runs = Runs([row(1, BASE, p99=30.0), row(1, NATIVE, p99=20.0), row(1, DIRECT, p99=10.0)])
    assert runs.ratio("streams", NATIVE, "p99", less=DIRECT) == Spread(0.5, 0.5, 0.5, 1)
    assert (
        Runs([row(1, BASE, p99=10.0), row(1, NATIVE, p99=20.0), row(1, DIRECT, p99=10.0)]).ratio(
            "streams", NATIVE, "p99", less=DIRECT
        )
        is None
    )  # nginx added nothing: there is no ratio to that


CPU = GOALS[0]


@pytest.mark.parametrize(
    ("ours", "wanted"),
    [(8.9, Verdict.AIM), (9.0, Verdict.AIM), (9.1, Verdict.MUST), (10.0, Verdict.MUST), (10.1, Verdict.MISSED)],
)
def test_a_goal_is_met_by_the_median(ours: float, wanted: Verdict) -> None:
    assert CPU.verdict(Runs([row(1, BASE, cpu=10.0), row(1, NATIVE, cpu=ours)]))[0] is wanted


def test_more_may_be_better() -> None:
    goal = next(goal for goal in GOALS if goal.scenario == "upload")
    for ours, wanted in ((15.0, Verdict.AIM), (12.0, Verdict.MUST), (9.0, Verdict.MISSED)):
        runs = Runs([row(1, BASE, "upload", speed=10.0), row(1, NATIVE, "upload", speed=ours)])
        assert goal.verdict(runs)[0] is wanted


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.name)
def test_no_goal_is_met_by_runs_that_are_missing_or_were_the_generators_limit(goal: Goal) -> None:
    assert goal.verdict(Runs([]))[0] is Verdict.UNMEASURED
    figures = {"cpu": 1.0, "core": 1.0, "p99": 1.0, "speed": 1.0, "rate": 1.0, "memory": 1.0}
    figures |= {"check_x": 1.0, "of_keys": 1.0, "cpu_x": 1.0, "least": 50.0}
    servers = (*goal.needs, BASE)
    for limited in goal.needs:
        rows = [row(1, server, goal.scenario, valid=server != limited, **figures) for server in servers]
        for each in rows:
            each["variant"] = goal.variant
        assert (goal.verdict(Runs(rows))[0] is Verdict.UNMEASURED) is not goal.by_cpu
        for each in rows:
            each["faults"] = ["1 lost"] if each["server"] == limited else []
        assert goal.verdict(Runs(rows))[0] is Verdict.UNMEASURED


spreads = st.lists(st.floats(0.1, 10), min_size=1, max_size=5).map(
    lambda values: Spread.of(values) or pytest.fail("of none")
)


@given(spreads, spreads, st.booleans())
def test_two_results_are_judged_the_same_from_either_end(was: Spread, now: Spread, less: bool) -> None:  # noqa: FBT001
    there = compare.verdict(was, now, less_is_better=less)
    back = compare.verdict(now, was, less_is_better=less)
    assert {there, back} in ({"same"}, {"better", "worse"}, {"unclear"})
    assert compare.verdict(was, was, less_is_better=less) == "same"


def test_only_what_moved_by_more_than_the_spread_is_worse() -> None:
    def verdict(*now: float, less: bool = True) -> str:
        was, new = Spread.of([0.98, 1.0, 1.02]), Spread.of(now)
        assert was is not None
        assert new is not None
        return compare.verdict(was, new, less_is_better=less)

    assert verdict(1.2, 1.21, 1.22) == "worse"
    assert verdict(1.2, 1.21, 1.22, less=False) == "better"
    assert verdict(1.01, 1.21, 1.22) == "same"
    assert verdict(1.03, 1.03, 1.03) == "same"
    assert verdict(0.8, 0.8, 0.8) == "better"
    assert verdict(1.03, 1.10, 1.16) == "same"  # apart, but nearer than both are wide
    assert verdict(1.2, 1.22) == "unclear"
    assert verdict(1.03, 1.02) == "same"


def test_compare_says_what_became_worse_and_exits_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"

    def stored(cpu: float, rounds: int = 3) -> str:
        servers = {BASE: 10.0, NATIVE: cpu}
        rows = [row(n, server, cpu=each, p99=1.0) for n in range(rounds) for server, each in servers.items()]
        return json.dumps(document(*rows))

    old.write_text(stored(9.0))
    new.write_text(stored(12.0))
    assert compare.main([str(old), str(new)]) == 1
    said = capsys.readouterr().out
    assert "2 figures compared, 1 worse" in said
    assert re.search(r"streams +dgproxy, native pump +cpu +0\.90 +1\.20 +worse", said)
    assert compare.main([str(new), str(old)]) == 0
    new.write_text(stored(12.0, rounds=1))
    assert compare.main([str(old), str(new)]) == 0
    assert "2 figures compared, 0 worse, 1 moved" in capsys.readouterr().out
    new.write_text(json.dumps(document()))
    assert compare.main([str(old), str(new)]) == 2


def compared(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    lines = compare.changes(document(*old), document(*new))
    return {(line["server"], line["figure"]): line["verdict"] for line in lines}


def test_what_the_generator_limited_is_compared_by_cpu_alone() -> None:
    good = [row(1, BASE, cpu=10.0, p99=1.0), row(1, NATIVE, cpu=9.0, p99=1.0)]
    limited = [row(1, BASE, valid=False, cpu=10.0, p99=9.0), row(1, NATIVE, cpu=9.0, p99=1.0)]
    assert compared(good, limited) == compared(limited, good) == {(NATIVE, "cpu"): "same"}


def test_a_run_that_lost_something_is_a_step_back_and_none_to_measure_by() -> None:
    good = [row(1, BASE, cpu=10.0), row(1, NATIVE, cpu=9.0)]
    lost = [row(1, BASE, cpu=10.0), {**row(1, NATIVE, cpu=1.0), "faults": ["1 lost"]}]
    unstarted = [row(1, BASE, cpu=10.0), {**row(1, NATIVE), "faults": ["does not start"]}]
    assert compared(good, lost) == compared(good, unstarted) == {(NATIVE, "cpu"): "broken"}
    assert compared(lost, good) == {}


def test_another_servers_ratio_is_no_step_back_of_ours() -> None:
    old = [row(1, BASE, cpu=10.0), row(1, "haproxy", cpu=9.0)]
    new = [row(1, BASE, cpu=10.0), row(1, "haproxy", cpu=19.0)]
    assert compared(old, new) == {("haproxy", "cpu"): "moved"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"runs": []}', '{"runs": [1], "scenarios": [], "facts": {}}', "7"])
@pytest.mark.parametrize("command", [compare.main, report.main])
def test_what_is_no_result_is_told_in_a_line(
    command: Callable[[list[str]], int], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "run.json"
    stored.write_text(text)
    files = [str(stored)] * (2 if command is compare.main else 1)
    for arguments in (files, [str(tmp_path / "nowhere")] * len(files)):
        with pytest.raises(SystemExit, match=r"^2$"):
            sys.exit(command(arguments))
    assert "nowhere" in capsys.readouterr().err


def test_the_aim_of_saturation_asks_for_haproxys_speed_as_well() -> None:
    goal = next(goal for goal in GOALS if goal.beside)
    assert goal.bounds == ">= 1.5, >= 2.5 and haproxy's"

    def verdict(haproxy: float, **more: Any) -> Verdict:
        speeds = {BASE: 10.0, NATIVE: 30.0, "haproxy": haproxy}
        rows = [row(1, server, "saturate", speed=speed) for server, speed in speeds.items()]
        return goal.verdict(Runs([*rows[:2], {**rows[2], **more}]))[0]

    assert verdict(30.0) is Verdict.AIM
    assert verdict(31.0) is Verdict.MUST
    assert verdict(30.0, valid=False) is Verdict.MUST  # haproxy's own speed is not known


def test_a_bar_that_was_the_generators_limit_is_hatched() -> None:
    def drawn(figure: str, *, valid: bool) -> int:
        rows = [row(1, BASE, valid=valid, cpu=5.0, p99=5.0), row(1, NATIVE, cpu=5.0, p99=5.0)]
        return pictures.bars(Runs(rows), ["streams"], figure, "what").count("<pattern")

    assert drawn("p99", valid=True) == 0
    assert drawn("p99", valid=False) == 1
    assert drawn("cpu", valid=False) == 0  # its own CPU it is, whatever the generator did


def test_the_report_is_one_page_with_every_figure_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    rows = [row(n, server, cpu=n + 0.5, p99=7.0) for n in (1, 2) for server in (BASE, NATIVE, "haproxy", DIRECT)]
    stored = tmp_path / "run.json"
    stored.write_text(json.dumps(document(*rows)))
    assert report.main([str(stored)]) == 0
    page = stored.with_suffix(".html").read_text()
    assert page.count("<svg") == 2  # latency and CPU; nothing else was measured
    assert page.count('<svg role="img" aria-label="') == 2
    assert "interrupted" not in page
    assert "interrupted" in report.html(document(*rows) | {"interrupted": True})
    assert "#000000" not in page  # ink is the page's own, dark or light
    assert "2.0<small>1.5-2.5</small>" in page
    assert "WSS &amp; more" in page
    assert "&lt;fast&gt;" in page
    assert "conf of &lt;nginx&gt;" in page
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", page)
    assert "<script" not in page
