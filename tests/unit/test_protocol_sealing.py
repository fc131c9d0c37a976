"""Sealed state: only what was closed with this key, unchanged and in time, opens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.protocol.sealing import Seal, SealError

KEY = b"k" * 32


@given(st.binary(max_size=200), st.floats(min_value=1, max_value=1e9))
def test_what_was_closed_opens_until_it_expires(payload: bytes, expires_at: float) -> None:
    token = Seal(KEY).close(payload, expires_at)
    assert Seal(KEY).open(token, expires_at - 0.5) == payload
    with pytest.raises(SealError, match="expired"):
        Seal(KEY).open(token, expires_at)


@given(st.binary(max_size=60), st.data())
def test_any_change_of_a_character_is_noticed(payload: bytes, data: st.DataObject) -> None:
    token = Seal(KEY).close(payload, 10.0)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda c: c != token[at]))
    changed = token[:at] + other + token[at + 1 :]
    with pytest.raises(SealError):
        Seal(KEY).open(changed, 0.0)


@pytest.mark.parametrize("length", range(12))
def test_no_other_spelling_of_a_token_and_no_part_of_one_is_good(length: int) -> None:
    token = Seal(KEY).close(bytes(range(0xF0, 0xF0 + length)), 10.0)
    plain = token.replace("-", "+").replace("_", "/")
    spellings = {token.rstrip("="), token + "=", token + "\n", " " + token, token.swapcase(), plain}
    spellings |= {token[:at] for at in range(len(token))} | {token + token, token + token[5:]}
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    at = len(token.rstrip("=")) - 1
    spellings |= {token[:at] + char + token[at + 1 :] for char in alphabet}
    for changed in spellings - {token}:
        with pytest.raises(SealError):
            Seal(KEY).open(changed, 0.0)
    assert Seal(KEY).open(token, 0.0) == bytes(range(0xF0, 0xF0 + length))


@given(st.text(max_size=600))
def test_foreign_text_is_refused(text: str) -> None:
    with pytest.raises(SealError):
        Seal(KEY).open(text, 0.0)


def test_another_runs_token_is_refused() -> None:
    with pytest.raises(SealError, match="started again"):
        Seal().open(Seal().close(b"x", 10.0), 0.0)
