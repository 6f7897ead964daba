"""What bench/ makes of what it measured: the parts that need no server and no clock."""

import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import reload, scale, stats, tables, timing
from bench.keys import beside, mappings, sizes, table_faults
from bench.machine import Memory
from bench.runs import Row, Runs, Spread
from bench.scenarios import Figure, Run, Scenario
from bench.studies import Study, row
from dgproxy.access.keys import checksum_ok, mint

FIGURES = (Figure("cpu", "us"), Figure("share", "%"))
STUDY = Study("keys", "by number of keys", FIGURES, lambda _: iter(()))
SCENARIO = Scenario("keys", "one load", "requests", {}, FIGURES, lambda _: {})


def rows(*told: tuple[int, str, str, dict[str, float]]) -> list[Row]:
    return [row(number, "keys", server, figures, variant=variant) for number, variant, server, figures in told]


# --- rows and their summary -----------------------------------------------------------------------------------------


def test_a_row_is_invalid_if_the_generator_was_at_its_limit_or_anything_went_wrong() -> None:
    def made(generator: float, *faults: str, found: tuple[str, ...] = ()) -> Row:
        run = Run({}, cpu=1, wall=1, generator=generator, opened=1, faults=list(faults))
        return row(1, "keys", "nginx", {"cpu": 1}, run=run, faults=found)

    assert made(0.8)["valid"]
    assert not made(0.81)["valid"]
    assert not made(0.1, "1 lost")["valid"]
    assert made(0.1, "1 lost", found=("another",))["faults"] == ["1 lost", "another"]
    assert not row(1, "keys", "nginx", {}, faults=["does not start"])["valid"]


def test_each_variant_is_compared_with_nginx_of_the_same_variant_and_round() -> None:
    runs = Runs(
        rows(
            (1, "keys=10", "nginx", {"cpu": 10}),
            (1, "keys=10", "dgproxy", {"cpu": 20, "share": 50}),
            (1, "keys=20", "nginx", {"cpu": 100}),
            (1, "keys=20", "dgproxy", {"cpu": 100}),
            (2, "keys=10", "nginx", {"cpu": 10}),
            (2, "keys=10", "dgproxy", {"cpu": 40, "share": 60}),
        )
    )
    assert tables.lines(tables.described(STUDY), runs) == [
        ("keys=10", "nginx"),
        ("keys=10", "dgproxy"),
        ("keys=20", "nginx"),
        ("keys=20", "dgproxy"),
    ]
    assert runs.spread("keys", "dgproxy", "cpu", variant="keys=10") == Spread(30, 20, 40, 2)
    assert runs.ratio("keys", "dgproxy", "cpu", variant="keys=10") == Spread(3, 2, 4, 2)
    assert runs.spread("keys", "dgproxy", "share", variant="keys=10") == Spread(55, 50, 60, 2)
    assert runs.ratio("keys", "dgproxy", "share", variant="keys=10") is None
    assert runs.ratio("keys", "dgproxy", "cpu", variant="keys=20") == Spread(1, 1, 1, 1)
    assert runs.spread("keys", "dgproxy", "share", variant="keys=20") is None


@pytest.mark.parametrize(("scenario", "shown"), [(SCENARIO, 0), (STUDY, 1)], ids=["scenario", "study"])
def test_without_nginx_only_a_study_is_shown(scenario: Scenario | Study, shown: int) -> None:
    runs = Runs(rows((1, "", "dgproxy", {"cpu": 1})))
    assert len(tables.lines(tables.described(scenario), runs)) == shown


# --- keys -----------------------------------------------------------------------------------------------------------

MAPS = """\
7f1000000000-7f1000200000 r--s 00000000 00:01 {inode}                       /memfd:dgproxy-keys (deleted)
7f1000300000-7f1000301000 rw-p 00000000 00:00 0
7f1000400000-7f1000401000 r-xp 00000000 fd:00 77                         /usr/lib/a library.so
"""


def test_the_key_table_is_found_among_a_process_s_mappings() -> None:
    assert mappings(MAPS.format(inode=1234)) == {1234: 2 << 20}


def test_workers_must_have_one_table_and_the_same() -> None:
    assert table_faults([{1: 10}, {1: 10}]) == []
    wrong: list[list[dict[int, int]]] = [
        [{1: 10}, {2: 10}],
        [{1: 10}, {}],
        [{}, {}],
        [{1: 10, 2: 10}, {1: 10, 2: 10}],
    ]
    for found in wrong:
        assert len(table_faults(found)) == 1


def test_sizes_are_the_first_worker_s_and_its_parent_s() -> None:
    parent, worker = Memory(own=1024, shared=2048, fair=1500), Memory(own=4096, shared=512, fair=4200)
    assert sizes([parent, worker]) == {"own": 4, "shared": 0.5, "parent": 1}
    assert sizes([parent]) == {"own": 1, "shared": 2}


