"""The table of keys: what it finds, what it refuses and why, and that it never lags or skips a change."""

import hmac
import mmap
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from dgproxy.access import keys
from dgproxy.access.keys import Delta, GenerationGap, KeyId, Pepper, Record, State, Table, build, mint, public_id, write
from dgproxy.config import Overrides
from dgproxy.wire.refusals import (
    BAD_CREDENTIAL,
    KEY_DISABLED,
    KEY_EXPIRED,
    KEY_NOT_YET_VALID,
    KEY_REVOKED,
    Refusal,
)

PEPPER = Pepper(bytes(range(32)))
NOW = 1_800_000_000.0


@dataclass(frozen=True)
class Known:
    """A record, and the key that only its holder has."""

    key: bytes
    record: Record


def known(rng: random.Random, *, foreign: bool = False, pepper: Pepper = PEPPER, **fields: object) -> Known:
    minted = mint(rng.randbytes)
    key = rng.randbytes(16).hex().encode() if foreign else minted.key.encode()
    record = Record(
        id=minted.id,
        digest=pepper.digest(key),
        name=f"customer {minted.id}",
        pepper_id=pepper.id,
        plan="default",
        overrides=Overrides(),
        state=State.ACTIVE,
        created=1_700_000_000,
        not_before=0,
        expires=None,
        foreign=foreign,
    )
    return Known(key, msgspec.structs.replace(record, **fields))


@pytest.fixture
def rng() -> random.Random:
    return random.Random(1)


def verdict(record: Record, now: float) -> Record | Refusal:
    """The table's plain twin: what a proven key gets."""
    if record.state is State.REVOKED:
        return KEY_REVOKED
    if record.state is State.DISABLED:
        return KEY_DISABLED
    if now < record.not_before:
        return KEY_NOT_YET_VALID
    if record.expires is not None and now >= record.expires:
        return KEY_EXPIRED
    return record


@pytest.mark.parametrize("foreign", [False, True])
def test_a_key_is_found_by_its_holder_and_by_its_id(rng: random.Random, *, foreign: bool) -> None:
    mine = known(rng, foreign=foreign)
    table = Table(build([known(rng).record, mine.record, known(rng, foreign=True).record], 3))
    assert table.check(mine.key, PEPPER, NOW) == mine.record
    assert table.get(mine.record.id) == mine.record
    assert (len(table), table.generation) == (3, 3)


def test_an_empty_table_knows_nobody(rng: random.Random) -> None:
    table = Table(build([], 0))
    assert table.check(known(rng).key, PEPPER, NOW) is BAD_CREDENTIAL
    assert table.check(b"", PEPPER, NOW) is BAD_CREDENTIAL
    assert table.get(KeyId("0123456789")) is None
    assert len(table) == 0


def test_any_other_text_gets_one_and_the_same_answer(rng: random.Random) -> None:
    mine, other = known(rng), known(rng)
    table = Table(build([mine.record, other.record], 1))
    key, foreign = mine.key, other.key
    texts = {
        "C2 bad checksum": key[:-1] + (b"0" if key[-1:] != b"0" else b"1"),
        "C2 right id, wrong secret": key[:15] + foreign[15:],
        "C2 right secret, other id": foreign[:15] + key[15:],
        "C2 one more": key + b"0",
        "C2 one less": key[:-1],
        "C2 other case": key.swapcase(),
        "C3 huge": key * 1000,
        "C11 a licence key": b"0" * 40,
        "no text": b"\xff\x00",
        "the decoy's id": b"dgp_" + b"-" * 10 + key[14:],
    }
    answers = {case: table.check(text, PEPPER, NOW) for case, text in texts.items()}
    assert answers == dict.fromkeys(texts, BAD_CREDENTIAL)


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"state": State.REVOKED}, KEY_REVOKED),
        ({"state": State.DISABLED}, KEY_DISABLED),
        ({"not_before": int(NOW) + 1}, KEY_NOT_YET_VALID),
        ({"expires": int(NOW)}, KEY_EXPIRED),
        ({"state": State.REVOKED, "expires": int(NOW) - 5}, KEY_REVOKED),
    ],
)
@pytest.mark.parametrize("foreign", [False, True])
def test_c6_only_who_proved_the_secret_is_told_why(
    rng: random.Random, fields: dict[str, Any], answer: Refusal, *, foreign: bool
) -> None:
    mine = known(rng, foreign=foreign, **fields)
    table = Table(build([mine.record], 1))
    assert table.check(mine.key, PEPPER, NOW) is answer
    assert table.check(mine.key[:-1] + b"?", PEPPER, NOW) is BAD_CREDENTIAL
    assert answer.status == 401


def test_expiry_and_start_are_exact_to_the_moment(rng: random.Random) -> None:
    mine = known(rng, not_before=100, expires=200)
    table = Table(build([mine.record], 1))
    answers = [table.check(mine.key, PEPPER, now) for now in (99.9, 100, 199.9, 200)]
    assert answers == [KEY_NOT_YET_VALID, mine.record, mine.record, KEY_EXPIRED]


