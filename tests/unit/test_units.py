import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.configuration.units import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("512M", 512 * 2**20),
        ("1.5G", 3 * 2**29),
        ("64KiB", 65536),
        ("64kb", 65536),
        (" 2 T ", 2**41),
        ("0", 0),
        (4096, 4096),
    ],
)
def test_sizes_are_powers_of_1024(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "M", "-1", -1, "1P", "0.3", "1e9", "\u0661M", "5 12M", "9" * 16, "8388608T", True]
)
def test_what_is_no_size_is_refused(text: str | int) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_bytes(text)


@given(st.integers(0, 2**62))
def test_formatting_loses_nothing(count: int) -> None:
    if count < 10**15:
        assert parse_bytes(format_bytes(count)) == count


@given(st.text())
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_bytes(text) >= 0
