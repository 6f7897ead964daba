"""`python -m bench timing`: whether the time of a key check tells how much of a guess is right.

Guesses at one key of 1,000: with its id, and nothing, the first character, half or all but the last character of its
secret right; with one id that no key has, and the right secret; and all random, the id each time another. Timed in this
process, on the very `Table.check` that workers call, with the table mapped as they map it; and once more as an attacker
would: 401 answers on a kept connection to a running proxy.

Rules of this file: guesses are made anew for each block, checksum and all, and in the shuffled order in which they are
tried, so that no class has better memory than another; each class is compared with "nothing right" (how: stats.py).
What must be flat is the secret. Ids are public, logs name them: that a known one takes another time is only printed.
"""

import contextlib
import gc
import math
import os
import random
import socket
import ssl
import string
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from bench import keys, stats
from bench.machine import LOAD_CORE, PROXY_CORE
from bench.runs import Row
from bench.scenarios import Figure
from bench.servers import NAMES, Unstarted, fastest
from bench.stats import Difference
from bench.studies import Bench, Study, row, unstarted
from dgproxy.access.keys import ID_LENGTH, PREFIX, SECRET_LENGTH, mint
from dgproxy.wire.refusals import Refusal

NAME: Final = "timing"
BASE: Final = "nothing right"
RIGHT: Final = {BASE: 0, "first right": 1, "half right": SECRET_LENGTH // 2, "all but last right": SECRET_LENGTH - 1}
ID: Final = ("unknown id", "all random")
UNKNOWN: Final = "0" * ID_LENGTH  # one and the same: ids drawn anew are in no cache, whether known or not
CLASSES: Final = (*RIGHT, *ID)
BOUND: Final = 10.0  # ns; about what a day of tries resolves on loopback, see `a_day`: on a network it is less
TRIES_A_DAY: Final = 1000 * 86_400
IN_PROCESS: Final = "in process"
_BLOCKS, _EACH = 200, 200  # guesses of each class in a block
_LEAST_BLOCKS, _MOST_BLOCKS, _OVER_SOCKET = 40, 2000, 20
_ASK: Final = 10.0  # seconds for an answer
_LETTERS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase  # in the order of base62


# --- guesses --------------------------------------------------------------------------------------------------------


def spelled(public: str, secret: str) -> str:
    """The key of this id and secret, with the checksum that belongs to it."""
    places = iter([_LETTERS.index(letter) for letter in public + secret])
    return mint(lambda count: bytes(next(places) for _ in range(count))).key


def parts(key: str) -> tuple[str, str]:
    """Id and secret of a key."""
    secret = len(PREFIX) + ID_LENGTH + 1
    return key[len(PREFIX) : len(PREFIX) + ID_LENGTH], key[secret : secret + SECRET_LENGTH]


def guess(kind: str, key: str, rng: random.Random) -> str:
    """A guess at this key of one of the classes; of its secret exactly as much is right as the class says."""
    public, secret = parts(key)
    if kind == "unknown id":
        return spelled(UNKNOWN, secret)
    if kind == "all random":
        return spelled("".join(rng.choices(_LETTERS, k=ID_LENGTH)), "".join(rng.choices(_LETTERS, k=SECRET_LENGTH)))
    right = RIGHT[kind]
    wrong = rng.choice(_LETTERS.replace(secret[right], ""))
    return spelled(public, secret[:right] + wrong + "".join(rng.choices(_LETTERS, k=SECRET_LENGTH - right - 1)))


# --- samples --------------------------------------------------------------------------------------------------------


def block(key: str, each: int, rng: random.Random, trial: Callable[[bytes], int]) -> dict[str, list[float]]:
    """So many guesses of each class in random order; `trial` gives a guess's nanoseconds."""
    order = [kind for kind in CLASSES for _ in range(each)]
    rng.shuffle(order)
    guesses = [guess(kind, key, rng).encode() for kind in order]
    taken: dict[str, list[float]] = {kind: [] for kind in CLASSES}
    for kind, text in zip(order, guesses, strict=True):
        taken[kind].append(trial(text))
    return taken


@contextlib.contextmanager
def undisturbed(core: int) -> Iterator[None]:
    """On one core, without collections of garbage."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        os.sched_setaffinity(0, before)


def in_process(subject: keys.Subject, key: str, rng: random.Random) -> list[stats.Block]:
    """The check alone."""
    check, pepper, clock = subject.table.check, subject.pepper, time.perf_counter_ns
    now = time.time()
    for kind in CLASSES:
        assert isinstance(check(guess(kind, key, rng).encode(), pepper, now), Refusal)

    def trial(text: bytes) -> int:
        began = clock()
        check(text, pepper, now)
        return clock() - began

    with undisturbed(PROXY_CORE):
        return [block(key, _EACH, rng, trial) for _ in range(_BLOCKS)]


def over_socket(port: int, key: str, rng: random.Random, *, tls: bool, seconds: float) -> list[stats.Block]:
    """The 401 of a running proxy, from the first byte sent to the last one read."""
    head = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Token "
    clock = time.perf_counter_ns
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=_ASK))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire = stack.enter_context(context.wrap_socket(plain)) if tls else plain
        room = 65_536

        def trial(text: bytes) -> int:
            asked = head + text + b"\r\n\r\n"
            began = clock()
            wire.sendall(asked)
            answer = wire.recv(room)
            took = clock() - began
            # A refusal is one write of the proxy's, so one record.
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert answer.endswith(b"}")
            return took

        over = time.monotonic() + seconds
        blocks: list[stats.Block] = []
        with undisturbed(LOAD_CORE):
            while len(blocks) < _LEAST_BLOCKS or (time.monotonic() < over and len(blocks) < _MOST_BLOCKS):
                blocks.append(block(key, _OVER_SOCKET, rng, trial))
    return blocks


# --- rows -----------------------------------------------------------------------------------------------------------


def verdict(differences: Sequence[Difference], bound: float = BOUND) -> str:
    """Whether these are flat: whether all are certainly within the bound, or one certainly above it."""
    if any(difference.above(bound) for difference in differences):
        return "not flat"
    if all(difference.within(bound) for difference in differences):
        return "flat"
    return "nothing to be told from the noise"


def figures(differences: Sequence[Difference]) -> dict[str, float]:
    """The largest difference beside the noise, and how many are certainly above the bound."""
    most = stats.largest(differences)
    return {
        "apart": most.apart,
        "noise": max(difference.noise for difference in differences),
        "t": max((difference.t for difference in differences), key=abs),
        "effect": 100 * max((difference.effect for difference in differences), key=abs),
        "told": sum(difference.above(BOUND) for difference in differences),
    }


def a_day(noise: float, tries: int) -> float:
    """What a day of tries at two classes would resolve, if so many of each leave this noise."""
    return noise * math.sqrt(tries / (TRIES_A_DAY / 2))


def _judged(bench: Bench, place: str, blocks: list[stats.Block], rng: random.Random) -> Iterator[Row]:
    differences = stats.compare(blocks, BASE, rng)
    tries = sum(len(part[BASE]) for part in blocks)
    for what, of in (
        ("secret", [each for each in differences if each.name not in ID]),
        ("id", [each for each in differences if each.name in ID]),
    ):
        variant = f"{place}, {what}"
        found = figures(of)
        if place != IN_PROCESS:
            found["a_day"] = a_day(found["noise"], tries)
        said = verdict(of)
        most = stats.largest(of)
        interval = f"{most.apart:.1f} ns ({most.low:.1f} to {most.high:.1f}) beside {BASE!r}"
        bench.say(f"{variant}: {said}; furthest: {most.name}, {interval}")
        yield row(
            bench.round,
            NAME,
            NAMES[fastest()],
            found,
            variant=variant,
            faults=[f"not flat: {most.name}, {interval}"] if what == "secret" and said == "not flat" else [],
            detail={
                "verdict": said,
                "tries": tries,
                "centre_ns": {kind: stats.centre([took for part in blocks for took in part[kind]]) for kind in CLASSES},
                "classes": {
                    each.name: {"apart": each.apart, "low": each.low, "high": each.high, "t": each.t, "u": each.effect}
                    for each in of
                },
            },
        )


def _rows(bench: Bench) -> Iterator[Row]:
    rig, form, rng = bench.rig, fastest(), random.Random()
    assert spelled(*parts(rig.key)) == rig.key
    bench.say(IN_PROCESS)
    yield from _judged(bench, IN_PROCESS, in_process(keys.subject(rig), rig.key, rng), rng)
    place = "over TLS" if rig.tls else "over TCP"
    bench.say(place)
    try:
        with rig.dgproxy(form) as server:
            blocks = over_socket(server.port, rig.key, rng, tls=rig.tls, seconds=bench.seconds)
    except Unstarted as why:
        yield unstarted(bench, NAME, NAMES[form], f"{place}, secret", why)
        return
    yield from _judged(bench, place, blocks, rng)


STUDY: Final = Study(
    NAME,
    f"how much longer a guess takes that is partly right; flat: certainly within {BOUND:g} ns",
    (
        Figure("apart", "ns, largest", compared=False),
        Figure("noise", "ns", compared=False),
        Figure("t", "Welch", compared=False),
        Figure("effect", "% likelier", compared=False, digits=2),
        Figure("told", "classes", compared=False, digits=0),
        Figure("a_day", "ns resolved", compared=False, digits=2),
    ),
    _rows,
)