def test_o9_a_record_of_another_pepper_opens_nothing(rng: random.Random) -> None:
    other = Pepper(b"o" * 32)
    foretold = known(rng, pepper_id=other.id)  # even where the digest would fit
    table = Table(build([known(rng, pepper=other).record, foretold.record], 1))
    assert table.check(foretold.key, PEPPER, NOW) is BAD_CREDENTIAL
    assert table.check(foretold.key, other, NOW) is BAD_CREDENTIAL


def test_one_digest_and_one_comparison_whatever_is_sent(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, changed, gone = known(rng), known(rng), known(rng)
    table = Table(build([mine.record, changed.record, gone.record], 1))
    table.apply(Delta(2, (changed.record,), (gone.record.id,)))
    calls: list[str] = []
    decodes: list[int] = []

    class Counting(Pepper):
        def digest(self, key: bytes) -> bytes:
            calls.append("digest")
            return super().digest(key)

    def compare(one: bytes, two: bytes) -> bool:
        calls.append("compare")
        return hmac.compare_digest(one, two)

    def decode(entry: bytes) -> Record:
        decodes.append(len(entry))
        return msgspec.msgpack.decode(entry, type=Record)

    monkeypatch.setattr(keys, "_compare_digest", compare)
    monkeypatch.setattr(keys, "_decode", decode)
    pepper = Counting(PEPPER.expose())
    for key in (
        mine.key[:-1] + b"?",
        mine.key[:15] + changed.key[15:],
        changed.key[:15] + mine.key[15:],
        gone.key,
        known(rng).key,
        b"f" * 40,
        b"",
    ):
        calls.clear()
        assert table.check(key, pepper, NOW) is BAD_CREDENTIAL
        assert calls == ["digest", "compare"]
    assert decodes == []  # so no record's length can be told by a clock
    calls.clear()
    assert table.check(b"x" * 513, pepper, NOW) is BAD_CREDENTIAL
    assert calls == []


@given(st.binary(max_size=600))
def test_random_bytes_never_raise(key: bytes) -> None:
    table = Table(build([known(random.Random(i)).record for i in range(5)], 1))
    assert table.check(key, PEPPER, NOW) is BAD_CREDENTIAL
    assert table.get(KeyId(key.decode("latin-1"))) is None


# --- changes ----------------------------------------------------------------------------------------------------


def test_c10_a_revoked_key_is_refused_from_the_next_generation_on(rng: random.Random) -> None:
    mine, foreign = known(rng), known(rng, foreign=True)
    table = Table(build([mine.record, foreign.record], 7))
    revoked = tuple(msgspec.structs.replace(r, state=State.REVOKED) for r in (mine.record, foreign.record))
    table.apply(Delta(8, revoked))
    assert [table.check(k.key, PEPPER, NOW) for k in (mine, foreign)] == [KEY_REVOKED, KEY_REVOKED]
    table.apply(Delta(9, gone=(mine.record.id, foreign.record.id)))
    assert [table.check(k.key, PEPPER, NOW) for k in (mine, foreign)] == [BAD_CREDENTIAL, BAD_CREDENTIAL]
    assert table.get(mine.record.id) is None
    assert (len(table), table.generation) == (0, 9)


def test_a_new_secret_replaces_the_old_one(rng: random.Random) -> None:
    for foreign in (False, True):
        old, new = known(rng, foreign=foreign), known(rng, foreign=True)
        table = Table(build([old.record], 1))
        rotated = msgspec.structs.replace(old.record, digest=new.record.digest, foreign=True)
        table.apply(Delta(2, (rotated,)))
        assert table.check(old.key, PEPPER, NOW) is BAD_CREDENTIAL
        assert table.check(new.key, PEPPER, NOW) == rotated


def test_a_foreign_key_can_come_back_under_another_id_in_one_change(rng: random.Random) -> None:
    first = known(rng, foreign=True)
    second = Known(first.key, msgspec.structs.replace(first.record, id=mint(rng.randbytes).id))
    for base in ([first.record], []):
        table = Table(build(base, 1))
        table.apply(Delta(2, () if base else (first.record,)))
        table.apply(Delta(3, (second.record,), (first.record.id,)))
        assert table.check(first.key, PEPPER, NOW) == second.record
        assert table.get(first.record.id) is None
        assert len(table) == 1


@pytest.mark.parametrize("generation", [-1, 0, 4, 5, 7, 2**63])
def test_a_delta_that_does_not_follow_changes_nothing(rng: random.Random, generation: int) -> None:
    mine = known(rng)
    table = Table(build([mine.record], 5))
    with pytest.raises(GenerationGap) as caught:
        table.apply(Delta(generation, gone=(mine.record.id,)))
    assert (caught.value.have, caught.value.got) == (5, generation)
    assert table.check(mine.key, PEPPER, NOW) == mine.record
    assert table.generation == 5


def test_a_delta_with_a_bad_record_changes_nothing(rng: random.Random) -> None:
    mine, bad = known(rng), known(rng, id=KeyId("short"))
    table = Table(build([mine.record], 5))
    with pytest.raises(ValueError, match="not a record"):
        table.apply(Delta(6, (known(rng).record, bad.record), (mine.record.id,)))
    assert (len(table), table.generation) == (1, 5)
    assert table.check(mine.key, PEPPER, NOW) == mine.record


def test_a_delta_crosses_a_process_unchanged(rng: random.Random) -> None:
    delta = Delta(2, (known(rng).record, known(rng, foreign=True, expires=5).record), (KeyId("0123456789"),))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(delta), type=Delta) == delta
    assert "digest" not in repr(delta)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(), size=st.integers(0, 60), steps=st.integers(0, 6))