def test_ratios_are_taken_turn_by_turn() -> None:
    assert beside([2, 30, 8], [1, 10, 2]) == 3


# --- reload ---------------------------------------------------------------------------------------------------------


def echoed(latency: dict[float, float], **load: Any) -> Run:
    return Run({"latency_us": list(latency.items()), **load}, cpu=1, wall=1, generator=0.1, opened=1)


def test_latency_while_keys_change_stands_beside_that_at_rest() -> None:
    run = echoed({0.5: 10, 0.99: 30, 0.999: 40, 1: 50}, dropped=2)
    at_rest = reload.figures(run, 0.25, None)
    assert at_rest == {"p50": 10, "p99": 30, "p99.9": 40, "max": 50, "dropped": 2, "cpu": 25}
    assert reload.figures(run, 0.25, {"p99": 20}) == {**at_rest, "p99_x": 1.5}


def test_changes_that_fail_or_fall_behind_are_a_fault() -> None:
    def failing() -> None:
        raise OSError("no socket")

    with reload.Changes(failing, 20) as failed:
        failed._thread.join()
    assert failed.faults() == ["keys could not be changed: OSError: no socket"]
    changes = reload.Changes(lambda: None, 20)
    changes.seconds = 10
    for made, faults in ((200, 0), (180, 0), (170, 1)):
        changes.made = made
        assert len(changes.faults()) == faults


def test_that_a_server_knows_the_last_changes_is_asked_until_it_does() -> None:
    answers = iter([401, 200, 200, 200, 200, 401])
    asked = []

    def ask(key: str) -> int:
        asked.append(key)
        return next(answers)

    assert reload.unknown(ask, "new", "old", within=60) == []
    assert asked == ["new", "old"] * 3
    assert len(reload.unknown(lambda _: 200, "new", "old", within=0)) == 1


def test_a_state_is_found_again_as_it_was(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / "keys.db").write_text("before")
    with reload.restored(state):
        (state / "keys.db").write_text("after")
        (state / "more").touch()
    assert [path.read_text() for path in state.iterdir()] == ["before"]
    assert list(tmp_path.iterdir()) == [state]
    assert state.stat().st_mode & 0o777 == 0o700


# --- scale ----------------------------------------------------------------------------------------------------------

# /proc/net/tcp: a listening socket, two connections at the server's end, one at the client's, one that is closing.
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2EE0 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 11 1 0 100 0 0 10 0
   1: 0100007F:2EE0 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1000        0 12 1 0 20 4 30 10 -1
   2: 0100007F:2EE0 0100007F:9C41 01 00000000:00000000 00:00000000 00000000  1000        0 13 1 0 20 4 30 10 -1
   3: 0100007F:9C40 0100007F:2EE0 01 00000000:00000000 00:00000000 00000000  1000        0 14 1 0 20 4 30 10 -1
   4: 0100007F:2EE0 0100007F:9C42 06 00000000:00000000 00:00000000 00000000  1000        0 0 1 0 20 4 30 10 -1
