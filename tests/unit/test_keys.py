"""A key's format, its digest, and what must never be seen of either."""

import copy
import json
import os
import pickle
import random
from io import StringIO

import msgspec
import pytest
from hypothesis import given, strategies as st
from rich.console import Console

from dgproxy.access.keys import (
    MAX_KEY_LENGTH,
    KeyId,
    Minted,
    Pepper,
    Record,
    State,
    checksum_ok,
    is_foreign,
    mint,
    public_id,
)
from dgproxy.config import Overrides

KNOWN = b"dgp_0123456789_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef2wvCp2"
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def record(digest: bytes) -> Record:
    return Record(
        id=KeyId("0123456789"),
        digest=digest,
        name="n",
        pepper_id="00000000",
        plan="default",
        overrides=Overrides(),
        state=State.ACTIVE,
        created=0,
        not_before=0,
        expires=None,
        foreign=False,
    )


def test_a_minted_key_is_prefix_id_secret_and_checksum() -> None:
    minted = mint(os.urandom)
    prefix, public, rest = minted.key.split("_")
    assert (prefix, public, len(public), len(rest)) == ("dgp", minted.id, 10, 38)
    assert set(public + rest) <= set(BASE62)
    assert public_id(minted.key.encode()) == minted.id.encode()
    assert checksum_ok(minted.key.encode())


def test_a_known_key_keeps_its_checksum() -> None:
    drawn = iter(bytes(range(42)))
    minted = mint(lambda n: bytes(next(drawn) for _ in range(n)))
    assert minted.key == KNOWN.decode()


def test_no_letter_of_a_key_is_likelier_than_another() -> None:
    offered = iter(bytes(range(256)) * 3)
    drawn: list[int] = []

    def random_bytes(n: int) -> bytes:
        drawn.extend(taken := [next(offered) for _ in range(n)])
        return bytes(taken)

    letters = ""
    while len(drawn) < 600:
        _, public, secret = mint(random_bytes).key.split("_")
        letters += public + secret[:-6]
    # of 256 values 248 are used, 4 for each letter; what is drawn beyond is drawn again
    assert letters == "".join(BASE62[byte % 62] for byte in drawn if byte < 248)


@given(st.data())
def test_one_wrong_letter_breaks_the_checksum(data: st.DataObject) -> None:
    key = mint(random.Random(data.draw(st.integers(0, 1 << 64))).randbytes).key
    at = data.draw(st.integers(4, len(key) - 1).filter(lambda i: key[i] != "_"))
    other = data.draw(st.sampled_from(BASE62).filter(lambda letter: letter != key[at]))
    wrong = (key[:at] + other + key[at + 1 :]).encode()
    assert public_id(wrong) is not None
    assert not checksum_ok(wrong)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(b"", id="empty"),
        pytest.param(KNOWN + b"A", id="C2 one more"),
        pytest.param(KNOWN[:-1], id="C2 one less"),
        pytest.param(KNOWN + b"\n", id="line end"),
        pytest.param(b" " + KNOWN, id="space before"),
        pytest.param(b"DGP_" + KNOWN[4:], id="other case"),
        pytest.param(KNOWN[:14] + b"-" + KNOWN[15:], id="other separator"),
        pytest.param(KNOWN[:20] + b"_" + KNOWN[21:], id="separator in the secret"),
        pytest.param(KNOWN[:20] + b"\xc3\xa9" + KNOWN[22:], id="not ASCII"),
    ],
)
def test_another_shape_has_no_public_id(key: bytes) -> None:
    assert public_id(KNOWN) == b"0123456789"
    assert public_id(key) is None
    assert not checksum_ok(key)


@pytest.mark.parametrize(
    ("key", "foreign"),
    [
        (b"x" * 19, False),
        (b"x" * 20, True),
        (b"x" * MAX_KEY_LENGTH, True),
        (b"x" * (MAX_KEY_LENGTH + 1), False),
        (b"abc!#$%&'*+-.^_`|~0123", True),
        (b"has a space in its middle", False),
        (b"comma,comma,comma,comma", False),
        (b"x" * 19 + b"\n", False),
        (b"x" * 20 + b"\n", False),
        (b"dgp_not_of_our_own_shape", True),
        (KNOWN, False),
        (KNOWN[:-6] + b"000000", False),
    ],
)
def test_foreign_keys_are_20_to_512_token_characters_of_another_shape(key: bytes, *, foreign: bool) -> None:
    assert is_foreign(key) is foreign


def test_a_digest_depends_on_key_and_pepper() -> None:
    one, two = Pepper(b"1" * 32), Pepper(b"2" * 32)
    assert len({one.digest(b"a"), one.digest(b"b"), two.digest(b"a"), two.digest(b"b")}) == 4
    assert one.digest(b"a") == Pepper(b"1" * 32).digest(b"a")
    assert len(one.digest(b"a")) == 32


def test_a_pepper_is_known_by_an_id_that_is_not_part_of_it() -> None:
    secret = os.urandom(32)
    pepper = Pepper(secret)
    assert pepper.id == Pepper(secret).id != Pepper(os.urandom(32)).id
    assert len(pepper.id) == 8
    assert pepper.id not in secret.hex()
    assert pepper.expose() == secret


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_pepper_of_another_size_is_refused_without_showing_it(length: int) -> None:
    with pytest.raises(ValueError, match=f"this one has {length}") as caught:
        Pepper(b"S" * length)
    assert "S" not in str(caught.value)


def test_a_pepper_leaves_only_by_expose() -> None:
    pepper = Pepper(b"0123456789abcdef0123456789abcdef")
    for text in (repr(pepper), str(pepper), f"{pepper}"):
        assert text == f"<Pepper {pepper.id}>"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy, msgspec.msgpack.encode, msgspec.json.encode, json.dumps):
        with pytest.raises(TypeError):
            leak(pepper)
    with pytest.raises(TypeError):
        vars(pepper)


def test_a_minted_key_is_not_in_its_repr() -> None:
    minted = Minted(KeyId("0123456789"), "dgp_0123456789_secret")
    assert "secret" not in repr(minted)


def test_a_digest_is_not_in_a_records_repr_nor_in_a_rich_traceback() -> None:
    shown = record(digest=b"SECRETSECRETSECRETSECRETSECRETSE")
    out = StringIO()
    Console(file=out).print(shown, [shown])
    assert "SECRET" not in repr(shown) + f"{shown}" + out.getvalue()
    assert "0123456789" in repr(shown)
    assert "0123456789" in out.getvalue()