def test_the_table_equals_a_plain_dict(seed: int, size: int, steps: int) -> None:
    rng = random.Random(seed)

    def anyone() -> Known:
        return known(
            rng,
            foreign=rng.random() < 0.4,
            state=rng.choice(list(State)),
            not_before=rng.choice([0, int(NOW) + 9]),
            expires=rng.choice([None, 5, int(NOW) + 9]),
            name="n" * rng.randrange(200),
        )

    holders = [anyone() for _ in range(size)]
    model = {holder.record.id: holder.record for holder in holders}
    table = Table(build(model.values(), 10))
    for step in range(steps + 1):
        for holder in holders:
            record = model.get(holder.record.id)
            fits = record is not None and record.digest == holder.record.digest
            assert table.get(holder.record.id) == record
            assert table.check(holder.key, PEPPER, NOW) == (
                verdict(record, NOW) if record is not None and fits else BAD_CREDENTIAL
            )
        assert (len(table), table.generation) == (len(model), 10 + step)
        fresh = [anyone() for _ in range(rng.randrange(4))]
        altered = [
            msgspec.structs.replace(record, state=rng.choice(list(State)), plan="other")
            for record in rng.sample(sorted(model.values(), key=lambda r: r.id), min(len(model), rng.randrange(4)))
        ]
        kept = {record.id for record in altered}
        gone = [key_id for key_id in sorted(model) if key_id not in kept and rng.random() < 0.1]
        table.apply(Delta(11 + step, (*altered, *(f.record for f in fresh)), tuple(gone)))
        holders += fresh
        model |= {record.id: record for record in altered} | {f.record.id: f.record for f in fresh}
        for key_id in gone:
            del model[key_id]


# --- the buffer -------------------------------------------------------------------------------------------------


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("keys")
    yield fd
    os.close(fd)


def test_a_worker_reads_the_table_from_a_shared_mapping(rng: random.Random, memfd: int) -> None:
    holders = [known(rng, foreign=i % 3 == 0) for i in range(500)]
    with os.fdopen(os.dup(memfd), "w+b") as out:
        write((holder.record for holder in holders), 4, out)
    with mmap.mmap(memfd, 0, prot=mmap.PROT_READ) as mapping:
        table = Table(mapping)
        for holder in holders:
            assert table.check(holder.key, PEPPER, NOW) == holder.record
            assert table.get(holder.record.id) == holder.record
        for _ in range(500):
            assert table.check(known(rng).key, PEPPER, NOW) is BAD_CREDENTIAL


WHOLE = build([known(random.Random(1)).record], 1)


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        pytest.param(b"", "shorter", id="empty"),
        pytest.param(WHOLE[:50], "shorter", id="half a header"),
        pytest.param(WHOLE[:-1], "bytes instead of", id="cut"),
        pytest.param(WHOLE + b"\0", "bytes instead of", id="grown"),
        pytest.param(b"X" + WHOLE[1:], "magic", id="magic"),
        pytest.param(WHOLE[:8] + b"\x63" + WHOLE[9:], "version", id="version"),
        pytest.param(WHOLE[:12] + b"\0\0\0\0" + WHOLE[16:], "checksum", id="checksum"),
        pytest.param(WHOLE[:16] + b"\x63" + WHOLE[17:], "checksum", id="generation"),
        pytest.param(bytes(len(WHOLE)), "magic", id="zeros"),
    ],
)
def test_a_damaged_buffer_is_refused(damaged: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Table(damaged)


@pytest.mark.parametrize(
    "fields", [{"id": KeyId("")}, {"id": KeyId("elevenchars")}, {"digest": b"short"}, {"name": "n" * 2**24}]
)
def test_what_cannot_be_found_again_is_not_put_in(rng: random.Random, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a record for the table"):
        build([known(rng, **fields).record], 1)


def test_two_marks_that_are_alike_hide_nobody(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_mark_of_id", lambda _: 0x0101010101010101)  # also matches at every misaligned place
    holders = [known(rng) for _ in range(9)]
    table = Table(build([holder.record for holder in holders], 1))
    for holder in holders:
        assert table.check(holder.key, PEPPER, NOW) == holder.record
    stranger = known(rng)
    assert public_id(stranger.key) == stranger.record.id.encode()
    assert table.check(stranger.key, PEPPER, NOW) is BAD_CREDENTIAL