"""


def test_all_streams_together_send_no_more_than_the_proxy_can_take() -> None:
    assert [scale.interval(streams) for streams in (50, 500, 1000, 2000)] == [0.1, 0.1, 0.2, 0.4]
    assert scale.load(2000, 3).options["interval"] == 0.4
    assert scale.load(2000, 3).options["n"] == 2000


def test_connections_are_counted_at_the_server_s_end() -> None:
    assert scale.accepted(TCP, 12000) == {12, 13}
    assert scale.accepted(TCP, 12001) == set()


def test_shares_are_of_all_connections_and_of_processes_that_have_any() -> None:
    assert scale.shares({1: {7}, 2: {10, 11, 12}, 3: {13}}, {10, 11, 12, 13}) == [0.75, 0.25]
    assert scale.shares({1: {7}}, {10}) == []
    assert scale.shares({1: {7}}, set()) == []


def test_cpu_with_two_workers_stands_beside_that_with_one() -> None:
    run = echoed({0.5: 10, 0.99: 30}, done=10_000)
    one = scale.figures(run, None, [1.0])
    assert one == {"cpu": 100, "p50": 10, "p99": 30}
    assert scale.figures(run, {"cpu": 80}, [0.6, 0.4]) == {**one, "cpu_x": 1.25, "least": 40}


# --- timing ---------------------------------------------------------------------------------------------------------


def drawn(extra: Callable[[str], float], *, noise: float = 50, blocks: int = 100, each: int = 60) -> list[stats.Block]:
    """Samples as the machine gives them: a drift from block to block, noise to one side, now and then a long delay."""
    rng = random.Random(3200)
    made: list[stats.Block] = []
    for number in range(blocks):
        drift = 3000 + 200 * math.sin(number / 10)
        made.append(
            {
                kind: [
                    drift + extra(kind) + rng.expovariate(1 / noise) + (rng.random() < 0.01) * rng.uniform(0, 1e6)
                    for _ in range(each)
                ]
                for kind in timing.CLASSES
            }
        )
    return made


def compared(blocks: list[stats.Block]) -> list[stats.Difference]:
    return stats.compare(blocks, timing.BASE, random.Random(1))


def early_exit(kind: str) -> float:
    """A comparison that ends at the first character that is wrong, 2 ns a character."""
    return 2.0 * timing.RIGHT.get(kind, 0)


def test_a_comparison_that_ends_early_is_told() -> None:
    differences = compared(drawn(early_exit))
    assert timing.verdict(differences) == "not flat"
    most = stats.largest(differences)
    assert most.name == "all but last right"
    assert most.low < 62 < most.high
    assert most.t > 4.5
    assert most.effect > 0.1
    assert {each.name for each in differences if each.above(timing.BOUND)} == {"half right", "all but last right"}
    assert timing.figures(differences)["told"] == 2


def test_one_that_does_not_is_flat_whatever_the_machine_does_meanwhile() -> None:
    differences = compared(drawn(lambda _: 0))
    assert [each.name for each in differences] == [kind for kind in timing.CLASSES if kind != timing.BASE]
    assert timing.verdict(differences) == "flat"
    assert not any(each.told for each in differences)
    assert all(abs(each.t) < 4.5 and abs(each.effect) < 0.02 for each in differences)


def test_what_the_noise_hides_is_not_called_flat() -> None:
    differences = compared(drawn(early_exit, noise=20_000, blocks=40, each=20))
    assert timing.verdict(differences) == "nothing to be told from the noise"
    assert timing.figures(differences)["noise"] > timing.BOUND


def test_a_difference_that_is_told_but_no_attacker_could_use_is_flat() -> None:
    differences = compared(drawn(lambda kind: 5.0 * (kind == "half right"), noise=10))
    assert stats.largest(differences).told
    assert timing.verdict(differences) == "flat"


def test_a_day_resolves_as_the_root_of_its_tries() -> None:
    assert timing.a_day(2000, timing.TRIES_A_DAY // 2) == 2000
    assert timing.a_day(2000, timing.TRIES_A_DAY // 200) == 200


def test_the_statistics_by_hand() -> None:
    assert stats.centre([100, 1, 3, 2, 4, 5, 6, -50]) == 3.5
    assert stats.welch([1, 2, 3], [1, 2, 3]) == 0
    assert stats.welch([2, 4, 6], [1, 2, 3]) == pytest.approx(2 / math.sqrt(4 / 3 + 1 / 3))
    assert stats.welch([2, 2], [1, 1]) == math.inf
    assert stats.superiority([1, 2], [1, 2]) == 0.5
    assert stats.superiority([3, 4], [1, 2]) == 1
    assert stats.superiority([1, 2, 2], [2]) == pytest.approx(1 / 3)
    assert stats.cropped([1, 2, 9], [1, 3, 4, 5, 6, 7, 8], 0.5) == ([1, 2], [1, 3, 4, 5])
    low, high = stats.interval([1.0] * 5 + [2.0] * 90 + [3.0] * 5, random.Random(1))
    assert (low, high) == (2, 2)


@pytest.mark.parametrize("kind", timing.CLASSES)
def test_a_guess_is_right_in_exactly_what_its_class_says(kind: str) -> None:
    key = mint(os.urandom).key
    public, secret = timing.parts(key)
    assert timing.spelled(public, secret) == key
    for seed in range(20):
        guessed = timing.guess(kind, key, random.Random(seed))
        assert len(guessed) == len(key)
        assert checksum_ok(guessed.encode())
        got_public, got = timing.parts(guessed)
        if kind in timing.ID:
            assert got_public != public
            assert (got == secret) == (kind == "unknown id")
            continue
        assert got_public == public
        right = timing.RIGHT[kind]
        assert got[:right] == secret[:right]
        assert got[right] != secret[right]


def test_a_block_has_as_many_of_each_class_in_an_order_of_its_own() -> None:
    key = mint(os.urandom).key
    tried: list[bytes] = []

    def trial(text: bytes) -> int:
        tried.append(text)
        return len(tried)

    taken = timing.block(key, 5, random.Random(1), trial)
    assert list(taken) == list(timing.CLASSES)
    assert sorted(sample for samples in taken.values() for sample in samples) == list(range(1, 31))
    assert all(len(samples) == 5 for samples in taken.values())
    assert taken[timing.BASE] != [1, 2, 3, 4, 5]
    assert len(set(tried)) > 15  # "unknown id" is one guess, and "all but last right" few
