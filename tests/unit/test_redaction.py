"""Secrets in what a worker prints: never a value, nor the beginning of one that was cut."""

from hypothesis import given
from hypothesis import strategies as st

from vsm.core.redaction import LEAST_BYTES, Redactor

VALUES = st.text("abcdefgh0123", min_size=LEAST_BYTES, max_size=20)


def test_values_are_replaced_by_their_names() -> None:
    redactor = Redactor({"KEY": "hunter2-hunter2", "LONG": "hunter2-hunter2-more", "PIN": "1234"})
    assert redactor.line(b"is hunter2-hunter2-more or hunter2-hunter2?") == b"is [LONG] or [KEY]?"
    assert redactor.line(b"pin 1234") == b"pin 1234"  # too short to be told from text


def test_each_line_of_a_value_is_one() -> None:
    redactor = Redactor({"PEM": "-----BEGIN-----\nabcdefghij\n-----END-----\n"})
    assert redactor.line(b"abcdefghij") == b"[PEM]"


@given(
    st.dictionaries(st.sampled_from(["A", "B", "C"]), VALUES, max_size=3), st.binary(), st.binary()
)
def test_no_value_is_left_in_a_line(secrets: dict[str, str], before: bytes, after: bytes) -> None:
    redactor = Redactor(secrets)
    for value in secrets.values():
        assert value.encode() not in redactor.line(before + value.encode() + after)


@given(VALUES, st.binary(max_size=30), st.integers(LEAST_BYTES, 20))
def test_no_beginning_of_a_value_is_left_at_a_cut(value: str, before: bytes, length: int) -> None:
    part = value.encode()[:length]
    found = Redactor({"K": value}).cut(before + part)
    assert not found.endswith(part)
    assert found.endswith(b"[K]")
